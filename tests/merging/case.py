"""What the table of merges knows of each."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np

import merging
from tests.merging import fixtures

Taus = dict[str, dict[str, np.ndarray]]  # Task vectors by expert, by path.


@dataclasses.dataclass(frozen=True)
class Merge:
  """A method under test.

  Attributes:
    name: Of the test.
    make: Returns the transform.
    oracle: `taus -> merged tau`, literal NumPy written from the formula; or,
      if `of_models`, `(base, experts) -> merged parameters`; all by path.
    of_models: Whether the method is one of parameters, not of task vectors.
    names: Of the experts it merges.
    extra: From the base to further keyword arguments for `merge`.
    vary: Returns the transform for a hyper-parameter that may be a tracer.
    values: Hyper-parameters to try `vary` at.
    atol: Difference allowed to the oracle.
    sharded: Relative difference allowed to a sharded merge, and to one that
      sweeps leaves in another order: 0, unless the method adds floats across a
      leaf or the model, in an order that these change.
    compiled: Relative difference allowed between a merge inside a larger
      program and the same merge leaf by leaf: 0, unless XLA may order its sums
      of products otherwise there.
    still: Difference allowed to the base if all experts equal it.
    variant: Whether this is an option or a composition of methods that are
      other rows, which fast tests only compare with the oracle.
    kinds: Kinds of models for which the oracle is unique. A singular vector of
      a repeated singular value is not, as those of a 'lattice' often are.
  """

  name: str
  make: Callable[[], merging.MergeTransform]
  oracle: Callable[..., dict[str, np.ndarray]]
  of_models: bool = False
  names: tuple[str, ...] = fixtures.NAMES
  extra: Callable[[Any], dict[str, Any]] = lambda base: {}
  vary: Callable[[Any], merging.MergeTransform] | None = None
  values: tuple[float, ...] = (0.25, 0.5)
  atol: float = 2e-6
  sharded: float = 0.0
  compiled: float = 0.0
  still: float = 0.0
  variant: bool = False
  kinds: tuple[str, ...] = ('generic', 'lattice')

  def models(self, kind: str = 'generic', **settings: Any) -> Any:
    """A base and the experts by name, with every awkward leaf."""
    return fixtures.models(kind, names=self.names, **settings)

  def small(self, *leaves: str, **settings: Any) -> Any:
    """The same with some leaves only, to compile less."""
    leaves = leaves or ('bias', 'wide')
    return fixtures.part(*self.models(**settings), *leaves)

  def alike(self, **settings: Any) -> Any:
    """Two leaves of one shape, for which one program is compiled."""
    return jax.tree.map(
      lambda params: {'bias': params['wide'][::-1], **params},
      self.small('wide', **settings),
      is_leaf=lambda x: 'wide' in x,
    )

  def sharded_models(self) -> Any:
    """Leaves of several shapes that eight devices can share."""
    return fixtures.rename(*self.small('tall', 'wide'), tall='bias')
