"""Functions as users write them, of `X` f32[4, 8] and `W` f32[8, 8]."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_random = np.random.default_rng(0)
X = _random.normal(size=(4, 8)).astype(np.float32)
W = _random.normal(size=(8, 8)).astype(np.float32) / 2
MESH = jax.make_mesh((8,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))


@jax.custom_vjp
def clipped(x):
  """The sine, with a clipped gradient."""
  return jnp.sin(x)


clipped.defvjp(
  lambda x: (jnp.sin(x), (x, jnp.cos(x))),
  lambda saved, g: (jnp.clip(g * saved[1], -0.1, 0.1),),
)


@jax.custom_jvp
def halved(x, n):
  """A product with half the derivative, which calls itself."""
  return x * n


halved.defjvp(lambda p, t: (halved(*p), 0.5 * t[0] * halved(p[0], p[1])))


class Transformer(nn.Module):
  """A pre-norm block, as Flax has it."""

  @nn.compact
  def __call__(self, x):
    h = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(2)(h[None])[0]
    h = nn.LayerNorm()(x)
    return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(h)))


@functools.cache
def parameters():
  with jax.ensure_compile_time_eval():
    return jax.jit(Transformer().init)(jax.random.key(0), X)


def softmax(x, w):
  return jax.nn.softmax(x @ w)


def activations(x, w):
  y = jax.nn.gelu(x @ w) + jax.nn.gelu(x, approximate=False)
  return y + jax.nn.relu(x) + jax.nn.silu(x) + jax.nn.relu6(w[:4])


def layer_norm(x, w):
  centred = x - x.mean(-1, keepdims=True)
  variance = (centred**2).mean(-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + 1e-6) @ w


def attention(x, w):
  q, k = x @ w, x
  return jax.nn.softmax(q @ k.T / np.sqrt(8).astype(np.float32), axis=-1) @ x


def recurrent(x, w):
  def step(state, x):
    state = jnp.tanh(state @ w + x)
    return state, state.sum()

  return jax.lax.scan(step, jnp.zeros(8), x)


def backwards(x, w):
  """A loop in reverse, with a weakly typed carry."""
  del w
  return jax.lax.scan(
    lambda c, a: (c * 0.5 + a, c), 0.0, x[:, 0], reverse=True, unroll=2
  )


def loop(x, w):
  """Of a length that only the data say."""
  return jax.lax.while_loop(
    lambda c: (c[0] < 5) & (c[1].sum() < 1e9),
    lambda c: (c[0] + 1, c[1] @ w),
    (0, x),
  )


def counted(x, w):
  return jax.lax.fori_loop(0, 3, lambda i, c: c @ w * 0.1, x)


def branches(x, w):
  y = jax.lax.cond(x.sum() > 0, jnp.sin, lambda x: x @ w, x)
  choice = jnp.int32(x.sum())
  return jax.lax.switch(choice, [jnp.sin, jnp.cos, lambda x: x @ w], y)


def own_vjp(x, w):
  return clipped(x @ w)


def own_jvp(x, w):
  return halved(x @ w, 3)


def checkpointed(x, w):
  def step(state, x):
    return jnp.tanh(state @ w + x), clipped(state)

  return jax.lax.scan(jax.checkpoint(step), jnp.zeros(8), x)


def compiled(x, w):
  @jax.jit
  def inner(x):
    return jnp.sin(x) @ w

  return inner(inner(x))


def sharded(x, w):
  del x

  def part(w):
    mean = jax.lax.pmean(w[0], 'i')
    product, _ = jax.lax.scan(lambda c, a: (c * a, None), jnp.float32(1), mean)
    return jax.lax.psum(jnp.sin(w).sum(0), 'i') + product

  return jax.shard_map(part, mesh=MESH, in_specs=jax.P('i'), out_specs=jax.P())(
    w
  )


def gradient(x, w):
  """A derivative, in which checkpoints look different."""
  inner = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ w)))
  return jax.grad(lambda x: inner(x).sum())(x)


def mapped(x, w):
  return jax.vmap(lambda x: clipped(x @ w))(x)


def linen(x, w):
  return Transformer().apply(parameters(), x @ w)
