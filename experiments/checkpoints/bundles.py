"""Experts as one file of compressed changes, to be restored one by one.

The file is of the safetensors format. Its tensors are the parts of leaves, as
`part/leaf`; its metadata say how they were encoded and what base they are of.
Leaves that no expert changed are not there.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import json
import math
import os
from typing import Any
from typing import NamedTuple
import zlib

import numpy as np

from experiments.checkpoints import changes
from experiments.checkpoints import codecs
from merging import streams
from merging import transform
from third_party.huggingface import appending

FORMAT = 'arithmerge.bundle'
VERSION = '1'
_PROBED = 4096  # Entries of a leaf by which its base is recognised.

Progress = Callable[[float, str], object]  # Fraction done, and the leaf.


class Row(NamedTuple):
  """How a leaf was stored.

  Attributes:
    path: The leaf.
    shape: Its shape.
    size: Bytes that it takes in the bundle; 0 if no expert changed it.
    errors: By expert, the norm of what is not kept over that of the change.
  """

  path: str
  shape: tuple[int, ...]
  size: int
  errors: Mapping[str, float]


class Report(NamedTuple):
  """What a compression wrote.

  Attributes:
    rows: One for each leaf.
    size: Bytes of the file.
    full_size: Bytes of the tensors of all experts.
    errors: By expert, the norm of what is not kept over that of the change, of
      the whole model.
  """

  rows: tuple[Row, ...]
  size: int
  full_size: int
  errors: Mapping[str, float]

  @property
  def ratio(self) -> float:
    """How many times smaller than the experts the file is."""
    return self.full_size / self.size


def extract_task_vector(
  base: streams.Source,
  experts: Mapping[str, streams.Source],
  path: str | os.PathLike[str],
  *,
  kind: str = '4bit',
  progress: Progress | None = None,
  **settings: Any,
) -> Report:
  """Writes the changes of experts as a bundle.

  One leaf of the base and of each expert is in memory at a time. Every leaf is
  decoded again to tell what was lost.

  Args:
    base: What the experts were fine-tuned from.
    experts: By name; any number for any kind, though only `'tall'` and
      `'low_rank'` gain from several.
    path: The file to write.
    kind: How to store the changes: `'4bit'` and `'8bit'` in narrow
      floating-point formats with a scale for each group of entries, `'tall'` as
      one merged task vector with a mask for each expert, `'low_rank'` as
      leading singular triples.
    progress: Called after each leaf.
    **settings: See `codecs.make`.

  Returns:
    Sizes and errors.

  Raises:
    ValueError: A setting is unknown or out of range.
    problems.ProblemError: The models do not fit each other or hold NaN, or the
      file cannot be written.

  Examples:
    >>> import tempfile
    >>> base = streams.InMemory({'w': np.zeros(128, np.float32)})
    >>> expert = streams.InMemory({'w': np.full(128, 3, np.float32)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   report = extract_task_vector(
    ...     base, {'math': expert}, f'{folder}/math', kind='4bit'
    ...   )
    >>> report.rows[0].size, report.rows[0].errors
    (72, {'math': 0.0})

  References:
    Ke Wang, Nikolaos Dimitriadis, Guillermo Ortiz-Jimenez, François Fleuret,
    Pascal Frossard. "Localizing Task Information for Improved Model Merging and
    Compression". ICML 2024. arXiv:2405.07813.
    Antonio Andrea Gargiulo, Donato Crisostomi, Maria Sofia Bucarelli, Simone
    Scardapane, Fabrizio Silvestri, Emanuele Rodolà. "Task Singular Vectors:
    Reducing Task Interference in Model Merging". CVPR 2025. arXiv:2412.00081.
  """
  codec = codecs.make(kind, **settings)
  changes.check_same(base, experts)
  names = tuple(sorted(experts))
  specs = base.specs
  sizes = {
    leaf: spec.dtype.itemsize * math.prod(spec.shape)
    for leaf, spec in specs.items()
  }
  total = max(1, sum(sizes.values()))
  manifest = {leaf: _identity(spec) for leaf, spec in specs.items()}
  room = len(json.dumps(json.dumps(manifest))) + len(json.dumps(names))
  room += appending.room_for(
    f'{part}/{leaf}' for leaf in specs for part in codec.parts
  )
  squares = np.zeros((len(names), 2))
  rows = []
  done = 0
  with appending.Appending(path, room) as file:
    for leaf in specs:
      row, lost = _encode(base, experts, leaf, codec, file)
      manifest[leaf]['probe'] = probe(base, specs[leaf])
      squares += lost
      rows.append(row)
      done += sizes[leaf]
      if progress is not None:
        progress(done / total, leaf)
    description = {
      'kind': kind,
      'settings': _settings(codec),
      'experts': names,
      'leaves': manifest,
    }
    size = file.finish(
      {
        'format': FORMAT,
        'version': VERSION,
        'bundle': json.dumps(description, separators=(',', ':')),
      }
    )
  ratios = np.sqrt(squares[:, 0] / np.where(squares[:, 1], squares[:, 1], 1))
  full = sum(
    each.dtype.itemsize * math.prod(each.shape)
    for expert in experts.values()
    for each in expert.specs.values()
  )
  errors = dict(zip(names, map(float, ratios), strict=True))
  return Report(tuple(rows), size, full, errors)


def _identity(spec: transform.LeafSpec) -> dict[str, Any]:
  return {
    'shape': list(spec.shape),
    'dtype': str(np.dtype(spec.dtype)),
    'probe': 2**32 - 1,
  }


def _settings(codec: codecs.Codec) -> dict[str, Any]:
  """The fields of a codec that its name does not say."""
  fields = dataclasses.asdict(codec)  # pyrefly: ignore[bad-argument-type]
  return {name: value for name, value in fields.items() if name != 'bits'}


def probe(base: streams.Source, spec: transform.LeafSpec) -> int:
  """Returns a checksum of the first entries of a leaf."""
  first = np.empty(min(_PROBED, math.prod(spec.shape)), spec.dtype)
  base.read(spec.path, 0, first)
  return zlib.crc32(first.view(np.uint8).data)


def _encode(base, experts, leaf, codec, file) -> tuple[Row, np.ndarray]:
  """Writes a leaf; returns also squared norms of errors and of changes."""
  names = sorted(experts)
  start = changes.read(base, leaf)
  ends = {name: changes.read(experts[name], leaf) for name in names}
  nothing = np.zeros((len(names), 2))
  shape = tuple(start.shape)
  if not changes.is_float(start.dtype):
    for name, end in ends.items():
      changes.check_equal(name, leaf, start, end)
    return Row(leaf, shape, 0, dict.fromkeys(names, 0.0)), nothing
  wide = changes.widened(start).reshape(-1)
  deltas = {
    name: changes.widened(end).reshape(-1) - wide for name, end in ends.items()
  }
  for name, delta in deltas.items():
    changes.check_finite(name, leaf, delta)
  if not any(delta.any() for delta in deltas.values()):
    return Row(leaf, shape, 0, dict.fromkeys(names, 0.0)), nothing
  stored = codec.encode(start, ends)
  for part, array in stored.items():
    file.append(f'{part}/{leaf}', array)
  parts = codecs.in_memory(stored)
  errors = {}
  squares = []
  for index, name in enumerate(names):
    kept = codec.decode(parts, index, shape, 0, wide.size)
    lost = deltas[name] - kept
    errors[name] = changes.relative(lost, deltas[name])
    squares.append([_square(lost), _square(deltas[name])])
  size = sum(array.nbytes for array in stored.values())
  return Row(leaf, shape, size, errors), np.array(squares)


def _square(x: np.ndarray) -> float:
  return float(np.sum(np.square(x, dtype=np.float64)))
