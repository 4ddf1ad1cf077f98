"""Problems that are scored: different ones, none of which is trained on."""

from collections.abc import Sequence
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import tasks as task_lib
from experiments.runtime import errors

# Draws of 32 times as many problems as there should be, until they suffice.
_ATTEMPTS = 20


def held_out(
  task: task_lib.Task,
  split: str,
  count: int,
  *,
  level_weights: Sequence[float],
  key: jax.Array,
  least: int | None = None,
) -> tuple[task_lib.Digits, ...]:
  """Draws different problems of a split.

  Args:
    task: The task.
    split: `train`, `validation` or `test`.
    count: How many.
    level_weights: Relative frequency of level 1, 2, ...
    key: A PRNG key; the same key gives the same problems.
    least: How few will do, where the split has no more; `count` by default.

  Returns:
    Operands, each of shape [count], or less.

  Raises:
    UsageError: If the split has fewer; it names the setting `{split}_size`.
  """
  columns: list[np.ndarray] = []
  for attempt in range(_ATTEMPTS):
    drawn = task.sample(
      jax.random.fold_in(key, attempt), 32 * count, level_weights=level_weights
    )
    inside = np.asarray(task_lib.split_of(drawn, split))
    columns.append(_as_rows(drawn)[inside])
    rows = np.concatenate(columns)
    _, first = np.unique(rows, axis=0, return_index=True)
    found = rows[np.sort(first)[:count]]
    if len(found) == count:
      break
  if len(found) >= (count if least is None else least):
    return _from_rows(found, drawn)
  raise errors.UsageError(
    f'the {split} split of {task.name} has about {len(found)} problems at'
    f' levels weighted {tuple(level_weights)}; lower {split}_size from {count},'
    ' or take a larger level'
  )


def held_out_grid(
  task: task_lib.Task,
  split: str,
  count: int,
  lengths: Sequence[int],
  *,
  key: jax.Array,
) -> list[tuple[task_lib.Digits, ...]]:
  """Draws different problems of a split, by the lengths of two operands.

  Args:
    task: A task of two operands of one width.
    split: `train`, `validation` or `test`.
    count: How many of each pair of lengths, at most.
    lengths: Which, rising.
    key: A PRNG key; the same key gives the same problems.

  Returns:
    Operands for each length of the first one and, running faster, of the
    second; as many problems of each as the split has, at least one.

  Raises:
    UsageError: The task has not two operands of one width, or the split no
      problem of some lengths.
  """
  if set(task.widths(7)) != {7} or len(task.widths(7)) != 2:
    raise errors.UsageError(
      f'grid: {task.name} does not take two operands of any lengths'
    )
  longest = lengths[-1]
  drawn = task.sample(
    key, 32 * count, level_weights=(0,) * (longest - 1) + (1,)
  )
  cells = []
  for pair in itertools.product(lengths, repeat=2):
    # The low digits of longer numbers, where the highest of them is one.
    operands = task.prepare(
      tuple(
        task_lib.Digits(x.values, jnp.full_like(x.length, n)).masked()
        for x, n in zip(drawn, pair, strict=True)
      )
    )
    rows = _as_rows(operands)
    leads = [
      np.asarray(x.values)[:, n - 1] > 0
      for x, n in zip(drawn, pair, strict=True)
      if n > 1 and task.numeric
    ]
    inside = np.asarray(task_lib.split_of(operands, split))
    rows = rows[np.all([inside, *leads], axis=0)]
    _, first = np.unique(rows, axis=0, return_index=True)
    if not len(first):
      raise errors.UsageError(
        f'grid: the {split} split of {task.name} has no problem of {pair[0]}'
        f' and {pair[1]} digits; begin with longer ones'
      )
    cells.append(_from_rows(rows[np.sort(first)[:count]], operands))
  return cells


def _as_rows(operands: Sequence[task_lib.Digits]) -> np.ndarray:
  """One row of integers a problem."""
  parts = [np.asarray(x.values) for x in operands]
  parts += [np.asarray(x.length)[:, None] for x in operands]
  return np.concatenate(parts, axis=1)


def _from_rows(
  rows: np.ndarray, like: Sequence[task_lib.Digits]
) -> tuple[task_lib.Digits, ...]:
  """The inverse of `_as_rows`, for operands as wide as `like`."""
  operands, start = [], 0
  lengths = rows[:, -len(like) :]
  for i, operand in enumerate(like):
    width = operand.values.shape[-1]
    values = jnp.asarray(rows[:, start : start + width])
    operands.append(task_lib.Digits(values, jnp.asarray(lengths[:, i])))
    start += width
  return tuple(operands)
