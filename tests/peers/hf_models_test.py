"""Models here compute what transformers does, on random small configs."""

import json
import subprocess
from typing import Any
from typing import NamedTuple

import numpy as np
import pytest

from third_party.huggingface import models
from third_party.peers import client

_TOLERANCE = 1e-4


class Case(NamedTuple):
  """A class of transformers, fields of its config, and how it is called.

  Attributes:
    pads: Tokens of padding on the left of the second line; negative numbers
      are on the right, and None is no mask at all.
    generate: How many tokens to generate, too.
    counted: Whether positions are left to transformers, which counts padding.
  """

  kind: str
  config: dict[str, Any]
  pads: int | None = None
  generate: int = 0
  counted: bool = False


_GPT2 = {
  'vocab_size': 61,
  'n_positions': 24,
  'n_embd': 24,
  'n_layer': 2,
  'n_head': 3,
  'bos_token_id': 0,
  'eos_token_id': 0,
}
_LLAMA = {
  'vocab_size': 61,
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'bos_token_id': 0,
  'eos_token_id': 0,
}
_LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8,
}
_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 16,
}
_VISION = {
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 3,
  'image_size': 12,
  'patch_size': 4,
  'projection_dim': 20,
}
_TEXT = {
  'vocab_size': 61,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'max_position_embeddings': 12,
  'projection_dim': 20,
  'bos_token_id': 58,
  'eos_token_id': 59,
  'pad_token_id': 1,
}


def _clip(vision=None, text=None):
  return {
    'projection_dim': 20,
    'vision_config': _VISION | (vision or {}),
    'text_config': _TEXT | (text or {}),
  }


def _rope(scaling, theta=1000.0):
  return {'rope_scaling': scaling, 'rope_theta': theta}


