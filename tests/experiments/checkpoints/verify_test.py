"""What was written passes; whatever is then broken is found and named."""

import json
import os
import zlib

import numpy as np
import pytest

from experiments.checkpoints import verify as verify_lib
from merging import streams
from merging import transform
from tests.experiments.checkpoints import tiny
from third_party import problems
from third_party.huggingface import checkpoint

EMBEDDING = 'model.embed_tokens.weight'
UP = 'model.layers.2.mlp.up_proj.weight'


def _specs(model):
  return {
    path: transform.LeafSpec(path, x.shape, x.dtype)
    for path, x in model.items()
  }


def _verify(directory, model, **options):
  options = {
    'expected': _specs(model),
    'fingerprints': {p: zlib.crc32(x.tobytes()) for p, x in model.items()},
    'nonfinite': {},
    **options,
  }
  return verify_lib.verify(directory, **options)


def _outcomes(found):
  return {check.name: check.state for check in found.checks}


def _lines(found):
  assert {each.kind for each in found.problems} == {problems.Kind.VERIFY}
  assert found.status == 6
  return [str(each) for each in found.problems]


@pytest.mark.parametrize('full', [False, True])
def test_verify_passes_what_was_written(tmp_path, full):
  model = tiny.tensors()
  tiny.save(tmp_path / 'in', model)
  tiny.save(tmp_path / 'out', model)
  source = checkpoint.open_checkpoint(tmp_path / 'in')
  found = _verify(
    tmp_path / 'out', model, inputs=[source], base=source, full=full
  )
  names = ['reload', 'tensors', 'format', 'shapes', 'layers', 'tied weights']
  names += ['vocabulary', 'tokenizer', 'fingerprints', 'finite']
  names += ['inputs unchanged', *['near its base'] * full]
  assert _outcomes(found) == dict.fromkeys(names, 'passed')
  assert (found.problems, found.warnings, found.status) == ((), (), 0)
  found.raise_problems()
  # A full pass reads the model, then the model and its base.
  size = sum(x.nbytes for x in model.values())
  assert found.read == (3 * size if full else 0)
  assert len(found.tensors) == (len(model) if full else 0)
  assert 'passed' in found.table()
  content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
  assert content['status'] == 0
  if full:
    crc = zlib.crc32(model[UP].tobytes())
    assert content['tensors'][UP]['crc32'] == f'{crc:08x}'


def test_verify_says_what_was_not_checked(tmp_path):
  tiny.save(tmp_path / 'out', tiny.tensors(), {}, tokens=0)
  found = verify_lib.verify(tmp_path / 'out')
  states = _outcomes(found)
  for name in ('tensors', 'shapes', 'layers', 'fingerprints', 'finite'):
    assert states[name] == 'not run'
  assert states['inputs unchanged'] == 'not run'


def _drop_tensor(model, config):
  del model[UP], config
  return 'is missing'


def _another_shape(model, config):
  model[UP] = model[UP][:11]
  return 'expected bfloat16 [12, 8], got bfloat16 [11, 8]'


def _another_dtype(model, config):
  model[UP] = model[UP].astype(np.float32)
  return 'expected bfloat16 [12, 8], got float32 [12, 8]'


def _one_more(model, config):
  model['extra'] = model[UP]
  return 'out / extra: was not to be written'


def _vocabulary(model, config):
  config['vocab_size'] = 18
  return f'{EMBEDDING}: has 16 rows, but vocab_size in config.json is 18'


def _layers(model, config):
  config['num_hidden_layers'] = 3
  return 'config.json: expected 3 layers, got tensors of 4'


def _width(model, config):
  config['intermediate_size'] = 16
  return f'{UP}: expected [16, 8] by config.json, got [12, 8]'


def _tied(model, config):
  config['tie_word_embeddings'] = True
  return f'lm_head.weight: differs from {EMBEDDING}, though config.json ties'


def _headless(model, config):
  del model['lm_head.weight']
  return 'expected an output head, for tie_word_embeddings is false'


FAULTS = [
  _drop_tensor,
  _another_shape,
  _another_dtype,
  _one_more,
  _vocabulary,
  _layers,
  _width,
  _tied,
  _headless,
]


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('fault', FAULTS, ids=lambda f: f.__name__)
def test_verify_names_what_is_broken(tmp_path, fault, full):
  model, config = tiny.tensors(), dict(tiny.CONFIG)
  written = dict(model)
  expected = fault(written, config)
  tiny.save(tmp_path / 'out', written, config)
  found = _verify(tmp_path / 'out', model, full=full)
  assert [line for line in _lines(found) if expected in line]


