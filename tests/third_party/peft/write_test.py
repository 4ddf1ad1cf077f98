"""Adapters that are written are those that are read again."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from merging import adapters
from merging import streams
from merging import transform
from third_party import problems
from third_party.peft import adapter as adapter_lib
from third_party.peft import leaves
from third_party.peft import write

_RANDOM = np.random.default_rng(1)


def _draw(*shape):
  return jnp.asarray(_RANDOM.standard_normal(shape), jnp.float32)


def _specs(**shapes):
  return {
    path: transform.LeafSpec(path, shape, np.dtype(np.float32))
    for path, shape in shapes.items()
  }


def _lora(fan_in, fan_out, rank, scale=1.0, layout='out_in', dora=False):
  return adapters.Lora(
    _draw(fan_in, rank),
    _draw(rank, fan_out),
    magnitude=_draw(fan_out) if dora else None,
    scale=scale,
    layout=layout,
  )


def _config(folder):
  return json.loads((folder / 'adapter_config.json').read_text())


def _same(adapter, again):
  assert set(adapter) == set(again)
  for path, change in adapter.items():
    got = again[path]
    assert type(got) is type(change)
    arrays = jax.tree.leaves(change), jax.tree.leaves(got)
    for want, have in zip(*arrays, strict=True):
      np.testing.assert_array_equal(have, want)
    if isinstance(change, adapters.Lora):
      assert got.layout == change.layout
      assert got.scale == pytest.approx(change.scale, rel=1e-12)


def test_ranks_and_scales_of_their_own_come_back(tmp_path):
  """Also of layer 1 beside layer 11, whose names end alike."""
  specs = _specs(**{f'layers.{i}.q.weight': (4, 6) for i in range(12)})
  adapter = {
    path: _lora(6, 4, 1 + (i in (1, 5)), scale=0.5 + (i == 11))
    for i, path in enumerate(specs)
  }
  write.write_adapter(tmp_path, adapter, specs, base_name='org/base')
  again = adapter_lib.open_adapter(tmp_path).fit(specs)
  _same(adapter, again)
  assert {path: again[path].rank for path in again} == {
    path: each.rank for path, each in adapter.items()
  }
  config = _config(tmp_path)
  assert config['target_modules'] == ['q']
  assert config['r'] == 1
  assert config['base_model_name_or_path'] == 'org/base'
  assert set(config['rank_pattern']) == {
    r'^layers\.1\.q',
    r'^layers\.5\.q',
  }


def test_every_kind_of_change_comes_back(tmp_path):
  specs = _specs(
    **{
      'embed_tokens.weight': (7, 4),
      'a.c_attn.weight': (4, 6),
      'a.c_attn.bias': (6,),
      'a.norm.weight': (4,),
      'a.norm.bias': (4,),
      'b.c_attn.bias': (6,),
    }
  )
  adapter = {
    'embed_tokens.weight': _lora(7, 4, 2, layout='in_out', dora=True),
    'a.c_attn.weight': _lora(4, 6, 3, layout='in_out', dora=True),
    'a.c_attn.bias': leaves.Replaced(_draw(6)),
    'a.norm.weight': leaves.Replaced(_draw(4)),
    'a.norm.bias': leaves.Replaced(_draw(4)),
    'b.c_attn.bias': leaves.Replaced(_draw(6)),
  }
  size = write.write_adapter(tmp_path, adapter, specs)
  weights = tmp_path / 'adapter_model.safetensors'
  assert weights.stat().st_size == size
  _same(adapter, adapter_lib.open_adapter(tmp_path).fit(specs))
  stored = safetensors.load_file(weights)
  start = 'base_model.model.'
  assert set(stored) == {
    f'{start}embed_tokens.lora_embedding_A',
    f'{start}embed_tokens.lora_embedding_B',
    f'{start}embed_tokens.lora_magnitude_vector',
    f'{start}a.c_attn.lora_A.weight',
    f'{start}a.c_attn.lora_B.weight',
    f'{start}a.c_attn.lora_magnitude_vector',
    f'{start}a.c_attn.base_layer.bias',
    f'{start}a.norm.weight',
    f'{start}a.norm.bias',
    f'{start}b.c_attn.bias',
  }
  config = _config(tmp_path)
  assert config['fan_in_fan_out'] is True
  assert config['use_dora'] is True
  assert config['bias'] == 'all'
  assert config['modules_to_save'] == ['a.norm']


def test_stored_embeddings_with_factors_come_back(tmp_path):
  specs = _specs(**{'embed_tokens.weight': (7, 4)})
  inner = _lora(7, 4, 2, layout='in_out')
  adapter = {'embed_tokens.weight': leaves.Replaced(_draw(7, 4), inner)}
  write.write_adapter(tmp_path, adapter, specs)
  _same(adapter, adapter_lib.open_adapter(tmp_path).fit(specs))


def test_names_that_end_longer_ones_are_written_as_a_pattern(tmp_path):
  specs = _specs(**{'m.q.weight': (4, 4), 'vision.m.q.weight': (4, 4)})
  adapter = {'m.q.weight': _lora(4, 4, 1)}
  write.write_adapter(tmp_path, adapter, specs)
  assert _config(tmp_path)['target_modules'] == r'm\.q'
  assert set(adapter_lib.open_adapter(tmp_path).fit(specs)) == {'m.q.weight'}


def test_prefixes_are_those_of_the_model_and_not_of_its_file(tmp_path):
  specs = _specs(**{'h.0.c.weight': (4, 6), 'h.1.c.weight': (4, 6)})
  adapter = {'h.0.c.weight': _lora(6, 4, 1)}
  write.write_adapter(tmp_path, adapter, specs, prefix='transformer.')
  assert _config(tmp_path)['target_modules'] == ['transformer.h.0.c']
  _same(adapter, adapter_lib.open_adapter(tmp_path).fit(specs))


def test_whole_scales_are_whole_alphas(tmp_path):
  specs = _specs(**{'q.weight': (4, 4)})
  write.write_adapter(tmp_path, {'q.weight': _lora(4, 4, 2, 1.5)}, specs)
  assert _config(tmp_path)['lora_alpha'] == 3
  assert isinstance(_config(tmp_path)['lora_alpha'], int)


def test_what_peft_cannot_say_is_refused_and_nothing_is_left(tmp_path):
  specs = _specs(
    **{'q.weight': (4, 4), 'k.weight': (4, 4), 'n.weight': (4,), 'n.bias': (4,)}
  )
  lora = _lora(4, 4, 1)
  whole = leaves.Replaced(_draw(4))
  bad = {
    'one switch': {'q.weight': lora, 'k.weight': _lora(4, 4, 1, dora=True)},
    'one matrix at least': {'n.weight': whole},
    "add 'n.bias' too": {'q.weight': lora, 'n.weight': whole},
    'has no tensor': {'x.weight': lora},
    'no place for a Kronecker': {
      'q.weight': adapters.Kronecker(_draw(1, 2, 2), _draw(1, 2, 2))
    },
    'for a tensor': {'q.weight': _lora(3, 4, 1)},
  }
  for text, adapter in bad.items():
    with pytest.raises(ValueError, match=text):
      write.write_adapter(tmp_path, adapter, specs)
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_not_written_over(tmp_path):
  specs = _specs(**{'q.weight': (4, 4)})
  adapter = {'q.weight': _lora(4, 4, 1)}
  write.write_adapter(tmp_path, adapter, specs)
  with pytest.raises(problems.ProblemError, match='already') as caught:
    write.write_adapter(tmp_path, adapter, specs)
  assert caught.value.status == problems.Kind.CONFIG


def test_dtype_is_of_everything_written(tmp_path):
  specs = streams.InMemory({'q.weight': np.zeros((4, 4), np.float32)}).specs
  size = write.write_adapter(
    tmp_path, {'q.weight': _lora(4, 4, 2)}, specs, dtype=jnp.bfloat16
  )
  again = adapter_lib.open_adapter(tmp_path).fit(specs)['q.weight']
  assert again.a.dtype == again.b.dtype == jnp.bfloat16
  assert size - 2 * 2 * math.prod((4, 2)) < 4000  # The header.
