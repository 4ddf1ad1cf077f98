"""From an adapter to the change it makes, and to full parameters."""

from collections.abc import Mapping
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import programs
from merging import tree
from merging.adapters import leaves as leaves_lib

Tree = Any


class LeafAdapter(Protocol):
  """A pytree that stands for the change of one leaf, as `Lora` does."""

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the leaf; raises `ValueError` if its parts do not fit."""
    ...

  def delta(self, base: jax.Array) -> jax.Array:
    """Returns the change of the leaf, in float32 or wider."""
    ...


Adapter = Mapping[str, LeafAdapter]  # By the path of the leaf.


def delta(adapter: Adapter, base: Tree) -> dict[str, jax.Array]:
  """Returns what an adapter changes, for the leaves that it adapts.

  It can be jitted and differentiated in the adapter.

  Args:
    adapter: Such as `init_lora` returns.
    base: Parameters.

  Returns:
    The changes by path, `f32[*shape]`.

  Raises:
    ValueError: The adapter does not fit the base.

  Examples:
    >>> from merging import adapters
    >>> base = {'kernel': jnp.ones((4, 3)), 'bias': jnp.ones(3)}
    >>> adapter = adapters.init_lora(jax.random.key(0), base, rank=2)
    >>> {path: each.shape for path, each in delta(adapter, base).items()}
    {'kernel': (4, 3)}
  """
  flat = tree.flatten(base)
  check_fits('delta', adapter, flat)
  return {path: each.delta(flat[path]) for path, each in adapter.items()}


def apply(base: Tree, adapter: Adapter) -> Tree:
  """Returns the full parameters, `base + delta(adapter, base)`.

  To train an adapter, differentiate a loss of `apply(base, adapter)` in it.

  Args:
    base: Parameters.
    adapter: Such as `init_lora` returns.

  Returns:
    The parameters, with the structure and dtypes of `base`; what is adapted is
    added in float32 and rounded once.

  Raises:
    ValueError: The adapter does not fit the base.

  Examples:
    >>> from merging import adapters
    >>> base = {'kernel': jnp.eye(2)}
    >>> adapter = {'kernel': adapters.Lora(jnp.ones((2, 1)), jnp.ones((1, 2)))}
    >>> apply(base, adapter)['kernel'].tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    >>> def loss(adapter, x):
    ...   return jnp.sum(x @ apply(base, adapter)['kernel'])
    >>> jax.grad(loss)(adapter, jnp.ones((1, 2)))['kernel'].b.tolist()
    [[2.0, 2.0]]
  """
  flat = tree.flatten(base)
  check_fits('apply', adapter, flat)
  changed = {
    path: moved(flat[path], each.delta(flat[path]))
    for path, each in adapter.items()
  }
  return tree.unflatten({**flat, **changed}, like=base)


def moved(leaf: jax.Array, change: jax.Array) -> jax.Array:
  """Returns a leaf plus its change, rounded once to the dtype of the leaf."""
  return (leaves_lib.widened(leaf) + change).astype(leaf.dtype)


def check_fits(
  caller: str, adapter: Adapter, base: Mapping[str, Any], name: str = ''
) -> None:
  """Checks that an adapter is one of this base.

  Args:
    caller: Name for error messages.
    adapter: The adapter.
    base: The leaves of the base by path.
    name: Of the expert, for error messages.

  Raises:
    ValueError: Lists the leaves that do not fit.
    TypeError: The adapter is not a mapping of such.
  """
  who = f'{name!r} ' if name else ''
  if not isinstance(adapter, Mapping):
    raise TypeError(
      f'{caller}: the adapter {who}is a {type(adapter).__name__}, expected a '
      "mapping from paths, such as {'block/kernel': Lora(...)}"
    )
  problems = []
  for path, each in adapter.items():
    if not hasattr(each, 'delta'):
      raise TypeError(
        f'{caller}: the adapter {who}at {path!r} is a {type(each).__name__}, '
        'expected one such as Lora'
      )
    problem = _problem(path, each, base)
    if problem:
      problems.append(f'{who}at {path!r}: {problem}')
  if problems:
    raise ValueError(
      f'{caller}: the adapter does not fit the base:\n' + '\n'.join(problems)
    )


def _problem(path, each, base):
  if path not in base:
    return f'not in base{patterns.suggest(path, base)}'
  if not tree.is_float(base[path]):
    return f'the leaf is {jnp.result_type(base[path])}, not floating-point'
  try:
    shape = each.shape
  except ValueError as error:
    return str(error)
  expected = np.shape(base[path])
  if shape != expected:
    hint = ''
    if shape[:-2] == expected[:-2] and shape[-2:] == expected[-2:][::-1]:
      hint = '; the layout may be the other one'
    return f'for shape {shape}, expected {expected}{hint}'
  return None


def check_finite(caller: str, adapters: Mapping[str, Adapter]) -> None:
  """Checks that adapters hold no NaN or infinity; tracers are not looked at.

  Raises:
    ValueError: Lists the leaves that do.
  """
  verdicts = {}  # All are collected, then fetched from the device at once.
  for name, adapter in adapters.items():
    for path, each in adapter.items():
      values = tuple(jax.tree.leaves(each))
      if not any(isinstance(value, jax.core.Tracer) for value in values):
        with jax.ensure_compile_time_eval():
          verdicts[name, path] = programs.all_finite(values)
  problems = [
    f'{name!r} at {path!r}'
    for (name, path), good in jax.device_get(verdicts).items()
    if not good.all()
  ]
  if problems:
    raise ValueError(
      f'{caller}: an adapter holds a NaN or an infinity: ' + ', '.join(problems)
    )
