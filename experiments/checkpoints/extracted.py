"""What an extraction has to say: sizes, and what was lost."""

from collections.abc import Iterable
from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from experiments.checkpoints import bundles
from experiments.checkpoints import extract
from experiments.checkpoints import text


def lora(made: extract.Extracted, target: Path) -> tuple[str, dict[str, Any]]:
  """Describes an adapter.

  Args:
    made: What was written.
    target: Where.

  Returns:
    Text for a person, and the same as JSON can say it.
  """
  kept: dict[str, list[extract.Row]] = {}
  for row in made.rows:
    kept.setdefault(row.kept, []).append(row)
  table = [['tensors', 'number', 'largest rank', 'largest error']]
  for how, several in kept.items():
    error = max(row.error for row in several)
    rank = max(row.rank for row in several)
    table.append([how, str(len(several)), str(rank or ''), f'{error:.3g}'])
  told, content = _described(made, target, table, 'a tensor', made.notes)
  return told, {**content, 'kind': 'lora', 'notes': list(made.notes)}


def bundle(report: bundles.Report, target: Path) -> tuple[str, dict[str, Any]]:
  """Describes a bundle.

  Args:
    report: What was written.
    target: Where.

  Returns:
    Text for a person, and the same as JSON can say it.
  """
  errors = [[name, f'{value:.3g}'] for name, value in report.errors.items()]
  table = [['expert', 'error'], *errors]
  told, content = _described(report, target, table, 'the model')
  return told, {**content, 'errors': dict(report.errors)}


def _described(
  made: extract.Extracted | bundles.Report,
  target: Path,
  table: Sequence[Sequence[str]],
  whole: str,
  notes: Iterable[str] = (),
) -> tuple[str, dict[str, Any]]:
  """What adapters and bundles have in common."""
  where = text.clean(str(target))
  lines = [
    text.aligned(table),
    f'error: norm of what is not kept over that of the change of {whole}',
    *(f'note: {text.clean(each)}' for each in notes),
    f'{where} is ready: {text.size_of(made.size)} in place of'
    f' {text.size_of(made.full_size)}',
  ]
  content = {
    'written': str(target),
    'bytes': made.size,
    'full_bytes': made.full_size,
    'tensors': {row.path: _plain(row) for row in made.rows},
  }
  return '\n'.join(lines), content


def _plain(row: Any) -> dict[str, Any]:
  """A row as JSON can say it, without its path."""
  values = row._asdict()
  del values['path']
  return json.loads(json.dumps(values))
