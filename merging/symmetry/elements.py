"""Changes of basis: drawing them, composing them, applying them to a model."""

from collections.abc import Mapping
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import draws
from merging import patterns
from merging import tree
from merging.symmetry import spec as spec_lib


class Monomial(NamedTuple):
  """A permutation of channels, and a scaling after it.

  Channel `c` becomes `scale[c] v[order[c]]`, and in a dual leaf
  `v[order[c]] / scale[c]`.

  Attributes:
    order: Where each channel comes from, `i32[heads, size]`.
    scale: Positive factors, `f32[heads, size]`; `None` for ones.
  """

  order: jax.Array
  scale: jax.Array | None = None


class Rotary(NamedTuple):
  """A rotation and a scaling of each pair of channels.

  A pair `(x, y)`, as the complex number `x + iy`, is multiplied by a factor; in
  a dual leaf, it is divided by the conjugate of the factor.

  Attributes:
    factor: Real and imaginary parts, `f32[heads, size / 2, 2]`.
  """

  factor: jax.Array


class Linear(NamedTuple):
  """An invertible matrix, kept with its inverse, which is never computed.

  The channels of a head, a row vector, become `v @ matrix`, and in a dual leaf
  `v @ inverse.T`.

  Attributes:
    matrix: `f32[heads, size, size]`.
    inverse: `f32[heads, size, size]`.
  """

  matrix: jax.Array
  inverse: jax.Array


Element = Monomial | Rotary | Linear
Elements = Mapping[str, Element]


def transform(
  params: tree.Tree, spec: spec_lib.Spec, elements: Elements
) -> tree.Tree:
  """Changes the basis of hidden spaces; the model computes what it did.

  Each leaf is multiplied along the axis that carries the space, in float32, by
  the matrix of the element, or, where it is dual, by its transposed inverse.

  Args:
    params: The model.
    spec: Its spaces by name.
    elements: Elements for some of the spaces.

  Returns:
    The model in the new basis, with the same dtypes.

  Raises:
    ValueError: An element has no space, another shape, or is not in the group
      of its space; or the spec does not fit the model.

  Examples:
    >>> model = {'up': jnp.array([[1.0, 2.0]]), 'down': jnp.array([[3.0], [4]])}
    >>> spec = {'hidden': spec_lib.perceptron(model, ['up'], ['down'])}
    >>> swap = {'hidden': Monomial(jnp.array([[1, 0]]))}
    >>> swapped = transform(model, spec, swap)
    >>> swapped['up'].tolist(), swapped['down'].tolist()
    ([[2.0, 1.0]], [[4.0], [3.0]])
  """
  for name, element in elements.items():
    if name not in spec:
      raise ValueError(
        f'symmetry: no space is named {name!r}; the spaces are '
        f'{patterns.listing(spec)}{patterns.suggest(name, spec)}'
      )
    _check_element(name, spec[name], element)
  spec_lib.check(params, {name: spec[name] for name in elements})
  flat = dict(tree.flatten(params))
  for name, element in elements.items():
    space = spec[name]
    for carrier in space.carriers:
      flat[carrier.path] = _act_on_leaf(
        space, carrier, element, flat[carrier.path]
      )
  return tree.unflatten(flat, like=params)


def _act_on_leaf(space, carrier, element, leaf):
  leaf = jnp.asarray(leaf)
  places = spec_lib.positions(space, carrier)
  last = jnp.moveaxis(leaf, carrier.axis, -1)
  channels = last[..., places].astype(jnp.float32)
  changed = act(element, channels, carrier.dual, space.group)
  last = last.at[..., places].set(changed.astype(leaf.dtype))
  return jnp.moveaxis(last, -1, carrier.axis)


def act(
  element: Element, channels: jax.Array, dual: bool, group: spec_lib.Group
) -> jax.Array:
  """Applies an element to channels, `f32[..., heads, copies, size]`.

  Examples:
    >>> act(
    ...   Monomial(jnp.array([[1, 0]]), jnp.array([[2.0, 2.0]])),
    ...   jnp.array([[[1.0, 3.0]]]),
    ...   dual=False,
    ...   group='scaling',
    ... ).tolist()
    [[[6.0, 2.0]]]
  """
  if isinstance(element, Linear):
    matrix = element.matrix
    if dual:
      matrix = jnp.swapaxes(element.inverse, -1, -2)
    # In full precision, for accelerators round products unless told not to.
    return jnp.einsum(
      '...hrc,hcd->...hrd', channels, matrix, precision='highest'
    )
  if isinstance(element, Rotary):
    return _rotate(element.factor, channels, dual, group)
  order = element.order[:, None]
  order = jnp.broadcast_to(order, (*channels.shape[-3:-1], order.shape[-1]))
  order = order.reshape((1,) * (channels.ndim - 3) + order.shape)
  channels = jnp.take_along_axis(channels, order, axis=-1)
  if element.scale is None:
    return channels
  scale = element.scale[:, None]
  scale = 1 / scale if dual else scale
  return channels * scale.reshape((1,) * (channels.ndim - 3) + scale.shape)


