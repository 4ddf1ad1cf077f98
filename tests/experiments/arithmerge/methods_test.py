"""The list of merge rows, and the score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import transformer
from experiments.arithmerge import methods
from experiments.arithmerge import scores as scoring
from experiments.arithmerge import suite as suite_lib
from experiments.configs import arithmerge as configs

BY_NAME = {method.name: method for method in methods.METHODS}
SUITE = suite_lib.Suite(configs.smoke())


def test_names_are_unique():
  assert len(BY_NAME) == len(methods.METHODS)


def test_rows_are_found_by_name():
  assert methods.named(()) == methods.METHODS
  found = [method.name for method in methods.named(['TSV-M', 'TIES'])]
  assert found == ['average', 'task arithmetic', 'TIES', 'TSV-M']
  with pytest.raises(KeyError, match=r"no row 'TSVM'.*did you mean 'TSV-M'"):
    methods.named(['TSVM'])


@pytest.mark.parametrize('method', methods.METHODS, ids=BY_NAME)
def test_the_default_is_a_setting_and_settings_differ(method):
  assert method.default is None or method.default in method.settings
  different = {tuple(sorted(each.items())) for each in method.settings}
  assert len(different) == len(method.settings)
  assert (method.default is None) == (method.search is not None)


@pytest.mark.slow
@pytest.mark.parametrize('method', methods.METHODS, ids=BY_NAME)
def test_every_setting_merges_decoders(method):
  init = jax.jit(lambda key: transformer.init(key, SUITE.model))
  base = init(jax.random.key(0))
  names = ('first', 'second') if method.kind == 'pair' else 'abc'
  experts = {
    name: jax.tree.map(lambda x, y: x + y / 50, base, init(jax.random.key(i)))
    for i, name in enumerate(names, 1)
  }
  more = {}
  if method.kind == 'protect':
    more['spec'] = SUITE.symmetries(base)
  if method.by_scores:
    more['scores'] = dict.fromkeys(names, 0.5)
  settings = method.settings
  if method.search is not None:
    search = method.search(dict.fromkeys(names, 0.5))
    settings = search.ask(search.init())
  for setting in settings:
    values = {name: jnp.float32(x) for name, x in setting.items()}
    made = method.build(key=jax.random.key(7), **values, **more)
    merged = method.run(made, base, experts)
    models = merged.values() if method.kind == 'restore' else [merged]
    for params in models:
      assert jax.tree.structure(params) == jax.tree.structure(base)
      assert all(
        bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(params)
      )


def test_normalized_score_by_hand():
  experts = np.array([0.5, 0.8, 0.0])
  accuracy = np.array([[0.25, 0.8, 0.9], [0.0, 0.4, 0.0]])
  # The third expert is able to do nothing, so its task counts for nothing.
  np.testing.assert_allclose(
    scoring.normalized(accuracy, experts), [0.75, 0.25]
  )
  np.testing.assert_allclose(scoring.normalized(experts[:2], experts[:2]), 1.0)
  assert scoring.normalized(np.zeros(2), np.zeros(2)) == 0.0
