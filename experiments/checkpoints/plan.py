"""What a merge would do, as a person reads it before it begins."""

from collections.abc import Mapping
import dataclasses
import itertools
from pathlib import Path
import re
import shutil
from typing import Any

from experiments.checkpoints import prepare
from experiments.checkpoints import run
from experiments.checkpoints import text
from third_party.mergekit import plan as layers

_BYTES_PER_SECOND = 1e9  # A cautious guess; what is not cached is slower.
_NUMBER = re.compile(r'(?<=\.)\d+(?=\.)')


@dataclasses.dataclass(frozen=True)
class Plan:
  """A merge that was not begun.

  Attributes:
    target: Where the model would go.
    method: How models are merged.
    models: By name, tensors and bytes.
    tensors: Number of tensors of the output.
    passes: By merge, how often its models are read.
    bytes_read: In all passes.
    bytes_written: Of tensors.
    free: Bytes free where the model would go.
    peak_bytes: An estimate of the memory that jobs need at once.
    largest: The tensor that needs most.
    seconds: A guess, at a gigabyte read a second.
    seed: What random methods draw from.
    rows: Groups of tensors and the coefficients in force.
    notes: What a person should know.
  """

  target: str
  method: str
  models: Mapping[str, tuple[int, int]]
  tensors: int
  passes: tuple[int, ...]
  bytes_read: int
  bytes_written: int
  free: int
  peak_bytes: int
  largest: str
  seconds: float
  seed: int
  rows: tuple[tuple[str, ...], ...]
  notes: tuple[str, ...]

  def __str__(self) -> str:
    """A table of tensors, and the sums."""
    passes = ', '.join(map(str, sorted(set(self.passes))))
    facts = [
      ('method', self.method),
      *(
        ('model', f'{name}  {count} tensors, {text.size_of(size)}')
        for name, (count, size) in self.models.items()
      ),
      ('output', f'{self.target}  {self.tensors} tensors'),
      ('passes over the data', passes),
      ('bytes read', text.size_of(self.bytes_read)),
      ('bytes written', text.size_of(self.bytes_written)),
      ('free on the disk', text.size_of(self.free)),
      (
        'memory for tensors',
        f'about {text.size_of(self.peak_bytes)}, most for {self.largest}',
      ),
      ('time', f'{_about(self.seconds)} at 1 GB/s'),
      ('seed', str(self.seed)),
    ]
    parts = [text.aligned([list(row) for row in facts])]
    if len(self.rows) > 1:
      parts.append(text.aligned([list(row) for row in self.rows]))
    return '\n\n'.join(parts)

  def to_dict(self, found: Any = ()) -> dict[str, Any]:
    """Returns all of it, and what speaks against it, as JSON can say it."""
    return {
      **dataclasses.asdict(self),
      'problems': [str(each) for each in found],
    }


def plan(
  prepared: prepare.Prepared, target: Path, settings: run.Settings
) -> Plan:
  """Describes a merge.

  Args:
    prepared: The merge.
    target: Where it would go.
    settings: How it would be written.

  Returns:
    The description.
  """
  del settings
  outlines = [each.plan for each in prepared.merges]
  most = max(outlines, key=lambda each: each.peak_bytes)
  above = next(p for p in target.absolute().parents if p.is_dir())
  return Plan(
    target=str(target),
    method=prepared.method,
    models={
      model.name: (len(model.checkpoint.specs), model.checkpoint.size)
      for model in prepared.models.values()
    },
    tensors=len(prepared.specs),
    passes=tuple(each.sweeps + 1 for each in outlines),
    bytes_read=prepared.bytes_read,
    bytes_written=prepared.bytes_written,
    free=shutil.disk_usage(above).free,
    peak_bytes=most.peak_bytes,
    largest=most.largest,
    seconds=prepared.bytes_read / _BYTES_PER_SECOND,
    seed=prepared.seed,
    rows=_rows(prepared),
    notes=prepared.notes,
  )


def _rows(prepared) -> tuple[tuple[str, ...], ...]:
  """Tensors in groups of equal settings, layers together."""
  settings = {
    path: each for m in prepared.merges for path, each in m.job.settings.items()
  }
  method = prepared.recipe.method
  inert = {
    each.name for each in getattr(method, 'parameters', ()) if each.inert
  }
  names = sorted({name for each in settings.values() for name in each} - inert)
  if not names:
    return ()
  values = _by_layer(
    {
      path: tuple(_shown(each.get(name)) for name in names)
      for path, each in sorted(settings.items(), key=_natural)
    }
  )
  groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
  for path, row in values.items():
    groups.setdefault((_NUMBER.sub('*', path), row), []).append(path)
  rows = [('tensors', *names)]
  for (pattern, row), paths in groups.items():
    rows.append((_group(pattern, paths), *row))
  return tuple(rows)


def _by_layer(values):
  """Puts `layers.3.*` for the tensors of a layer that are all merged alike."""
  places = {path: layers.layered(path) for path in values}
  rows: dict[Any, set[Any]] = {}
  for path, place in places.items():
    if place is not None:
      rows.setdefault(place[:2], set()).add(values[path])
  found = {}
  for path, place in places.items():
    alike = place is not None and len(rows[place[:2]]) == 1
    found[f'{place[0]}.{place[1]}.*' if alike else path] = values[path]
  return found


def _group(pattern, paths) -> str:
  """Names a group by the layers that are in it."""
  if len(paths) == 1:
    return paths[0]
  first, *others = _NUMBER.finditer(paths[0])
  numbers = sorted(int(_NUMBER.findall(path)[0]) for path in paths)
  runs = []
  for _, run_ in itertools.groupby(enumerate(numbers), lambda x: x[1] - x[0]):
    members = [number for _, number in run_]
    runs.append(
      str(members[0]) if len(members) == 1 else f'{members[0]}-{members[-1]}'
    )
  if others:
    return f'{pattern} ({len(paths)})'
  return paths[0][: first.start()] + ','.join(runs) + paths[0][first.end() :]


def _natural(item):
  return [
    int(part) if part.isdigit() else part
    for part in re.split(r'(\d+)', item[0])
  ]


def _about(seconds) -> str:
  return f'about {seconds:.0f} s' if seconds >= 1 else 'less than 1 s'


def _shown(value) -> str:
  if value is None:
    return ''
  if isinstance(value, Mapping):
    values = [_shown(each) for each in value.values()]
    return values[0] if len(set(values)) == 1 else ' '.join(values)
  return f'{value:.4g}' if isinstance(value, float) else str(value)
