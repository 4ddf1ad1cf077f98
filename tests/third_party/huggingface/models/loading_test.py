"""What is loaded, and what is refused before anything is read."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from merging import streams
from tests.third_party.huggingface.models import oracles
from third_party import problems
from third_party.huggingface import models

GPT2 = {
  'model_type': 'gpt2',
  'vocab_size': 5,
  'n_positions': 4,
  'n_embd': 4,
  'n_layer': 1,
  'n_head': 2,
}
LLAMA = {
  'model_type': 'llama',
  'vocab_size': 5,
  'hidden_size': 4,
  'intermediate_size': 6,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
}
VISION = {
  'model_type': 'clip_vision_model',
  'hidden_size': 4,
  'intermediate_size': 6,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'image_size': 4,
  'patch_size': 2,
}
TOKENS = np.array([[1, 2, 3]], np.int32)


def _weights(config):
  return oracles.draw(models.expected_specs(config))


def _said(config, weights):
  specs = streams.InMemory(weights).specs
  return [str(each) for each in models.check(config, specs, name='math')]


def test_a_directory_is_loaded(tmp_path):
  weights = _weights(LLAMA)
  safetensors.numpy.save_file(weights, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(LLAMA))
  model = models.load(tmp_path)
  assert model.params.keys() == weights.keys()
  for name, x in weights.items():
    np.testing.assert_array_equal(model.params[name], x)
  assert model.config == models.load(weights, LLAMA).config


def test_weights_keep_their_types_and_only_the_computation_has_another():
  weights = {
    name: x.astype(ml_dtypes.bfloat16) for name, x in _weights(LLAMA).items()
  }
  model = models.load(weights, LLAMA)
  assert {x.dtype for x in model.params.values()} == {np.dtype('bfloat16')}
  exact = {name: x.astype(np.float32) for name, x in weights.items()}
  apply = jax.jit(model.apply)
  np.testing.assert_array_equal(
    apply(model.params, TOKENS), apply(exact, TOKENS)
  )


def test_gpt2_saved_without_its_head_is_the_same_model():
  weights = _weights(GPT2)
  bare = {k.removeprefix('transformer.'): x for k, x in weights.items()}
  assert models.expected_specs(GPT2, bare).keys() == bare.keys()
  whole, model = models.load(weights, GPT2), models.load(bare, GPT2)
  np.testing.assert_array_equal(
    jax.jit(model.apply)(model.params, TOKENS),
    jax.jit(whole.apply)(whole.params, TOKENS),
  )


def test_buffers_of_older_versions_are_left_out():
  weights = _weights(GPT2)
  buffers = {
    'transformer.h.0.attn.bias': np.ones((1, 1, 4, 4), np.uint8),
    'transformer.h.0.attn.masked_bias': np.float32(-1e4),
  }
  model = models.load(weights | buffers, GPT2)
  assert model.params.keys() == weights.keys()
  weights = _weights(LLAMA)
  buffer = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(1, 'f4')}
  assert models.load(weights | buffer, LLAMA).params.keys() == weights.keys()
  weights = _weights(VISION)
  buffer = {'vision_model.embeddings.position_ids': np.ones((1, 5), np.int64)}
  assert models.load(weights | buffer, VISION).params.keys() == weights.keys()


def test_tied_embeddings_are_one_weight():
  config = LLAMA | {'tie_word_embeddings': True}
  weights = _weights(config)
  assert 'lm_head.weight' not in weights
  table = weights['model.embed_tokens.weight']
  copied = weights | {'lm_head.weight': table}
  model = models.load(copied, config)
  assert model.params.keys() == weights.keys()
  untied = models.load(copied, LLAMA)
  np.testing.assert_array_equal(
    jax.jit(model.apply)(model.params, TOKENS),
    jax.jit(untied.apply)(untied.params, TOKENS),
  )
  with pytest.raises(problems.ProblemError, match=r'lm_head\.weight: differs'):
    models.load(weights | {'lm_head.weight': table + 1}, config)
  narrow = weights | {'lm_head.weight': table[:, :3]}
  assert (
    'expected [5, 4] by config.json, got [5, 3]' in _said(config, narrow)[0]
  )


def test_all_problems_are_found_at_once():
  weights = _weights(LLAMA)
  del weights['model.norm.weight']
  weights['lm_head.weight'] = np.zeros((6, 4), np.float32)
  weights['model.layers.0.mlp.up_proj.bias'] = np.zeros(6, np.float32)
  name = 'model.layers.0.mlp.up_proj.weight'
  weights[name] = weights[name].astype(np.int8)
  said = _said(LLAMA, weights)
  assert len(said) == 4
  for part in (
    'math / model.norm.weight: expected a tensor [4], but there is none',
    'math / lm_head.weight: expected [5, 4] by config.json, got [6, 4]',
    'math / model.layers.0.mlp.up_proj.bias: the model that config.json',
    f'math / {name}: expected floating-point numbers, got int8',
  ):
    assert any(part in each for each in said), part
  with pytest.raises(problems.ProblemError) as error:
    models.load(weights, LLAMA)
  assert len(error.value.problems) == 4
  assert error.value.status == problems.Kind.INPUT


_SCALING = 'rope_scaling'


@pytest.mark.parametrize(
  ('config', 'change', 'field'),
  [
    (GPT2, {'add_cross_attention': True}, 'add_cross_attention'),
    (GPT2, {'activation_function': 'mish'}, 'activation_function'),
    (LLAMA, {'hidden_act': 'gegelu'}, 'hidden_act'),
    (LLAMA, {_SCALING: {'type': 'dynamic', 'factor': 2.0}}, 'type'),
    (LLAMA, {'rope_parameters': {'rope_type': 'longrope'}}, 'rope_type'),
    (LLAMA, {_SCALING: {'type': 'yarn', 'factor': 2, 'mscale': 1.0}}, 'mscale'),
    (LLAMA, {'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    (LLAMA, {'quantization_config': {'bits': 4}}, 'quantization_config'),
    (LLAMA, {'auto_map': {'AutoModelForCausalLM': 'a.B'}}, 'AutoModelFor'),
    (LLAMA, {'model_type': 'lama'}, 'did you mean .llama'),
    (LLAMA, {'model_type': None}, 'model_type'),
    (
      LLAMA | {'model_type': 'qwen2'},
      {'use_sliding_window': True, 'layer_types': ['chunked_attention']},
      'layer_types',
    ),
  ],
)
def test_what_would_change_the_computation_is_refused_by_name(
  config, change, field
):
  with pytest.raises(problems.ProblemError, match=field) as error:
    models.expected_specs(config | change)
  assert error.value.status == problems.Kind.INCOMPATIBLE


@pytest.mark.parametrize(
  ('config', 'change', 'said'),
  [
    (GPT2, {'n_head': 3}, '4 channels are not shared by 3 heads'),
    (GPT2, {'n_layer': 10**9}, 'from 1 to 10000, got 1000000000'),
    (GPT2, {'n_layer': True}, 'expected a whole number'),
    (GPT2, {'layer_norm_epsilon': 'small'}, 'expected a number from 1e-30'),
    (
      GPT2,
      {'layer_norm_epsilon': float('nan')},
      'expected a number from 1e-30',
    ),
    (GPT2, {'tie_word_embeddings': 1}, 'expected true or false'),
    (LLAMA, {'num_attention_heads': 3}, 'not shared by 3 heads'),
    (LLAMA, {'num_key_value_heads': 4}, '2 heads cannot share 4 keys'),
    (LLAMA, {'head_dim': 3}, 'heads of 3 channels cannot rotate'),
    (LLAMA, {'head_dim': 2**30}, 'from 1 to 1048576'),
    (LLAMA, {_SCALING: 'linear'}, 'expected a mapping'),
    (LLAMA, {_SCALING: {'type': 'linear'}}, 'factor: is missing'),
    (LLAMA, {'rope_theta': 1.0}, 'expected a number above 1'),
    (
      LLAMA,
      {_SCALING: {'type': 'llama3', 'factor': 2, 'low_freq_factor': 5}},
      '5.0 is not below high_freq_factor',
    ),
    (
      LLAMA | {'model_type': 'qwen2'},
      {'use_sliding_window': True, 'layer_types': []},
      'expected a list of 1 words',
    ),
    (VISION, {'patch_size': 5}, '5 is more than image_size, 4'),
    (VISION, {'image_size': [4, 4]}, 'expected a whole number'),
  ],
)
def test_fields_that_make_no_sense_are_refused(config, change, said):
  with pytest.raises(problems.ProblemError, match=said) as error:
    models.expected_specs(config | change)
  assert error.value.status == problems.Kind.INPUT


@pytest.mark.parametrize(
  'config', [GPT2, LLAMA, VISION], ids=['gpt2', 'llama', 'clip']
)
def test_no_value_of_a_field_is_a_crash(config):
  values = [None, True, 0, -1, 10**400, 1e308, 5e-324, float('nan')]
  values += ['', 'yarn', [], [[]], {}, {'type': 'yarn', 'factor': 1e29}]
  values += [{'type': 'llama3', 'factor': 2, 'rope_theta': 1e29}, {'type': []}]
  fields = [*config, 'rope_scaling', 'rope_theta', 'architectures', 'auto_map']
  fields += ['sliding_window', 'layer_types', 'quantization_config', 'head_dim']
  fields += ['use_sliding_window', 'eos_token_id', 'rope_parameters']
  outcomes = set()
  for family in (config['model_type'], 'qwen2', 'clip', 'clip_text_model'):
    for field in fields:
      for value in values:
        found = models.check(config | {'model_type': family, field: value}, {})
        outcomes |= {each.kind for each in found}
  assert outcomes == {problems.Kind.INPUT, problems.Kind.INCOMPATIBLE}


def test_all_fields_are_read_before_one_is_refused():
  config = LLAMA | {'hidden_act': 'mish', 'rms_norm_eps': -1, 'head_dim': 3}
  assert len(models.check(config, {})) == 3


def test_newer_and_older_fields_of_positions_mean_the_same():
  linear = {'factor': 2.0, 'rope_theta': 50.0}
  weights = _weights(LLAMA)
  older, newer, inside = (
    models.load(weights, LLAMA | fields).config
    for fields in (
      {'rope_theta': 50.0, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
      {'rope_parameters': {'rope_type': 'linear', **linear}},
      {'rope_theta': 7.0, 'rope_scaling': {'type': 'linear', **linear}},
    )
  )
  assert older == newer == inside
  assert models.load(weights, LLAMA).config != older


def test_windows_are_those_of_the_family():
  def windows(**fields):
    config = LLAMA | {'num_hidden_layers': 2, **fields}
    return models.load(_weights(config), config).config.windows

  assert windows(sliding_window=3) == (None, None)
  assert windows(model_type='mistral', num_key_value_heads=1) == (4096, 4096)
  mistral = {'model_type': 'mistral', 'num_key_value_heads': 1}
  assert windows(**mistral, sliding_window=None) == (None, None)
  qwen2 = {'model_type': 'qwen2', 'sliding_window': 3, 'max_window_layers': 1}
  assert windows(**qwen2) == (None, None)
  assert windows(**qwen2, use_sliding_window=True) == (None, 3)
  kinds = ['sliding_attention', 'full_attention']
  given = windows(**qwen2, use_sliding_window=True, layer_types=kinds)
  assert given == (3, None)


def test_sections_of_early_clip_configs_count():
  sizes = {k: v for k, v in VISION.items() if k != 'model_type'}
  config = {
    'model_type': 'clip',
    'vision_config': {'hidden_size': 8},
    'vision_config_dict': sizes,
    'text_config_dict': None,
    'text_config': {'hidden_size': 8, 'num_hidden_layers': 1},
  }
  shapes = models.expected_specs(config)
  assert shapes['vision_model.embeddings.class_embedding'] == (4,)
  assert shapes['text_model.final_layer_norm.bias'] == (8,)
  assert shapes['logit_scale'] == ()


def test_a_projection_is_in_the_names_or_in_the_architecture():
  projected = VISION | {'architectures': ['CLIPVisionModelWithProjection']}
  name = 'visual_projection.weight'
  assert name not in models.expected_specs(VISION)
  assert models.expected_specs(projected)[name] == (512, 4)
  assert name in models.expected_specs(VISION, [name])


def test_a_source_alone_does_not_say_what_it_is():
  with pytest.raises(ValueError, match=r'config\.json'):
    models.load(_weights(LLAMA))


def test_an_unknown_type_of_activations_is_refused():
  with pytest.raises(ValueError, match='dtype is one of float32, bfloat16'):
    models.load(_weights(LLAMA), LLAMA, dtype='float16')


def test_nothing_is_read_of_what_does_not_fit():
  class Unread(streams.InMemory):
    def read(self, path, start, out):
      raise AssertionError(f'{path} was read')

  with pytest.raises(problems.ProblemError):
    models.load(Unread({'w': jnp.ones(2)}), LLAMA)
