"""Adapters against the formulas of PEFT, written out in NumPy."""

import concurrent.futures
import json
import math

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from merging import streams
from third_party import problems
from third_party.huggingface import safetensors as reader
from third_party.peft import adapted
from third_party.peft import adapter as adapter_lib
from third_party.peft import matching

_RANDOM = np.random.default_rng(0)
Q, K = 'model.layers.0.q_proj', 'model.layers.1.k_proj'
EMBED = 'model.embed_tokens'


def _draw(*shape):
  return _RANDOM.standard_normal(shape).astype(np.float32)


def _base():
  return {
    f'{Q}.weight': _draw(6, 4),
    f'{Q}.bias': _draw(6),
    f'{K}.weight': _draw(4, 4),
    f'{EMBED}.weight': _draw(7, 4),
    'model.norm.weight': _draw(4),
  }


def _pair(module, rank, shape):
  """Factors for a matrix `[out, in]`."""
  start = f'base_model.model.{module}'
  return {
    f'{start}.lora_A.weight': _draw(rank, shape[1]),
    f'{start}.lora_B.weight': _draw(shape[0], rank),
  }


def _product(tensors, module):
  start = f'base_model.model.{module}'
  return tensors[f'{start}.lora_B.weight'] @ tensors[f'{start}.lora_A.weight']


def _write(folder, tensors, **config):
  folder.mkdir(exist_ok=True)
  settings = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 3, **config}
  (folder / 'adapter_config.json').write_text(json.dumps(settings))
  safetensors.save_file(tensors, folder / 'adapter_model.safetensors')
  return folder


def _specs(base):
  return streams.InMemory(base).specs


def _merged(folder, base):
  adapter = adapter_lib.open_adapter(folder, name='mine').fit(_specs(base))
  source = adapted.Adapted(streams.InMemory(base), adapter)
  return {path: _whole(source, path) for path in base}, adapter


def _whole(source, path):
  spec = source.specs[path]
  out = np.empty(math.prod(spec.shape), spec.dtype)
  source.read(path, 0, out)
  return out.reshape(spec.shape)


def _check(merged, base, expected):
  for path, leaf in base.items():
    want = expected.get(path, leaf)
    np.testing.assert_allclose(merged[path], want, rtol=2e-6, atol=2e-6)


def test_scales_are_of_the_first_pattern_that_matches(tmp_path):
  base = _base()
  tensors = _pair(Q, 3, (6, 4)) | _pair(K, 2, (4, 4))
  folder = _write(
    tmp_path,
    tensors,
    target_modules=['q_proj', 'layers.1.k_proj'],
    rank_pattern={r'model.*\.q_p\w+': 3, 'proj': 9},
    alpha_pattern={'k_proj': 8, '.*_proj': 5},
  )
  merged, adapter = _merged(folder, base)
  assert set(adapter) == {f'{Q}.weight', f'{K}.weight'}
  _check(
    merged,
    base,
    {
      f'{Q}.weight': base[f'{Q}.weight'] + 5 / 3 * _product(tensors, Q),
      f'{K}.weight': base[f'{K}.weight'] + 8 / 2 * _product(tensors, K),
    },
  )


def test_rslora_divides_by_the_root_and_names_may_hold_the_adapter(tmp_path):
  base = _base()
  tensors = _pair(Q, 2, (6, 4))
  named = {
    key.replace('.weight', '.default.weight'): x for key, x in tensors.items()
  }
  merged, _ = _merged(_write(tmp_path, named, use_rslora=True), base)
  expected = base[f'{Q}.weight'] + 3 / math.sqrt(2) * _product(tensors, Q)
  _check(merged, base, {f'{Q}.weight': expected})


@pytest.mark.parametrize('suffix', ['', '.weight'])
def test_dora_scales_each_output_to_its_magnitude(tmp_path, suffix):
  base = _base()
  tensors = _pair(Q, 2, (6, 4))
  magnitude = np.abs(_draw(6))
  key = f'base_model.model.{Q}.lora_magnitude_vector{suffix}'
  folder = _write(tmp_path, tensors | {key: magnitude}, use_dora=True)
  merged, _ = _merged(folder, base)
  moved = base[f'{Q}.weight'] + 1.5 * _product(tensors, Q)
  norm = np.sqrt(np.sum(moved.astype(np.float64) ** 2, axis=1))
  expected = (magnitude / norm)[:, None] * moved
  _check(merged, base, {f'{Q}.weight': expected})


