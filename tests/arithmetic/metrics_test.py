"""Metrics against loops over integers."""

import collections
import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import evaluation
from arithmetic import layouts
from arithmetic import metrics
from arithmetic import tasks
from arithmetic import tokenizers

RNG = np.random.default_rng(0)
TRUE = [str(RNG.integers(0, 10 ** RNG.integers(1, 7))) for _ in range(400)]


def _spoilt(text):
  """An answer that is right, or has wrong, missing or additional digits."""
  kind = RNG.integers(5)
  if kind == 0:
    return text
  if kind == 1:
    return text[1:]
  if kind == 2:
    return text + '7'
  digits = list(text)
  for _ in range(RNG.integers(1, 3)):
    digits[RNG.integers(len(digits))] = str(RNG.integers(10))
  return ''.join(digits)


SAID = [_spoilt(x) for x in TRUE]


def test_digits_by_weight_and_by_place():
  by_weight = metrics.digit_accuracy(SAID, TRUE)
  by_place = metrics.digit_accuracy(SAID, TRUE, by='place')
  for w in range(6):
    with_weight = [
      (said, true)
      for said, true in zip(SAID, TRUE, strict=True)
      if len(true) > w
    ]
    hits = sum(
      len(said) > w and int(said) // 10**w % 10 == int(true) // 10**w % 10
      for said, true in with_weight
    )
    expected = metrics.Share(hits / len(with_weight), len(with_weight))
    assert by_weight[w] == expected
    hits = sum(said[w : w + 1] == true[w] for said, true in with_weight)
    assert by_place[w] == metrics.Share(
      hits / len(with_weight), len(with_weight)
    )
  assert metrics.digit_accuracy([None], ['-12']) == [(0.0, 1), (0.0, 1)]


def test_digit_match_of_whole_numbers():
  for said, true in zip(SAID, TRUE, strict=True):
    # Blanks on both sides, so that nothing but digits of one weight agrees.
    pairs = zip(said.rjust(9, '_'), true.rjust(9, ' '), strict=True)
    matched = sum(x == y for x, y in pairs)
    assert metrics.digit_match(said, true) == matched / len(true)
    assert metrics.length_difference(said, true) == abs(len(said) - len(true))


@pytest.mark.parametrize(
  ('said', 'true', 'matched', 'total', 'whole', 'parts'),
  [
    ('8.73', '8.73', 3, 3, 0, 0),
    ('18.7', '8.73', 2, 3, 0, 2),  # Decimals from the left: 7 is right.
    ('8.37', '8.73', 1, 3, 0, 0),
    ('87', '8.73', 0, 3, 1, 3),
    ('2918/365', '2918/1365', 7, 8, 1, 1),
    ('1/2', '11/22', 2, 4, 2, 2),
    ('9.2713e81', '9.271e81', 6, 6, 1, 1),
    ('9.27e1', '9.27e81', 4, 5, 1, 1),
    ('12r3', '12r13', 3, 4, 1, 1),
    ('-12', '12', 2, 2, 0, 0),
    (None, '12', 0, 2, 2, 2),
    ('7,12', '7,12,30', 3, 5, 2, 2),
  ],
)
def test_parts_are_aligned_each_in_its_way(
  said, true, matched, total, whole, parts
):
  match = metrics.digit_match(said, true)
  assert fractions.Fraction(match).limit_denominator(20) == fractions.Fraction(
    matched, total
  )
  assert metrics.length_difference(said, true) == whole
  assert metrics.length_difference(said, true, by_part=True) == parts


def test_tables_and_grids_count_every_problem_once():
  right = np.asarray(SAID) == np.asarray(TRUE)
  a, b = RNG.integers(1, 5, 400), RNG.integers(1, 4, 400)
  table = metrics.tabulate(right, a, b)
  shares, counts = metrics.grid(right, a, b)
  literal = collections.defaultdict(list)
  for value, i, j in zip(right, a, b, strict=True):
    literal[int(i), int(j)].append(value)
  assert sum(x.count for x in table.values()) == counts.sum() == 400
  assert set(table) == set(literal)
  for (i, j), group in literal.items():
    expected = sum(group) / len(group)
    assert table[i, j] == (pytest.approx(expected), len(group))
    assert shares[i - 1, j - 1] == pytest.approx(expected)
    assert counts[i - 1, j - 1] == len(group)
  with pytest.raises(ValueError, match='longer'):
    metrics.tabulate([True], [1, 2])


