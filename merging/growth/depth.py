"""Deeper models: more blocks from those there are."""

from collections.abc import Mapping
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import draws
from merging import patterns
from merging import tree

Order = Literal['stack', 'interpolate']
_ORDERS = ('stack', 'interpolate')


def g_stack(params: tree.Tree, factor: int, *, blocks: str) -> tree.Tree:
  r"""Repeats the whole stack of blocks (G_stack).

  Of `L` blocks there become `factor * L`, in the order
  `[0, ..., L-1, 0, ..., L-1, ...]`; all other leaves are copied. The function
  is not kept, yet training goes on faster than from zero: the paper's best
  operator, with `factor=4`. The optimiser's state is started anew.

  Args:
    params: The model.
    factor: How many copies of the stack there will be.
    blocks: Regular expression for a block's name, from the start of a path,
      with one group for its number, such as `r'blocks/(\d+)'`; or, without a
      group, for what holds leaves of all blocks stacked along the first axis,
      as `jax.lax.scan` wants them.

  Returns:
    The model with more blocks.

  Raises:
    ValueError: There are no such blocks, their numbers have gaps, or they
      differ in their leaves; or `factor` is less than 1.

  Examples:
    >>> small = {'blocks': [{'w': jnp.zeros(1)}, {'w': jnp.ones(1)}]}
    >>> large = g_stack(small, 2, blocks=r'blocks/(\d+)')
    >>> [int(block['w'][0]) for block in large['blocks']]
    [0, 1, 0, 1]
    >>> g_stack({'w': jnp.array([5, 7])}, 2, blocks='w')['w'].tolist()
    [5, 7, 5, 7]

  References:
    Wenyu Du, Tongxu Luo, Zihan Qiu, Zeyu Huang, Yikang Shen, Reynold Cheng,
    Yike Guo, Jie Fu. "Stacking Your Transformers: A Closer Look at Model Growth
    for Efficient LLM Pre-Training". NeurIPS 2024. arXiv:2405.15319.
  """
  return _grow('g_stack', params, blocks, _factor('g_stack', factor), _copy)


def g_interpolate(params: tree.Tree, factor: int, *, blocks: str) -> tree.Tree:
  """Repeats each block in its place, `[0, 0, ..., 1, 1, ...]`.

  The other way to copy blocks directly; worse than `g_stack` in training.

  Args:
    params: The model.
    factor: How many copies of each block there will be.
    blocks: Where the blocks are; see `g_stack`.

  Returns:
    The model with more blocks.

  Raises:
    ValueError: As `g_stack`.

  Examples:
    >>> g_interpolate({'w': jnp.array([5, 7])}, 2, blocks='w')['w'].tolist()
    [5, 5, 7, 7]

  References:
    Wenyu Du, Tongxu Luo, Zihan Qiu, Zeyu Huang, Yikang Shen, Reynold Cheng,
    Yike Guo, Jie Fu. "Stacking Your Transformers: A Closer Look at Model Growth
    for Efficient LLM Pre-Training". NeurIPS 2024. arXiv:2405.15319.
  """
  grown = _factor('g_interpolate', factor, 'interpolate')
  return _grow('g_interpolate', params, blocks, grown, _copy)


