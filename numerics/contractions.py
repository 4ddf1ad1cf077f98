"""Products of tensors and convolutions as products of stacks of matrices."""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Matrices(NamedTuple):
  """A contraction as a product.

  Attributes:
    lhs: [batch, m, k].
    rhs: [batch, k, n].
    restore: Gives the product, [batch, m, n], the shape of the contraction.
  """

  lhs: jax.Array
  rhs: jax.Array
  restore: Callable[[jax.Array], jax.Array]


def of(
  primitive: str, lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]
) -> Matrices:
  """The product that a `dot_general` or a `conv_general_dilated` is."""
  make = of_dot if primitive == 'dot_general' else of_convolution
  return make(lhs, rhs, params)


def of_dot(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> Matrices:
  """The product that a `dot_general` is."""
  (left, right), (left_batch, right_batch) = params['dimension_numbers']
  left_free = _others(lhs.ndim, left, left_batch)
  right_free = _others(rhs.ndim, right, right_batch)
  batch = [lhs.shape[i] for i in left_batch]
  rows = [lhs.shape[i] for i in left_free]
  columns = [rhs.shape[i] for i in right_free]
  length = math.prod(lhs.shape[i] for i in left)
  stacked = math.prod(batch)
  return Matrices(
    lhs.transpose(*left_batch, *left_free, *left).reshape(
      stacked, math.prod(rows), length
    ),
    rhs.transpose(*right_batch, *right, *right_free).reshape(
      stacked, length, math.prod(columns)
    ),
    lambda product: product.reshape(*batch, *rows, *columns),
  )


def _others(ndim: int, *groups: tuple[int, ...]) -> list[int]:
  taken = {axis for group in groups for axis in group}
  return [axis for axis in range(ndim) if axis not in taken]


def of_convolution(
  lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]
) -> Matrices:
  """The product that a `conv_general_dilated` is: of patches and the kernel."""
  numbers = params['dimension_numbers']
  strides = params['window_strides']
  groups = params['feature_group_count']
  batch_groups = params['batch_group_count']
  image = lhs.transpose(numbers.lhs_spec)  # Batch, features, space.
  kernel = rhs.transpose(numbers.rhs_spec)  # Outputs, features, space.
  widths = [
    (low, high, dilation - 1)
    for (low, high), dilation in zip(
      params['padding'], params['lhs_dilation'], strict=True
    )
  ]
  image = jax.lax.pad(
    image, np.zeros((), image.dtype), [(0, 0, 0), (0, 0, 0), *widths]
  )
  batch, features, *space = image.shape
  outputs, _, *window = kernel.shape
  spread = params['rhs_dilation']
  reach = [(size - 1) * step for size, step in zip(window, spread, strict=True)]
  results = [
    max(0, (size - far - 1) // stride + 1)
    for size, far, stride in zip(space, reach, strides, strict=True)
  ]
  patches = [
    jax.lax.slice(
      image,
      (0, 0, *start),
      (
        batch,
        features,
        *(
          first + (count - 1) * stride + 1 if count else first
          for first, count, stride in zip(start, results, strides, strict=True)
        ),
      ),
      (1, 1, *strides),
    )
    for start in (
      [place * step for place, step in zip(each, spread, strict=True)]
      for each in np.ndindex(*window)
    )
  ]
  taps, pixels = math.prod(window), math.prod(results)
  parts = groups * batch_groups  # One of them is 1.
  rows = batch // batch_groups
  left = jnp.stack(patches).reshape(
    taps, batch_groups, rows, groups, features // groups, pixels
  )
  left = left.transpose(1, 3, 2, 5, 0, 4).reshape(parts, rows * pixels, -1)
  right = kernel.reshape(parts, outputs // parts, -1, taps)
  right = right.transpose(0, 3, 2, 1).reshape(parts, -1, outputs // parts)

  def restore(product):
    product = product.reshape(parts, rows, pixels, outputs // parts)
    product = product.transpose(1, 0, 3, 2).reshape(rows, outputs, *results)
    return product.transpose(np.argsort(numbers.out_spec))

  return Matrices(left, right, restore)