def _rotate(factor, channels, dual, group):
  if dual:
    factor = factor / jnp.sum(factor**2, axis=-1, keepdims=True)
  real, imaginary = pairs(channels, group)
  shape = (1,) * (channels.ndim - 3) + (len(factor), 1, factor.shape[1])
  a, b = (factor[..., i].reshape(shape) for i in range(2))
  return unpair(a * real - b * imaginary, b * real + a * imaginary, group=group)


def pairs(
  channels: jax.Array, group: spec_lib.Group
) -> tuple[jax.Array, jax.Array]:
  """Returns the first and the second of each pair, along the last axis."""
  if group == 'rotary_halves':
    first, second = jnp.split(channels, 2, axis=-1)
    return first, second
  return channels[..., 0::2], channels[..., 1::2]


def unpair(
  first: jax.Array, second: jax.Array, group: spec_lib.Group
) -> jax.Array:
  """The inverse of `pairs`."""
  if group == 'rotary_halves':
    return jnp.concatenate([first, second], axis=-1)
  both = jnp.stack([first, second], axis=-1)
  return both.reshape(*first.shape[:-1], 2 * first.shape[-1])


def compose(first: Elements, second: Elements) -> dict[str, Element]:
  """Returns the elements that do what `first` and then `second` do.

  Args:
    first: Elements by space.
    second: Elements by space; a space that one of the two lacks stays as the
      other has it.

  Returns:
    Elements by space.

  Raises:
    TypeError: A rotary element meets another kind.

  Examples:
    >>> turn = {'hidden': Monomial(jnp.array([[1, 2, 0]]))}
    >>> compose(turn, turn)['hidden'].order.tolist()
    [[2, 0, 1]]
  """
  both = {**first, **second}
  for name in first:
    if name in second:
      both[name] = _compose(name, first[name], second[name])
  return both


def _compose(name, a, b):
  if isinstance(a, Monomial) and isinstance(b, Monomial):
    order = jnp.take_along_axis(a.order, b.order, axis=-1)
    if a.scale is None:
      return Monomial(order, b.scale)
    scale = jnp.take_along_axis(a.scale, b.order, axis=-1)
    return Monomial(order, scale if b.scale is None else scale * b.scale)
  if isinstance(a, Rotary) and isinstance(b, Rotary):
    (u, v), (x, y) = (
      (each.factor[..., 0], each.factor[..., 1]) for each in (a, b)
    )
    return Rotary(jnp.stack([u * x - v * y, u * y + v * x], axis=-1))
  if isinstance(a, Rotary) or isinstance(b, Rotary):
    raise TypeError(
      f'symmetry.compose: {name!r} is a {type(a).__name__} first and a '
      f'{type(b).__name__} second; rotary elements compose with their like'
    )
  a, b = _dense(a), _dense(b)
  return Linear(
    jnp.matmul(a.matrix, b.matrix, precision='highest'),
    jnp.matmul(b.inverse, a.inverse, precision='highest'),
  )


def _dense(element):
  if isinstance(element, Linear):
    return element
  size = element.order.shape[-1]
  # Column c of a permutation has its one in row order[c].
  rows = jnp.arange(size)[None, :, None] == element.order[:, None, :]
  scale = jnp.ones_like(element.order, jnp.float32)
  if element.scale is not None:
    scale = element.scale
  matrix = jnp.where(rows, scale[:, None, :], 0)
  inverse = jnp.where(rows, 1 / scale[:, None, :], 0)
  return Linear(matrix, jnp.swapaxes(inverse, -1, -2))


def invert(elements: Elements) -> dict[str, Element]:
  """Returns the elements that undo these.

  Args:
    elements: Elements by space.

  Returns:
    Their inverses.

  Examples:
    >>> turn = {'hidden': Monomial(jnp.array([[1, 2, 0]]))}
    >>> invert(turn)['hidden'].order.tolist()
    [[2, 0, 1]]
  """
  return {name: _invert(element) for name, element in elements.items()}


def _invert(element):
  if isinstance(element, Linear):
    return Linear(element.inverse, element.matrix)
  if isinstance(element, Rotary):
    sign = jnp.array([1.0, -1.0], element.factor.dtype)
    squared = jnp.sum(element.factor**2, axis=-1, keepdims=True)
    return Rotary(element.factor * sign[None, None] / squared)
  order = jnp.argsort(element.order, axis=-1)
  if element.scale is None:
    return Monomial(order)
  return Monomial(order, 1 / jnp.take_along_axis(element.scale, order, axis=-1))


