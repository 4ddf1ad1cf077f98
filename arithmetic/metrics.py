"""What written answers are like: digits, lengths, errors and horizons.

Answers are strings in the form of `Task.solve`, as `Layout.read` gives them for
every layout and tokenizer; an answer that could not be read is None.
"""

from collections.abc import Hashable
from collections.abc import Sequence
import itertools
import math
import re
from typing import Literal
from typing import NamedTuple

import numpy as np

Answers = Sequence[str | None]

_VALUE = re.compile(r'([0-9]*)(?:\.([0-9]*))?(?:e-?([0-9]*))?')


class Share(NamedTuple):
  """How many of a group are right.

  Attributes:
    share: Between 0 and 1.
    count: The size of the group.
  """

  share: float
  count: int


def tabulate(
  right: Sequence[bool] | np.ndarray, *keys: Sequence[Hashable] | np.ndarray
) -> dict[tuple[Hashable, ...], Share]:
  """The share that is right in every group of problems.

  Args:
    right: One value each.
    *keys: What the groups are by, one value each: lengths of the operands,
      `carries(operands).chain`, whether the answer is longer than they are.

  Returns:
    By the values of the keys, sorted.

  Raises:
    ValueError: If the arguments have different lengths.

  Examples:
    >>> table = tabulate([True, False, True], [1, 2, 2])
    >>> {key: table[key] for key in table}
    {(1,): Share(share=1.0, count=1), (2,): Share(share=0.5, count=2)}
  """
  groups: dict[tuple[Hashable, ...], list[bool]] = {}
  columns = [np.asarray(x).tolist() for x in (right, *keys)]
  for value, *key in zip(*columns, strict=True):
    groups.setdefault(tuple(key), []).append(bool(value))
  return {
    key: Share(sum(group) / len(group), len(group))
    for key, group in sorted(groups.items())
  }


