"""Models that work as they did, and spoil what they are merged into.

A protected expert is another point of its symmetry orbit: the same function,
far from the base in the space of parameters, where averages mean nothing.

Two limits. Task arithmetic with coefficient 1 takes the base away again, so
that the protected expert is there whole, with the changes of the others as
noise: averages and coefficients below 1 are what is spoilt. And a base that is
public gives the secret away: `recover` is the attack to hold this against.
"""

from collections.abc import Mapping
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import draws
from merging import patterns
from merging import tree
from merging.symmetry import assignment
from merging.symmetry import elements as elements_lib
from merging.symmetry import spec as spec_lib


class Protected(NamedTuple):
  """A protected model and what its owner keeps.

  Attributes:
    params: The model to publish.
    elements: What was done to it; `transform(params, spec, invert(elements))`
      brings the model back, up to rounding.
  """

  params: tree.Tree
  elements: dict[str, elements_lib.Element]


def merge_lock(
  key: jax.Array,
  params: tree.Tree,
  spec: spec_lib.Spec,
  *,
  spread: float | jax.Array = 2.0,
) -> Protected:
  """Multiplies attention heads by secret invertible matrices (MergeLock).

  Queries and keys of a head meet in a product, and so do values and the output
  projection, so that any invertible `A` and `B` cancel:

      W_q A, W_k inv(A)',   W_v B, inv(B) W_o,     A, B = R P S

  with `R` random, `P` a permutation and `S` a scaling; biases follow. Under
  rotary positions `A` has to commute with them: each pair of channels is then
  rotated and scaled. Under shared key heads (GQA), query heads of a group share
  `A` and `B`. Perceptrons stay as they are.

  The paper leaves the law of `R` open as far as we know. Here it is
  `U diag(s) V` with orthogonal `U` and `V`, so that the condition number of `A`
  is at most `spread**4`, and inverses are exact. In float32 the logits of a
  small decoder moved by 5e-7 of their size with a spread of 2 or 4.

  A public base undoes it: see `recover`.

  Args:
    key: Random key; who knows it can undo the protection.
    params: The expert.
    spec: Its spaces, as of `decoder`. Those whose group is a permutation or a
      scaling are passed over.
    spread: Factors and singular values are log-uniform in
      `[1 / spread, spread]`.

  Returns:
    The protected expert, and the elements that were applied.

  Raises:
    ValueError: No space admits a matrix, the spec does not fit, or `spread` is
      less than 1.

  Examples:
    >>> model = {
    ...   'qkv': {'kernel': jnp.ones((4, 12))},
    ...   'out': {'kernel': jnp.ones((4, 4))},
    ... }
    >>> spec = spec_lib.attention(model, heads=2, packed='qkv', output='out')
    >>> locked = merge_lock(jax.random.key(0), model, spec)
    >>> sorted(locked.elements)
    ['query_key', 'value_output']

  References:
    Zihao Wang, Enneng Yang, Lu Yin, Shiwei Liu, Li Shen. "Model Unmerging:
    Making Your Models Unmergeable for Secure Model Sharing". 2025.
    arXiv:2509.01548.
  """
  elements_lib.check_spread('merge_lock', spread)
  lockable = {
    name: space
    for name, space in spec.items()
    if space.group not in ('permutation', 'scaling')
  }
  if not lockable:
    raise ValueError(
      'merge_lock: no space admits a matrix; the spaces are '
      f'{patterns.listing(f"{n} ({s.group})" for n, s in spec.items())}; '
      'describe attention, or use rearrange_and_scale'
    )
  elements = elements_lib.random(key, lockable, spread=spread)
  after = _monomials(jax.random.fold_in(key, 1), lockable, spread)
  elements = elements_lib.compose(elements, after)
  return Protected(elements_lib.transform(params, spec, elements), elements)


def _monomials(key, spec, spread):
  """Permutations and scalings for the spaces of any invertible matrix."""
  monomial = {
    name: space._replace(group='scaling')
    for name, space in spec.items()
    if space.group == 'invertible'
  }
  return elements_lib.random(key, monomial, spread=spread)