def random(
  key: jax.Array, spec: spec_lib.Spec, *, spread: float | jax.Array = 2.0
) -> dict[str, Element]:
  """Draws an element of the group of each space.

  Permutations, rotations and orthogonal matrices are uniform. Scalings are
  log-uniform in `[1 / spread, spread]`, and so are the singular values of an
  invertible matrix `U diag(s) V`: its condition number is `spread**2` at most,
  and its inverse is known without inverting.

  Args:
    key: Random key. What a space gets depends on the key and its name only.
    spec: Spaces by name.
    spread: How far from 1 factors may be, at least 1.

  Returns:
    Elements by space.

  Raises:
    ValueError: `spread` is less than 1.

  Examples:
    >>> spec = {'hidden': spec_lib.Space('permutation', 3, ())}
    >>> sorted(random(jax.random.key(0), spec)['hidden'].order[0].tolist())
    [0, 1, 2]
  """
  check_spread('symmetry.random', spread)
  keys = [jax.random.fold_in(key, name) for name in draws.hashes(list(spec))]
  return {
    name: _random(each, space, spread)
    for each, (name, space) in zip(keys, spec.items(), strict=True)
  }


def check_spread(caller: str, spread: Any) -> None:
  """Raises `ValueError` if the spread is known and below 1."""
  if not isinstance(spread, jax.Array) and not 1 <= spread < math.inf:
    raise ValueError(
      f'{caller}: spread is {spread}, expected 1 <= spread < infinity'
    )


def _random(key, space, spread):
  first, second, third = jax.random.split(key, 3)
  shape = (space.heads, space.size)
  if space.group in ('permutation', 'scaling'):
    order = permutations(first, shape)
    if space.group == 'permutation':
      return Monomial(order)
    return Monomial(order, log_uniform(second, shape, spread))
  if space.group.startswith('rotary'):
    shape = (space.heads, space.size // 2)
    angle = jax.random.uniform(first, shape, maxval=2 * jnp.pi)
    turn = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return Rotary(turn * log_uniform(second, (*shape, 1), spread))
  left = jax.random.orthogonal(first, space.size, shape[:1])
  if space.group == 'orthogonal':
    return Linear(left, jnp.swapaxes(left, -1, -2))
  right = jax.random.orthogonal(second, space.size, shape[:1])
  return stretched(left, log_uniform(third, shape, spread), right)


def stretched(left: jax.Array, values: jax.Array, right: jax.Array) -> Linear:
  """Returns `left diag(values) right` for orthogonal `left` and `right`."""
  left_t, right_t = (jnp.swapaxes(each, -1, -2) for each in (left, right))
  return Linear(
    jnp.matmul(left * values[:, None, :], right, precision='highest'),
    jnp.matmul(right_t / values[:, None, :], left_t, precision='highest'),
  )


def permutations(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Draws a permutation for each row, `i32[shape]`."""
  order = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
  return jax.random.permutation(key, order, axis=1, independent=True)


def log_uniform(
  key: jax.Array, shape: tuple[int, ...], spread: float | jax.Array
) -> jax.Array:
  """Draws numbers log-uniform in `[1 / spread, spread]`, `f32[shape]`."""
  exponent = jax.random.uniform(key, shape, minval=-1, maxval=1)
  return jnp.asarray(spread, jnp.float32) ** exponent


_KINDS: dict[str, tuple[type, ...]] = {
  'permutation': (Monomial,),
  'scaling': (Monomial,),
  'orthogonal': (Monomial, Linear),
  'invertible': (Monomial, Linear),
  'rotary': (Rotary,),
  'rotary_halves': (Rotary,),
}


def _check_element(name, space, element):
  where = f'symmetry.transform: {name!r}'
  allowed = isinstance(element, _KINDS[space.group])
  if isinstance(element, Monomial) and element.scale is not None:
    allowed = allowed and space.group in ('scaling', 'invertible')
  if not allowed:
    scaled = getattr(element, 'scale', None) is not None
    raise ValueError(
      f'{where} admits the group {space.group!r}; a {type(element).__name__}'
      f'{" with a scale" if scaled else ""} would change the function'
    )
  heads, size = space.heads, space.size
  wanted = {
    Monomial: (heads, size),
    Rotary: (heads, size // 2, 2),
    Linear: (heads, size, size),
  }[type(element)]
  for field, value in zip(element._fields, element, strict=True):
    if value is not None and value.shape != wanted:
      raise ValueError(
        f'{where}: {field} has shape {value.shape}, expected {wanted} for '
        f'{heads} heads of {size} channels'
      )
