"""A trained decoder as integers: codes, and how to go from scale to scale."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import transformer
from experiments.integer_only import arithmetics
from experiments.integer_only import calibration
import numerics
from numerics import integer

# The steps of a logit, in those of the largest scale of a column.
_LOGIT = 2.0**-8
# Bits that are left to the quotient of a share.
_ROOM = 6


class Linear(NamedTuple):
  """A linear layer.

  Attributes:
    kernel: i8[in, out], a scale for each column.
    bias: i32[1, out], in the scale of the products.
    scale: From products to what is wanted of them, of each column.
  """

  kernel: Any
  bias: Any
  scale: integer.Dyadic


class Norm(NamedTuple):
  """A norm.

  Attributes:
    bias: i32[width], in the scale of `integer.layer_norm`.
    scale: From that to its output, with the gain of each feature.
  """

  bias: Any
  scale: integer.Dyadic


class Block(NamedTuple):
  """A block, in the order of computing.

  Attributes:
    attention_norm: Before attention.
    query_key_value: To queries, keys and values.
    scores: From products of queries and keys to scores.
    score_unit: Steps of 1 in scores.
    mixed: From shares times values to mixed values.
    output: To the stream.
    attention_skip: From the stream to the stream.
    perceptron_norm: Before the perceptron.
    up: To hidden features.
    gelu_unit: Steps of 1 in 1.702 times a hidden feature.
    active: From what the activation gives to its output.
    down: To the stream.
    perceptron_skip: From the stream to the stream.
  """

  attention_norm: Norm
  query_key_value: Linear
  scores: integer.Dyadic
  score_unit: Any
  mixed: integer.Dyadic
  output: Linear
  attention_skip: integer.Dyadic
  perceptron_norm: Norm
  up: Linear
  gelu_unit: Any
  active: integer.Dyadic
  down: Linear
  perceptron_skip: integer.Dyadic


class Model(NamedTuple):
  """A decoder of integers, a tree of int8 and int32 arrays.

  Attributes:
    embedding: i32[vocabulary, width], in the scale of the stream.
    positions: Tables of positions, likewise.
    blocks: In their order.
    norm: After the last.
    unembedding: To logits.
  """

  embedding: Any
  positions: tuple[Any, ...]
  blocks: tuple[Block, ...]
  norm: Norm
  unembedding: Linear


class FloatNorm(NamedTuple):
  """What a norm in float32 has to know: parameters, scales in and out."""

  params: Any
  scale_in: Any
  scale_out: Any


class FloatBlock(NamedTuple):
  """What the functions of a block have to know to be in float32."""

  attention_norm: FloatNorm
  scores: Any
  perceptron_norm: FloatNorm
  hidden: Any
  active: Any


class Floats(NamedTuple):
  """What functions in float32 have to know, and the scale of logits."""

  blocks: tuple[FloatBlock, ...]
  norm: FloatNorm
  logits: Any


def convert(
  params: transformer.Params,
  ranges: calibration.Ranges,
  config: transformer.Config,
  arithmetic: arithmetics.Arithmetic,
) -> tuple[Model, Floats]:
  """Quantises a trained decoder, by the ranges of its numbers.

  Scales are symmetric: of the largest magnitude over the largest code, for each
  column of a kernel, and for each tensor of activations. Computed by NumPy, in
  float64.

  Args:
    params: The decoder's.
    ranges: Of activations, from `calibration.observe`.
    config: Its shape.
    arithmetic: Bits, and whether scales fit exponentials.

  Returns:
    The integers, and scales for functions in float32.
  """
  params, ranges = jax.device_get((params, ranges))
  how = arithmetic
  share = 2.0 ** (1 - how.share_bits)
  streams = [
    (
      _scale(block.stream, how.stream_bits),
      _scale(block.middle, how.stream_bits),
    )
    for block in ranges.blocks
  ]
  last = _scale(ranges.stream, how.stream_bits)
  blocks, floats = [], []
  for i, seen in enumerate(ranges.blocks):
    block = params[f'blocks_{i}']
    attention = block['attention']
    stream, middle = streams[i]
    after = streams[i + 1][0] if i + 1 < len(streams) else last
    normed, entered = (
      _scale(x, how.bits) for x in (seen.attention_norm, seen.perceptron_norm)
    )
    parts = [_scale(x, how.bits) for x in (seen.query, seen.key, seen.value)]
    scores = _exponent(
      _scale(seen.scores, how.score_bits),
      1.0,
      how,
      terms=15,
      count=config.max_length,
    )
    mixed, hidden, active = (
      _scale(x, how.bits) for x in (seen.mixed, seen.hidden, seen.active)
    )
    gelu = config.activation == 'gelu'
    if gelu:
      hidden = _exponent(hidden, 1.702, how, terms=how.gelu_terms, count=2)
    blocks.append(
      Block(
        attention_norm=_norm(block['attention_norm'], normed, config),
        query_key_value=_linear(
          attention['query_key_value'],
          normed,
          np.repeat(parts, config.width),
          how.bits,
        ),
        scores=integer.dyadic(
          parts[0] * parts[1] * config.head_width**-0.5 / scores
        ),
        score_unit=integer.unit(scores),
        mixed=integer.dyadic(share * parts[2] / mixed),
        output=_linear(attention['output'], mixed, middle, how.bits),
        attention_skip=integer.dyadic(stream / middle),
        perceptron_norm=_norm(block['perceptron_norm'], entered, config),
        up=_linear(block['up'], entered, hidden, how.bits),
        gelu_unit=integer.unit(1.702 * hidden),
        active=integer.dyadic(hidden * (share if gelu else 1.0) / active),
        down=_linear(block['down'], active, after, how.bits),
        perceptron_skip=integer.dyadic(middle / after),
      )
    )
    floats.append(
      FloatBlock(
        FloatNorm(block['attention_norm'], stream, normed),
        scores,
        FloatNorm(block['perceptron_norm'], middle, entered),
        hidden,
        active,
      )
    )
  first = streams[0][0]
  names = sorted(name for name in params if name.startswith('positions'))
  final = _scale(ranges.norm, how.bits)
  kernel = {'kernel': np.asarray(calibration.unembedding(params, config))}
  columns = _scale(np.abs(kernel['kernel']).max(), how.bits)
  logits = final * columns * _LOGIT
  model = Model(
    _codes(params['embedding']['embedding'], first, 32),
    tuple(_codes(params[name], first, 32) for name in names),
    tuple(blocks),
    _norm(params['norm'], final, config),
    _linear(kernel, final, logits, how.bits),
  )
  more = Floats(tuple(floats), FloatNorm(params['norm'], last, final), logits)
  as_float32 = jax.tree.map(lambda x: np.asarray(x, np.float32), more)
  return jax.tree.map(jnp.asarray, (model, as_float32))


def round_weights(params: transformer.Params) -> transformer.Params:
  """Rounds kernels to int8, a scale for each column; all else stays."""

  def rounded(path, leaf):
    if path[-1].key != 'kernel':
      return leaf
    return numerics.fake_quantize(leaf, numerics.int8, axis=0)

  return jax.tree_util.tree_map_with_path(rounded, params)


def _scale(largest: Any, bits: int) -> Any:
  """A scale by the largest magnitude; of zeros, any."""
  largest = np.maximum(np.asarray(largest, np.float64), 1e-9)
  return largest / (2 ** (bits - 1) - 1)


def _exponent(
  scale: float,
  factor: float,
  how: arithmetics.Arithmetic,
  *,
  terms: int,
  count: int,
) -> float:
  """A scale of what is an exponent once it is multiplied by a factor.

  Args:
    scale: The finest that holds what was seen.
    factor: What it is multiplied by.
    how: Whether scales fit exponentials.
    terms: Of `shift_exp`, which holds no finer scale than some.
    count: How many exponentials are added up.

  Returns:
    That scale or a coarser one. If it fits, 1 has a whole number of steps, as
    long as it has one, and sums leave six bits to the quotient.
  """
  most = (2**31 - 1) >> terms
  if not how.fitting:
    return 1 / (factor * min(1 / (factor * scale), float(most)))
  steps = min(1 / (factor * scale), max(1.0, most / (2**_ROOM * count)))
  return 1 / (factor * (np.floor(steps) if steps >= 1 else steps))


def _codes(x: Any, scale: Any, bits: int) -> np.ndarray:
  limit = 2 ** (bits - 1) - 1
  codes = np.clip(np.round(np.asarray(x, np.float64) / scale), -limit, limit)
  return codes.astype(np.int8 if bits <= 8 else np.int32)


def _linear(params: Any, scale_in: float, scale_out: Any, bits: int) -> Linear:
  kernel = np.asarray(params['kernel'], np.float64)
  columns = _scale(np.abs(kernel).max(axis=0), bits)
  products = scale_in * columns
  bias = params.get('bias', np.zeros(kernel.shape[1]))
  scale = integer.dyadic((products / scale_out)[None])
  return Linear(
    _codes(kernel, columns, bits), _codes(bias, products, 32)[None], scale
  )


def _norm(params: Any, scale_out: float, config: transformer.Shape) -> Norm:
  gain = np.asarray(params['scale'], np.float64)
  bias = np.asarray(params.get('bias', np.zeros_like(gain)), np.float64)
  step = np.sqrt(config.width) / 2**30
  return Norm(
    integer.norm_bias(bias, gain),
    integer.dyadic((gain * step / scale_out)[None]),
  )
