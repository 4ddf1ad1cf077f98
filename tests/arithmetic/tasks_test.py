"""Every task against Python's integers, and the laws of sampling."""

import decimal
import fractions
import itertools
import math
import re

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from arithmetic import tasks
from tests.arithmetic import lines

# Slow, literal answers, written apart from the tasks' own oracles.
LITERAL = {
  'addition': lambda a, b: int(a) + int(b),
  'subtraction': lambda a, b: int(a) - int(b),
  'signed_subtraction': lambda a, b: (
    f'-{int(b) - int(a)}' if int(b) > int(a) else int(a) - int(b)
  ),
  'addition_of_three': lambda a, b, c: int(a) + int(b) + int(c),
  'long_division': lambda a, b: (
    f'{math.floor(fractions.Fraction(int(a), int(b)))}r'
    f'{int(a) - math.floor(fractions.Fraction(int(a), int(b))) * int(b)}'
  ),
  'addition_modulo_97': lambda a, b: math.fmod(int(a) + int(b), 97).__int__(),
  'multiplication_modulo_97': lambda a, b: (
    int(a) * int(b) - int(a) * int(b) // 97 * 97
  ),
  'square_root': lambda a: int(decimal.Decimal(a).sqrt()),
  'square_root_of_decimal': lambda a: str(
    decimal.Decimal(a)
    .sqrt()
    .quantize(decimal.Decimal(a), rounding=decimal.ROUND_FLOOR)
  ),
  'sorting_numbers': lambda *a: ','.join(sorted(a, key=lambda x: (len(x), x))),
  'running_sums': lambda *a: ','.join(
    f'{sum(int(a[int(k)]) for k in a[-1][: i + 1]):02d}'[-2:]
    for i in range(len(a[-1]))
  ),
  'running_sums_modulo_10': lambda *a: ','.join(
    f'{sum(int(a[int(k)]) for k in a[-1][: i + 1])}'[-1]
    for i in range(len(a[-1]))
  ),
  'running_sums_of_pairs': lambda *a: ','.join(
    f'{sum(int(a[int(k)]) for k in a[-1][: i + 2]):02d}'[-2:]
    for i in range(0, len(a[-1]), 2)
  ),
  'longest_increasing': lambda a: max(
    n
    for n in range(1, len(a) + 1)
    if any(list(s) == sorted(set(s)) for s in itertools.combinations(a, n))
  ),
  'modular_subtraction': lambda a, b: (
    (int(a) + 10 ** len(a) - int(b)) if int(a) < int(b) else int(a) - int(b)
  ),
  'multiplication': lambda a, b: sum(int(a) for _ in range(int(b))),
  'long_multiplication': lambda a, b: sum(
    int(a) * int(d) * 10**i for i, d in enumerate(reversed(b))
  ),
  'division': lambda a, b: math.floor(fractions.Fraction(int(a), int(b))),
  'remainder': lambda a, b: int(a) - int(a) // int(b) * int(b),
  'successor': lambda a: int(a) - -1,
  'maximum': lambda a, b: a if int(a) >= int(b) else b,
  'minimum': lambda a, b: b if int(a) >= int(b) else a,
  'comparison': lambda a, b: (
    [int(a) < int(b), int(a) == int(b)].index(True) if int(a) <= int(b) else 2
  ),
  'carryless_addition': lambda a, b: ''.join(
    str(int(x) + int(y))[-1] for x, y in zip(a, b, strict=True)
  ),
  'carryless_subtraction': lambda a, b: ''.join(
    str(10 + int(x) - int(y))[-1] for x, y in zip(a, b, strict=True)
  ),
  'digitwise_maximum': lambda a, b: ''.join(map(max, a, b)),
  'sorting': lambda a: ''.join(d * a.count(d) for d in '0123456789'),
  'sorting_descending': lambda a: ''.join(d * a.count(d) for d in '9876543210'),
  'reversing': lambda a: ''.join(a[-1 - i] for i in range(len(a))),
  'rotating': lambda a: a[1:] + a[0],
  'copying': lambda a: a,
  'digit_sum': lambda a: sum(ord(d) - ord('0') for d in a),
  'counting': lambda a, b: len([d for d in a if d == b]),
  'parity': lambda a: len([d for d in a if d in '13579']) % 2,
  'binary_successor': lambda a: bin(int(a, 2) - -1).removeprefix('0b'),
  'inorder_traversal': lambda a: _reduced(a, '{1}{0}{2}'),
  'preorder_traversal': lambda a: ''.join(d for d in a if d != '.'),
}


