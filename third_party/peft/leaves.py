"""Changes of a leaf that PEFT stores beside low-rank ones."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from merging.adapters import dense


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('value', 'inner'),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Replaced:
  """A leaf that the adapter stores whole.

      change = value + inner(value) - base

  Attributes:
    value: In place of the leaf, `[*shape]`.
    inner: What changes it further, such as the `Lora` of an embedding that was
      stored with it, or `None`.
  """

  value: jax.Array
  inner: dense.LeafAdapter | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the leaf; raises `ValueError` if `inner` has another."""
    shape = tuple(self.value.shape)
    if self.inner is not None and self.inner.shape != shape:
      raise ValueError(f'a change of {self.inner.shape} for a leaf {shape}')
    return shape

  def delta(self, base: jax.Array) -> jax.Array:
    """Returns the change of the leaf.

    Args:
      base: The leaf, `[*shape]`.

    Returns:
      The change, `f32[*shape]`.

    Examples:
      >>> Replaced(jnp.full(2, 3.0)).delta(jnp.ones(2)).tolist()
      [2.0, 2.0]
    """
    wide = jnp.promote_types(base.dtype, jnp.float32)
    value = jnp.asarray(self.value, wide)
    change = value - jnp.asarray(base, wide)
    return change if self.inner is None else change + self.inner.delta(value)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('change',),
  meta_fields=('scale',),
)
@dataclasses.dataclass(frozen=True)
class Added:
  """A leaf to which the adapter adds a stored array.

      change = scale · change

  Attributes:
    change: `[*shape]`.
    scale: Static.
  """

  change: jax.Array
  scale: float = 1.0

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the leaf."""
    return tuple(self.change.shape)

  def delta(self, base: jax.Array) -> jax.Array:
    """Returns the change of the leaf, `f32[*shape]`.

    Examples:
      >>> Added(jnp.ones(2), scale=0.5).delta(jnp.zeros(2)).tolist()
      [0.5, 0.5]
    """
    wide = jnp.promote_types(base.dtype, jnp.float32)
    return self.scale * jnp.asarray(self.change, wide)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('inner',),
  meta_fields=('leaf_shape',),
)
@dataclasses.dataclass(frozen=True)
class Kernel:
  """The adapter of a convolution: that of its kernel as a matrix.

  A kernel `[out, in, *window]` is the matrix `[out, in · prod(window)]`.

  Attributes:
    inner: The adapter of the matrix.
    leaf_shape: Shape of the kernel; static.
  """

  inner: dense.LeafAdapter
  leaf_shape: tuple[int, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the leaf; raises `ValueError` if `inner` is of another size."""
    rows = self.leaf_shape[0]
    matrix = (rows, math.prod(self.leaf_shape[1:]))
    if self.inner.shape != matrix:
      raise ValueError(f'{self.inner.shape} for a kernel {self.leaf_shape}')
    return self.leaf_shape

  def delta(self, base: jax.Array) -> jax.Array:
    """Returns the change of the leaf, `f32[*shape]`.

    Examples:
      >>> kernel = Kernel(Added(jnp.ones((2, 6))), (2, 3, 2))
      >>> kernel.delta(jnp.zeros((2, 3, 2))).shape
      (2, 3, 2)
    """
    return self.inner.delta(base.reshape(len(base), -1)).reshape(base.shape)
