"""Arithmetic and structure of parameter trees, by the names of their leaves."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns

Tree = Any


def paths(tree: Tree) -> list[str]:
  """Returns the names of the leaves, in the order of `jax.tree.leaves`.

  A name joins keys, indices and field names with slashes.

  Args:
    tree: Any pytree.

  Returns:
    One name per leaf.

  Examples:
    >>> paths({'blocks': [{'kernel': 1.0}, {'kernel': 2.0}], 'bias': 0.0})
    ['bias', 'blocks/0/kernel', 'blocks/1/kernel']
  """
  return list(flatten(tree))


def flatten(tree: Tree) -> dict[str, Any]:
  """Returns the leaves by name, in the order of `jax.tree.leaves`.

  Args:
    tree: Any pytree.

  Returns:
    Mapping from names to leaves.

  Raises:
    ValueError: Two leaves have one name, as in `{'a': {'b': 0}, 'a/b': 0}`.

  Examples:
    >>> flatten({'dense': {'kernel': 1.0, 'bias': 2.0}})
    {'dense/bias': 2.0, 'dense/kernel': 1.0}
  """
  flat = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path = jax.tree_util.keystr(keys, simple=True, separator='/')
    if path in flat:
      raise ValueError(
        f'two leaves are named {path!r}; rename a key that holds a slash'
      )
    flat[path] = leaf
  return flat


def unflatten(flat: Mapping[str, Any], like: Tree = None) -> Tree:
  """Builds a tree from leaves by name.

  Args:
    flat: Mapping from names to leaves, in any order.
    like: A tree of the wanted structure; without it, nested dictionaries.

  Returns:
    The tree.

  Raises:
    ValueError: The names are not those of `like`, or one name is the beginning
      of another.

  Examples:
    >>> unflatten({'dense/kernel': 1.0, 'dense/bias': 2.0})
    {'dense': {'kernel': 1.0, 'bias': 2.0}}
    >>> unflatten({'0': 1.0, '1': 2.0}, like=(0.0, 0.0))
    (1.0, 2.0)
  """
  if like is not None:
    names = paths(like)
    if set(names) != set(flat):
      missing = patterns.listing(name for name in names if name not in flat)
      surplus = patterns.listing(name for name in flat if name not in names)
      raise ValueError(
        f'unflatten: the leaves of `like` are not those given: missing '
        f'[{missing}], unexpected [{surplus}]'
      )
    leaves = [flat[name] for name in names]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        break
    if not isinstance(node, dict) or last in node:
      raise ValueError(f'unflatten: {name!r} is both a leaf and a branch')
    node[last] = leaf
  return tree


def select(
  tree: Tree, pattern: str | Callable[[str], bool]
) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Tree]]:
  """Picks leaves by name, and the way to put others in their place.

  Args:
    tree: Any pytree.
    pattern: Regular expression to find in the name, or `path -> bool`.

  Returns:
    The chosen leaves by name, and `rebuild(leaves by name) -> tree`.

  Raises:
    ValueError: No leaf is chosen.

  Examples:
    >>> kernels, rebuild = select({'kernel': 1.0, 'bias': 2.0}, 'kernel')
    >>> kernels
    {'kernel': 1.0}
    >>> rebuild({'kernel': 10.0})
    {'bias': 2.0, 'kernel': 10.0}
  """
  flat = flatten(tree)
  chosen = patterns.predicate('select', pattern)
  selected = {path: leaf for path, leaf in flat.items() if chosen(path)}
  if not selected:
    raise patterns.no_match('select', pattern, list(flat))

  def rebuild(leaves: Mapping[str, Any]) -> Tree:
    for path in leaves:
      if path not in selected:
        raise ValueError(
          f'rebuild: {path!r} was not selected; expected '
          f'{patterns.listing(selected)}'
        )
    return unflatten({**flat, **leaves}, like=tree)

  return selected, rebuild


def is_float(leaf: Any) -> bool:
  """Tells whether a leaf holds floating-point numbers.

  Examples:
    >>> is_float(jnp.ones(2, jnp.bfloat16)), is_float(3), is_float(True)
    (True, False, False)
  """
  return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def check_same_structure(
  reference: Tree, *others: Tree, names: Sequence[str]
) -> None:
  """Checks that trees have the same leaves, by name, shape and kind.

  Containers may differ (a dictionary, a Flax `FrozenDict`), and so may the
  widths of floating-point leaves. Other leaves must have one dtype.

  Args:
    reference: What the others are compared with.
    *others: Trees of arrays.
    names: What to call the trees in the error, the reference first.

  Raises:
    ValueError: Lists every difference, with the name of the tree and the leaf.

  Examples:
    >>> base, expert = {'w': jnp.ones((2, 3))}, {'w': jnp.ones((3, 2))}
    >>> check_same_structure(base, expert, names=('base', 'math'))
    Traceback (most recent call last):
    ...
    ValueError: 1 difference from base:
    'math' at 'w': shape (3, 2), expected (2, 3)
  """
  flat = flatten(reference)
  problems = []
  for name, other in zip(names[1:], others, strict=True):
    leaves = flatten(other)
    for path in flat:
      if path not in leaves:
        hint = patterns.suggest(path, set(leaves) - set(flat))
        problems.append(f'{name!r} at {path!r}: missing{hint}')
    for path, leaf in leaves.items():
      if path not in flat:
        problems.append(f'{name!r} at {path!r}: not in {names[0]}')
        continue
      expected = flat[path]
      if np.shape(leaf) != np.shape(expected):
        problems.append(
          f'{name!r} at {path!r}: shape {np.shape(leaf)}, expected '
          f'{np.shape(expected)}'
        )
      dtype, wanted = jnp.result_type(leaf), jnp.result_type(expected)
      if dtype != wanted and not (is_float(leaf) and is_float(expected)):
        problems.append(f'{name!r} at {path!r}: {dtype}, expected {wanted}')
  if problems:
    plural = 's' if len(problems) > 1 else ''
    raise ValueError(
      f'{len(problems)} difference{plural} from {names[0]}:\n'
      + '\n'.join(problems)
    )


def add(a: Tree, b: Tree) -> Tree:
  """Returns `a + b`, leaf by leaf.

  Examples:
    >>> add({'w': jnp.ones(2)}, {'w': jnp.ones(2)})['w'].tolist()
    [2.0, 2.0]
  """
  return jax.tree.map(jnp.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
  """Returns `a - b`, leaf by leaf.

  Examples:
    >>> sub({'w': jnp.ones(2)}, {'w': jnp.ones(2)})['w'].tolist()
    [0.0, 0.0]
  """
  return jax.tree.map(jnp.subtract, a, b)


def scale(factor: float | jax.Array, tree: Tree) -> Tree:
  """Returns `factor * tree`; leaves that are not floating stay as they are.

  Examples:
    >>> scale(0.5, {'w': jnp.ones(2), 'step': jnp.array(3)})
    {'step': Array(3, ...), 'w': Array([0.5, 0.5], dtype=float32)}
  """

  def times(leaf):
    return jnp.asarray(factor, leaf.dtype) * leaf if is_float(leaf) else leaf

  return jax.tree.map(times, tree)


def lerp(a: Tree, b: Tree, t: float | jax.Array) -> Tree:
  """Returns `(1 - t) a + t b`; leaves that are not floating are those of `a`.

  Examples:
    >>> lerp({'w': jnp.zeros(2)}, {'w': jnp.ones(2)}, 0.25)['w'].tolist()
    [0.25, 0.25]
  """

  def between(x, y):
    if not is_float(x):
      return x
    weight = jnp.asarray(t, x.dtype)
    return (1 - weight) * x + weight * y

  return jax.tree.map(between, a, b)


def dot(a: Tree, b: Tree) -> jax.Array:
  """Returns the inner product of all floating leaves, `f32[]`.

  Examples:
    >>> float(
    ...   dot(
    ...     {'w': jnp.ones(2), 'b': jnp.ones(3)},
    ...     {'w': 2 * jnp.ones(2), 'b': jnp.ones(3)},
    ...   )
    ... )
    7.0
  """

  def product(x, y):
    if not is_float(x):
      return jnp.float32(0)
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32))

  return sum(jax.tree.leaves(jax.tree.map(product, a, b)), jnp.float32(0))


def norm(tree: Tree) -> jax.Array:
  """Returns the Euclidean norm of all floating leaves, `f32[]`.

  Examples:
    >>> float(norm({'w': jnp.array([3.0]), 'b': jnp.array([4.0])}))
    5.0
  """
  return jnp.sqrt(dot(tree, tree))


def cosine(a: Tree, b: Tree) -> jax.Array:
  """Returns the cosine of the angle between two trees, `f32[]`; 0 if one is 0.

  Examples:
    >>> float(
    ...   cosine({'w': jnp.array([1.0, 0.0])}, {'w': jnp.array([0.0, 2.0])})
    ... )
    0.0
  """
  length = norm(a) * norm(b)
  return jnp.where(length > 0, dot(a, b) / jnp.where(length > 0, length, 1), 0)


def stack(trees: Sequence[Tree]) -> Tree:
  """Stacks equal trees along a new first axis, `[len(trees), *shape]`.

  Examples:
    >>> stack([{'w': jnp.zeros(2)}, {'w': jnp.ones(2)}])['w'].shape
    (2, 2)
  """
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Tree) -> list[Tree]:
  """Takes a tree apart along the first axis; the inverse of `stack`.

  Examples:
    >>> [each['w'].tolist() for each in unstack({'w': jnp.arange(4.0)})]
    [0.0, 1.0, 2.0, 3.0]
  """
  size = len(jax.tree.leaves(tree)[0])
  return [jax.tree.map(lambda leaf: leaf[i], tree) for i in range(size)]  # noqa: B023


def cast_like(tree: Tree, like: Tree) -> Tree:
  """Returns the tree with the dtypes of another, rounded once.

  Examples:
    >>> like = {'w': jnp.ones(2, jnp.bfloat16)}
    >>> cast_like({'w': jnp.ones(2)}, like)['w'].dtype
    dtype(bfloat16)
  """
  return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), tree, like)


def task_vector(
  expert: Tree, base: Tree, *, dtype: jax.typing.DTypeLike = jnp.float32
) -> Tree:
  """Returns what fine-tuning changed, `expert - base`.

  Args:
    expert: Fine-tuned parameters.
    base: Parameters that the fine-tuning began with.
    dtype: Type of the result; the difference is taken in it.

  Returns:
    The difference of the floating leaves, and zeros for the others, which take
    no part in merging.

  Raises:
    ValueError: The trees differ in structure.

  Examples:
    >>> base = {'w': jnp.ones(2, jnp.bfloat16)}
    >>> task_vector({'w': 2 * base['w']}, base)['w']
    Array([1., 1.], dtype=float32)

  References:
    Gabriel Ilharco, Marco Tulio Ribeiro, Mitchell Wortsman, Suchin Gururangan,
    Ludwig Schmidt, Hannaneh Hajishirzi, Ali Farhadi. "Editing Models with Task
    Arithmetic". ICLR 2023. arXiv:2212.04089.
  """
  check_same_structure(base, expert, names=('base', 'expert'))

  def change(x, y):
    if not is_float(y):
      return jnp.zeros_like(y)
    return jnp.asarray(x, dtype) - jnp.asarray(y, dtype)

  return jax.tree.map(change, expert, base)