@pytest.mark.parametrize('family', ['granite', 'something new'])
def test_verify_families_that_do_not_run_here(tmp_path, family):
  model, config = tiny.tensors(), {**tiny.CONFIG, 'model_type': family}
  tiny.save(tmp_path / 'out', model, config)
  assert _verify(tmp_path / 'out', model).status == 0
  tiny.save(tmp_path / 'out', model, {**config, 'hidden_size': 12})
  lines = _lines(_verify(tmp_path / 'out', model))
  wanted = f'out / {EMBEDDING}: expected [16, 12] by config.json, got [16, 8]'
  assert any(line.startswith(wanted) for line in lines)
  assert (len(lines) > 2) is (family == 'granite')


def test_verify_a_hole_in_the_layers(tmp_path):
  model = tiny.tensors()
  holed = {p: x for p, x in model.items() if '.layers.2.' not in p}
  tiny.save(tmp_path / 'out', holed)
  lines = _lines(verify_lib.verify(tmp_path / 'out'))
  assert any(
    line.startswith('out / model.layers.2: has no tensors, though model.layers')
    for line in lines
  )


def test_verify_tokens_beyond_the_embedding(tmp_path):
  model = tiny.tensors()
  tiny.save(tmp_path / 'out', model, tokens=12)  # Rows of padding are sound.
  assert _verify(tmp_path / 'out', model).status == 0
  tiny.save(tmp_path / 'out', model, tokens=17)
  (line,) = _lines(_verify(tmp_path / 'out', model))
  assert 'has 16 rows, but the tokenizer has tokens up to 16' in line


def test_verify_a_tied_copy_is_sound_if_equal(tmp_path):
  model = tiny.tensors()
  model['lm_head.weight'] = model[EMBEDDING]
  config = {**tiny.CONFIG, 'tie_word_embeddings': True}
  tiny.save(tmp_path / 'out', model, config)
  found = _verify(tmp_path / 'out', model)
  assert found.status == 0
  assert _outcomes(found)['tied weights'] == 'warned'


def test_verify_format_of_the_header(tmp_path):
  tiny.save(tmp_path / 'out', tiny.tensors(), format_='np')
  (line,) = _lines(verify_lib.verify(tmp_path / 'out'))
  assert "model.safetensors: __metadata__ has 'np' as format" in line


def test_verify_bytes_that_changed_on_the_disk(tmp_path):
  model = tiny.tensors()
  written = {path: x.copy() for path, x in model.items()}
  written[UP].view(np.uint8)[3, 5] ^= 1
  tiny.save(tmp_path / 'out', written)
  (line,) = _lines(_verify(tmp_path / 'out', model, full=True))
  crcs = [zlib.crc32(each[UP].tobytes()) for each in (written, model)]
  assert f'out / {UP}: ' in line
  assert f'CRC-32 {crcs[0]:08x}, expected {crcs[1]:08x}' in line
  # Without reading, only what was counted while writing is known.
  assert _verify(tmp_path / 'out', model).status == 0


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('allowed', [False, True])
def test_verify_values_that_are_not_finite(tmp_path, full, allowed):
  model = tiny.tensors()
  model[UP][2, 3] = np.nan
  model[UP][5, 1] = -np.inf
  tiny.save(tmp_path / 'out', model)
  found = _verify(
    tmp_path / 'out',
    model,
    full=full,
    nonfinite={UP: 2},
    allow_nonfinite=allowed,
  )
  lines = [str(each) for each in found.warnings] if allowed else _lines(found)
  where = f'out / {UP}: 2 '
  assert [line for line in lines if line.startswith(where)]
  if full:
    assert any('the first at index 19' in line for line in lines)
  assert found.status == (0 if allowed else 6)


def test_verify_a_directory_that_cannot_be_opened(tmp_path):
  tiny.save(tmp_path / 'out', tiny.tensors())
  path = tmp_path / 'out' / 'model.safetensors'
  os.truncate(path, path.stat().st_size - 10)
  found = verify_lib.verify(tmp_path / 'out')
  assert _outcomes(found) == {'reload': 'failed'}
  assert any('model.safetensors' in line for line in _lines(found))
  with pytest.raises(problems.ProblemError, match=r'model\.safetensors'):
    found.raise_problems()


def test_verify_inputs_that_changed(tmp_path):
  model = tiny.tensors()
  tiny.save(tmp_path / 'in', model)
  tiny.save(tmp_path / 'out', model)
  source = checkpoint.open_checkpoint(tmp_path / 'in', name='math')
  os.utime(tmp_path / 'in' / 'model.safetensors', (1, 1))
  found = _verify(tmp_path / 'out', model, inputs=[source])
  assert _outcomes(found)['inputs unchanged'] == 'failed'
  assert any('math' in line for line in _lines(found))


def test_verify_warns_of_a_merge_far_from_its_base(tmp_path):
  model = tiny.tensors()
  tiny.save(tmp_path / 'out', model)
  base = streams.InMemory({p: -x for p, x in model.items()})
  found = _verify(tmp_path / 'out', model, base=base, full=True)
  assert found.status == 0
  (warning,) = found.warnings
  assert 'change 2 of the base, cosine -1' in str(warning)