def test_transposed_layers_square_or_not(tmp_path):
  base = {'h.0.c_attn.weight': _draw(4, 6), 'h.0.c_proj.weight': _draw(4, 4)}
  tensors = _pair('transformer.h.0.c_attn', 2, (6, 4)) | _pair(
    'transformer.h.0.c_proj', 2, (4, 4)
  )
  expected = {
    f'h.0.{each}.weight': base[f'h.0.{each}.weight']
    + 1.5 * _product(tensors, f'transformer.h.0.{each}').T
    for each in ('c_attn', 'c_proj')
  }
  # The checkpoint lacks the prefix that PEFT saw; the config may not say how
  # `Conv1D` stores, but the matrix that is not square does.
  for transposed in (True, False):
    folder = _write(
      tmp_path,
      tensors,
      fan_in_fan_out=transposed,
      target_modules=['c_attn', 'c_proj'],
    )
    merged, adapter = _merged(folder, base)
    _check(merged, base, expected)
    (note,) = adapter.notes
    assert "is 'h.0.c_attn.weight' in the base" in str(note)


def test_embeddings_beside_the_weights_they_were_saved_with(tmp_path):
  base = _base()
  start = f'base_model.model.{EMBED}'
  tensors = {
    f'{start}.lora_embedding_A': _draw(2, 7),
    f'{start}.lora_embedding_B': _draw(4, 2),
  }
  product = (
    tensors[f'{start}.lora_embedding_B'] @ tensors[f'{start}.lora_embedding_A']
  ).T
  merged, _ = _merged(_write(tmp_path, tensors), base)
  plain = base[f'{EMBED}.weight'] + 1.5 * product
  _check(merged, base, {f'{EMBED}.weight': plain})
  tensors[f'{start}.base_layer.weight'] = _draw(7, 4)
  merged, _ = _merged(_write(tmp_path, tensors), base)
  saved = tensors[f'{start}.base_layer.weight'] + 1.5 * product
  _check(merged, base, {f'{EMBED}.weight': saved})


def test_whole_modules_and_biases(tmp_path):
  base = _base()
  start = 'base_model.model.'
  tensors = _pair(Q, 2, (6, 4)) | {
    f'{start}model.norm.weight': _draw(4),
    f'{start}{Q}.base_layer.bias': _draw(6),
  }
  folder = _write(tmp_path, tensors, bias='lora_only', modules_to_save=['norm'])
  merged, _ = _merged(folder, base)
  expected = {
    f'{Q}.weight': base[f'{Q}.weight'] + 1.5 * _product(tensors, Q),
    f'{Q}.bias': tensors[f'{start}{Q}.base_layer.bias'],
    'model.norm.weight': tensors[f'{start}model.norm.weight'],
  }
  _check(merged, base, expected)


def test_biases_of_factors(tmp_path):
  base = _base()
  key = f'base_model.model.{Q}.lora_B.bias'
  tensors = _pair(Q, 2, (6, 4)) | {key: _draw(6)}
  merged, _ = _merged(_write(tmp_path, tensors, lora_bias=True), base)
  expected = {
    f'{Q}.weight': base[f'{Q}.weight'] + 1.5 * _product(tensors, Q),
    f'{Q}.bias': base[f'{Q}.bias'] + 1.5 * tensors[key],
  }
  _check(merged, base, expected)


def test_convolutions(tmp_path):
  base = {'patch.weight': _draw(5, 3, 2, 2)}
  start = 'base_model.model.patch'
  a, b = _draw(2, 3, 2, 2), _draw(5, 2, 1, 1)
  tensors = {f'{start}.lora_A.weight': a, f'{start}.lora_B.weight': b}
  merged, _ = _merged(_write(tmp_path, tensors), base)
  change = np.einsum('rixy,or->oixy', a, b[:, :, 0, 0])
  expected = base['patch.weight'] + 1.5 * change
  _check(merged, base, {'patch.weight': expected})