def g_zero(
  params: tree.Tree,
  factor: int,
  *,
  blocks: str,
  outputs: str,
  order: Order = 'stack',
) -> tree.Tree:
  """Adds blocks that do nothing yet (G_zero).

  A new block is a copy whose last layers are zero. Where they are added to a
  residual stream, the function is kept; their gradient is not zero, so that the
  block wakes up.

  Args:
    params: The model.
    factor: The growth of the number of blocks.
    blocks: Where the blocks are; see `g_stack`.
    outputs: Regular expression to find in a path within a block: kernels and
      biases whose results are added to the stream. All branches of a block
      have to be named for the function to be kept.
    order: Whether new blocks come after the old ones, or each after its source.

  Returns:
    The model with more blocks.

  Raises:
    ValueError: As `g_stack`; or no leaf of a block matches `outputs`.

  Examples:
    >>> small = {'in': jnp.ones((1, 2)), 'out': jnp.ones((1, 2))}
    >>> g_zero(small, 2, blocks='in|out', outputs='out')['out'].tolist()
    [[1.0, 1.0], [0.0, 0.0]]

  References:
    Wenyu Du, Tongxu Luo, Zihan Qiu, Zeyu Huang, Yikang Shen, Reynold Cheng,
    Yike Guo, Jie Fu. "Stacking Your Transformers: A Closer Look at Model Growth
    for Efficient LLM Pre-Training". NeurIPS 2024. arXiv:2405.15319.
  """
  grown = _factor('g_zero', factor, order)
  is_output = patterns.predicate('g_zero', outputs)

  def rule(path, index, leaves, source, first):
    copied = leaves[source]
    return jnp.zeros_like(copied) if is_output(path) and not first else copied

  return _grow('g_zero', params, blocks, grown, rule, outputs)


def g_random(
  key: jax.Array,
  params: tree.Tree,
  factor: int,
  *,
  blocks: str,
  outputs: str,
  mask: float | jax.Array = 0.0,
  order: Order = 'stack',
) -> tree.Tree:
  """Adds random blocks behind a mask (G_random).

  A matrix of a new block is normal with the mean and the standard deviation of
  its source; other leaves, such as norms and biases, are copied. What the block
  adds to the residual stream is multiplied by `mask`: at 0 the function is
  kept; training raises it to 1. In the authors' code the mask sits in the
  forward pass, and around the block as a whole; here it is in the weights of
  each branch, which agrees at 0 and at 1.

  Args:
    key: Random key. What a leaf gets depends on the key and its new path only.
    params: The model.
    factor: The growth of the number of blocks.
    blocks: Where the blocks are; see `g_stack`.
    outputs: Leaves within a block that are masked; see `g_zero`.
    mask: From 0 to 1.
    order: Whether new blocks come after the old ones, or each after its source.

  Returns:
    The model with more blocks.

  Raises:
    ValueError: As `g_zero`.

  Examples:
    >>> small = {'w': jnp.ones((1, 2, 2))}
    >>> key = jax.random.key(0)
    >>> grown = g_random(key, small, 2, blocks='w', outputs='w', mask=0.5)
    >>> grown['w'][1].tolist()
    [[0.5, 0.5], [0.5, 0.5]]

  References:
    Wenyu Du, Tongxu Luo, Zihan Qiu, Zeyu Huang, Yikang Shen, Reynold Cheng,
    Yike Guo, Jie Fu. "Stacking Your Transformers: A Closer Look at Model Growth
    for Efficient LLM Pre-Training". NeurIPS 2024. arXiv:2405.15319.
    Yiqun Yao, Zheng Zhang, Jing Li, Yequan Wang. "Masked Structural Growth for
    2x Faster Language Model Pre-training". ICLR 2024. arXiv:2305.02869.
  """
  grown = _factor('g_random', factor, order)
  is_output = patterns.predicate('g_random', outputs)

  def rule(path, index, leaves, source, first):
    leaf = leaves[source]
    if first or not tree.is_float(leaf):
      return leaf
    if leaf.ndim > 1:
      [name] = draws.hashes([f'{path}:{index}'])
      noise = jax.random.normal(jax.random.fold_in(key, name), leaf.shape)
      wide = leaf.astype(jnp.float32)
      leaf = (jnp.mean(wide) + jnp.std(wide) * noise).astype(leaf.dtype)
    return jnp.asarray(mask, leaf.dtype) * leaf if is_output(path) else leaf

  return _grow('g_random', params, blocks, grown, rule, outputs)


