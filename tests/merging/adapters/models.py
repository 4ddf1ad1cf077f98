"""A small model with blocks, in both layouts, and adapters of it."""

import jax
import jax.numpy as jnp
import numpy as np

from merging import adapters

IN, OUT, BLOCKS = 6, 4, 4
KERNEL = 'blocks/{}/kernel'


def draw(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def base(dtype=np.float32, layout='in_out'):
  """Kernels, biases and an embedding; kernels transposed for 'out_in'."""

  def kernel(i):
    value = draw(i, IN, OUT)
    return jnp.asarray(value if layout == 'in_out' else value.T, dtype)

  return {
    'blocks': [
      {'kernel': kernel(i), 'bias': jnp.ones(OUT, dtype)} for i in range(BLOCKS)
    ],
    'embedding': jnp.asarray(draw(9, 5, IN), dtype),
    'step': jnp.array(3),
  }


def expert(seed, rank=2, layout='in_out', **options):
  """An adapter of the kernels with nothing zero in it."""
  made = adapters.init_lora(
    jax.random.key(seed),
    base(layout=layout),
    rank=rank,
    leaves='kernel',
    layout=layout,
    **options,
  )
  leaves, structure = jax.tree.flatten(made)
  moved = [
    leaf + draw(100 * seed + i, *leaf.shape) for i, leaf in enumerate(leaves)
  ]
  return jax.tree.unflatten(structure, moved)


def dense(lora, weight):
  """The change of one leaf `[in, out]`, in float64, from the formula."""
  a, b = np.asarray(lora.a, np.float64), np.asarray(lora.b, np.float64)
  fan_in, fan_out = weight.shape
  change = np.zeros((fan_in, fan_out))
  for i in range(fan_in):
    for j in range(fan_out):
      change[i, j] = lora.scale * sum(
        a[i, k] * b[k, j] for k in range(lora.rank)
      )
  if lora.magnitude is None:
    return change
  adapted = np.zeros((fan_in, fan_out))
  for j in range(fan_out):
    column = np.asarray(weight, np.float64)[:, j] + change[:, j]
    length = np.sqrt(sum(x * x for x in column))
    adapted[:, j] = np.asarray(lora.magnitude, np.float64)[j] * column / length
  return adapted - np.asarray(weight, np.float64)