def test_kronecker_products_whole_or_in_factors(tmp_path):
  base = _base()
  start = f'base_model.model.{Q}'
  w1, a, b = _draw(2, 2), _draw(3, 2), _draw(2, 2)
  tensors = {
    f'{start}.lokr_w1': w1,
    f'{start}.lokr_w2_a': a,
    f'{start}.lokr_w2_b': b,
  }
  folder = _write(tmp_path, tensors, peft_type='LOKR', alpha=3)
  merged, _ = _merged(folder, base)
  expected = base[f'{Q}.weight'] + 1.5 * np.kron(w1, a @ b)
  _check(merged, base, {f'{Q}.weight': expected})


def test_half_precision_factors_are_multiplied_in_float32(tmp_path):
  base = {
    path: leaf.astype(ml_dtypes.bfloat16) for path, leaf in _base().items()
  }
  tensors = {
    key: x.astype(ml_dtypes.bfloat16) for key, x in _pair(Q, 2, (6, 4)).items()
  }
  merged, _ = _merged(_write(tmp_path, tensors), base)
  wide = {key: x.astype(np.float32) for key, x in tensors.items()}
  expected = base[f'{Q}.weight'].astype(np.float32) + 1.5 * _product(wide, Q)
  np.testing.assert_allclose(merged[f'{Q}.weight'], expected, rtol=1e-6)
  assert merged[f'{K}.weight'].dtype == ml_dtypes.bfloat16


def test_factors_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
  folder = _write(tmp_path, _pair(Q, 2, (6, 4)))
  read = []
  original = reader.File.read
  monkeypatch.setattr(
    reader.File,
    'read',
    lambda self, name, start, out: (
      read.append(name) or original(self, name, start, out)
    ),
  )
  adapter = adapter_lib.open_adapter(folder).fit(_specs(_base()))
  assert adapter.shapes == {f'{Q}.weight': (6, 4)}
  assert not read
  assert adapter[f'{Q}.weight'].rank == 2
  assert len(read) == 2


def test_pieces_from_threads_are_those_of_the_whole(tmp_path):
  base = _base()
  tensors = _pair(Q, 2, (6, 4)) | _pair(K, 2, (4, 4))
  whole, adapter = _merged(_write(tmp_path, tensors), base)
  source = adapted.Adapted(streams.InMemory(base), adapter, leaves=1)

  def piece(place):
    path, start = place
    out = np.empty(4, np.float32)
    source.read(path, start, out)
    want = whole[path].reshape(-1)[start : start + 4]
    return np.array_equal(out, want)

  places = [(f'{m}.weight', s) for s in range(12) for m in (Q, K)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(piece, places))


def test_another_base_is_told(tmp_path):
  folder = _write(
    tmp_path, _pair(Q, 2, (6, 4)), base_model_name_or_path='org/llama-7b'
  )
  files = adapter_lib.open_adapter(folder, name='mine')
  specs = _specs(_base())
  assert files.fit(specs, '/models/llama-7b/').notes == ()
  (note,) = files.fit(specs, 'llama-8b').notes
  assert str(note) == (
    "mine: was trained on 'org/llama-7b', the base is 'llama-8b'; make sure "
    'that they are the same model'
  )


def _without(tensors, end):
  return {key: x for key, x in tensors.items() if not key.endswith(end)}


