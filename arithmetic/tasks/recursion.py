"""Functions that are defined by recursion on what they take apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic.tasks import digitwise
from arithmetic.tasks.base import ALPHABET
from arithmetic.tasks.base import column
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import hashed
from arithmetic.tasks.base import mix
from arithmetic.tasks.base import Operands
from arithmetic.tasks.base import Task

# No child, in a tree that is written down.
_NONE = ALPHABET.index('.')


def _with_a_chain(operands: Operands, bits: int) -> Operands:
  """Makes drawn digits a binary number that ends with so many ones.

  How many says the length of what was drawn.
  """
  (drawn,) = operands
  place = column(drawn.values)
  ones = (drawn.length - bits - 1)[:, None]
  values = jnp.where(place < ones, 1, drawn.values % 2)
  values = jnp.where(place == ones, 0, values)
  values = jnp.where(place == bits - 1, 1, values)
  return (Digits(values, jnp.full_like(drawn.length, bits)).masked(),)


def _next_binary(operands: Operands) -> Digits:
  bits = digitwise.pad(operands[0].values, operands[0].values.shape[-1] + 1)
  carried = jnp.cumprod(bits, axis=-1, dtype=jnp.int32)
  carried = jnp.concatenate(
    [jnp.ones_like(bits[:, :1]), carried[:, :-1]], axis=-1
  )
  found = bits ^ carried
  length = operands[0].length
  grown = jnp.take_along_axis(found, length[:, None], axis=-1)[:, 0]
  return Digits(found, length + grown).masked()


def binary_successor_of(bits: int, *, name: str, symbol: str) -> Task:
  """The task of adding one to a binary number, by how far it carries.

  Where numbers are made of `1`, `n ↦ 2n` and `n ↦ 2n + 1`, the successor is
  defined by recursion: through as many steps as the number ends with ones.
  Reversed, as `Layout(operand_order='reversed', answer_order='reversed')`
  writes it, a number shows its last constructor first. Problems of a level
  end with one less of them: of random numbers half are of level 1, a quarter
  of level 2, and so on.

  Args:
    bits: Of all numbers, more than the largest level.
    name: The task's name.
    symbol: The task's symbol.

  Returns:
    The task.

  Examples:
    >>> task = binary_successor_of(8, name='successor', symbol='B')
    >>> task.solve(('10010111',))
    '10011000'

  References:
    Zhang et al., Can Transformers Learn to Solve Problems Recursively?, 2023,
    arXiv:2305.14699.
  """
  return Task(
    name=name,
    symbol=symbol,
    numeric=False,
    widths=lambda level: (bits + level,),
    answer_width=lambda level: bits + 1,
    compute=_next_binary,
    solve=lambda x: f'{int(x[0], 2) + 1:b}',
    prepare=functools.partial(_with_a_chain, bits=bits),
  )


binary_successor = binary_successor_of(24, name='binary_successor', symbol='G')


def _as_trees(operands: Operands) -> Operands:
  """Makes drawn digits the labels of random binary trees.

  Which places hold nodes is decided by hashes of all digits. Of every such
  sequence one rotation is a tree.
  """
  (drawn,) = operands
  read = digitwise.reverse(drawn).values
  length = drawn.length[:, None]
  place = column(read)
  inside = place < length
  # Twice, as neighbouring places differ in few bits.
  keys = mix(hashed(drawn)[:, None], place.astype(jnp.uint32))
  keys = mix(keys, jnp.uint32(1))
  keys = jnp.where(inside, keys >> np.uint32(1), np.uint32(2**32 - 1))
  rank = jnp.argsort(jnp.argsort(keys, axis=-1), axis=-1)
  node = (rank < length // 2) & inside
  # A tree's path, up at a node and down where there is none, is below 0 at its
  # end alone: begin behind the first of the lowest points.
  step = jnp.where(inside, jnp.where(node, 1, -1), 0)
  path = jnp.where(inside, jnp.cumsum(step, axis=-1), read.shape[-1])
  first = jnp.argmin(path, axis=-1)[:, None] + 1
  source = jnp.where(inside, (place + first) % length, place)
  tokens = jnp.where(node, read, _NONE)
  tokens = jnp.take_along_axis(tokens, source, axis=-1)
  tokens = jnp.where(inside, tokens, 0)
  return (digitwise.reverse(Digits(tokens, drawn.length)),)


def _in_order(operands: Operands) -> Digits:
  (tree,) = operands
  read = digitwise.reverse(tree).values
  inside = column(read) < tree.length[:, None]
  count, width = read.shape
  rows = jnp.arange(count)

  def visit(state, token):
    """A node waits for its left side, which ends where there is no child."""
    stack, height, written, done = state
    token, there = token
    node = there & (token != _NONE)
    stack = stack.at[rows, height].set(
      jnp.where(node, token, stack[rows, height])
    )
    comes = there & ~node & (height > 0)
    top = stack[rows, height - 1]
    written = written.at[rows, done].set(
      jnp.where(comes, top, written[rows, done])
    )
    height = height + node.astype(jnp.int32) - comes.astype(jnp.int32)
    return (stack, height, written, done + comes.astype(jnp.int32)), None

  empty = jnp.zeros((count, width), jnp.int32)
  none = jnp.zeros((count,), jnp.int32)
  (_, _, written, done), _ = jax.lax.scan(
    visit, (empty, none, empty, none), (read.T, inside.T)
  )
  return digitwise.reverse(Digits(written, done))


def _pre_order(operands: Operands) -> Digits:
  (tree,) = operands
  read = digitwise.reverse(tree).values
  node = (column(read) < tree.length[:, None]) & (read != _NONE)
  order = jnp.argsort(~node, axis=-1, stable=True)
  written = jnp.where(node, read, 0)
  written = jnp.take_along_axis(written, order, axis=-1)
  count = jnp.sum(node, axis=-1, dtype=jnp.int32)
  return digitwise.reverse(Digits(written, count))


def _traversed(tree: str, *, root_first: bool) -> str:
  """Visits a tree by recursion."""
  rest = iter(tree)

  def visit() -> str:
    label = next(rest)
    if label == '.':
      return ''
    left, right = visit(), visit()
    return label + left + right if root_first else left + label + right

  return visit()


# Trees are written root first, `.` where a child is missing: `12..3..` has the
# root 1 with the children 2 and 3. The level is the number of nodes.
inorder_traversal = Task(
  name='inorder_traversal',
  symbol='Y',
  numeric=False,
  alphabet='.',
  widths=lambda level: (2 * level + 1,),
  answer_width=lambda level: level,
  compute=_in_order,
  solve=lambda x: _traversed(x[0], root_first=False),
  prepare=_as_trees,
)

preorder_traversal = Task(
  name='preorder_traversal',
  symbol='H',
  numeric=False,
  alphabet='.',
  widths=lambda level: (2 * level + 1,),
  answer_width=lambda level: level,
  compute=_pre_order,
  solve=lambda x: _traversed(x[0], root_first=True),
  prepare=_as_trees,
)
