"""Llama, Mistral and Qwen2: rotary positions, RMS norms, gated perceptrons."""

from collections.abc import Collection
import dataclasses
import re

import jax

from third_party.huggingface.models import decoding
from third_party.huggingface.models import fields as fields_lib
from third_party.huggingface.models import layers
from third_party.huggingface.models import rotary

# Frequencies that older versions of transformers stored as if weights.
BUFFERS = re.compile(r'(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\..*')

_KINDS = ('full_attention', 'sliding_attention')


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a model of this family.

  Attributes:
    frequencies: Of the rotary positions, see `rotary.read`.
    windows: Of each layer, how many columns back a token sees, or None.
    input_bias: Whether queries, keys and values have a bias.
    output_bias: Whether the output of attention has one.
    hidden_bias: Whether the perceptron has them.
  """

  vocabulary: int
  width: int
  hidden: int
  layers: int
  heads: int
  key_heads: int
  head_width: int
  activation: str
  epsilon: float
  frequencies: rotary.Frequencies
  windows: tuple[int | None, ...]
  input_bias: bool
  output_bias: bool
  hidden_bias: bool
  tied: bool
  longest: None = None


def read(fields: fields_lib.Fields, names: Collection[str]) -> Config:
  """Reads a config of `model_type` llama, mistral or qwen2.

  Args:
    fields: Of the config; keeps what is wrong with them.
    names: Of the weights; not needed here.

  Returns:
    The config.
  """
  del names
  family = fields.get('model_type')
  width = fields.integer('hidden_size', 4096, most=fields_lib.MOST_CHANNELS)
  heads = fields.integer('num_attention_heads', 32)
  if fields.get('head_dim') is None and width % heads:
    fields.invalid(
      'num_attention_heads', f'{width} channels are not shared by {heads} heads'
    )
  head_width = fields.integer(
    'head_dim', max(width // heads, 1), most=fields_lib.MOST_CHANNELS
  )
  if head_width % 2:
    fields.invalid('head_dim', f'heads of {head_width} channels cannot rotate')
  key_heads = fields.integer(
    'num_key_value_heads', 8 if family == 'mistral' else heads
  )
  if heads % key_heads:
    fields.invalid(
      'num_key_value_heads', f'{heads} heads cannot share {key_heads} keys'
    )
  depth = fields.integer('num_hidden_layers', 32, most=fields_lib.MOST_LAYERS)
  hidden = {'qwen2': 22016, 'mistral': 14336}.get(family, 11008)
  bias = family == 'llama' and fields.flag('attention_bias', False)
  return Config(
    vocabulary=fields.integer(
      'vocab_size', 151936 if family == 'qwen2' else 32000
    ),
    width=width,
    hidden=fields.integer('intermediate_size', hidden),
    layers=depth,
    heads=heads,
    key_heads=key_heads,
    head_width=head_width,
    activation=fields.choice('hidden_act', 'silu', layers.ACTIVATIONS),
    epsilon=fields.number('rms_norm_eps', 1e-6),
    frequencies=rotary.read(fields, head_width),
    windows=_windows(fields, family, depth),
    input_bias=bias or family == 'qwen2',
    output_bias=bias,
    hidden_bias=family == 'llama' and fields.flag('mlp_bias', False),
    tied=fields.flag('tie_word_embeddings', False),
  )


def _windows(fields, family, depth):
  """Which layers see a window only, as the classes of transformers have it."""
  full = (None,) * depth
  if fields.has('sliding_window') and fields.get('sliding_window') is None:
    return full
  if family == 'mistral':
    return (fields.integer('sliding_window', 4096),) * depth
  if family != 'qwen2' or not fields.flag('use_sliding_window', False):
    return full
  window = fields.integer('sliding_window', 4096)
  first = fields.integer('max_window_layers', 28, least=0)
  kinds = fields.get('layer_types')
  if kinds is None:
    kinds = [_KINDS[layer >= first] for layer in range(depth)]
  if not isinstance(kinds, list) or len(kinds) != depth:
    fields.invalid('layer_types', f'expected a list of {depth} words')
    return full
  for kind in kinds:
    if kind not in _KINDS:
      fields.refuse('layer_types', kind, f'it can be {", ".join(_KINDS)}')
  return tuple(window if kind == _KINDS[1] else None for kind in kinds)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each weight by its name."""
  width, hidden = config.width, config.hidden
  queries = config.heads * config.head_width
  keys = config.key_heads * config.head_width
  found: dict[str, tuple[int, ...]] = {
    'model.embed_tokens.weight': (config.vocabulary, width)
  }
  for layer in range(config.layers):
    block = f'model.layers.{layer}'
    for name, o, i, biased in (
      ('self_attn.q_proj', queries, width, config.input_bias),
      ('self_attn.k_proj', keys, width, config.input_bias),
      ('self_attn.v_proj', keys, width, config.input_bias),
      ('self_attn.o_proj', width, queries, config.output_bias),
      ('mlp.gate_proj', hidden, width, config.hidden_bias),
      ('mlp.up_proj', hidden, width, config.hidden_bias),
      ('mlp.down_proj', width, hidden, config.hidden_bias),
    ):
      found[f'{block}.{name}.weight'] = (o, i)
      if biased:
        found[f'{block}.{name}.bias'] = (o,)
    found[f'{block}.input_layernorm.weight'] = (width,)
    found[f'{block}.post_attention_layernorm.weight'] = (width,)
  found['model.norm.weight'] = (width,)
  if not config.tied:
    found['lm_head.weight'] = (config.vocabulary, width)
  return found


