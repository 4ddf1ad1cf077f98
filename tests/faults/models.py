"""Small models in versions, so that a mixture of two would be seen."""

from concurrent import futures
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from experiments.runtime import commit as commit_lib
from third_party.huggingface import writer as writer_lib

_SHAPES = [(64, 8), (256,), (3, 5), (0,), (128, 2), (40, 7), (512,)]


class Spec(NamedTuple):
  """A `LeafSpec` for programs that are killed before JAX is imported."""

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype


def tensors(version):
  """All entries say which version it is; no two tensors are alike."""
  return {
    f'layers.{number}.weight': np.float32(1000 * version + number)
    + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for number, shape in enumerate(_SHAPES)
  }


def write(target, version, *, notices=None, **options):
  """Writes a version as the command line would, with two threads."""
  arrays = tensors(version)
  notices = [] if notices is None else notices
  options = {'overwrite': True, **options}
  with commit_lib.Commit(
    target,
    fingerprint={'version': version},
    notify=notices.append,
    **options,
  ) as commit:
    writer = writer_lib.CheckpointWriter(
      commit.partial,
      {path: Spec(path, a.shape, a.dtype) for path, a in arrays.items()},
      shard_size=2500,
      on_shard_done=commit.record,
    )
    done = writer.resume(commit.finished)

    def put(path):
      flat = arrays[path].reshape(-1)
      for start in range(0, flat.size, 100):
        writer.write(path, start, flat[start : start + 100])

    with writer, futures.ThreadPoolExecutor(2) as pool:
      for future in [pool.submit(put, path) for path in arrays.keys() - done]:
        future.result()
      writer.finish()
    for name in ('config.json', 'tokenizer.json'):
      text = json.dumps({'version': version})
      (commit.partial / name).write_text(text)
    commit.publish()


def version_of(target):
  """The version that a directory wholly is."""
  target = Path(target)
  version = json.loads((target / 'config.json').read_text())['version']
  other = json.loads((target / 'tokenizer.json').read_text())['version']
  index = json.loads((target / 'model.safetensors.index.json').read_text())
  expected = tensors(version)
  files = sorted(set(index['weight_map'].values()))
  assert other == version
  assert sorted(path.name for path in target.iterdir()) == sorted(
    [*files, 'config.json', 'tokenizer.json', 'model.safetensors.index.json']
  )
  found = {}
  for name in files:
    loaded = safetensors.numpy.load_file(target / name)
    assert {index['weight_map'][path] for path in loaded} == {name}
    found |= loaded
  assert found.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_array_equal(found[path], array)
  return version


def content(target):
  """The bytes of all files of a directory."""
  return {path.name: path.read_bytes() for path in Path(target).iterdir()}
