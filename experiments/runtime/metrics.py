"""`metrics.jsonl`: what was measured, one JSON object a line.

A record is `{"stage": ..., "step": ..., "split/metric": number, ...}`. It holds
no time and no host, so that the file of a run that was killed and continued
is the file of a run that was not.
"""

from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
from typing import Any

from experiments.runtime import files


class NonFiniteError(ArithmeticError):
  """A measured value is NaN or infinite; names where and when."""


class JsonlWriter:
  """Appends records to a file.

  Examples:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   writer = JsonlWriter(f'{folder}/metrics.jsonl')
    ...   writer.write('base', 10, {'train/loss': 0.5})
    ...   writer.write('base', 20, {'train/loss': [0.25, 0.5]})
    ...   writer.rewind('base', 10)
    ...   writer.records()
    [{'stage': 'base', 'step': 10, 'train/loss': 0.5}]
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens the file, or makes it; a last line cut by a kill is dropped."""
    self._path = Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    content = self._path.read_bytes() if self._path.exists() else b''
    whole = content[: content.rfind(b'\n') + 1]
    if whole != content or not self._path.exists():
      files.write(self._path, whole)

  def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends one record.

    Args:
      stage: The part of the run, such as `'base'` or `'experts'`.
      step: Steps done within the stage.
      metrics: `split/metric` to a number, or to an array with one number for
        each member of a population.

    Raises:
      NonFiniteError: If a value is NaN or infinite.
    """
    record: dict[str, Any] = {'stage': stage, 'step': int(step)}
    for name, value in metrics.items():
      record[name] = _plain(value)
      if not _is_finite(record[name]):
        raise NonFiniteError(
          f'{name} is {record[name]} in stage {stage} at step {step}; lower'
          ' the learning rate, or look at the data of that step'
        )
    line = json.dumps(record, allow_nan=False) + '\n'
    with self._path.open('ab') as file:
      file.write(line.encode())

  def rewind(self, stage: str, step: int) -> None:
    """Drops the records of a stage after a step, to be written again.

    Args:
      stage: The stage that continues.
      step: The step of the checkpoint it continues from; -1 for none.
    """
    lines = [
      json.dumps(record) + '\n'
      for record in self.records()
      if record['stage'] != stage or record['step'] <= step
    ]
    files.write(self._path, ''.join(lines))

  def records(self, stage: str | None = None) -> list[dict[str, Any]]:
    """Reads the records back, of one stage or of all, in order."""
    with self._path.open(encoding='utf-8') as file:
      records = [json.loads(line) for line in file]
    return [r for r in records if stage is None or r['stage'] == stage]


def _plain(value: Any) -> Any:
  """A number, or nested lists of them, from an array, a scalar or a list."""
  value = value.tolist() if hasattr(value, 'tolist') else value
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  return value if isinstance(value, (bool, int)) else float(value)


def _is_finite(value: Any) -> bool:
  if isinstance(value, list):
    return all(map(_is_finite, value))
  return math.isfinite(value)
