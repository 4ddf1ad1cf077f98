"""A mixture of shards: what is shared, what is private, what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merging import adapters
from tests.merging.adapters import models

KEY = jax.random.key(0)
KERNELS = [models.KERNEL.format(i) for i in range(models.BLOCKS)]


def make(**options):
  defaults = {'rank': 4, 'budget': 2, 'private': 1, 'shards': 2}
  return adapters.init_shards(
    KEY, models.base(), **(defaults | {'leaves': 'kernel'} | options)
  )


def filled(pools):
  return jax.tree.map(lambda x: x + models.draw(x.size, *x.shape), pools)


@pytest.mark.parametrize('private', [0, 1, 2])
def test_parameters_are_those_of_lora_of_the_budget(private):
  pools, _ = make(private=private, rank=2 if private == 2 else 4)
  lora = adapters.init_lora(KEY, models.base(), rank=2, leaves='kernel')
  count = [sum(x.size for x in jax.tree.leaves(each)) for each in (pools, lora)]
  assert count[0] == count[1] == models.BLOCKS * 2 * (models.IN + models.OUT)


def test_factors_are_concatenated_from_the_selected_shards():
  pools, selections = make()
  pools = filled(pools)
  adapter = adapters.gather_shards(pools, selections)
  assert sorted(adapter) == KERNELS
  for path, lora in adapter.items():
    chosen = selections[path]
    pool = pools[chosen.group]
    a, b = np.zeros((models.IN, 4)), np.zeros((4, models.OUT))
    for vector in range(4):
      for part in range(2):
        rows = slice(part * models.IN // 2, (part + 1) * models.IN // 2)
        a[rows, vector] = pool.a[chosen.a[vector, part]]
        columns = slice(part * models.OUT // 2, (part + 1) * models.OUT // 2)
        b[vector, columns] = pool.b[chosen.b[vector, part]]
    np.testing.assert_array_equal(lora.a, a.astype(np.float32))
    np.testing.assert_array_equal(lora.b, b.astype(np.float32))
    assert lora.scale == 16 / 4


def test_private_shards_are_private_and_public_ones_are_shared():
  pools, selections = make(rank=3, budget=2, private=1, shards=2)
  [pool] = pools.values()
  public = models.BLOCKS * (2 - 1) * 2
  used = {'public': [], 'private': []}
  for each in selections.values():
    for places in map(np.ravel, (each.a, each.b)):
      assert len(set(places)) == len(places)  # No shard twice in a matrix.
      assert np.all(places[: 2 * 2] < public)
      assert np.all(places[2 * 2 :] >= public)
    used['public'] += np.asarray(each.a).ravel()[:4].tolist()
    used['private'] += np.asarray(each.a).ravel()[4:].tolist()
  assert len(set(used['private'])) == len(used['private'])
  assert len(set(used['public'])) < len(used['public'])
  assert max(used['private']) == len(pool.a) - 1


def test_pairs_are_dissociated_unless_told_otherwise():
  _, apart = make()
  assert any(not np.array_equal(x.a, x.b) for x in apart.values())
  _, together = make(dissociate=False)
  assert all(np.array_equal(x.a, x.b) for x in together.values())
  _, again = make()
  jax.tree.map(np.testing.assert_array_equal, apart, again)


def test_all_private_is_lora():
  pools, selections = make(rank=2, budget=2, private=2)
  adapter = adapters.gather_shards(filled(pools), selections)
  gathered = np.concatenate([np.ravel(x.a) for x in adapter.values()])
  [pool] = filled(pools).values()
  assert sorted(gathered) == sorted(np.ravel(pool.a))


def test_begins_at_the_base_and_trains_the_pools_only():
  base = models.base()
  pools, selections = make()

  def kernel(pools):
    adapter = adapters.gather_shards(pools, selections)
    return adapters.apply(base, adapter)['blocks'][0]['kernel']

  np.testing.assert_array_equal(kernel(pools), base['blocks'][0]['kernel'])
  [pool] = pools.values()
  bound = 1 / np.sqrt(models.IN)
  assert 0.5 * bound < np.abs(pool.a).max() <= bound
  slope = jax.jit(jax.grad(lambda pools: kernel(pools).sum()))(pools)
  [slope] = slope.values()
  chosen = np.asarray(selections[KERNELS[0]].b).ravel()
  touched = np.flatnonzero(np.abs(slope.b).sum(axis=1))
  assert sorted(chosen) == touched.tolist()
  assert not np.any(slope.a)  # As b is zero.


def test_layouts_and_groups():
  base = {
    'q': [jnp.ones((4, 6))] * 2,
    'k': [jnp.ones((4, 6))] * 2,
    'v': jnp.ones((8, 4)),
  }
  options = {'rank': 2, 'budget': 2, 'shards': 2, 'layout': 'out_in'}
  pools, selections = adapters.init_shards(KEY, base, **options)
  assert {name: len(pool.a) for name, pool in pools.items()} == {
    '6x4': 16,
    '4x8': 4,
  }
  adapter = adapters.gather_shards(pools, selections)
  assert adapter['q/0'].a.shape == (6, 2)
  assert adapters.delta(adapter, base)['v'].shape == (8, 4)
  pools, _ = adapters.init_shards(
    KEY, base, group=lambda path: path[0], **options
  )
  assert {name: len(pool.a) for name, pool in pools.items()} == {
    'q': 8,
    'k': 8,
    'v': 4,
  }
  with pytest.raises(ValueError, match='expected one shape'):
    adapters.init_shards(KEY, base, group=lambda path: 'all', **options)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'shards': 3}, 'shards=3 does not divide 6 inputs and 4 outputs'),
    ({'private': 3}, 'private is 3'),
    ({'rank': 6, 'private': 1}, 'draws 10 shards, but .* share 8'),
    ({'budget': 0}, 'budget is 0'),
  ],
)
def test_what_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_a_missing_pool_is_named():
  _, selections = make()
  with pytest.raises(ValueError, match="takes shards of '6x4'"):
    adapters.gather_shards({}, selections)