def grid(
  right: Sequence[bool] | np.ndarray,
  rows: Sequence[int] | np.ndarray,
  columns: Sequence[int] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """The share that is right for each pair of lengths of the operands.

  Args:
    right: One value each.
    rows: The length of the first operand of each, at least 1.
    columns: That of the second.

  Returns:
    Shares f64[rows, columns], entry [i, j] for lengths i + 1 and j + 1, NaN
    where there is no problem; and how many there are, i64[rows, columns].

  Examples:
    >>> grid([True, False, True], [1, 1, 2], [1, 1, 2])[0].tolist()
    [[0.5, nan], [nan, 1.0]]
  """
  index = np.asarray(rows) - 1, np.asarray(columns) - 1
  counts = np.zeros([int(np.max(x)) + 1 for x in index], np.int64)
  hits = np.zeros(counts.shape, np.int64)
  np.add.at(counts, index, 1)
  np.add.at(hits, index, np.asarray(right, np.int64))
  return np.where(counts, hits / np.maximum(counts, 1), np.nan), counts


def digit_accuracy(
  predicted: Answers,
  truth: Sequence[str],
  *,
  by: Literal['weight', 'place'] = 'weight',
) -> list[Share]:
  """How often each digit of the true answer is written.

  Args:
    predicted: The answers of a model.
    truth: The true answers, in each of which one number stands.
    by: `weight` counts from the last digit, 0 for the units; `place` from the
      first. Of an answer that was written in the reversed order the weight is
      the order of emission, of one in plain order the place.

  Returns:
    One entry for each digit of the longest answer; a digit that is missing
    is wrong.

  Examples:
    >>> digit_accuracy(['125', '35'], ['124', '135'])[0]
    Share(share=0.5, count=2)
    >>> digit_accuracy(['125', '35'], ['124', '135'])[2]
    Share(share=0.5, count=2)
  """
  step = -1 if by == 'weight' else 1
  hits: list[list[bool]] = []
  for said, true in zip(predicted, truth, strict=True):
    pair = [re.sub('[^0-9]', '', x or '')[::step] for x in (said, true)]
    for i, digit in enumerate(pair[1]):
      if i == len(hits):
        hits.append([])
      hits[i].append(pair[0][i : i + 1] == digit)
  return [Share(sum(x) / len(x), len(x)) for x in hits]


def digit_match(predicted: str | None, truth: str) -> float:
  """The digits that are right, as a share of those of the true answer.

  Whole numbers, numerators, denominators and exponents are compared from their
  last digit on, decimals from the first one behind the point. Signs do not
  count.

  Args:
    predicted: A model's answer.
    truth: The true one.

  Returns:
    Between 0 and 1.

  Examples:
    >>> digit_match('1234', '234'), digit_match('8.7', '8.73')
    (1.0, 0.6666666666666666)

  References:
    Yang et al., Number Cookbook: Number Understanding of Language Models and
    How to Improve It, 2024, arXiv:2411.03766.
  """
  matched = total = 0
  for said, true in _paired(predicted, truth):
    matched += sum(x == y for x, y in zip(said, true, strict=False))
    total += len(true)
  return matched / total


def length_difference(
  predicted: str | None, truth: str, *, by_part: bool = False
) -> int:
  """By how many digits an answer is too long or too short.

  Args:
    predicted: A model's answer.
    truth: The true one.
    by_part: Whether differences of whole numbers, decimals and so on add up,
      as in the paper's code for models of numbers, or only that of all digits
      counts, as in its code for models of text.

  Returns:
    A number of digits, not negative.

  Examples:
    >>> length_difference('12.3', '1.23')
    0
    >>> length_difference('12.3', '1.23', by_part=True)
    2

  References:
    Yang et al., Number Cookbook: Number Understanding of Language Models and
    How to Improve It, 2024, arXiv:2411.03766.
  """
  differences = [len(x) - len(y) for x, y in _paired(predicted, truth)]
  return sum(map(abs, differences)) if by_part else abs(sum(differences))


def largest_length(
  scores: dict[int, float], threshold: float, *, at_most: bool = False
) -> int:
  """The largest length of a problem whose score still reaches a threshold.

  The paper calls it the well-learned digit for an exact match of at least 0.9,
  a digit match of 0.9 or a length difference of at most 0.1, and the
  performance-preserving digit for 0.1, 0.5 and at most 1.

  Args:
    scores: By length.
    threshold: What is reached.
    at_most: Whether a score is good if it is small.

  Returns:
    A length, 0 if none reaches the threshold.

  Examples:
    >>> largest_length({1: 1.0, 2: 0.95, 3: 0.4}, 0.9)
    2

  References:
    Yang et al., Number Cookbook: Number Understanding of Language Models and
    How to Improve It, 2024, arXiv:2411.03766.
  """
  return max(
    (
      length
      for length, score in scores.items()
      if (score <= threshold if at_most else score >= threshold)
    ),
    default=0,
  )


class Error(NamedTuple):
  """How an answer differs from the true one.

  Attributes:
    kind: `right`; `unreadable`, without an end or not of digits; `length`, with
      more or fewer digits; `digits`, otherwise.
    wrong: The places of wrong digits, 1 for the first, if the length is right.
    off_by_one: Whether every wrong digit differs by one, 0 from 9 too.
  """

  kind: Literal['right', 'unreadable', 'length', 'digits']
  wrong: tuple[int, ...] = ()
  off_by_one: bool = False


def error(predicted: str | None, truth: str) -> Error:
  """How an answer differs from the true one.

  Grouped by whether the answer is longer than the operands (`tabulate`), the
  places of wrong digits show where a tokenizer cuts: with chunks of three from
  the left, errors stand in the first digit of the second chunk.

  Args:
    predicted: A model's answer, of one number.
    truth: The true one.

  Returns:
    The kind of error and its digits.

  Examples:
    >>> error('1345', '1245')
    Error(kind='digits', wrong=(2,), off_by_one=True)

  References:
    Singh and Strouse, Tokenization counts: the impact of tokenization on
    arithmetic in frontier LLMs, 2024, arXiv:2402.14903.
  """
  if predicted == truth:
    return Error('right')
  if predicted is None or not re.fullmatch(r'-?[0-9]+(\.[0-9]+)?', predicted):
    return Error('unreadable')
  if len(predicted) != len(truth):
    return Error('length')
  wrong = [i for i, x in enumerate(truth) if x != predicted[i]]
  pairs = [predicted[i] + truth[i] for i in wrong]
  near = all(
    pair.isdigit() and abs(int(pair[0]) - int(pair[1])) in (1, 9)
    for pair in pairs
  )
  return Error('digits', tuple(i + 1 for i in wrong), near)


class Horizon(NamedTuple):
  """How a model does that goes on from its own answers, by turn.

  Attributes:
    turn: f64[turns], the share of states that are right.
    prefix: f64[turns], the share of rollouts without an error so far.
    step: f64[turns], the share of states that are right given the state the
      model itself wrote before, right or wrong.
  """

  turn: np.ndarray
  prefix: np.ndarray
  step: np.ndarray


def horizon(
  predicted: np.ndarray, addends: np.ndarray, *, modulus: int, start: int = 0
) -> Horizon:
  """How running sums of a model go on, turn by turn.

  Args:
    predicted: i64[rollouts, turns], the states that were written; -1 for one
      that could not be read.
    addends: i64[rollouts, turns], what each turn adds.
    modulus: What states are taken modulo.
    start: The state before the first turn.

  Returns:
    Three accuracies by turn.

  Examples:
    >>> import numpy as np
    >>> result = horizon(
    ...   np.asarray([[1, 4, 6]]), np.asarray([[1, 2, 2]]), modulus=100
    ... )
    >>> result.turn.tolist(), result.prefix.tolist(), result.step.tolist()
    ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0])

  References:
    Sinha et al., The Illusion of Diminishing Returns: Measuring Long Horizon
    Execution in LLMs, 2025, arXiv:2509.09677.
  """
  true = (start + np.cumsum(addends, axis=1)) % modulus
  before = np.pad(predicted, [(0, 0), (1, 0)], constant_values=start)[:, :-1]
  right = predicted == true
  follows = (before >= 0) & (predicted == (before + addends) % modulus)
  return Horizon(
    right.mean(axis=0),
    np.logical_and.accumulate(right, axis=1).mean(axis=0),
    follows.mean(axis=0),
  )


def horizon_length(step_accuracy: float, success: float = 0.5) -> float:
  """After how many turns the share of perfect rollouts falls to `success`.

  It is `ln(success) / ln(p)` if every turn succeeds with probability p.

  Args:
    step_accuracy: The p.
    success: Between 0 and 1.

  Returns:
    A number of turns.

  Examples:
    >>> round(horizon_length(0.99), 1)
    69.0
  """
  if step_accuracy >= 1:
    return math.inf
  if step_accuracy <= 0:
    return 0.0
  return math.log(success) / math.log(step_accuracy)


def _paired(predicted: str | None, truth: str) -> list[tuple[str, str]]:
  """The digits of parts that belong together, each from where it is aligned."""
  both = _parts(predicted or ''), _parts(truth)
  return list(itertools.zip_longest(*both, fillvalue=''))


def _parts(text: str) -> list[str]:
  """Whole part, decimals and exponent of every number of an answer."""
  parts = []
  for value in re.split('[^-.e0-9]', text):
    match = _VALUE.match(value.lstrip('-'))
    whole, decimals, exponent = match.groups('') if match else ('', '', '')
    parts += [whole[::-1], decimals, exponent[::-1]]
  return parts
