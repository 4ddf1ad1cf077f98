"""A sound model has no findings; each thing that is off has its line."""

import json

import ml_dtypes
import numpy as np
import pytest

from experiments.checkpoints import doctor as doctor_lib
from tests.experiments.checkpoints import tiny
from third_party import problems

UP = 'model.layers.1.mlp.up_proj.weight'
OTHER = 'model.layers.3.mlp.up_proj.weight'


def _doctor(directory, model, config=None, **options):
  tiny.save(directory / 'math', model, config, **options)
  return doctor_lib.doctor(directory / 'math')


def test_doctor_a_sound_model(tmp_path):
  model = tiny.tensors()
  found = _doctor(tmp_path, model)
  assert (found.problems, found.warnings, found.status) == ((), (), 0)
  assert {check.state for check in found.checks} == {'passed'}
  assert found.read == sum(x.nbytes for x in model.values())
  assert '/s' in str(found)
  json.dumps(found.to_dict(), allow_nan=False)


def test_doctor_headers_alone(tmp_path):
  tiny.save(tmp_path / 'math', tiny.tensors())
  seen = []
  found = doctor_lib.doctor(
    tmp_path / 'math', values=False, progress=lambda *args: seen.append(args)
  )
  assert (found.read, dict(found.tensors), seen) == (0, {}, [])
  assert 'finite' not in {check.name for check in found.checks}


def _nan(model):
  model[UP][0, 1] = np.nan
  return (), f'math / {UP}: 1 of 96 values are NaN or infinite, the first at in'


def _zero(model):
  model[UP][...] = 0
  return f'math / {UP}: all 96 values are 0', ()


def _types(model):
  model[UP] = model[UP].astype(np.float32)
  return f'math / {UP}: tensors are of several types: 38 bfloat16, 1 float', ()


def _overflow(model):
  model[UP][4, 4] = ml_dtypes.finfo(ml_dtypes.bfloat16).max
  return f'math / {UP}: has values of 3.38953e+38, the largest of bfloat16', ()


def _huge(model):
  model[UP] *= 16
  return f'math / {UP}: has a root mean square of ', ()


def _tiny(model):
  model[UP] /= 64
  return f'math / {UP}: has a root mean square of ', ()


def _equal(model):
  model[OTHER] = model[UP]
  return f'math / {OTHER}: has the same bytes as {UP}', ()


FAULTS = [_nan, _zero, _types, _overflow, _huge, _tiny, _equal]


@pytest.mark.parametrize('fault', FAULTS, ids=lambda f: f.__name__)
def test_doctor_finds(tmp_path, fault):
  model = tiny.tensors()
  warning, problem = fault(model)
  found = _doctor(tmp_path, model)
  if problem:
    (line,) = found.problems
    assert line.kind == problems.Kind.INPUT
    assert str(line).startswith(problem)
  else:
    assert found.status == 0
    assert any(str(each).startswith(warning) for each in found.warnings)


def test_doctor_equal_checksums_are_not_equal_bytes(tmp_path, monkeypatch):
  model = tiny.tensors()
  monkeypatch.setattr('zlib.crc32', lambda data, value=0: 7)
  found = _doctor(tmp_path, model)
  assert not [each for each in found.warnings if 'same bytes' in str(each)]


def test_doctor_tied_weights_are_equal_and_said_once(tmp_path):
  model = tiny.tensors()
  model['lm_head.weight'] = model['model.embed_tokens.weight']
  config = {**tiny.CONFIG, 'tie_word_embeddings': True}
  (warning,) = _doctor(tmp_path, model, config).warnings
  assert 'is tied to model.embed_tokens.weight and stored as well' in str(
    warning
  )


def test_doctor_no_tokenizer(tmp_path):
  (warning,) = _doctor(tmp_path, tiny.tensors(), tokens=0).warnings
  assert str(warning).startswith('math: has no tokenizer')


def test_doctor_what_cannot_be_opened(tmp_path):
  (tmp_path / 'math').mkdir()
  (tmp_path / 'math' / 'model.safetensors').write_bytes(b'<html>403</html>')
  found = doctor_lib.doctor(tmp_path / 'math')
  assert found.status == problems.Kind.INPUT
  assert 'model.safetensors' in str(found)


def test_doctor_names_cannot_move_the_cursor(tmp_path):
  model = tiny.tensors()
  model[f'model.layers.{"9" * 5000}.w'] = np.ones(1, np.float32)
  model['evil\x1b[2J'] = np.full((2, 2), np.nan, np.float32)
  found = _doctor(tmp_path, model)
  assert found.status
  assert '\x1b' not in str(found)
