"""Groups of neighbours along an axis, which share a scale."""

import operator

import jax
import jax.numpy as jnp
import numpy as np


def checked_axis(function: str, axis: object, ndim: int) -> int:
  """Returns an axis that there is, counted from the first.

  Raises:
    TypeError: If it is not a single one.
    ValueError: If the array has no such axis.
  """
  try:
    place = operator.index(axis)  # type: ignore[arg-type]
  except TypeError:
    raise TypeError(
      f'{function}: groups lie along one axis, so axis must be an int; got'
      f' {axis!r}.'
    ) from None
  if not -ndim <= place < ndim:
    raise ValueError(
      f'{function}: axis {place} is out of bounds for an array of {ndim}'
      ' dimensions.'
    )
  return place % ndim


def split(x: jax.Array, axis: int, size: int) -> jax.Array:
  """Splits an axis into groups and places in a group, with zeros at its end.

  Every row has groups of its own: none begins in one row and ends in the next.

  Args:
    x: Of any shape.
    axis: From 0 on.
    size: Of a group.

  Returns:
    `[..., groups, size, ...]`.
  """
  length = x.shape[axis]
  groups = -(-length // size)
  widths = [(0, 0, 0)] * x.ndim
  widths[axis] = (0, groups * size - length, 0)
  padded = jax.lax.pad(x, np.zeros((), x.dtype), widths)
  return padded.reshape(*x.shape[:axis], groups, size, *x.shape[axis + 1 :])


def join(x: jax.Array, axis: int, length: int) -> jax.Array:
  """Puts together what `split` took apart."""
  groups, size = x.shape[axis : axis + 2]
  whole = x.reshape(*x.shape[:axis], groups * size, *x.shape[axis + 2 :])
  return jax.lax.slice_in_dim(whole, 0, length, axis=axis)


def spread(x: jax.Array, axis: int, size: int, length: int) -> jax.Array:
  """Repeats what every group has one of for each of its places."""
  return join(
    jnp.repeat(jnp.expand_dims(x, axis + 1), size, axis + 1), axis, length
  )
