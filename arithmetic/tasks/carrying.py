"""How sums carry: what an example is like, and samples that are balanced."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic.tasks import digitwise
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import Operands


class Carries(NamedTuple):
  """How the digits of a sum carry, i32[batch] each.

  Attributes:
    count: How many columns carry.
    chain: The most columns in a row that carry.
    ripple: The most columns in a row whose digits add up to nine and that
      carry since the column before does: a digit of the answer then depends on
      digits that far away.
  """

  count: jax.Array
  chain: jax.Array
  ripple: jax.Array


@jax.jit
def carries(operands: Operands) -> Carries:
  """How a sum of two numbers carries.

  Args:
    operands: Two numbers of shape [batch].

  Returns:
    The three counts of each sum.

  Examples:
    >>> from arithmetic import tasks
    >>> problems = (
    ...   tasks.from_strings(['128', '955']),
    ...   tasks.from_strings(['367', '45']),
    ... )
    >>> [x.tolist() for x in carries(problems)]
    [[1, 3], [1, 3], [0, 2]]

  References:
    Lee et al., Teaching Arithmetic to Small Transformers, 2023,
    arXiv:2307.03381.
  """
  a, b = operands
  width = max(a.values.shape[-1], b.values.shape[-1])
  first, second = (digitwise.pad(x.masked().values, width) for x in (a, b))

  def step(state, total):
    carried, count, run, ripple, *most = state
    carries_on = total + carried >= 10
    ripples = carries_on & (total == 9)
    carried = carries_on.astype(jnp.int32)
    run = jnp.where(carries_on, run + 1, 0)
    ripple = jnp.where(ripples, ripple + 1, 0)
    most = (jnp.maximum(most[0], run), jnp.maximum(most[1], ripple))
    return (carried, count + carried, run, ripple, *most), None

  zero = jnp.zeros(a.length.shape, jnp.int32)
  columns = jnp.moveaxis(first + second, -1, 0)
  (_, count, _, _, chain, ripple), _ = jax.lax.scan(step, (zero,) * 6, columns)
  return Carries(count, chain, ripple)


def sample_carrying(
  key: jax.Array,
  batch_size: int,
  *,
  digits: int,
  carry_weights: Sequence[float] | None = None,
) -> Operands:
  """Draws sums of two numbers of some length by how many columns carry.

  The number of carries is drawn first, then a pair of numbers uniformly among
  those that carry so often: column by column, with the probability that a
  column carries given how many carries are left. Without this, sums of many
  digits that carry never, or everywhere, are hardly ever seen.

  Args:
    key: A PRNG key.
    batch_size: How many problems.
    digits: The digits of each number.
    carry_weights: Relative frequency of 0, 1, ..., `digits` carries; all the
      same by default.

  Returns:
    Two `Digits` of shape [batch_size].

  Raises:
    ValueError: If the weights are not `digits + 1` non-negative numbers, one
      of them positive.

  Examples:
    >>> import jax
    >>> problems = sample_carrying(
    ...   jax.random.key(0), 100, digits=3, carry_weights=(0, 0, 0, 1)
    ... )
    >>> bool((carries(problems).count == 3).all())
    True

  References:
    Lee et al., Teaching Arithmetic to Small Transformers, 2023,
    arXiv:2307.03381, who balance a stored set by rejection.
  """
  weights = np.ones(digits + 1) if carry_weights is None else carry_weights
  weights = np.asarray(weights, np.float64)
  if weights.shape != (digits + 1,) or (weights < 0).any() or not weights.sum():
    raise ValueError(
      f'carry_weights holds a non-negative weight for each of 0 to {digits}'
      f' carries, not all zero, got {carry_weights!r}'
    )
  pairs, counts = _pairs()
  chances = jnp.asarray(_chances(counts, digits), jnp.float32)
  carry_key, column_key = jax.random.split(key)
  left = jax.random.categorical(
    carry_key,
    jnp.log(jnp.asarray(weights / weights.sum(), jnp.float32)),
    shape=(batch_size,),
  )
  carried = jnp.zeros(batch_size, jnp.int32)
  columns = []
  for i in range(digits):
    chance_key, pair_key = jax.random.split(jax.random.fold_in(column_key, i))
    top = int(i == digits - 1 and digits > 1)
    chance = chances[i][carried, left]
    carries_on = jax.random.uniform(chance_key, (batch_size,)) < chance
    out = carries_on.astype(jnp.int32)
    choice = jax.random.randint(
      pair_key, (batch_size,), 0, jnp.asarray(counts[top])[carried, out]
    )
    columns.append(jnp.asarray(pairs[top])[carried, out, choice])
    carried, left = out, left - out
  both = jnp.stack(columns, axis=1)
  length = jnp.full(batch_size, digits, jnp.int32)
  return tuple(Digits(both[:, :, i], length) for i in range(2))


def balanced_sums(
  size: int, *, seed: int, digits: int = 3
) -> list[tuple[str, str]]:
  """A stored training set of sums, balanced by digits and by carries.

  Of 10,000 sums of at most three digits, 100 are all those of one digit, 900
  have numbers below 100 and the rest numbers below 1000; other sizes in
  proportion, but for the sums of one digit. Of each kind at most a share of
  1 / (digits + 1), rounded up, carries equally often; other draws are
  rejected. A sum may occur twice.

  Args:
    size: How many sums.
    seed: Of NumPy's generator.
    digits: The most digits of a number, at least 1; kinds of fewer digits than
      the largest have 9 / 10^(digits - d + 1) of the sums.

  Returns:
    Pairs of written numbers, in random order. Keep those that `split_of` puts
    into `train`, if others are scored.

  Raises:
    ValueError: If the size leaves no room for the sums of one digit.

  Examples:
    >>> pairs = balanced_sums(1000, seed=0)
    >>> len(pairs), sum(max(map(len, pair)) == 1 for pair in pairs) >= 100
    (1000, True)

  References:
    Lee et al., Teaching Arithmetic to Small Transformers, 2023,
    arXiv:2307.03381.
  """
  if size < 100 or digits < 1 or (digits == 1 and size != 100):
    raise ValueError(
      'there are 100 sums of one digit, and others only of more digits; got'
      f' size={size}, digits={digits}'
    )
  rng = np.random.default_rng(seed)
  pairs = [(a, b) for a in range(10) for b in range(10)]
  for d in range(2, digits + 1):
    count = size * 9 // 10 ** (digits - d + 1)
    if d == digits:
      count = size - len(pairs)
    most, found = -(-count // (d + 1)), np.zeros(d + 1, np.int64)
    while found.sum() < count:
      a, b = (int(x) for x in rng.integers(0, 10**d, 2))
      # Every carry takes nine from the sum of the digits.
      lost = sum(map(int, f'{a}{b}')) - sum(map(int, str(a + b)))
      if found[lost // 9] < most:
        found[lost // 9] += 1
        pairs.append((a, b))
  rng.shuffle(pairs)
  return [(str(a), str(b)) for a, b in pairs]


def _pairs() -> tuple[np.ndarray, np.ndarray]:
  """The pairs of digits by [top column, carry in, carry out], and how many."""
  pairs = np.zeros((2, 2, 2, 100, 2), np.int32)
  counts = np.zeros((2, 2, 2), np.int32)
  for top in range(2):
    low = 1 if top else 0
    for carry_in in range(2):
      for a in range(low, 10):
        for b in range(low, 10):
          where = top, carry_in, int(a + b + carry_in >= 10)
          pairs[(*where, counts[where])] = a, b
          counts[where] += 1
  return pairs, counts


def _chances(counts: np.ndarray, digits: int) -> np.ndarray:
  """How likely a column carries: [column, carry in, carries left]."""
  # How many ways there are to fill the columns from one on.
  ways: list[list[int]] = [[1] + [0] * digits] * 2
  chances = np.zeros((digits, 2, digits + 1))
  for i in reversed(range(digits)):
    top = int(i == digits - 1 and digits > 1)
    here: list[list[int]] = []
    for carry_in in range(2):
      stops, goes = (int(x) for x in counts[top, carry_in])
      row = []
      for left in range(digits + 1):
        without = stops * ways[0][left]
        having = goes * ways[1][left - 1] if left else 0
        row.append(without + having)
        chances[i, carry_in, left] = having / max(without + having, 1)
      here.append(row)
    ways = here
  return chances