_GOOD = _pair(Q, 2, (6, 4)) | _pair(K, 2, (4, 4))
_A = f'base_model.model.{Q}.lora_A.weight'
_INPUT, _OTHER = problems.Kind.INPUT, problems.Kind.INCOMPATIBLE
_FAULTS = {
  'type': ({}, {'peft_type': 'IA3'}, _INPUT, "got 'IA3', which is not"),
  'no type': ({}, {'peft_type': None}, _INPUT, 'got None'),
  'huge rank': ({}, {'r': 10**12}, _INPUT, 'r: expected a rank, 1 to 1048576'),
  'no rank': ({}, {'r': 0}, _INPUT, 'r: expected a rank'),
  'text': ({}, {'r': '8'}, _INPUT, "got '8'"),
  'true': ({}, {'r': True}, _INPUT, 'got True'),
  'negative': ({}, {'lora_alpha': -3}, _INPUT, 'lora_alpha: expected a number'),
  'nan': ({}, {'lora_alpha': math.nan}, _INPUT, 'got nan'),
  'pattern': (
    {},
    {'rank_pattern': {'q_proj': -1}},
    _INPUT,
    "rank_pattern['q_proj']: expected a rank",
  ),
  'not a pattern': (
    {},
    {'rank_pattern': {'(q_proj': 2}},
    _INPUT,
    "'(.*\\\\.)?((q_proj)$' is not a regular expression",
  ),
  'flag': ({}, {'use_dora': 'no'}, _INPUT, 'use_dora: expected true or false'),
  'bias': ({}, {'bias': 'some'}, _INPUT, "bias: expected 'none'"),
  'pissa': (
    {},
    {'init_lora_weights': 'pissa'},
    _INPUT,
    "init_lora_weights is 'pissa': it may have changed the base",
  ),
  'bdlora': ({}, {'use_bdlora': {'nblocks': 2}}, _INPUT, 'use_bdlora is set'),
  'tokens': (
    {},
    {'trainable_token_indices': [1]},
    _INPUT,
    'trainable_token_indices is set: trains single rows',
  ),
  'other rank': (
    {},
    {'r': 3},
    _INPUT,
    f'{Q}: has rank 2, adapter_config.json says 3; correct r or rank_pattern',
  ),
  'half': (
    {_A: None},
    {},
    _INPUT,
    f"{Q}: has ['lora_B'], expected lora_A and lora_B",
  ),
  'no magnitude': (
    {},
    {'use_dora': True},
    _INPUT,
    'has no lora_magnitude_vector, but use_dora is True',
  ),
  'foreign part': (
    {f'base_model.model.{Q}.lora_C.weight': _draw(2, 2)},
    {},
    _INPUT,
    "'lora_C' is no part of LORA",
  ),
  'no prefix': ({'x.lora_A.weight': _draw(2, 2)}, {}, _INPUT, 'starts with'),
  'integers': (
    {_A: np.ones((2, 4), np.int8)},
    {},
    _INPUT,
    'expected a floating-point tensor, got int8',
  ),
  'empty': (
    {_A: np.ones((0, 4), np.float32)},
    {},
    _INPUT,
    'is empty, of shape [0, 4]; gather the shards',
  ),
  'factor': (
    {_A: _draw(3, 4)},
    {},
    _INPUT,
    'lora_A [3, 4] and lora_B [6, 2] do not multiply',
  ),
  'width': (
    {_A: _draw(2, 5)},
    {},
    _OTHER,
    'adapts 5 inputs and 6 outputs, the base has [6, 4]',
  ),
  'no module': (
    _pair('model.layers.7.q_proj', 2, (6, 4)),
    {},
    _OTHER,
    "the base has no tensor 'model.layers.7.q_proj.weight'; did you mean",
  ),
  'resized': (
    {f'base_model.model.{EMBED}.weight': _draw(8, 4)},
    {},
    _OTHER,
    'has shape [8, 4], the base has [7, 4]; the vocabulary was resized',
  ),
  'tied': (
    _pair('lm_head', 2, (7, 4)),
    {},
    _OTHER,
    "the base has no tensor 'lm_head.weight'; it may be tied",
  ),
  'not targeted': (
    {},
    {'target_modules': ['q_proj']},
    _INPUT,
    f'{K}: is not one of target_modules',
  ),
  'target missing': (
    dict.fromkeys(_pair(K, 2, (4, 4))),
    {'target_modules': r'.*[qk]_proj'},
    _INPUT,
    f'{K}: is one of target_modules in adapter_config.json, but is not here',
  ),
  'saved missing': (
    {},
    {'modules_to_save': ['score']},
    _INPUT,
    'score: is in modules_to_save, but is not here',
  ),
}