def _reduced(tree, order):
  """Replaces nodes whose children are known by what they give, in brackets."""
  tree = tree.replace('.', '[]')
  while not re.fullmatch(r'\[\d*\]', tree):
    tree = re.sub(
      r'(\d)\[(\d*)\]\[(\d*)\]',
      lambda m: f'[{order.format(*m.groups())}]',
      tree,
      count=1,
    )
  return tree[1:-1]


def test_every_task_has_a_literal_answer():
  assert LITERAL.keys() == tasks.ALL.keys()


def test_names_and_symbols_are_unique():
  symbols = [task.symbol for task in tasks.ALL.values()]
  assert len(set(symbols)) == len(symbols) == 37
  assert all(name == task.name for name, task in tasks.ALL.items())


# Of several lengths up to a long one, in one array, for every task; and, of
# tasks of every kind, in arrays of one column and of three.
SEVERAL = (0.2, 0.3, 0.5, *(0,) * 6, 1)
NARROW = [
  pytest.param(
    name, weights, marks=[] if name in lines.KINDS else pytest.mark.slow
  )
  for name in tasks.ALL
  for weights in [(1.0,), (0.2, 0.3, 0.5)]
]


@pytest.mark.parametrize(
  ('name', 'weights'), [*((name, SEVERAL) for name in tasks.ALL), *NARROW]
)
def test_device_and_oracle_agree_with_python(name, weights):
  task = tasks.get(name)
  if name == 'longest_increasing':  # The literal answer tries all subsequences.
    weights = (*weights[:4], 1)[: len(weights)]
  operands = lines.problems(task, 400, weights)
  answers = tasks.to_strings(task.compute(operands))
  written = list(zip(*map(tasks.to_strings, operands), strict=True))
  assert len(set(written)) > 8
  for problem, answer in zip(written, answers, strict=True):
    assert task.solve(problem) == answer, problem
    assert answer == str(LITERAL[name](*problem)), problem
    widths = task.answer_widths(len(weights))
    values = re.findall('[-.0-9]+', answer)
    assert all(len(x) <= n for x, n in zip(values, widths, strict=False))
    assert len(values) <= len(widths)


@pytest.mark.parametrize('name', ['addition', 'subtraction', 'maximum'])
@hypothesis.settings(max_examples=40)
@hypothesis.given(a=st.integers(0, 10**30), b=st.integers(0, 10**30))
def test_numbers_longer_than_machine_integers(name, a, b):
  a, b = max(a, b), min(a, b)
  operands = tuple(tasks.from_strings([str(x)], width=32) for x in (a, b))
  task = tasks.get(name)
  (answer,) = tasks.to_strings(task.compute(operands))
  assert answer == task.solve((str(a), str(b)))


