"""Small models with every awkward leaf: see `models`."""

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ('code', 'math', 'prose')


def models(kind='generic', dtype=np.float32, names=NAMES, seed=0):
  """Returns a base and its experts.

  The leaves are a wide and a tall matrix, a bias of less than ten entries, an
  embedding with a tied copy, a matrix that no expert changed and a counter.

  Args:
    kind: 'generic' deltas, or those of a 'lattice', with few magnitudes, many
      equal, and sums that are exactly zero (also after rounding to 8 bits).
    dtype: Of the floating leaves.
    names: Of the experts.
    seed: Of all values.

  Returns:
    The base, and the experts by name.
  """
  rng = np.random.default_rng(seed)

  def draw(*shape):
    if kind == 'lattice':
      values = rng.integers(-3, 4, size=shape).astype(np.float32)
      return values * np.float32(2**-6)
    return rng.normal(size=shape).astype(np.float32)

  def tree(scale):
    embedding = draw(12, 4) * scale
    return {
      'block': {
        'bias': draw(4) * scale,
        'tall': draw(12, 4) * scale,
        'wide': draw(4, 12) * scale,
      },
      'embedding': embedding,
      'head': embedding.copy(),
      'unchanged': draw(4, 12) * scale,
    }

  base = tree(np.float32(1))
  experts = {}
  for name in names:
    change = tree(np.float32(1 if kind == 'lattice' else 0.1))
    change['unchanged'] *= np.float32(0)
    experts[name] = jax.tree.map(np.add, base, change)

  def finish(params):
    params = jax.tree.map(lambda x: jnp.asarray(x.astype(dtype)), params)
    return {**params, 'step': jnp.array(7)}

  return finish(base), {name: finish(each) for name, each in experts.items()}


def part(base, experts, *names):
  """Returns the models with these leaves of their block only."""

  def keep(params):
    return {name: params['block'][name] for name in names}

  return keep(base), {name: keep(each) for name, each in experts.items()}


def rename(base, experts, **names):
  """Returns models of one level with some leaves under another name."""

  def renamed(params):
    return {names.get(name, name): leaf for name, leaf in params.items()}

  return renamed(base), {k: renamed(each) for k, each in experts.items()}
