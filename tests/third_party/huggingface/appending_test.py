"""Files whose header is written last are files of the format."""

import os

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from third_party.huggingface import appending


def test_the_library_reads_what_was_appended(tmp_path):
  tensors = {
    'a': np.arange(6, dtype=np.float32).reshape(2, 3),
    'ü': np.ones(3, ml_dtypes.bfloat16),
    'bytes': np.arange(5, dtype=np.uint8),
    'none': np.zeros((0, 4), np.int64),
    'one': np.float16(2.5).reshape(()),
    'turned': np.arange(6, dtype=np.float64).reshape(2, 3).T,
  }
  path = tmp_path / 'x.safetensors'
  with appending.Appending(path, appending.room_for(tensors)) as file:
    for name, array in tensors.items():
      file.append(name, array)
      assert not path.exists()
    size = file.finish({'k': 'v'})
  assert os.listdir(tmp_path) == ['x.safetensors']
  assert path.stat().st_size == size
  again = safetensors.load_file(path)
  assert set(again) == set(tensors)
  for name, array in tensors.items():
    assert again[name].dtype == array.dtype
    np.testing.assert_array_equal(again[name], array)


def test_an_error_leaves_what_was_there(tmp_path):
  path = tmp_path / 'x'
  path.write_text('old')
  file = appending.Appending(path, 1000)
  with pytest.raises(ValueError, match='comes twice'), file:
    [file.append('a', np.ones(2, np.float32)) for _ in range(2)]
  assert os.listdir(tmp_path) == ['x']
  assert path.read_text() == 'old'


def test_refusals(tmp_path):
  with appending.Appending(tmp_path / 'x', 0) as file:
    with pytest.raises(ValueError, match='no complex64'):
      file.append('a', np.ones(2, np.complex64))
    for number in range(30):
      file.append(f'name {number}', np.ones(1, np.int8))
    with pytest.raises(ValueError, match='room was left for'):
      file.finish({})
