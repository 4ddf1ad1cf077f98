"""CLIP: its vision and its text tower, together or alone."""

from collections.abc import Collection
import dataclasses
import re

import jax
import jax.numpy as jnp

from third_party.huggingface.models import fields as fields_lib
from third_party.huggingface.models import layers

# Counts from zero on, which older versions of transformers stored.
BUFFERS = re.compile(r'(\w+_model\.)?embeddings\.position_ids')

# Configs with this number name no token: it was wrong in the first releases.
_LEGACY_END = 2


@dataclasses.dataclass(frozen=True)
class Tower:
  """The shape of an encoder, and the names that its file has.

  Attributes:
    prefix: What names start with.
    projection: Channels of the features that the tower's projection makes, or
      None if it has none; then features are those of the tower.
  """

  prefix: str
  width: int
  hidden: int
  layers: int
  heads: int
  activation: str
  epsilon: float
  projection: int | None


@dataclasses.dataclass(frozen=True)
class Vision(Tower):
  """The shape of a vision tower; sizes are in pixels."""

  channels: int
  size: int
  patch: int

  @property
  def patches(self) -> int:
    """How many patches an image has."""
    return (self.size // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class Text(Tower):
  """The shape of a text tower.

  Attributes:
    end: The token whose features are those of the line, the first one of it.
      In configs with 2, it is the token of the highest number.
  """

  vocabulary: int
  longest: int
  end: int


@dataclasses.dataclass(frozen=True)
class Config:
  """One tower, or both with a scale of their products."""

  vision: Vision | None
  text: Text | None


def read(fields: fields_lib.Fields, names: Collection[str]) -> Config:
  """Reads a config of `model_type` clip, clip_vision_model or clip_text_model.

  Args:
    fields: Of the config; keeps what is wrong with them.
    names: Of the weights, if there are any yet: of a tower alone, they say
      whether it has a projection, and whether names start with `vision_model.`
      or `text_model.`, which transformers leaves out since version 5.

  Returns:
    The config.
  """
  family = fields.get('model_type')
  if family == 'clip_vision_model':
    alone = _alone(fields, names, 'visual_projection.weight', 'vision_model.')
    return Config(_vision(fields, *alone), None)
  if family == 'clip_text_model':
    alone = _alone(fields, names, 'text_projection.weight', 'text_model.')
    return Config(None, _text(fields, *alone))
  # Early files have a second form of either section, which counts.
  vision, text = (
    fields.section(f'{each}_dict' if fields.get(f'{each}_dict') else each)
    for each in ('vision_config', 'text_config')
  )
  width = fields.integer('projection_dim', 512)
  return Config(
    _vision(vision, 'vision_model.', width),
    _text(text, 'text_model.', width),
  )


def _alone(fields, names, projection, prefix):
  projected = projection in names
  if not names:
    projected = 'WithProjection' in str(fields.get('architectures'))
  if names and not any(name.startswith(prefix) for name in names):
    prefix = ''
  width = fields.integer('projection_dim', 512)
  return prefix, width if projected else None


def _tower(fields, prefix, projection, *, width, hidden, heads):
  width = fields.integer('hidden_size', width, most=fields_lib.MOST_CHANNELS)
  heads = fields.integer('num_attention_heads', heads)
  if width % heads:
    fields.invalid(
      'num_attention_heads', f'{width} channels are not shared by {heads} heads'
    )
  return {
    'prefix': prefix,
    'width': width,
    'hidden': fields.integer('intermediate_size', hidden),
    'layers': fields.integer(
      'num_hidden_layers', 12, most=fields_lib.MOST_LAYERS
    ),
    'heads': heads,
    'activation': fields.choice('hidden_act', 'quick_gelu', layers.ACTIVATIONS),
    'epsilon': fields.number('layer_norm_eps', 1e-5),
    'projection': projection,
  }


def _vision(fields, prefix, projection) -> Vision:
  size = fields.integer('image_size', 224)
  patch = fields.integer('patch_size', 32)
  if patch > size:
    fields.invalid('patch_size', f'{patch} is more than image_size, {size}')
  return Vision(
    **_tower(fields, prefix, projection, width=768, hidden=3072, heads=12),
    channels=fields.integer('num_channels', 3),
    size=size,
    patch=patch,
  )


def _text(fields, prefix, projection) -> Text:
  return Text(
    **_tower(fields, prefix, projection, width=512, hidden=2048, heads=8),
    vocabulary=fields.integer('vocab_size', 49408),
    longest=fields.integer('max_position_embeddings', 77),
    end=fields.integer('eos_token_id', 49407, least=0),
  )


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each weight by its name."""
  found: dict[str, tuple[int, ...]] = {}
  if config.vision:
    tower, prefix = config.vision, config.vision.prefix
    width, patch = tower.width, tower.patch
    found |= {
      f'{prefix}embeddings.class_embedding': (width,),
      f'{prefix}embeddings.patch_embedding.weight': (
        width,
        tower.channels,
        patch,
        patch,
      ),
      f'{prefix}embeddings.position_embedding.weight': (
        tower.patches + 1,
        width,
      ),
      **_norm(f'{prefix}pre_layrnorm', width),
      **_encoder_shapes(tower),
      **_norm(f'{prefix}post_layernorm', width),
    }
    if tower.projection:
      found['visual_projection.weight'] = (tower.projection, width)
  if config.text:
    tower, prefix = config.text, config.text.prefix
    width, embeddings = tower.width, f'{prefix}embeddings'
    found |= {
      f'{embeddings}.token_embedding.weight': (tower.vocabulary, width),
      f'{embeddings}.position_embedding.weight': (tower.longest, width),
      **_encoder_shapes(tower),
      **_norm(f'{prefix}final_layer_norm', width),
    }
    if tower.projection:
      found['text_projection.weight'] = (tower.projection, width)
  if config.vision and config.text:
    found['logit_scale'] = ()
  return found


def _norm(name, width):
  return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def _encoder_shapes(tower):
  width, hidden = tower.width, tower.hidden
  found = {}
  for layer in range(tower.layers):
    block = f'{tower.prefix}encoder.layers.{layer}'
    for name, o, i in (
      ('self_attn.k_proj', width, width),
      ('self_attn.v_proj', width, width),
      ('self_attn.q_proj', width, width),
      ('self_attn.out_proj', width, width),
      ('mlp.fc1', hidden, width),
      ('mlp.fc2', width, hidden),
    ):
      found[f'{block}.{name}.weight'] = (o, i)
      found[f'{block}.{name}.bias'] = (o,)
    found |= _norm(f'{block}.layer_norm1', width)
    found |= _norm(f'{block}.layer_norm2', width)
  return found


def image_features(
  params: layers.Params, images: jax.Array, *, config: Config, dtype
) -> jax.Array:
  """Features of images, projected where the model projects, not normalised.

  Args:
    params: Weights by name.
    images: `f32[batch, channels, height, width]`, prepared as the model's
      processor does.
    config: With a vision tower.
    dtype: What activations are in.

  Returns:
    `f32[batch, features]`.

  Raises:
    ValueError: There is no vision tower, or images have another shape.
  """
  tower = config.vision
  if tower is None:
    raise ValueError('the model has no vision tower')
  shape = (tower.channels, tower.size, tower.size)
  if images.ndim != 4 or images.shape[1:] != shape:
    raise ValueError(
      f'images are [batch, {", ".join(map(str, shape))}], got {images.shape}'
    )
  batch, (side, patch) = len(images), (tower.size // tower.patch, tower.patch)
  embeddings = f'{tower.prefix}embeddings'
  x = images[:, :, : side * patch, : side * patch].astype(dtype)
  x = x.reshape(batch, tower.channels, side, patch, side, patch)
  x = x.transpose(0, 2, 4, 1, 3, 5).reshape(batch * side * side, -1)
  kernel = params[f'{embeddings}.patch_embedding.weight'].astype(dtype)
  x = layers.contract(x, kernel.reshape(tower.width, -1), 1).astype(dtype)
  first = params[f'{embeddings}.class_embedding'].astype(dtype)
  first = jnp.broadcast_to(first, (batch, 1, tower.width))
  x = jnp.concatenate([first, x.reshape(batch, -1, tower.width)], axis=1)
  places = params[f'{embeddings}.position_embedding.weight'].astype(dtype)
  x = x + places[None]
  x = layers.layer_norm(params, f'{tower.prefix}pre_layrnorm', x, tower.epsilon)
  x = _encode(params, x, None, tower)[:, 0]
  x = layers.layer_norm(
    params, f'{tower.prefix}post_layernorm', x, tower.epsilon
  )
  if tower.projection:
    x = layers.linear(params, 'visual_projection', x)
  return x.astype(jnp.float32)


def text_features(
  params: layers.Params,
  tokens: jax.Array,
  *,
  attention_mask: jax.Array | None = None,
  config: Config,
  dtype,
) -> jax.Array:
  """Features of lines, projected where the model projects, not normalised.

  Args:
    params: Weights by name.
    tokens: `i32[batch, length]`, each line with its end token. What follows
      that changes nothing; one that is not in the vocabulary makes NaN.
    attention_mask: `[batch, length]`, zero or false for padding.
    config: With a text tower.
    dtype: What activations are in.

  Returns:
    `f32[batch, features]`.

  Raises:
    ValueError: There is no text tower, or lines are too long.
  """
  tower = config.text
  if tower is None:
    raise ValueError('the model has no text tower')
  length = tokens.shape[1]
  if length > tower.longest:
    raise ValueError(
      f'the model has positions for lines of {tower.longest} tokens, got'
      f' {length}; shorten the lines'
    )
  embeddings = f'{tower.prefix}embeddings'
  table = params[f'{embeddings}.token_embedding.weight']
  x = layers.embed(table, tokens, dtype)
  places = params[f'{embeddings}.position_embedding.weight'][:length]
  mask = jnp.tril(jnp.ones((1, length, length), bool))
  if attention_mask is not None:
    mask &= jnp.asarray(attention_mask).astype(bool)[:, None, :]
  x = _encode(params, x + places.astype(dtype)[None], mask, tower)
  if tower.end == _LEGACY_END:
    ends = tokens.argmax(axis=1)
  else:
    ends = (tokens == tower.end).argmax(axis=1)
  x = jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]
  x = layers.layer_norm(
    params, f'{tower.prefix}final_layer_norm', x, tower.epsilon
  )
  if tower.projection:
    x = layers.linear(params, 'text_projection', x)
  return x.astype(jnp.float32)


def _encode(params, x, mask, tower):
  """Runs the blocks of a tower on `[batch, length, channels]`."""
  shape = batch, length, width = x.shape
  activation = layers.ACTIVATIONS[tower.activation]
  x = x.reshape(batch * length, width)
  for layer in range(tower.layers):
    block = f'{tower.prefix}encoder.layers.{layer}'
    y = layers.layer_norm(params, f'{block}.layer_norm1', x, tower.epsilon)
    query, key, value = (
      layers.linear(params, f'{block}.self_attn.{name}_proj', y).reshape(
        batch, length, tower.heads, width // tower.heads
      )
      for name in 'qkv'
    )
    y = layers.attend(query, key, value, mask)
    x = x + layers.linear(params, f'{block}.self_attn.out_proj', y)
    y = layers.layer_norm(params, f'{block}.layer_norm2', x, tower.epsilon)
    y = activation(layers.linear(params, f'{block}.mlp.fc1', y))
    x = x + layers.linear(params, f'{block}.mlp.fc2', y)
  return x.reshape(shape)


def apply(
  params: layers.Params,
  images: jax.Array,
  tokens: jax.Array,
  *,
  attention_mask: jax.Array | None = None,
  config: Config,
  dtype,
) -> jax.Array:
  """Zero-shot logits: scaled cosines of images with lines.

  Args:
    params: Weights by name.
    images: As in `image_features`.
    tokens: As in `text_features`, a line for each class.
    attention_mask: As in `text_features`.
    config: With both towers.
    dtype: What activations are in.

  Returns:
    `f32[images, lines]`.

  Raises:
    ValueError: As these do.
  """
  seen = image_features(params, images, config=config, dtype=dtype)
  told = text_features(
    params, tokens, attention_mask=attention_mask, config=config, dtype=dtype
  )
  scale = jnp.exp(params['logit_scale'].astype(jnp.float32))
  return scale * layers.contract(normalize(seen), normalize(told), 1)


def normalize(features: jax.Array) -> jax.Array:
  """Divides rows by their Euclidean norms; zeros stay zeros."""
  square = jnp.square(features).sum(-1, keepdims=True)
  tiny = jnp.finfo(jnp.float32).tiny
  return features * jax.lax.rsqrt(jnp.maximum(square, tiny))


def ties(config: Config) -> dict[str, str]:
  """Returns nothing: no weight has two names."""
  del config
  return {}
