"""Multiplying changes by coefficients."""

from collections.abc import Mapping
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import transform


def scale(factor: float | jax.Array) -> transform.MergeTransform:
  """Multiplies all deltas by one scaling coefficient, `factor * delta`.

  Args:
    factor: The coefficient, a number or `f32[]`.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> transform = merging.chain(merging.total(), merging.scale(0.5))
    >>> base, expert = {'w': jnp.zeros(2)}, {'w': jnp.array([1.0, 2.0])}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [0.5, 1.0]
  """
  if jnp.ndim(factor):
    raise ValueError(
      f'scale: the factor has shape {jnp.shape(factor)}, expected one number; '
      'weigh() takes one for each expert'
    )
  return transform.map_deltas(_multiply, factor, entrywise=True)


def _multiply(delta, factor):
  return jnp.asarray(factor, delta.dtype) * delta


def weigh(
  weights: Mapping[str, float | jax.Array] | Sequence[float] | jax.Array,
) -> transform.MergeTransform:
  """Multiplies each expert's deltas by its own coefficient.

  Args:
    weights: Coefficients by the name of the expert, or `f32[models]` in the
      order of the sorted names.

  Returns:
    The transform. Its `init` raises `ValueError` if weights and experts differ.

  Examples:
    >>> import merging
    >>> transform = merging.chain(
    ...   merging.weigh({'math': 0.5, 'code': -1.0}), merging.total()
    ... )
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': jnp.ones(2)}}
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [-0.5, -0.5]
  """
  return transform.MergeTransform(
    init=lambda specs, models: per_model('weigh', weights, models),
    observers=(),
    update=_weigh,
    entrywise=transform.always,
  )


def _weigh(leaf, weights, **extra):
  if len(leaf.deltas) != len(weights):
    raise ValueError(
      f'weigh: {len(weights)} weights for {len(leaf.deltas)} deltas; weigh the '
      'experts before they are combined'
    )
  deltas = map(_multiply, leaf.deltas, jnp.asarray(weights))
  return leaf._replace(deltas=tuple(deltas))


def per_model(
  caller: str,
  values: Mapping[str, float | jax.Array] | Sequence[float] | jax.Array,
  models: transform.Models,
) -> jax.Array | np.ndarray:
  """Returns one number per expert, `f32[models]`, from names or an array.

  Args:
    caller: Name for error messages.
    values: Numbers by name, or in the order of the sorted names.
    models: Sorted names of the experts.

  Returns:
    The numbers, in the order of `models`; a NumPy array of Python's numbers.

  Raises:
    ValueError: Names are missing or unknown, or the shape is not `[models]`.

  Examples:
    >>> per_model('weigh', {'b': 2.0, 'a': 1.0}, ('a', 'b')).tolist()
    [1.0, 2.0]
  """
  if isinstance(values, Mapping):
    for name in values:
      if name not in models:
        raise ValueError(
          f'{caller}: no expert is named {name!r}; the experts are '
          f'{patterns.listing(models)}{patterns.suggest(name, models)}'
        )
    missing = [name for name in models if name not in values]
    if missing:
      raise ValueError(
        f'{caller}: no value for {patterns.listing(missing)}; use 0 to leave '
        'an expert out'
      )
    return _stack([values[name] for name in models])
  array = (
    _stack(values)
    if isinstance(values, Sequence)
    else jnp.asarray(values, float)
  )
  if array.shape != (len(models),):
    raise ValueError(
      f'{caller}: values of shape {array.shape}, expected ({len(models)},) '
      f'for the experts {patterns.listing(models)}'
    )
  return array


def _stack(values):
  # Of Python's numbers NumPy makes an array a thousand times as fast.
  kind = jnp.result_type(float)
  if not any(isinstance(each, jax.Array) for each in values):
    return np.asarray(values, kind)
  return jnp.stack([jnp.asarray(each, kind) for each in values])
