"""A model of some kilobytes in the layout of Hugging Face, to be broken."""

import json

import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors

CONFIG = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'hidden_act': 'silu',
  'hidden_size': 8,
  'intermediate_size': 12,
  'num_attention_heads': 4,
  'num_hidden_layers': 4,
  'num_key_value_heads': 2,
  'tie_word_embeddings': False,
  'vocab_size': 16,
}


def tensors(seed=0, *, dtype=ml_dtypes.bfloat16):
  """Random weights of the shapes that the config says."""
  rng = np.random.default_rng(seed)
  shapes = {
    'model.embed_tokens.weight': (16, 8),
    'model.norm.weight': (8,),
    'lm_head.weight': (16, 8),
  }
  for i in range(4):
    shapes |= {
      f'model.layers.{i}.{name}': shape
      for name, shape in {
        'input_layernorm.weight': (8,),
        'post_attention_layernorm.weight': (8,),
        'self_attn.q_proj.weight': (8, 8),
        'self_attn.k_proj.weight': (4, 8),
        'self_attn.v_proj.weight': (4, 8),
        'self_attn.o_proj.weight': (8, 8),
        'mlp.gate_proj.weight': (12, 8),
        'mlp.up_proj.weight': (12, 8),
        'mlp.down_proj.weight': (8, 12),
      }.items()
    }
  return {
    path: np.ones(shape, dtype)
    if len(shape) == 1
    else rng.normal(size=shape).astype(dtype)
    for path, shape in shapes.items()
  }


def nudged(model, scale, seed):
  """The same with all matrices moved by a share of their size."""
  rng = np.random.default_rng(seed)
  return {
    path: (x + scale * rng.normal(size=x.shape)).astype(x.dtype)
    if x.ndim > 1
    else x
    for path, x in model.items()
  }


def save(directory, model, config=None, *, tokens=16, format_='pt'):
  """Writes a directory by the library of the format."""
  directory.mkdir(exist_ok=True)
  path = directory / 'model.safetensors'
  # The library takes bytes in the order of memory, whatever the strides.
  whole = {name: np.ascontiguousarray(x) for name, x in model.items()}
  safetensors.save_file(whole, path, {'format': format_})
  config = CONFIG if config is None else config
  (directory / 'config.json').write_text(json.dumps(config))
  if tokens:
    vocabulary = {f't{i}': i for i in range(tokens)}
    content = {'model': {'type': 'BPE', 'vocab': vocabulary, 'merges': []}}
    (directory / 'tokenizer.json').write_text(json.dumps(content))
  return directory
