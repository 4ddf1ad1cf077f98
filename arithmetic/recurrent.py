"""A recurrent network behind the same `init` and `apply` as the decoder.

Traditional recurrent networks track states, as parity needs, that transformers
of fixed depth cannot; they have no look back at what was written.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The shape of a recurrent network.

  Attributes:
    vocabulary_size: How many tokens there are.
    layers: LSTMs, one on top of the other.
    width: Features of embeddings and of every LSTM's state.

  Raises:
    ValueError: If one is below 1.
  """

  vocabulary_size: int
  layers: int = 1
  width: int = 128

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ValueError(
          f'{field.name} is at least 1, got {getattr(self, field.name)}'
        )


@functools.partial(jax.jit, static_argnames='config', inline=True)
def init(key: jax.Array, config: Config) -> Params:
  """Draws the parameters of a recurrent network, in one program.

  Args:
    key: A PRNG key.
    config: The network's shape.

  Returns:
    Nested plain dicts of f32 arrays.

  Examples:
    >>> import jax
    >>> config = Config(vocabulary_size=16, width=8)
    >>> params = init(jax.random.key(0), config)
    >>> sorted(params['lstm_0'])
    ['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io']
  """
  variables: Any = _Network(config).init(key, jnp.zeros((1, 1), jnp.int32))
  return variables['params']


@functools.partial(jax.jit, static_argnames='config', inline=True)
def apply(params: Params, tokens: jax.Array, *, config: Config) -> jax.Array:
  """Logits of the next token at every position.

  Each LSTM computes, from its input x and its state (c, h), the gates
  `i, f, o = σ(W x + U h + b)` and `g = tanh(W x + U h + b)`, and then
  `c' = f c + i g` and `h' = o tanh(c')`.

  Args:
    params: From `init`.
    tokens: i32[batch, length], of any length.
    config: The network's shape.

  Returns:
    f32[batch, length, vocabulary]; entry [:, i] has seen tokens up to i.

  References:
    Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation,
    1997.
    Pöppel et al., FlashRNN: Optimizing Traditional RNNs on Modern Hardware,
    2024, arXiv:2412.07752, for state tracking.
  """
  logits: Any = _Network(config).apply({'params': params}, tokens)
  return logits


class _Network(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    config = self.config
    x = nn.Embed(
      config.vocabulary_size,
      config.width,
      embedding_init=nn.initializers.normal(1.0),
      name='embedding',
    )(tokens)
    for layer in range(config.layers):
      states: Any = nn.RNN(nn.LSTMCell(config.width, name=f'lstm_{layer}'))(x)
      x = states
    return nn.Dense(config.vocabulary_size, use_bias=False, name='unembedding')(
      x
    )
