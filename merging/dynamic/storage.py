"""What bundles of experts store, how much of it, and for whom."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import tree


class Storage(NamedTuple):
  """Bytes that a bundle of experts takes.

  Attributes:
    parameters: Number of floating-point parameters of one expert.
    experts: Number of experts.
    shared: Bytes of what all experts share, besides the base.
    each: Bytes of what one expert has for itself.
  """

  parameters: int
  experts: int
  shared: int
  each: int

  @property
  def total(self) -> int:
    """Bytes of the bundle."""
    return self.shared + self.experts * self.each

  @property
  def bits_per_parameter(self) -> float:
    """Bits that one more expert costs for each of its parameters."""
    return 8 * self.each / self.parameters


def num_bytes(arrays: Iterable[jax.Array]) -> int:
  """Returns the bytes of arrays, which may be traced.

  Examples:
    >>> num_bytes([jnp.zeros((2, 3)), jnp.zeros(5, jnp.uint8)])
    29
  """
  return sum(np.size(x) * x.dtype.itemsize for x in arrays)


def index_of(caller: str, name: str, names: tuple[str, ...]) -> int:
  """Returns the place of an expert, or raises `ValueError` with the names."""
  if name not in names:
    raise ValueError(
      f'{caller}: no expert is named {name!r}; the experts are '
      f'{patterns.listing(names)}{patterns.suggest(name, names)}'
    )
  return names.index(name)


def check_base(
  flat: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]]
) -> None:
  """Checks that a base is the one of a bundle.

  Args:
    flat: Leaves of the base by path.
    stored: Shapes by path that the bundle holds, of floating leaves.

  Raises:
    ValueError: Lists the paths that one of the two lacks, or of other shape.
  """
  shapes = {k: np.shape(x) for k, x in flat.items() if tree.is_float(x)}
  odd = sorted(path for path, _ in shapes.items() ^ dict(stored).items())
  if odd:
    raise ValueError(
      'restore: the base is not the one of the bundle; it differs at '
      f'{patterns.listing(dict.fromkeys(odd))}'
    )


def widened(x: jax.Array) -> jax.Array:
  """Returns the array in float32, or as it is if that is wider."""
  return x if x.dtype.itemsize > 4 else x.astype(jnp.float32)
