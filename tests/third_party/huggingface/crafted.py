"""safetensors files byte by byte, sound or not, and model directories."""

import json
import struct

import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors_numpy

from third_party import problems


def file(header, data=b'', length=None):
  """A file with a header, given as an object or as its bytes."""
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  length = len(header) if length is None else length
  return struct.pack('<Q', length) + header + data


def entry(shape, offsets, dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}


def shard_name(number, count):
  return f'model-{number:05d}-of-{count:05d}.safetensors'


def tensors(seed=0):
  """A few tensors of the types that models have."""
  rng = np.random.default_rng(seed)
  return {
    'embed.weight': rng.normal(size=(6, 4)).astype(np.float32),
    'layers.0.proj.weight': rng.normal(size=(3, 4)).astype(ml_dtypes.bfloat16),
    'layers.0.proj.bias': rng.normal(size=3).astype(np.float16),
    'layers.1.mask': np.tri(3, dtype=np.bool_),
    'layers.1.position_ids': np.arange(5),
    'scale': np.array(2.0),
  }


def write_sharded(directory, arrays, count=2):
  """Writes tensors to shards in turn, with their index."""
  directory.mkdir(exist_ok=True)
  names = sorted(arrays)
  weight_map = {
    name: shard_name(i % count + 1, count) for i, name in enumerate(names)
  }
  for i in range(count):
    part = {name: arrays[name] for name in names[i::count]}
    safetensors_numpy.save_file(
      part, directory / shard_name(i + 1, count), metadata={'format': 'pt'}
    )
  total = sum(array.nbytes for array in arrays.values())
  write_index(directory, weight_map, total)
  (directory / 'config.json').write_text('{"model_type": "llama"}')
  return weight_map


def write_index(directory, weight_map, total_size):
  content = {'metadata': {'total_size': total_size}, 'weight_map': weight_map}
  path = directory / 'model.safetensors.index.json'
  path.write_text(json.dumps(content))


def lines_of(function, *args, **kwargs):
  """The problems that a call raises, one line each, all of bad inputs."""
  found = ()
  try:
    function(*args, **kwargs)
  except problems.ProblemError as error:
    found = error.problems
  assert all(each.kind == problems.Kind.INPUT for each in found)
  return [str(each) for each in found]