def test_accuracy_by_carry_chain():
  problems = tasks.from_strings(['5', '55']), tasks.from_strings(['1', '55'])
  table = metrics.tabulate([True, False], tasks.carries(problems).chain)
  assert table == {(0,): (1.0, 1), (2,): (0.0, 1)}


@pytest.mark.parametrize(
  ('said', 'true', 'kind', 'wrong', 'near'),
  [
    ('1245', '1245', 'right', (), False),
    (None, '1245', 'unreadable', (), False),
    ('12+5', '1245', 'unreadable', (), False),
    ('', '1245', 'unreadable', (), False),
    ('245', '1245', 'length', (), False),
    ('1255', '1245', 'digits', (3,), True),
    ('0245', '9245', 'digits', (1,), True),
    ('3246', '1245', 'digits', (1, 4), False),
    ('-245', '1245', 'digits', (1,), False),
  ],
)
def test_errors(said, true, kind, wrong, near):
  assert metrics.error(said, true) == (kind, wrong, near)


def test_lengths_that_are_learned():
  scores = {1: 1.0, 2: 0.95, 3: 0.9, 4: 0.85, 5: 0.05}
  assert metrics.largest_length(scores, 0.9) == 3
  assert metrics.largest_length(scores, 0.1) == 4
  assert metrics.largest_length(scores, 1.1) == 0
  assert (
    metrics.largest_length({1: 0.0, 2: 0.1, 3: 2.0}, 0.1, at_most=True) == 2
  )


def test_horizon_by_loops():
  addends = RNG.integers(0, 100, (50, 12))
  true = np.cumsum(addends, axis=1) % 100
  said = np.where(RNG.random((50, 12)) < 0.2, RNG.integers(-1, 100), true)
  result = metrics.horizon(said, addends, modulus=100)
  turn, prefix, step = np.zeros(12), np.zeros(12), np.zeros(12)
  for row in range(50):
    perfect, before, state = True, 0, 0
    for t in range(12):
      state = (state + addends[row, t]) % 100
      perfect = perfect and said[row, t] == state
      turn[t] += said[row, t] == state
      prefix[t] += perfect
      step[t] += (
        before >= 0 and said[row, t] == (before + addends[row, t]) % 100
      )
      before = said[row, t]
  np.testing.assert_allclose(result.turn, turn / 50)
  np.testing.assert_allclose(result.prefix, prefix / 50)
  np.testing.assert_allclose(result.step, step / 50)
  for p in (0.5, 0.9, 0.99):
    turns = metrics.horizon_length(p)
    assert p**turns == pytest.approx(0.5)
  assert metrics.horizon_length(1.0) == math.inf
  assert metrics.horizon_length(0.0) == 0


def test_emission_order_of_reversed_answers_is_weight():
  layout = layouts.Layout()
  tokenizer = tokenizers.DigitTokenizer('+')
  pairs = [map(str, RNG.integers(0, 10 ** (1 + i % 2), 2)) for i in range(50)]
  operands = tuple(tasks.from_strings(x, 2) for x in zip(*pairs, strict=True))
  batch = layout.write(tasks.addition, operands, tokenizer=tokenizer, level=2)
  # A model that always says 7, and never ends.
  said = jnp.full(batch.tokens[:, 1:].shape, tokenizer.encode('7')[0])
  share, counts = jax.jit(evaluation.accuracy_by_emission)(
    jax.nn.one_hot(said, tokenizer.vocabulary_size), batch
  )
  problems = zip(*map(tasks.to_strings, operands), strict=True)
  sums = [str(int(a) + int(b)) for a, b in problems]
  expected = metrics.digit_accuracy(['7' * len(x) for x in sums], sums)
  for i, (hits, count) in enumerate(expected):
    ended = sum(len(x) == i for x in sums)
    assert int(counts[i]) == count + ended
    assert float(share[i]) * (count + ended) == pytest.approx(hits * count)