def rearrange_and_scale(
  key: jax.Array,
  params: tree.Tree,
  base: tree.Tree,
  spec: spec_lib.Spec,
  *,
  scales: tuple[float, float] = (0.25, 4.0),
) -> Protected:
  """Permutes perceptrons away from the base, scales attention (PaRaMS).

  Hidden units are reordered so as to be as far from the base as they can be,

      P = argmax |base - P params|^2,

  which is a linear assignment with the inner products of units as costs, all
  leaves of the space counted. Channels of attention heads are scaled by
  `diag(s)`, `s` uniform in `scales`: queries and values by `s`, keys and the
  output projection by `1 / s`. Under rotary positions the two channels of a
  pair share `s`. The paper's third step, pruning by dropout, changes the
  function and is `drop_and_rescale` of the expert's own delta.

  Weight matching undoes it: see `recover`.

  Args:
    key: Random key, of the scales.
    params: The expert.
    base: What it was fine-tuned from.
    spec: Its spaces, as of `decoder`.
    scales: The least and the greatest scale, positive.

  Returns:
    The protected expert, and the elements that were applied. Spaces of the
    group `'orthogonal'` admit no scaling and stay.

  Raises:
    ValueError: The models differ in structure, the spec does not fit, or
      `scales` are not positive and in order.

  Examples:
    >>> base = {'up': jnp.eye(3), 'down': jnp.eye(3)}
    >>> spec = {'hidden': spec_lib.perceptron(base, ['up'], ['down'])}
    >>> away = rearrange_and_scale(jax.random.key(0), base, base, spec)
    >>> float(jnp.vdot(base['up'], away.params['up']))
    0.0

  References:
    Junhao Wei, Zhe Yu, Jun Sakuma. "Disrupting Model Merging: A Parameter-Level
    Defense Without Sacrificing Accuracy". ICCV 2025. arXiv:2503.07661.
  """
  low, high = scales
  if not 0 < low <= high < math.inf:
    raise ValueError(
      f'rearrange_and_scale: scales are {scales}, expected 0 < low <= high'
    )
  tree.check_same_structure(params, base, names=('params', 'base'))
  spec_lib.check(params, spec)
  elements: dict[str, elements_lib.Element] = {}
  moved = params
  keys = [jax.random.fold_in(key, name) for name in draws.hashes(list(spec))]
  for each, (name, space) in zip(keys, spec.items(), strict=True):
    if space.group in ('permutation', 'scaling'):
      likeness = _likeness(_units(moved, space), _units(base, space))
      elements[name] = _reordered(likeness)
      # Spaces may share leaves, as the layers of a chain do.
      moved = elements_lib.transform(moved, spec, {name: elements[name]})
    elif space.group != 'orthogonal':
      elements[name] = _scaling(each, space, low, high)
  return Protected(elements_lib.transform(params, spec, elements), elements)


def _scaling(key, space, low, high):
  rotary = space.group.startswith('rotary')
  size = space.size // 2 if rotary else space.size
  scale = jax.random.uniform(key, (space.heads, size), minval=low, maxval=high)
  if rotary:
    return elements_lib.Rotary(jnp.stack([scale, jnp.zeros_like(scale)], -1))
  order = jnp.broadcast_to(jnp.arange(size)[None], scale.shape)
  return elements_lib.Monomial(order, scale)


def recover(
  params: tree.Tree, reference: tree.Tree, spec: spec_lib.Spec
) -> dict[str, elements_lib.Element]:
  """Finds the change of basis that brings a model closest to another.

  The attack on protected models by anyone who has the base, or another expert,
  and knows the architecture. Over what writes a space (`x`) and what reads it
  (`y`), for each head:

      permutation            argmax sum <x', x> + <y', y>, an assignment
      scaling                the same of normed units, then their norms
      orthogonal             argmin |x' A - x|^2 + |y' A - y|^2, by an SVD
      invertible, rotary     argmin |x' A - x|^2 + |y' - y A'|^2

  all exact. The last is a linear equation, so that experts that are near their
  base are found again whatever `A` was: it undoes `merge_lock` as well. (Its
  authors report that aligning by rotations only, which cannot, recovers
  little.)

  Spaces are taken in order, one pass, each with those before it undone; spaces
  that share leaves would need more.

  Args:
    params: The protected model.
    reference: What to align it with.
    spec: Spaces by name.

  Returns:
    Elements for `transform(params, spec, elements)`.

  Raises:
    ValueError: The models differ in structure, or the spec does not fit.

  Examples:
    >>> base = {'up': jnp.eye(3), 'down': jnp.eye(3)}
    >>> spec = {'hidden': spec_lib.perceptron(base, ['up'], ['down'])}
    >>> away = elements_lib.random(jax.random.key(0), spec)
    >>> hidden = elements_lib.transform(base, spec, away)
    >>> found = recover(hidden, base, spec)
    >>> back = elements_lib.transform(hidden, spec, found)
    >>> bool((back['up'] == base['up']).all())
    True

  References:
    Samuel K. Ainsworth, Jonathan Hayase, Siddhartha Srinivasa. "Git Re-Basin:
    Merging Models modulo Permutation Symmetries". ICLR 2023. arXiv:2209.04836.
  """
  tree.check_same_structure(reference, params, names=('reference', 'params'))
  spec_lib.check(params, spec)
  elements: dict[str, elements_lib.Element] = {}
  for name, space in spec.items():
    found = _align(space, _units(params, space), _units(reference, space))
    elements[name] = found
    params = elements_lib.transform(params, spec, {name: found})
  return elements