CASES = {
  'gpt2': Case('GPT2LMHeadModel', _GPT2),
  'gpt2_left': Case('GPT2LMHeadModel', _GPT2, pads=3, generate=6),
  'gpt2_counted': Case('GPT2LMHeadModel', _GPT2, pads=3, counted=True),
  'gpt2_right': Case('GPT2LMHeadModel', _GPT2, pads=-4),
  'gpt2_options': Case(
    'GPT2LMHeadModel',
    _GPT2
    | {
      'n_inner': 36,
      'activation_function': 'relu',
      'scale_attn_by_inverse_layer_idx': True,
      'scale_attn_weights': False,
      'reorder_and_upcast_attn': True,
      'layer_norm_epsilon': 1e-2,
      'tie_word_embeddings': False,
    },
  ),
  'llama': Case('LlamaForCausalLM', _LLAMA),
  'llama_left': Case('LlamaForCausalLM', _LLAMA, pads=5, generate=6),
  'llama_right': Case('LlamaForCausalLM', _LLAMA, pads=-5),
  'llama_options': Case(
    'LlamaForCausalLM',
    _LLAMA
    | {
      'attention_bias': True,
      'mlp_bias': True,
      'head_dim': 10,
      'num_key_value_heads': 6,
      'tie_word_embeddings': True,
      'hidden_act': 'gelu',
      'rms_norm_eps': 1e-2,
      'rope_theta': 500.0,
    },
  ),
  'llama_one_key': Case(
    'LlamaForCausalLM', _LLAMA | {'num_key_value_heads': 1}
  ),
  'llama_linear': Case(
    'LlamaForCausalLM', _LLAMA | _rope({'type': 'linear', 'factor': 3.0})
  ),
  'llama_llama3': Case(
    'LlamaForCausalLM', _LLAMA | _rope(_LLAMA3) | {'head_dim': 16}
  ),
  'llama_yarn': Case(
    'LlamaForCausalLM', _LLAMA | _rope(_YARN) | {'head_dim': 16}
  ),
  'qwen2': Case('Qwen2ForCausalLM', _LLAMA, pads=2, generate=5),
  'qwen2_tied': Case(
    'Qwen2ForCausalLM',
    _LLAMA
    | {'tie_word_embeddings': True}
    | _rope(_YARN | {'attention_factor': 0.8}),
  ),
  'qwen2_windows': Case(
    'Qwen2ForCausalLM',
    _LLAMA
    | {'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 2},
    pads=2,
    generate=5,
  ),
  'mistral': Case('MistralForCausalLM', _LLAMA | {'sliding_window': None}),
  'mistral_window': Case(
    'MistralForCausalLM', _LLAMA | {'sliding_window': 5, 'head_dim': 8}
  ),
  'clip': Case('CLIPModel', _clip()),
  'clip_legacy_end': Case(
    'CLIPModel', _clip(text={'eos_token_id': 2}), pads=-3
  ),
  'clip_gelu': Case(
    'CLIPModel',
    _clip(
      {'hidden_act': 'gelu', 'image_size': 14, 'layer_norm_eps': 1e-2},
      {'hidden_act': 'gelu_new'},
    ),
    pads=-2,
  ),
  'clip_vision': Case('CLIPVisionModel', _VISION),
  'clip_vision_projected': Case('CLIPVisionModelWithProjection', _VISION),
  'clip_text': Case('CLIPTextModel', _TEXT),
  'clip_text_projected': Case('CLIPTextModelWithProjection', _TEXT),
}


def _inputs(case):
  rng = np.random.default_rng(0)
  length = 10 if 'CLIP' in case.kind else 14
  tokens = rng.integers(3, 58, (3, length))
  found = {'input_ids': tokens}
  if case.pads is not None:
    mask = np.ones_like(tokens)
    if case.pads > 0:
      mask[1, : case.pads] = 0
    else:
      mask[1, case.pads :] = 0
    found['attention_mask'] = mask
    if 'CLIP' not in case.kind and not case.counted:
      found['position_ids'] = np.maximum(mask.cumsum(1) - 1, 0)
  if 'CLIP' in case.kind:
    # A line may have the end token twice: the first one counts. By the rule of
    # early configs it is the greatest token.
    tokens[2, 2] = 60
    tokens[0, [4, 7]] = 59
    tokens[1, 5] = 59
    tokens[2, -1] = 59
  size = case.config.get('vision_config', case.config).get('image_size')
  if size:
    images = rng.standard_normal((2, 3, size, size)).astype(np.float32)
    found['pixel_values'] = images
  if 'Vision' in case.kind:
    del found['input_ids']
  return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """All cases, run by transformers in one process."""
  python = client.python_of('mergekit')
  if not python.exists():
    pytest.skip(
      f'transformers is not installed in {python.parents[1]}: see '
      'third_party/peers/README.md, or name the folder in ARITHMERGE_PEERS'
    )
  folder = tmp_path_factory.mktemp('transformers')
  for name, case in CASES.items():
    (folder / name).mkdir()
    np.savez(folder / name / 'inputs.npz', **_inputs(case))
    request = {
      'class': case.kind,
      'config': case.config,
      'generate': case.generate,
    }
    (folder / name / 'case.json').write_text(json.dumps(request))
  program = client.__file__.replace('client.py', 'on_transformers.py')
  done = subprocess.run(
    [python, program, folder], capture_output=True, text=True, check=False
  )
  assert not done.returncode, done.stderr[-3000:]
  return folder


def _read(folder, name):
  with np.load(folder / name / 'inputs.npz') as arrays:
    inputs = dict(arrays)
  with np.load(folder / name / 'outputs.npz') as arrays:
    outputs = dict(arrays)
  tokens = inputs.get('input_ids')
  if tokens is not None:
    inputs['input_ids'] = tokens.astype(np.int32)
  return inputs, outputs


def _differ(ours, theirs):
  return np.abs(np.asarray(ours) - theirs).max()


_DECODERS = [
  name for name, case in CASES.items() if 'LM' in case.kind and not case.counted
]
_CLIPS = [name for name, case in CASES.items() if 'CLIP' in case.kind]


@pytest.mark.parametrize('name', _DECODERS)
def test_logits_are_those_of_transformers(folder, name):
  inputs, outputs = _read(folder, name)
  model = models.load(folder / name)
  mask = inputs.get('attention_mask')
  logits = model.apply(model.params, inputs['input_ids'], attention_mask=mask)
  real = slice(None) if mask is None else mask.astype(bool)
  assert np.std(outputs['logits']) > 0.5  # Else there is little to compare.
  assert _differ(np.asarray(logits)[real], outputs['logits'][real]) < _TOLERANCE


@pytest.mark.parametrize('name', _DECODERS)
def test_the_config_as_written_means_the_same(folder, name):
  # Newer versions of transformers rewrite what they were given.
  config = json.loads((folder / name / 'config.json').read_text())
  given = CASES[name].config | {'model_type': config['model_type']}
  model = models.load(folder / name)
  assert models.load(folder / name, given).config == model.config


@pytest.mark.parametrize('name', [k for k in _DECODERS if CASES[k].generate])
def test_greedy_text_is_that_of_transformers(folder, name):
  inputs, outputs = _read(folder, name)
  model = models.load(folder / name)
  steps = CASES[name].generate
  text = models.greedy(
    model.decoder,
    model.params,
    inputs['input_ids'],
    steps,
    attention_mask=inputs['attention_mask'],
  )
  np.testing.assert_array_equal(text, outputs['generated'][:, -steps:])


@pytest.mark.parametrize('name', _CLIPS)
def test_features_are_those_of_transformers(folder, name):
  inputs, outputs = _read(folder, name)
  model = models.load(folder / name)
  mask = inputs.get('attention_mask')
  seen = told = None
  if model.image_features:
    seen = model.image_features(model.params, inputs['pixel_values'])
  if model.text_features:
    told = model.text_features(
      model.params, inputs['input_ids'], attention_mask=mask
    )
  whole = CASES[name].kind == 'CLIPModel'
  for ours, keys in (
    (seen, ('image_embeds', 'pooler_output')),
    (told, ('text_embeds', 'pooler_output')),
  ):
    if ours is None:
      continue
    theirs = next(outputs[key] for key in keys if key in outputs)
    compared = models.normalize(ours) if whole else ours
    assert _differ(compared, theirs) < _TOLERANCE
  if whole:
    logits = model.apply(
      model.params,
      inputs['pixel_values'],
      inputs['input_ids'],
      attention_mask=mask,
    )
    assert _differ(logits, outputs['logits_per_image']) < _TOLERANCE


def test_positions_may_count_padding_as_the_plain_forward_pass_does(folder):
  inputs, outputs = _read(folder, 'gpt2_counted')
  model = models.load(folder / 'gpt2_counted')
  tokens, mask = inputs['input_ids'], inputs['attention_mask']
  real = mask.astype(bool)
  ours, default = (
    model.apply(model.params, tokens, attention_mask=mask, positions=positions)
    for positions in (
      np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
      None,
    )
  )
  theirs = outputs['logits'][real]
  assert _differ(np.asarray(ours)[real], theirs) < _TOLERANCE
  assert _differ(np.asarray(default)[real], theirs) > 0.01


def test_bfloat16_is_near(folder):
  inputs, outputs = _read(folder, 'llama')
  model = models.load(folder / 'llama', dtype='bfloat16')
  logits = model.apply(model.params, inputs['input_ids'])
  assert logits.dtype == np.float32
  error = _differ(logits, outputs['logits'])
  assert 1e-3 < error < 0.1 * np.abs(outputs['logits']).max()
