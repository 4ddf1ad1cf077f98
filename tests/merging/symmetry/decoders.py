"""A small decoder whose every leaf matters, and its spaces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import transformer
from merging import symmetry

HEADS = 4
SCHEMES = (
  'learned',
  'rotary',
  pytest.param('none', marks=pytest.mark.slow),
)
TOKENS = 11
KEY = jax.random.key(0)


def config(positions, *, width=16, layers=1, heads=HEADS):
  return transformer.Config(
    vocabulary_size=TOKENS,
    max_length=9,
    layers=layers,
    heads=heads,
    width=width,
    positions=positions,
  )


def params_of(shape, seed=0):
  """Parameters with biases and norms away from where they are initialised."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    spread = 0.2 if x.ndim < 2 else 0.2 + x.shape[0] ** -0.5
    mean = 1.0 if path[-1].key == 'scale' else 0.0
    values = rng.normal(mean, spread, x.shape)
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(
    draw, jax.eval_shape(lambda key: transformer.init(key, shape), KEY)
  )


@functools.partial(jax.jit, static_argnames=['shape'])
def logits(params, *, shape):
  tokens = np.random.default_rng(7).integers(TOKENS, size=(3, 9))
  tokens = jnp.asarray(tokens, jnp.int32)
  return transformer.apply(params, tokens, config=shape)


def spec_of(params, positions, heads=HEADS):
  return symmetry.decoder(
    params,
    blocks=r'blocks_\d+',
    perceptron={'writers': ['up'], 'readers': ['down']},
    attention={
      'heads': heads,
      'packed': 'attention/query_key_value',
      'output': 'attention/output',
      'positions': 'rotary' if positions == 'rotary' else 'none',
    },
  )


def residual(params):
  """The residual stream, written by hand: norms, reads and writes."""
  carriers = [symmetry.Carrier('embedding/embedding', 1)]
  if 'positions' in params:
    carriers.append(symmetry.Carrier('positions', 1))
  carriers.append(symmetry.Carrier('norm/scale', 0))
  carriers.append(symmetry.Carrier('unembedding/kernel', 0, dual=True))
  for name in params:
    if name.startswith('blocks_'):
      for norm in ('attention_norm', 'perceptron_norm'):
        carriers.append(symmetry.Carrier(f'{name}/{norm}/scale', 0))
      for layer in ('attention/query_key_value', 'up'):
        path = f'{name}/{layer}/kernel'
        carriers.append(symmetry.Carrier(path, 0, dual=True))
      for layer in ('attention/output', 'down'):
        carriers.append(symmetry.Carrier(f'{name}/{layer}/kernel', 1))
        carriers.append(symmetry.Carrier(f'{name}/{layer}/bias', 0))
  size = params['embedding']['embedding'].shape[1]
  return symmetry.Space('permutation', size, tuple(carriers))


def assert_close(a, b, tolerance=1e-5):
  """Largest difference, in units of the largest entry."""
  error = jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))
  assert error < tolerance, error
