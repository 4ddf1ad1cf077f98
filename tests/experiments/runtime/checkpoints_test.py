"""A checkpoint is the state bit for bit, or it is not there."""

from pathlib import Path
import random
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.runtime import checkpoints


class State(NamedTuple):
  params: dict
  optimizer: object
  key: jax.Array
  step: jax.Array


def _state(seed=0) -> State:
  key = jax.random.key(seed)
  params = {
    'blocks': [
      {'qkv/w': jax.random.normal(key, (4, 6)), "it's.a": jnp.zeros((0, 3))},
      {'scale': jax.random.normal(key, (5,), jnp.bfloat16)},
    ],
    'table': jax.random.bits(key, (7,), jnp.uint32),
    'sign': jnp.array([-1, 1], jnp.int8),
    'mask': jnp.array([True, False]),
    # Infinities, both zeros, a subnormal and a NaN with a payload.
    'odd': jax.lax.bitcast_convert_type(
      jnp.array([0x7F800000, 0x80000000, 1, 0x7FC12345], jnp.uint32),
      jnp.float32,
    ),
  }
  return State(
    params=params,
    optimizer=optax.adamw(1e-3).init(params['blocks']),
    key=jax.random.split(key, 3),
    step=jnp.int32(seed),
  )


def _bits(leaf):
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def _assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    assert _bits(x) == _bits(y)


@pytest.mark.parametrize('abstract', [True, False])
def test_restores_bit_for_bit(tmp_path, abstract):
  state = _state()
  with checkpoints.Checkpoints(tmp_path) as saver:
    assert saver.latest() is None
    saver.save(3, state, {'note': 'é', 'seen': [1, 2.5, None]})
  with checkpoints.Checkpoints(tmp_path) as loader:
    assert loader.latest() == 3
    like = jax.eval_shape(_state) if abstract else _state(1)
    restored = loader.restore(like)
  assert restored.step == 3
  assert restored.metadata == {'note': 'é', 'seen': [1, 2.5, None]}
  _assert_same(restored.tree, state)
  draws = [jax.random.normal(s.key[1]) for s in (state, restored.tree)]
  assert draws[0] == draws[1]


@pytest.mark.parametrize('implementation', ['threefry2x32', 'rbg'])
def test_keys_keep_their_generator(tmp_path, implementation):
  key = jax.random.key(7, impl=implementation)
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(0, key)
    tree = saver.restore(jax.eval_shape(lambda: key)).tree
  assert tree.dtype == key.dtype
  assert jax.random.bits(tree) == jax.random.bits(key)


def test_keeps_the_last_and_any_of_them_can_be_restored(tmp_path):
  with checkpoints.Checkpoints(tmp_path, keep=2) as saver:
    for step in (1, 5, 9):
      saver.save(step, {'x': jnp.full((2,), step)})
    like = {'x': jnp.zeros((2,), jnp.int32)}
    assert saver.restore(like).tree['x'][0] == 9
    assert saver.restore(like, step=5).tree['x'][0] == 5
    with pytest.raises(FileNotFoundError, match=r'no checkpoint 1 .* \[5, 9\]'):
      saver.restore(like, step=1)


def test_an_empty_directory_has_nothing_to_restore(tmp_path):
  with (
    checkpoints.Checkpoints(tmp_path / 'new') as saver,
    pytest.raises(FileNotFoundError, match='no checkpoint in'),
  ):
    saver.restore({})


def test_a_tree_without_leaves_is_a_tree(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(1, {'a': ()})
    assert saver.restore({'a': ()}).tree == {'a': ()}


def test_steps_grow(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(2, {'x': jnp.zeros(())})
    with pytest.raises(ValueError, match='latest checkpoint is of step 2'):
      saver.save(2, {'x': jnp.zeros(())})


def test_only_arrays_are_saved(tmp_path):
  with (
    checkpoints.Checkpoints(tmp_path) as saver,
    pytest.raises(ValueError, match=r"tree\['rate'\] should be a jax.Array"),
  ):
    saver.save(1, {'rate': 0.5})


def test_at_least_one_is_kept(tmp_path):
  with pytest.raises(ValueError, match='keep must be at least 1, got 0'):
    checkpoints.Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize(
  ('like', 'message'),
  [
    (
      {'w': jnp.zeros((3, 2))},
      r'saved float32\[2,3\], expected float32\[3,2\]',
    ),
    (
      {'w': jnp.zeros((2, 3), jnp.bfloat16)},
      r'saved float32\[2,3\], expected bfloat16\[2,3\]',
    ),
    ({}, r"tree\['w'\]: saved float32\[2,3\], expected nothing"),
    (
      {'w': jnp.zeros((2, 3)), 'b': jnp.zeros((0,))},
      r"tree\['b'\]: saved nothing, expected float32\[0\]",
    ),
  ],
)
def test_leaves_that_do_not_fit_are_named(tmp_path, like, message):
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(1, {'w': jnp.zeros((2, 3))})
    with pytest.raises(ValueError, match=message):
      saver.restore(like)


def test_restores_with_the_sharding_asked_for(tmp_path):
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  sharding = jax.NamedSharding(mesh, jax.P('data'))
  x = jnp.arange(16.0)
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(1, {'x': jax.device_put(x, sharding)})
    like = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    spread = saver.restore({'x': like}).tree['x']
    alone = saver.restore(jax.eval_shape(lambda: {'x': x})).tree['x']
  assert spread.sharding == sharding
  assert len(alone.devices()) == 1
  assert _bits(spread) == _bits(alone) == _bits(x)


_SAVER = """
import sys
import jax.numpy as jnp
from experiments.runtime import checkpoints
with checkpoints.Checkpoints(sys.argv[1]) as saver:
  step = saver.latest() or 0
  while True:
    step += 1
    tree = {f'leaf{i}': jnp.full((300, 1000), step) for i in range(4)}
    saver.save(step, tree, {'step': step})
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path: Path):
  rng = random.Random(0)
  like = {f'leaf{i}': jnp.zeros((300, 1000), jnp.int32) for i in range(4)}
  reported = 0
  for _ in range(3):
    process = subprocess.Popen(
      [sys.executable, '-c', _SAVER, str(tmp_path)],
      stdout=subprocess.PIPE,
      text=True,
    )
    with process:
      assert process.stdout is not None
      first = int(process.stdout.readline())
      assert first > reported
      time.sleep(rng.uniform(0.0, 0.4))
      process.kill()
      reported = int((process.stdout.read().split() or [first])[-1])
    with checkpoints.Checkpoints(tmp_path) as loader:
      latest = loader.latest()
      assert latest is not None
      assert latest >= reported
      step, tree, metadata = loader.restore(like)
    assert step == latest
    assert metadata == {'step': latest}
    for leaf in jax.tree.leaves(tree):
      np.testing.assert_array_equal(leaf, latest)
    reported = latest