def ties(config: Config) -> dict[str, str]:
  """Returns, by the name of a copy that a file may have, that of the weight."""
  return {'lm_head.weight': 'model.embed_tokens.weight'} if config.tied else {}


def forward(
  params: layers.Params,
  tokens: jax.Array,
  place: decoding.Place,
  cache: decoding.Cache | None,
  *,
  config: Config,
  dtype,
  last: bool = False,
) -> tuple[jax.Array, decoding.Cache | None]:
  """The forward pass, see `decoding.Decoder`."""
  batch, length = tokens.shape
  table = params['model.embed_tokens.weight']
  x = layers.embed(table, tokens, dtype)
  x = x.reshape(batch * length, config.width)
  activation = layers.ACTIVATIONS[config.activation]
  masks = {window: place.mask(window) for window in set(config.windows)}
  kept = []
  for layer, window in enumerate(config.windows):
    block = f'model.layers.{layer}'
    attention, mlp = f'{block}.self_attn', f'{block}.mlp'
    y = layers.rms_norm(params, f'{block}.input_layernorm', x, config.epsilon)
    query, key, value = (
      layers.linear(params, f'{attention}.{name}_proj', y).reshape(
        batch, length, -1, config.head_width
      )
      for name in 'qkv'
    )
    query, key = (
      rotary.rotate(each, place.positions, config.frequencies)
      for each in (query, key)
    )
    old = None if cache is None else cache[layer]
    key, value = decoding.remember(old, key, value, place.start)
    kept.append((key, value))
    y = layers.attend(query, key, value, masks[window])
    x = x + layers.linear(params, f'{attention}.o_proj', y)
    y = layers.rms_norm(
      params, f'{block}.post_attention_layernorm', x, config.epsilon
    )
    gate = activation(layers.linear(params, f'{mlp}.gate_proj', y))
    up = layers.linear(params, f'{mlp}.up_proj', y)
    x = x + layers.linear(params, f'{mlp}.down_proj', gate * up)
  x = layers.rms_norm(params, 'model.norm', x, config.epsilon)
  head = table if config.tied else params['lm_head.weight']
  return decoding.head(x, head, batch, last), cache and tuple(kept)