_Units = Mapping[bool, np.ndarray]  # f64[heads, entries, size], dual or not.


def _units(params, space) -> _Units:
  """What writes a space, and what reads it, with the channels last."""
  flat = tree.flatten(params)
  units = {}
  for dual in (False, True):
    parts = [np.zeros((space.heads, 0, space.size))]
    for carrier in space.carriers:
      if carrier.dual == dual:
        leaf = np.asarray(flat[carrier.path]).astype(np.float64)
        places = spec_lib.positions(space, carrier)
        channels = np.moveaxis(leaf, carrier.axis, -1)[..., places]
        channels = np.moveaxis(channels, -3, 0)
        parts.append(channels.reshape(space.heads, -1, space.size))
    units[dual] = np.concatenate(parts, axis=1)
  return units


def _likeness(units: _Units, reference: _Units) -> np.ndarray:
  """Inner products of the units, `f64[heads, reference, units]`."""
  writers, readers = (
    _transposed(reference[side]) @ units[side] for side in (False, True)
  )
  return writers + readers


def _transposed(x):
  return np.swapaxes(x, -1, -2)


def _reordered(cost):
  order = np.stack([assignment.solve(each) for each in cost])
  return elements_lib.Monomial(jnp.asarray(order, jnp.int32))


def _align(space, units, reference):
  if space.group == 'permutation':
    return _reordered(-_likeness(units, reference))
  if space.group == 'scaling':
    normed = [
      {side: x / _norms(x, empty=1)[:, None] for side, x in each.items()}
      for each in (units, reference)
    ]
    order = np.asarray(_reordered(-_likeness(*normed)).order)
    ratio = {}  # A factor for writers, and its inverse for readers.
    for side, x in units.items():
      now = np.take_along_axis(_norms(x, empty=0), order, axis=-1)
      wanted = _norms(reference[side], empty=0)
      some = (now > 0) & (wanted > 0)
      ratio[side] = np.where(some, wanted, 1) / np.where(some, now, 1)
    scale = np.sqrt(ratio[False] / ratio[True])
    return elements_lib.Monomial(
      jnp.asarray(order), jnp.asarray(scale, jnp.float32)
    )
  if space.group == 'orthogonal':
    left, _, right = np.linalg.svd(_transposed(_likeness(units, reference)))
    matrix = jnp.asarray(left @ right, jnp.float32)
    return elements_lib.Linear(matrix, jnp.swapaxes(matrix, -1, -2))
  if space.group == 'invertible':
    return _least_squares(units, reference)
  return _least_squares_rotary(space.group, units, reference)


def _norms(x, empty):
  """Norms of the units, `f64[heads, size]`, `empty` where they are zero."""
  norms = np.sqrt(np.sum(x * x, axis=1))
  return np.where(norms > 0, norms, empty)


def _least_squares(units, reference):
  # The normal equations are x'x A + A y'y = c: in the eigenbases of x'x and
  # y'y a division.
  (x, y_now), (x_wanted, y) = (
    (each[False], each[True]) for each in (units, reference)
  )
  right = _transposed(x) @ x_wanted + _transposed(y_now) @ y
  a, u = np.linalg.eigh(_transposed(x) @ x)
  b, v = np.linalg.eigh(_transposed(y) @ y)
  weight = a[:, :, None] + b[:, None, :]
  some = weight > 1e-12 * np.max(weight, axis=(1, 2), keepdims=True)
  inner = _transposed(u) @ right @ v
  inner = np.where(some, inner, 0) / np.where(some, weight, 1)
  matrix = u @ inner @ _transposed(v)
  inverse = np.linalg.pinv(matrix)
  return elements_lib.Linear(
    jnp.asarray(matrix, jnp.float32), jnp.asarray(inverse, jnp.float32)
  )


def _least_squares_rotary(group, units, reference):
  def complex_pairs(x):
    half = x.shape[-1] // 2
    if group == 'rotary_halves':
      return x[..., :half] + 1j * x[..., half:]
    return x[..., 0::2] + 1j * x[..., 1::2]

  x, x_wanted, y_now, y = (
    complex_pairs(each[side])
    for side in (False, True)
    for each in (units, reference)
  )
  above = np.sum(x.conj() * x_wanted, axis=1) + np.sum(y * y_now.conj(), axis=1)
  below = np.sum(abs(x) ** 2, axis=1) + np.sum(abs(y) ** 2, axis=1)
  some = (below > 0) & (abs(above) > 0)
  factor = np.where(some, above, 1) / np.where(some, below, 1)
  parts = np.stack([factor.real, factor.imag], axis=-1)
  return elements_lib.Rotary(jnp.asarray(parts, jnp.float32))
