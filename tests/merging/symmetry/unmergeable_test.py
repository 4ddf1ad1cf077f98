"""Protected experts: the same function, a spoilt merge, and the attack."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from arithmetic import transformer
import merging
from merging import symmetry
from merging import tree
from tests.merging.symmetry import decoders

KEY = jax.random.key(5)


def expert_of(base, size=0.02):
  rng = np.random.default_rng(9)
  return jax.tree.map(
    lambda x: x + rng.normal(scale=size, size=x.shape).astype(np.float32), base
  )


@pytest.mark.parametrize('scheme', decoders.SCHEMES)
def test_the_function_stays_and_the_owner_can_undo_it(scheme):
  shape = decoders.config(scheme)
  base = decoders.params_of(shape)
  expert = expert_of(base)
  spec = decoders.spec_of(base, scheme)
  for protected in (
    symmetry.merge_lock(KEY, expert, spec),
    symmetry.rearrange_and_scale(KEY, expert, base, spec),
  ):
    decoders.assert_close(
      decoders.logits(protected.params, shape=shape),
      decoders.logits(expert, shape=shape),
    )
    far = float(tree.norm(tree.sub(protected.params, base)))
    assert far > 10 * float(tree.norm(tree.sub(expert, base)))
    undone = symmetry.transform(
      protected.params, spec, symmetry.invert(protected.elements)
    )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), undone, expert
    )
    # The attack knows the base, and finds the expert again.
    found = symmetry.recover(protected.params, base, spec)
    again = symmetry.transform(protected.params, spec, found)
    assert float(tree.norm(tree.sub(again, expert))) < 0.5 * float(
      tree.norm(tree.sub(expert, base))
    )


def test_condition_numbers_are_bounded():
  params = decoders.params_of(decoders.config('none'))
  spec = decoders.spec_of(params, 'none')
  for spread in (1.0, 2.0, 4.0):
    locked = symmetry.merge_lock(KEY, params, spec, spread=spread)
    assert len(locked.elements) == 2
    for element in locked.elements.values():
      matrix = np.asarray(element.matrix, np.float64)
      assert np.linalg.cond(matrix).max() <= spread**4 * (1 + 1e-4)
      product = matrix @ np.asarray(element.inverse, np.float64)
      np.testing.assert_allclose(
        product, np.broadcast_to(np.eye(4), product.shape), atol=1e-4
      )


def test_the_permutation_is_the_farthest():
  rng = np.random.default_rng(0)
  shapes = {'up/kernel': (3, 5), 'up/bias': (5,), 'down/kernel': (5, 2)}
  base, expert = (
    {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
    for _ in range(2)
  )
  spec = {'hidden': symmetry.perceptron(base, ['up'], ['down'])}
  moved = symmetry.rearrange_and_scale(KEY, expert, base, spec).params

  def rows(p):
    parts = [p['up/kernel'].T, p['up/bias'][:, None], p['down/kernel']]
    return np.concatenate([np.asarray(x, np.float64) for x in parts], axis=1)

  distances = [
    np.sum((rows(base) - rows(expert)[list(order)]) ** 2)
    for order in itertools.permutations(range(5))
  ]
  far = np.sum((rows(base) - rows(moved)) ** 2)
  np.testing.assert_allclose(far, max(distances), rtol=1e-6)


def test_scales_are_within_their_bounds():
  params = decoders.params_of(decoders.config('rotary'))
  for scheme in ('rotary', 'none'):
    spec = decoders.spec_of(params, scheme)
    elements = symmetry.rearrange_and_scale(
      KEY, params, params, spec, scales=(0.5, 3.0)
    ).elements
    query_key = elements['blocks_0/query_key']
    if scheme == 'rotary':
      scale = np.hypot(*np.moveaxis(np.asarray(query_key.factor), -1, 0))
      assert not np.asarray(query_key.factor[..., 1]).any()
    else:
      scale = np.asarray(query_key.scale)
    assert scale.min() >= 0.5
    assert scale.max() <= 3.0
    assert scale.max() > 1.5 * scale.min()
    assert elements['blocks_0/hidden'].scale is None


@pytest.mark.parametrize(
  'group',
  ['permutation', 'scaling', 'orthogonal', 'invertible', 'rotary'],
)
def test_recovery_is_exact_without_fine_tuning(group):
  rng = np.random.default_rng(1)
  model = {
    'write': jnp.asarray(rng.normal(size=(7, 12)), jnp.float32),
    'read': jnp.asarray(rng.normal(size=(12, 5)), jnp.float32),
    'zero': jnp.zeros((0, 12)),
  }
  carriers = (
    symmetry.Carrier('write', 1),
    symmetry.Carrier('read', 0, dual=True),
    symmetry.Carrier('zero', 1),
  )
  spec = {'space': symmetry.Space(group, 4, carriers, heads=3)}
  elements = symmetry.random(KEY, spec)
  moved = symmetry.transform(model, spec, elements)
  found = symmetry.recover(moved, model, spec)
  back = symmetry.transform(moved, spec, found)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), back, model
  )
  # Nothing to go by is no reason for a NaN.
  nothing = jax.tree.map(jnp.zeros_like, model)
  found = symmetry.recover(nothing, nothing, spec)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_errors():
  params = decoders.params_of(decoders.config('none', layers=1))
  spec = decoders.spec_of(params, 'none')
  hidden = {'hidden': spec['blocks_0/hidden']}
  with pytest.raises(ValueError, match=r"admits a matrix.*'hidden \(permutat"):
    symmetry.merge_lock(KEY, params, hidden)
  with pytest.raises(ValueError, match='merge_lock: spread is 0'):
    symmetry.merge_lock(KEY, params, spec, spread=0.0)
  for scales in ((0.0, 1.0), (2.0, 1.0)):
    with pytest.raises(ValueError, match='expected 0 < low <= high'):
      symmetry.rearrange_and_scale(KEY, params, params, spec, scales=scales)
  with pytest.raises(ValueError, match=r"'base' at .*missing"):
    symmetry.rearrange_and_scale(KEY, params, {}, spec)


# Three tasks on lines of digits, told apart by the first token: the digit
# before, its sum with this one, or their difference.
MODULUS = 7
SHAPE = transformer.Config(
  vocabulary_size=MODULUS + 3,
  max_length=9,
  layers=1,
  heads=4,
  width=32,
  positions='rotary',
)


def _batch(key, task, size):
  digits = jax.random.randint(key, (size, 8), 0, MODULUS)
  before, now = digits[:, :-1], digits[:, 1:]
  answers = jnp.stack(
    [before, (before + now) % MODULUS, (before - now) % MODULUS]
  )
  first = jnp.full((size, 1), MODULUS) + task
  return jnp.concatenate([first, digits], axis=1), answers[task]


def _loss(params, tokens, answers):
  logits = transformer.apply(params, tokens, config=SHAPE)[:, 2:]
  return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()


@functools.partial(jax.jit, static_argnames=['steps'])
def _train(params, key, weights, rate, steps):
  adam = optax.scale_by_adam()

  def step(carry, key):
    params, state = carry
    task_key, key = jax.random.split(key)
    task = jax.random.choice(task_key, 3, p=weights)
    gradient = jax.grad(_loss)(params, *_batch(key, task, 64))
    with jax.numpy_dtype_promotion('standard'):
      updates, state = adam.update(gradient, state)
    params = jax.tree.map(lambda x, u: x - rate * u, params, updates)
    return (params, state), None

  start = (params, adam.init(params))
  return jax.lax.scan(step, start, jax.random.split(key, steps))[0][0]


@jax.jit
def _accuracies(params):
  def one(task):
    tokens, answers = _batch(jax.random.key(99), task, 256)
    logits = transformer.apply(params, tokens, config=SHAPE)[:, 2:]
    return (jnp.argmax(logits, axis=-1) == answers).mean()

  return jnp.stack([one(task) for task in range(3)])


@pytest.mark.slow
def test_a_protected_expert_spoils_the_merge():
  base = transformer.init(jax.random.key(0), SHAPE)
  mixture = jnp.array([1.0, 0.2, 0.2]) / 1.4
  base = _train(base, jax.random.key(1), mixture, 3e-3, 220)
  adder, subtracter = (
    _train(base, jax.random.key(1 + task), jnp.eye(3)[task], 1e-3, 40)
    for task in (1, 2)
  )

  def merged(expert):
    experts = {'adder': expert, 'subtracter': subtracter}
    return _accuracies(merging.merge(merging.average(), base, experts))

  start, alone = _accuracies(base), _accuracies(adder)
  plain = merged(adder)
  assert alone[1] > 0.98
  assert (plain[1:] > start[1:] + 0.08).all(), (plain, start)
  spec = decoders.spec_of(base, 'rotary')
  for protected in (
    symmetry.merge_lock(KEY, adder, spec).params,
    symmetry.rearrange_and_scale(KEY, adder, base, spec).params,
  ):
    np.testing.assert_allclose(_accuracies(protected), alone, atol=2e-3)
    spoilt = merged(protected)
    assert (spoilt < start - 0.1).all(), (spoilt, start)
    # Weight matching against the public base undoes either protection.
    found = symmetry.recover(protected, base, spec)
    matched = merged(symmetry.transform(protected, spec, found))
    np.testing.assert_allclose(matched, plain, atol=0.02)