@pytest.mark.parametrize('fault', _FAULTS)
def test_faults_name_place_and_remedy(tmp_path, fault):
  change, config, kind, text = _FAULTS[fault]
  tensors = {k: x for k, x in (_GOOD | change).items() if x is not None}
  folder = _write(tmp_path, tensors, **config)
  with pytest.raises(problems.ProblemError) as caught:
    adapter_lib.open_adapter(folder, name='mine').fit(_specs(_base()))
  lines = [str(each) for each in caught.value.problems]
  assert any(text in line and line.startswith('mine / ') for line in lines)
  assert caught.value.status == kind


def test_all_problems_come_at_once(tmp_path):
  folder = _write(tmp_path, _GOOD, r=0, lora_alpha='x', use_bdlora={'a': 1})
  with pytest.raises(problems.ProblemError) as caught:
    adapter_lib.open_adapter(folder)
  assert len(caught.value.problems) == 3
  folder = _write(tmp_path, _pair(Q, 4, (6, 5)) | _pair(K, 3, (4, 4)))
  with pytest.raises(problems.ProblemError) as caught:
    adapter_lib.open_adapter(folder).fit(_specs(_base()))
  assert len(caught.value.problems) == 2


def test_fields_of_later_versions_are_told(tmp_path):
  files = adapter_lib.open_adapter(
    _write(tmp_path, _GOOD, use_dorra=True, later=None)
  )
  (note,) = files.notes
  assert "'use_dorra' is unknown here" in str(note)
  assert "did you mean 'use_dora'" in str(note)


def test_pickles_are_not_read(tmp_path):
  folder = _write(tmp_path, _GOOD)
  weights = folder / 'adapter_model.safetensors'
  weights.rename(folder / 'adapter_model.bin')
  with pytest.raises(problems.ProblemError, match='is a pickle') as caught:
    adapter_lib.open_adapter(folder)
  assert caught.value.status == problems.Kind.INPUT


def test_patterns_that_take_forever_are_ended():
  with pytest.raises(problems.ProblemError, match=r'more than 0\.5 s'):
    matching.match(['(a+)+$'], ['a' * 60 + 'b'], ('mine',), seconds=0.5)
  with pytest.raises(problems.ProblemError, match='30000 characters'):
    matching.match(['a' * 30_000], ['a'], ('mine',))


def test_patterns_match_from_a_dot_to_the_end():
  names = ['a.b.c', 'a.bb.c', 'b.c', 'xb.c']
  found = matching.first_of(['b.c', r'a\..*'], names, ())
  assert found == {'a.b.c': 'b.c', 'a.bb.c': r'a\..*', 'b.c': 'b.c'}


def _survives(folder, random, weights, config):
  """Whether flipped bytes end in a problem or in an adapter, nothing else."""
  which = int(random.integers(2))
  content = bytearray((weights, config)[which])
  # Of the weights the header: behind it are numbers, of which any are good.
  header = 8 + int.from_bytes(weights[:8], 'little')
  most = len(content) if which else header
  for place in random.integers(most, size=int(random.integers(1, 4))):
    content[place] = random.integers(256)
  names = ('adapter_model.safetensors', 'adapter_config.json')
  (folder / names[which]).write_bytes(content)
  (folder / names[1 - which]).write_bytes((weights, config)[1 - which])
  try:
    adapter = adapter_lib.open_adapter(folder).fit(_specs(_base()))
  except problems.ProblemError:
    return False
  for path in adapter:
    assert adapter[path].shape == adapter.shapes[path]
  return True


def _fuzz(folder, cases):
  _write(
    folder,
    _GOOD,
    target_modules=['q_proj', 'k_proj'],
    rank_pattern={'q_proj': 2},
    use_rslora=False,
    bias='none',
  )
  weights = (folder / 'adapter_model.safetensors').read_bytes()
  config = (folder / 'adapter_config.json').read_bytes()
  random = np.random.default_rng(0)
  survived = sum(
    _survives(folder, random, weights, config) for _ in range(cases)
  )
  assert 0 < survived < cases


def test_flipped_bytes_are_problems_or_nothing(tmp_path):
  _fuzz(tmp_path, 200)


@pytest.mark.slow
def test_many_flipped_bytes_are_problems_or_nothing(tmp_path):
  _fuzz(tmp_path, 5000)