def learn_depth(
  params: tree.Tree,
  matrices: jax.Array | Mapping[str, jax.Array],
  *,
  blocks: str,
) -> tree.Tree:
  """Makes each new block a linear combination of the old ones (G_learn, LiGO).

  Leaf by leaf, `new[j] = sum_i matrix[j, i] old[i]`. The matrices are learned
  by gradient descent on the loss of the large model: this is a differentiable
  function of them. `g_stack` is the matrix `tile(eye(L), (factor, 1))`, where
  the authors begin.

  Args:
    params: The model.
    matrices: `f32[new, old]`; or one for each kind of leaf, by the first of the
      regular expressions that is found in its path within a block. LiGO has one
      each for queries, keys, values, outputs, norms and layers.
    blocks: Where the blocks are; see `g_stack`.

  Returns:
    The model with the new blocks.

  Raises:
    ValueError: As `g_stack`; or a matrix has another shape, or a leaf none, or
      a pattern no leaf.

  Examples:
    >>> mix = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    >>> learn_depth({'w': jnp.array([4.0, 8.0])}, mix, blocks='w')['w'].tolist()
    [4.0, 6.0, 8.0]

  References:
    Peihao Wang, Rameswar Panda, Lucas Torroba Hennigen, Philip Greengard,
    Leonid Karlinsky, Rogerio Feris, David Daniel Cox, Zhangyang Wang, Yoon Kim.
    "Learning to Grow Pretrained Models for Efficient Transformer Training".
    ICLR 2023. arXiv:2303.00980.
  """
  if not isinstance(matrices, Mapping):
    matrices = {'.|^$': matrices}
  counts = {np.shape(each) for each in matrices.values()}
  if len(counts) != 1 or len(next(iter(counts))) != 2:
    raise ValueError(
      f'learn_depth: matrices of shapes {sorted(counts)}, expected one shape '
      '[new blocks, old blocks]'
    )
  [(new, old)] = counts
  labels = {pattern: pattern for pattern in matrices}
  label_of = patterns.labeller('learn_depth', labels)

  def rule(path, index, leaves, source, first):
    if not tree.is_float(leaves[0]):
      return leaves[source]
    weights = jnp.asarray(matrices[label_of(path)], jnp.float32)[index]
    terms = [
      weight * leaf.astype(jnp.float32)
      for weight, leaf in zip(weights, leaves, strict=True)
    ]
    return sum(terms[1:], terms[0]).astype(leaves[0].dtype)

  def sources(count):
    if count != old:
      raise ValueError(
        f'learn_depth: matrices of shape {(new, old)} for {count} blocks, '
        f'expected [new, {count}]'
      )
    return [j % old for j in range(new)]

  return _grow('learn_depth', params, blocks, sources, rule, covered=labels)


def _factor(caller, factor, order: Order = 'stack'):
  """Returns from the number of blocks to the source of each new block."""
  patterns.check_option(caller, 'order', order, _ORDERS)
  if not isinstance(factor, int) or factor < 1:
    raise ValueError(f'{caller}: factor is {factor!r}, expected an int from 1')
  if order == 'stack':
    return lambda count: [*range(count)] * factor
  return lambda count: [i for i in range(count) for _ in range(factor)]


def _copy(path, index, leaves, source, first):
  return leaves[source]


class _Row(NamedTuple):
  """The same leaf of all blocks.

  Attributes:
    path: Its path within a block.
    leaves: One for each block.
    names: The path before and after the number; `None` if blocks are stacked.
  """

  path: str
  leaves: list[jax.Array]
  names: tuple[str, str] | None


