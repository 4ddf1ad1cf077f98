"""Writing a model as it is, in the format of Hugging Face or of Orbax."""

import math
from pathlib import Path
import shutil
from typing import Any
from typing import Literal

import numpy as np

from experiments.checkpoints import findings
from experiments.checkpoints import stages
from experiments.checkpoints import verify
from experiments.runtime import commit as commit_lib
from merging import streams
from third_party import problems
from third_party.huggingface import layout
from third_party.huggingface import writer as writer_lib

Format = Literal['huggingface', 'orbax']

# Pieces in memory at once: one read, one that a sink puts together, and one
# that it writes.
PIECES = 3
_PIECE = 16 << 20  # Bytes copied at once.
_CONFIG = 'config.json'


def write(
  source: streams.Source,
  model: Any,
  commit: commit_lib.Commit,
  *,
  format_: Format,
  shard_size: int,
  room: int | None = None,
) -> findings.Findings:
  """Writes a source, with what lies beside a model, and publishes it.

  All of it is read again before it is published: every byte must be the one
  that was written.

  Args:
    source: The weights.
    model: An open checkpoint, whose config and side files are copied.
    commit: Where to; it is entered here.
    format_: What to write.
    shard_size: Most bytes of tensors in a file of Hugging Face.
    room: Bytes of memory that pieces may take; as many as are of use by
      default.

  Returns:
    How the output was verified.

  Raises:
    problems.ProblemError: The source cannot be read or be stored in the format,
      the disk refuses, or the output is not what it should be.
  """
  piece = _PIECE if room is None else min(_PIECE, room // PIECES)
  with commit:
    if format_ == 'orbax':
      checksums = _to_orbax(source, commit.partial, piece)
    else:
      checksums = _to_huggingface(source, commit.partial, piece, shard_size)
    _copy_side_files(model, commit.partial)
    found = verify.verify(
      commit.partial,
      name=commit.target.name,
      inputs=[model],
      expected=source.specs,
      fingerprints=checksums,
      # The source may hold them, and it is not for a copy to judge.
      allow_nonfinite=True,
      full=True,
      workers=1 if room else 2,
      progress=stages.Stage('verifying').bytes,
    )
    found.raise_problems()
    commit.publish()
  return found


def _to_orbax(source, directory, piece) -> dict[str, int]:
  # Here, for it loads TensorStore.
  from experiments.checkpoints import orbax

  sink = orbax.sink(directory, source.specs)
  _copy(source, sink, piece)
  sink.finish()
  return sink.fingerprints


def _to_huggingface(source, directory, piece, shard_size) -> dict[str, int]:
  try:
    writer = writer_lib.CheckpointWriter(
      directory, source.specs, shard_size=shard_size
    )
  except ValueError as error:
    raise problems.refuse(
      problems.Kind.INCOMPATIBLE, (), str(error), 'leave it out'
    ) from error
  with writer:
    _copy(source, writer, piece)
    writer.finish()
  return writer.fingerprints


def _copy(source: streams.Source, sink: streams.Sink, piece: int) -> None:
  """Copies all leaves piece by piece."""
  total = bytes_of(source.specs)
  stage = stages.Stage('copying')
  done = 0
  for path, spec in source.specs.items():
    dtype, entries = np.dtype(spec.dtype), math.prod(spec.shape)
    buffer = np.empty(min(entries, piece // dtype.itemsize), dtype)
    for start in range(0, entries, max(1, buffer.size)):
      out = buffer[: entries - start]
      source.read(path, start, out)
      sink.write(path, start, out)
      done += out.nbytes
      stage.bytes(done, total, path)


def _copy_side_files(model: Any, directory: Path) -> None:
  """Copies what lies beside the weights, as far as it is the model's own."""
  beside = layout.Directory(model.directory, model.name)
  names = [*model.side_files, *([_CONFIG] if model.config else [])]
  for name in names:
    shutil.copyfile(beside.locate(name), directory / name)


def bytes_of(specs: streams.Specs) -> int:
  """Returns the bytes of all leaves.

  Examples:
    >>> bytes_of(streams.InMemory({'w': np.ones((2, 3), np.float32)}).specs)
    24
  """
  return sum(
    math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    for spec in specs.values()
  )
