"""GPT-2: learned positions, layer norms, weights stored as `[in, out]`."""

from collections.abc import Collection
import dataclasses
import math
import re

import jax
import jax.numpy as jnp

from third_party.huggingface.models import decoding
from third_party.huggingface.models import fields as fields_lib
from third_party.huggingface.models import layers

# Masks that older versions of transformers stored as if they were weights.
BUFFERS = re.compile(r'(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)')


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a GPT-2, and the names that its file has.

  Attributes:
    prefix: What names start with: `transformer.`, or nothing in files that
      were written without the head.
  """

  vocabulary: int
  longest: int
  width: int
  layers: int
  heads: int
  hidden: int
  activation: str
  epsilon: float
  scaled: bool
  scaled_by_layer: bool
  tied: bool
  prefix: str

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.heads

  @property
  def head_width(self) -> int:
    """Channels of a head."""
    return self.width // self.heads


def read(fields: fields_lib.Fields, names: Collection[str]) -> Config:
  """Reads a config.

  Args:
    fields: Of the config; keeps what is wrong with them.
    names: Of the weights, if there are any yet.

  Returns:
    The config.
  """
  fields.only('add_cross_attention', False, 'only decoders alone are read')
  width = fields.integer('n_embd', 768)
  heads = fields.integer('n_head', 12)
  if width % heads:
    fields.invalid(
      'n_head', f'{width} channels are not shared by {heads} heads'
    )
  return Config(
    vocabulary=fields.integer('vocab_size', 50257),
    longest=fields.integer('n_positions', 1024),
    width=width,
    layers=fields.integer('n_layer', 12, most=fields_lib.MOST_LAYERS),
    heads=heads,
    hidden=fields.integer('n_inner', 4 * width),
    activation=fields.choice(
      'activation_function', 'gelu_new', layers.ACTIVATIONS
    ),
    epsilon=fields.number('layer_norm_epsilon', 1e-5),
    scaled=fields.flag('scale_attn_weights', True),
    scaled_by_layer=fields.flag('scale_attn_by_inverse_layer_idx', False),
    tied=fields.flag('tie_word_embeddings', True),
    prefix='' if 'wte.weight' in names else 'transformer.',
  )


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each weight by its name."""
  width, hidden, prefix = config.width, config.hidden, config.prefix
  found: dict[str, tuple[int, ...]] = {
    f'{prefix}wte.weight': (config.vocabulary, width),
    f'{prefix}wpe.weight': (config.longest, width),
  }
  for layer in range(config.layers):
    block = f'{prefix}h.{layer}'
    for name, i, o in (
      ('attn.c_attn', width, 3 * width),
      ('attn.c_proj', width, width),
      ('mlp.c_fc', width, hidden),
      ('mlp.c_proj', hidden, width),
    ):
      found[f'{block}.{name}.weight'] = (i, o)
      found[f'{block}.{name}.bias'] = (o,)
    for norm in ('ln_1', 'ln_2'):
      found[f'{block}.{norm}.weight'] = (width,)
      found[f'{block}.{norm}.bias'] = (width,)
  found[f'{prefix}ln_f.weight'] = (width,)
  found[f'{prefix}ln_f.bias'] = (width,)
  if not config.tied:
    found['lm_head.weight'] = (config.vocabulary, width)
  return found


def ties(config: Config) -> dict[str, str]:
  """Returns, by the name of a copy that a file may have, that of the weight."""
  return {'lm_head.weight': f'{config.prefix}wte.weight'} if config.tied else {}


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
  prefix, activation = config.prefix, layers.ACTIVATIONS[config.activation]
  batch, length = tokens.shape
  table = params[f'{prefix}wte.weight']
  x = layers.embed(table, tokens, dtype) + layers.embed(
    params[f'{prefix}wpe.weight'],
    jnp.broadcast_to(place.positions, tokens.shape),
    dtype,
  )
  x = x.reshape(batch * length, config.width)
  mask = place.mask()
  kept = []
  for layer in range(config.layers):
    block = f'{prefix}h.{layer}'
    y = layers.layer_norm(params, f'{block}.ln_1', x, config.epsilon)
    y = layers.linear(params, f'{block}.attn.c_attn', y, out_in=False)
    y = y.reshape(batch, length, 3, config.heads, config.head_width)
    old = None if cache is None else cache[layer]
    key, value = decoding.remember(old, y[:, :, 1], y[:, :, 2], place.start)
    kept.append((key, value))
    scale = 1 / math.sqrt(config.head_width) if config.scaled else 1.0
    scale = scale / (layer + 1) if config.scaled_by_layer else scale
    y = layers.attend(y[:, :, 0], key, value, mask, scale)
    x = x + layers.linear(params, f'{block}.attn.c_proj', y, out_in=False)
    y = layers.layer_norm(params, f'{block}.ln_2', x, config.epsilon)
    y = layers.linear(params, f'{block}.mlp.c_fc', y, out_in=False)
    y = activation(y)
    x = x + layers.linear(params, f'{block}.mlp.c_proj', y, out_in=False)
  x = layers.layer_norm(params, f'{prefix}ln_f', x, config.epsilon)
  head = table if config.tied else params['lm_head.weight']
  return decoding.head(x, head, batch, last), cache and tuple(kept)