@hypothesis.settings(max_examples=40)
@hypothesis.given(
  a=st.integers(0, 10**20), b=st.integers(0, 10**12), d=st.integers(1, 9)
)
def test_long_multiplication_and_division(a, b, d):
  x, y, z = (tasks.from_strings([str(v)], width=21) for v in (a, b, d))
  product = tasks.multiplication.compute((x, y))
  assert tasks.to_strings(product) == [str(a * b)]
  assert tasks.to_strings(tasks.division.compute((x, z))) == [str(a // d)]
  assert tasks.to_strings(tasks.remainder.compute((x, z))) == [str(a % d)]


def test_every_one_digit_sum():
  pairs = [(a, b) for a in '0123456789' for b in '0123456789']
  a, b = (tasks.from_strings(x) for x in zip(*pairs, strict=True))
  sums = tasks.to_strings(tasks.addition.compute((a, b)))
  assert sums == [str(int(x) + int(y)) for x, y in pairs]


def test_levels_follow_their_weights():
  a, b = tasks.addition.sample(
    jax.random.key(0), 20_000, level_weights=(1, 0, 3)
  )
  np.testing.assert_array_equal(a.length, b.length)
  share = np.bincount(np.asarray(a.length), minlength=4) / 20_000
  np.testing.assert_allclose(share, [0, 0.25, 0, 0.75], atol=0.015)


def test_numbers_do_not_start_with_zero_and_are_uniform():
  a, _ = tasks.addition.sample(jax.random.key(0), 90_000, level_weights=(0, 1))
  numbers = np.asarray([int(x) for x in tasks.to_strings(a)])
  counts = np.bincount(numbers, minlength=100)
  assert counts[:10].sum() == 0
  # 90 equally likely numbers, 1000 each: five standard deviations.
  assert np.abs(counts[10:] - 1000).max() < 5 * np.sqrt(1000)


def test_domain():
  a, b = lines.problems(tasks.subtraction, 500)
  assert all(
    int(x) >= int(y)
    for x, y in zip(tasks.to_strings(a), tasks.to_strings(b), strict=True)
  )
  _, d = lines.problems(tasks.division, 500)
  assert set(tasks.to_strings(d)) == set('123456789')


def test_sampling_is_a_function_of_the_key():
  one, same, other = (
    tasks.sorting.sample(jax.random.key(seed), 1000, level_weights=(0, 0, 1))
    for seed in (3, 3, 4)
  )
  np.testing.assert_array_equal(one[0].values, same[0].values)
  assert (np.asarray(one[0].values) != np.asarray(other[0].values)).any()


def test_splits_are_disjoint_complete_and_of_the_stated_size():
  operands = tasks.addition.sample(
    jax.random.key(0), 20_000, level_weights=(0, 0, 1)
  )
  member = np.stack([tasks.split_of(operands, s) for s in tasks.SPLITS])
  np.testing.assert_array_equal(member.sum(axis=0), 1)
  shares = dict(zip(tasks.SPLITS, member.mean(axis=1), strict=True))
  assert shares == pytest.approx(
    {'validation': 1 / 16, 'test': 1 / 16, 'train': 7 / 8}, abs=0.01
  )


@pytest.mark.parametrize('task', tasks.ALL.values(), ids=tasks.ALL)
def test_a_problem_keeps_its_split_whatever_array_carries_it(task):
  operands = lines.problems(task, 200)
  wider = tuple(
    tasks.Digits(np.pad(x.values, [(0, 0), (0, 2)]), x.length) for x in operands
  )
  for split in tasks.SPLITS:
    np.testing.assert_array_equal(
      tasks.split_of(operands, split), tasks.split_of(wider, split)
    )


def test_a_problem_and_its_mirror_image_are_in_one_split():
  a, b = lines.problems(tasks.addition, 200)
  for split in tasks.SPLITS:
    np.testing.assert_array_equal(
      tasks.split_of((a, b), split), tasks.split_of((b, a), split)
    )


def test_a_list_is_in_one_split_in_every_order_and_with_absent_operands():
  numbers = lines.problems(tasks.sorting_numbers, 200)
  absent = tasks.from_strings([''] * 200, width=3)
  for split in tasks.SPLITS:
    member = tasks.split_of(numbers, split)
    for other in (
      numbers[::-1],
      (numbers[2], absent, *numbers[:2], numbers[3]),
    ):
      np.testing.assert_array_equal(member, tasks.split_of(other, split))


def test_all_problems_of_a_level():
  a, b = tasks.division.enumerate(2)
  problems = set(zip(*map(tasks.to_strings, (a, b)), strict=True))
  assert len(problems) == len(a.length) == 90 * 9
  assert problems == {
    (str(x), str(y)) for x in range(10, 100) for y in range(1, 10)
  }
  assert len(tasks.copying.enumerate(1)[0].length) == 100
  (decimals,) = tasks.square_root_of_decimal.enumerate(1)
  assert len(decimals.length) == 90
  assert tasks.to_strings(decimals)[:2] == ['1.0', '1.1']
  with pytest.raises(ValueError, match='810000 problems at level 3'):
    tasks.addition.enumerate(3)


def test_splits_of_small_spaces_are_not_empty():
  pairs = [(a, b) for a in '0123456789' for b in '0123456789']
  operands = tuple(tasks.from_strings(x) for x in zip(*pairs, strict=True))
  for split in tasks.SPLITS:
    assert int(tasks.split_of(operands, split).sum()) > 0


def test_strings_round_trip():
  strings = ['0', '007', '12345']
  assert tasks.to_strings(tasks.from_strings(strings)) == strings
  with pytest.raises(ValueError, match="'1a'"):
    tasks.from_strings(['1a'])
  with pytest.raises(ValueError, match=r"at most 2 characters .*, got '123'"):
    tasks.from_strings(['123'], width=2)


@pytest.mark.parametrize('weights', [(), (1, 0), (-1, 2), ((1, 2),)])
def test_bad_level_weights(weights):
  with pytest.raises(ValueError, match='level'):
    tasks.addition.sample(jax.random.key(0), 2, level_weights=weights)


@pytest.mark.parametrize(
  'name', ['running_sums_modulo_10', 'running_sums_of_pairs']
)
def test_sums_that_stray_go_on_from_their_errors(name):
  task = tasks.get(name)
  operands = lines.problems(task, 40)
  offsets = np.random.default_rng(0).integers(-10, 11, (40, 6), np.int32)
  states = tasks.straying_sums(task, operands, offsets)
  said = list(zip(*map(tasks.to_strings, states), strict=True))
  problems = list(zip(*map(tasks.to_strings, operands), strict=True))
  for (*table, keys), row, errors in zip(problems, said, offsets, strict=True):
    state = 0
    for turn in range(len(keys) // task.turns):
      for key in keys[turn * task.turns : (turn + 1) * task.turns]:
        state += int(table[int(key)])
      before = row[turn - 1] if turn else '0'
      digits = len(table[0])
      due = (state + errors[:turn].sum()) % 10**digits
      found = tasks.next_sum(task, (*table, keys), before, turn)
      assert found == f'{due:0{digits}d}'
      assert row[turn] == f'{(due + errors[turn]) % 10**digits:0{digits}d}'
    assert not any(row[len(keys) // task.turns :])


def test_unknown_task_and_split():
  with pytest.raises(KeyError, match="did you mean 'addition'"):
    tasks.get('adition')
  operands = (tasks.from_strings(['12']),)
  with pytest.raises(KeyError, match='train'):
    tasks.split_of(operands, 'dev')


def test_chains_of_ones_are_as_long_as_the_level_says():
  drawn = lines.problems(tasks.binary_successor, 400, (0, 0, 0, 1))
  written = tasks.to_strings(drawn[0])
  assert {len(x) for x in written} == {24}
  assert all(x.startswith('1') and x.endswith('0111') for x in written)
  assert 0.4 < np.mean([x[-5] == '1' for x in written]) < 0.6
  full = tasks.from_strings(['111', '1'])
  answers = tasks.binary_successor.compute((full,))
  assert tasks.to_strings(answers) == ['1000', '10']


def test_trees_of_a_size_are_equally_likely():
  (drawn,) = tasks.inorder_traversal.sample(
    jax.random.key(0), 2_000, level_weights=(0, 0, 1)
  )
  shapes = [re.sub(r'\d', 'n', x) for x in tasks.to_strings(drawn)]
  assert len(set(shapes)) == 5  # The third Catalan number.
  assert all(abs(shapes.count(x) - 400) < 90 for x in set(shapes))
