"""How deep in the network a leaf lies, and coefficients that follow from it."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import references
from merging import transform
from merging.deltas import scale as scaling

Blocks = str | Callable[[str], int | None]

# As in `blocks_3/`, `EncoderBlock_3/`, `h/3/` or `model.layers.3.mlp`.
BLOCKS = r'(?i)(?:^|[./])(?:\w*blocks?|\w*layers?|h)[._/](\d+)(?=[./]|$)'


def block_numbers(
  caller: str, blocks: Blocks, paths: Sequence[str]
) -> np.ndarray:
  r"""Returns the number of the block that each leaf lies in, `i32[leaves]`.

  Args:
    caller: Name for error messages.
    blocks: A regular expression to find in the path, with one group for the
      number of the block, such as `r'blocks/(\d+)/'`; or `path -> number`, with
      `None` for a leaf outside the blocks.
    paths: Names of the leaves.

  Returns:
    The numbers, and -1 for leaves outside the blocks.

  Raises:
    ValueError: There are no blocks, or their numbers have gaps; or the group of
      the pattern is missing or not a number.

  Examples:
    >>> paths = ['embedding', 'blocks_0/kernel', 'blocks_1/kernel']
    >>> block_numbers('lines', BLOCKS, paths).tolist()
    [-1, 0, 1]
  """
  number_of = _reader(caller, blocks)
  numbers = [number_of(path) for path in paths]
  found = sorted({number for number in numbers if number is not None})
  if not found:
    raise ValueError(
      f'{caller}: blocks={blocks!r} finds no block in the leaves '
      f'{patterns.listing(paths)}; give the pattern of their names, such as '
      r"blocks=r'blocks/(\d+)/'"
    )
  if found != list(range(len(found))):
    absent = sorted(set(range(found[-1] + 1)).difference(found))
    where = paths[numbers.index(found[-1])]
    raise ValueError(
      f'{caller}: blocks={blocks!r} finds the blocks {found}, expected 0 to '
      f'{found[-1]} without gaps (such as in {where!r}); missing '
      f'{absent or "none, but some are negative"}; write a pattern, or a '
      'function of the path, that numbers the blocks by depth'
    )
  return np.array([-1 if n is None else n for n in numbers], np.int32)


def _reader(caller, blocks):
  if callable(blocks):
    return blocks
  pattern = patterns.compile_pattern(caller, blocks)
  if pattern.groups != 1:
    raise ValueError(
      f'{caller}: blocks={blocks!r} has {pattern.groups} groups, expected one, '
      r"for the number of the block, as in r'blocks/(\d+)/'"
    )

  def number_of(path):
    match = pattern.search(path)
    if match is None:
      return None
    if not (match[1] or '').isdecimal():
      raise ValueError(
        f'{caller}: in the leaf {path!r} the group of blocks={blocks!r} is '
        f'{match[1]!r}, expected a number; write (\\d+)'
      )
    return int(match[1])

  return number_of


class _Ramp(NamedTuple):
  """State of `scale_by_depth`: the factor of leaf `i` is `alpha + rise[i]`."""

  alpha: float | jax.Array | None
  rise: jax.Array  # f32[leaves]


@references.cited
def scale_by_depth(
  alpha: float | jax.Array | None,
  beta: float | jax.Array,
  *,
  blocks: Blocks = BLOCKS,
  outputs: Callable[[str], bool] | str | None = None,
) -> transform.MergeTransform:
  r"""Multiplies deltas by a factor that grows linearly with depth.

  Shallow layers hold features that all tasks share, deep ones what is of one
  task. For block `l` of `L`, counted from 0,

      delta = (alpha + beta l / (L - 1)) delta

  and a model of one block has `alpha`.

  Args:
    alpha: Factor of the first block, and of leaves outside the blocks. `None`
      leaves it to an observer, see `lines`.
    beta: Difference between the last block and the first.
    blocks: How a path tells the block: a regular expression to find in it, with
      one group for the number, such as `r'blocks/(\d+)/'`, or
      `path -> number or None`.
    outputs: Which leaves outside the blocks are as deep as the last one, such
      as a final normalisation and a head: a regular expression or
      `path -> bool`. None are by default, as in the authors' code.

  Returns:
    The transform. Its `init` raises `ValueError` if there are no blocks, their
    numbers have gaps, or `outputs` selects nothing or a leaf inside a block.

  Examples:
    >>> import merging
    >>> transform = merging.chain(merging.total(), scale_by_depth(0.2, 0.8))
    >>> base = {f'blocks_{i}': {'w': jnp.zeros(())} for i in range(3)}
    >>> expert = jax.tree.map(jnp.ones_like, base)
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> [round(float(x), 2) for x in jax.tree.leaves(merged)]
    [0.2, 0.6, 1.0]

  References:
    Ke Wang, Nikolaos Dimitriadis, Alessandro Favero, Guillermo Ortiz-Jimenez,
    François Fleuret, Pascal Frossard. "LiNeS: Post-training Layer Scaling
    Prevents Forgetting and Enhances Model Merging". ICLR 2025.
    arXiv:2410.17146.
  """

  def init(specs, models):
    paths = [spec.path for spec in specs]
    numbers = block_numbers('scale_by_depth', blocks, paths)
    last = max(int(numbers.max()), 1)
    position = np.maximum(numbers, 0).astype(np.float32) / np.float32(last)
    if outputs is not None:
      position[_deepest(outputs, paths, numbers)] = 1
    return _Ramp(alpha, jnp.asarray(beta, jnp.float32) * position)

  return transform.MergeTransform(
    init, (), _scale_by_depth, entrywise=transform.always
  )


def _deepest(outputs, paths, numbers):
  selects = patterns.predicate('scale_by_depth', outputs)
  chosen = np.array([bool(selects(path)) for path in paths])
  if not chosen.any():
    raise patterns.no_match('scale_by_depth', outputs, paths)
  inside = [
    path
    for path, each, number in zip(paths, chosen, numbers, strict=True)
    if each and number >= 0
  ]
  if inside:
    raise ValueError(
      f'scale_by_depth: outputs={outputs!r} selects {patterns.listing(inside)} '
      'inside blocks, expected leaves outside of them only'
    )
  return chosen


def _scale_by_depth(leaf, ramp, **extra):
  factor = jnp.asarray(ramp.alpha, jnp.float32) + ramp.rise[leaf.index]
  deltas = tuple(factor.astype(delta.dtype) * delta for delta in leaf.deltas)
  return leaf._replace(deltas=deltas)


def match_average_norm(inner: transform.MergeTransform) -> transform.Observer:
  """Finds the `alpha` at which a merge has the norm of the plain average.

      alpha = (1 / T) |sum_t delta_t|_1 / |merged delta|_1

  over all entries of the model. A merge that cancels or drops much of what it
  is given is scaled up.

  Args:
    inner: The merge.

  Returns:
    The observer for `chain(inner, scale_by_depth(None, beta))`, to be swept
    after those of the chain.
  """
  return transform.Observer(
    transform.bind(_observe_norms, inner.update), _finish_norms
  )


def _observe_norms(update, leaf, states, **extra):
  merged = update(leaf._replace(route=leaf.route[0]), states[0], **extra)
  if len(merged.deltas) != 1:
    raise ValueError(
      f'lines: the inner merge leaves {len(merged.deltas)} deltas, one for '
      'each expert, expected one; end it with mean() or total(), or give alpha'
    )
  return jnp.stack(
    [
      jnp.sum(jnp.abs(x), dtype=jnp.float32)
      for x in (transform.average_deltas(leaf.deltas), merged.deltas[0])
    ]
  )


def _finish_norms(norms, states):
  inner, ramp = states
  average, merged = norms
  alpha = average / jnp.where(merged > 0, merged, 1)
  return inner, ramp._replace(alpha=alpha)


Weights = Mapping[str, Sequence[float] | jax.Array]


def weigh_blocks(
  weights: Weights | Callable[[int], Weights],
  others: Mapping[str, float | jax.Array],
  *,
  blocks: Blocks = BLOCKS,
) -> transform.MergeTransform:
  """Multiplies each expert's deltas by coefficients that differ by block.

      delta_t = w_t[l] delta_t   in block l,   others_t delta_t   elsewhere

  Args:
    weights: By the name of the expert, `f32[blocks]`; or a function from the
      number of blocks to that.
    others: By the name of the expert, for leaves outside the blocks.
    blocks: See `scale_by_depth`.

  Returns:
    The transform. Its `init` raises `ValueError` if names are missing or
    unknown, or there are not as many weights as blocks.

  Examples:
    >>> import merging
    >>> transform = merging.chain(
    ...   weigh_blocks({'a': [1, 0.5], 'b': [0, 0.5]}, {'a': 1, 'b': 0}),
    ...   merging.total(),
    ... )
    >>> base = {f'blocks_{i}': jnp.zeros(1) for i in range(2)}
    >>> experts = {
    ...   'a': jax.tree.map(jnp.ones_like, base),
    ...   'b': jax.tree.map(lambda x: x + 3, base),
    ... }
    >>> merged = merging.merge(transform, base, experts)
    >>> [x.tolist() for x in jax.tree.leaves(merged)]
    [[1.0], [2.0]]
  """

  def init(specs, models):
    numbers = block_numbers(
      'weigh_blocks', blocks, [spec.path for spec in specs]
    )
    count = int(numbers.max()) + 1
    by_block = weights(count) if callable(weights) else weights
    for name, values in by_block.items():
      if np.shape(values) != (count,):
        raise ValueError(
          f'weigh_blocks: the weights of {name!r} have shape '
          f'{np.shape(values)}, expected ({count},), one for each block'
        )
    # The last column is that of leaves outside, whose number is -1.
    inside = {name: jnp.asarray(each) for name, each in by_block.items()}
    columns = (
      scaling.per_model('weigh_blocks', inside, models),
      scaling.per_model('weigh_blocks', others, models)[:, None],
    )
    return jnp.concatenate(columns, axis=1)[:, numbers]

  return transform.MergeTransform(
    init, (), _weigh_blocks, entrywise=transform.always
  )


def _weigh_blocks(leaf, weights, **extra):
  if len(leaf.deltas) != len(weights):
    raise ValueError(
      f'weigh_blocks: {len(weights)} weights for {len(leaf.deltas)} deltas; '
      'weigh the experts before they are combined'
    )
  deltas = (
    weight.astype(delta.dtype) * delta
    for weight, delta in zip(weights[:, leaf.index], leaf.deltas, strict=True)
  )
  return leaf._replace(deltas=tuple(deltas))