def _grow(caller, params, blocks, sources_of, rule, outputs=None, covered=None):
  """Grows blocks that are subtrees, or that are stacked in each leaf.

  Args:
    caller: Name for error messages.
    params: The model.
    blocks: The regular expression.
    sources_of: From the number of blocks to the source of each new one.
    rule: `(path within a block, new index, leaves of all blocks, source,
      whether this is the first copy of the source) -> leaf`.
    outputs: Regular expression that some path within a block has to match.
    covered: Regular expressions one of which each path has to match.

  Returns:
    The grown model.
  """
  compiled = patterns.compile_pattern(caller, rf'(?:{blocks})(?=/|$)')
  flat = tree.flatten(params)
  found = {path: match for path in flat if (match := compiled.match(path))}
  if not found:
    raise patterns.no_match(caller, blocks, list(flat))
  if compiled.groups > 1:
    raise ValueError(
      f'{caller}: blocks={blocks!r} has {compiled.groups} groups, expected one '
      'for the number of a block, or none'
    )
  rows = (_numbered if compiled.groups else _stacked)(caller, flat, found)
  paths = [row.path for row in rows]
  if outputs is not None and not any(
    map(patterns.predicate(caller, outputs), paths)
  ):
    raise patterns.no_match(caller, outputs, paths)
  if covered is not None:
    patterns.check_cover(caller, covered, paths)
  sources = sources_of(len(rows[0].leaves))
  grown = {path: leaf for path, leaf in flat.items() if path not in found}
  origins = {}  # Of paths that are new.
  for row in rows:
    new = [
      rule(row.path, i, row.leaves, source, source not in sources[:i])
      for i, source in enumerate(sources)
    ]
    if row.names is None:
      grown[row.path] = jnp.stack(new)
      continue
    before, after = row.names
    for i, (leaf, source) in enumerate(zip(new, sources, strict=True)):
      grown[f'{before}{i}{after}'] = leaf
      origins[f'{before}{i}{after}'] = f'{before}{source}{after}'
  return _rebuild(caller, grown, origins, params)


def _stacked(caller, flat, found):
  rows = [_Row(path, [*jnp.atleast_1d(flat[path])], None) for path in found]
  counts = {path: np.shape(flat[path])[:1] for path in found}
  if len(set(counts.values())) != 1 or () in counts.values():
    raise ValueError(
      f'{caller}: stacked blocks have one length along the first axis of all '
      f'their leaves, got {counts}'
    )
  return rows


def _numbered(caller, flat, found):
  grouped: dict[tuple[str, str], dict[int, jax.Array]] = {}
  for path, match in found.items():
    start, end = match.span(1)
    row = grouped.setdefault((path[:start], path[end:]), {})
    row[int(path[start:end])] = jnp.asarray(flat[path])
  numbers = sorted({number for row in grouped.values() for number in row})
  if numbers != [*range(len(numbers))]:
    raise ValueError(
      f'{caller}: blocks are numbered {numbers}, expected 0 to '
      f'{len(numbers) - 1} without gaps'
    )
  for (before, after), row in grouped.items():
    if (
      len(row) < len(numbers) or len({leaf.shape for leaf in row.values()}) > 1
    ):
      shapes = {i: leaf.shape for i, leaf in sorted(row.items())}
      raise ValueError(
        f'{caller}: blocks differ at {before}*{after}: shapes {shapes}, '
        f'expected one shape in {len(numbers)} blocks'
      )
  return [
    _Row(names[1].lstrip('/'), [row[i] for i in numbers], names)
    for names, row in grouped.items()
  ]


def _rebuild(caller, grown, origins, params):
  """Puts grown leaves in containers like those they come from."""
  containers = {}  # By path.

  def collect(path, node):
    if isinstance(node, list | tuple) and not hasattr(node, '_fields'):
      children = {str(i): child for i, child in enumerate(node)}
    elif isinstance(node, Mapping):
      children = {str(name): child for name, child in node.items()}
    elif jax.tree_util.all_leaves([node]):
      return
    else:
      raise TypeError(
        f'{caller}: a {type(node).__name__} at {"/".join(path)!r}, expected '
        'dictionaries, lists and tuples, since others cannot grow'
      )
    containers[path] = node
    for name, child in children.items():
      collect((*path, name), child)

  collect((), params)
  source_of = {}  # Of containers, by path.
  for path in grown:
    new = path.split('/')
    old = origins.get(path, path).split('/')
    for depth in range(len(new)):
      source_of[tuple(new[:depth])] = tuple(old[:depth])

  def build(path, node):
    if not isinstance(node, dict):
      return node
    children = {name: build((*path, name), node[name]) for name in node}
    like = containers[source_of[path]]
    container: Any = type(like)
    if isinstance(like, Mapping):
      kind = int if all(isinstance(name, int) for name in like) else str
      return container({kind(name): x for name, x in children.items()})
    return container(children[str(i)] for i in range(len(children)))

  return build((), tree.unflatten(grown))
