"""The list of merge rows, and the score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.arithmerge import methods
from experiments.arithmerge import scores as scoring
import merging

BY_NAME = {method.name: method for method in methods.METHODS}


def test_names_are_unique_and_do_not_shadow_other_rows():
  assert len(BY_NAME) == len(methods.METHODS)
  assert not set(BY_NAME) & set(scoring.YARDSTICKS)


@pytest.mark.parametrize('method', methods.METHODS, ids=BY_NAME)
def test_settings_merge_and_the_default_is_one_of_them(method):
  key = jax.random.key(0)
  base = {'w': jnp.zeros((3, 4))}
  experts = {
    name: {'w': jax.random.normal(jax.random.key(i), (3, 4))}
    for i, name in enumerate('abc')
  }
  for setting in (*method.settings[:2], method.default):
    merged = merging.merge(method.build(key=key, **setting), base, experts)
    assert bool(jnp.all(jnp.isfinite(merged['w'])))
  assert method.default in method.settings
  assert len({tuple(s.values()) for s in method.settings}) == len(
    method.settings
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
