"""Greedy soups: what is asked, what is kept, and stopping in between."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import search as searches

# Models on a plane; the best is at the origin.
POINTS = {
  'a': np.array([1.0, 0.0]),
  'b': np.array([-0.9, 0.9]),
  'c': np.array([0.0, -1.5]),
  'd': np.array([5.0, 5.0]),
  'e': np.array([1.0, 0.0]),
}


def score(point):
  return -float(np.linalg.norm(point))


def scores(points=POINTS):
  return {name: score(point) for name, point in points.items()}


def soup(weights, points=POINTS):
  return sum(weight * points[name] for name, weight in weights.items())


def literal(points):
  """The recipe of the paper, with a running mean."""
  order = sorted(points, key=lambda name: (-score(points[name]), name))
  chosen, mean = [order[0]], points[order[0]]
  for name in order[1:]:
    tried = (len(chosen) * mean + points[name]) / (len(chosen) + 1)
    if score(tried) >= score(mean):
      chosen, mean = [*chosen, name], tried
  return set(chosen), mean


def test_it_makes_the_soup_of_the_recipe():
  search = searches.greedy_soup(scores())
  state = searches.maximize(search, lambda weights: score(soup(weights)))
  weights, best = search.best(state)
  chosen, mean = literal(POINTS)
  # The second at (1, 0) changes nothing, and is no worse.
  assert chosen == {'a', 'b', 'c', 'e'}
  assert {name for name, weight in weights.items() if weight} == chosen
  np.testing.assert_allclose(soup(weights), mean, atol=1e-12)
  assert best == score(soup(weights))


def test_random_soups_are_those_of_the_recipe_and_never_worse_than_the_best():
  rng = np.random.default_rng(0)
  for _ in range(20):
    points = {name: rng.normal(size=2) for name in 'abcdefg'}
    search = searches.greedy_soup(scores(points))
    state = searches.maximize(search, lambda w: score(soup(w, points)))  # noqa: B023
    weights, best = search.best(state)
    assert {name for name in weights if weights[name]} == literal(points)[0]
    assert best >= max(scores(points).values())
    assert sum(weights.values()) == pytest.approx(1)


def test_the_order_of_a_mapping_decides_nothing():
  given = {'a': 1.0, 'b': 1.0, 'c': 2.0}
  asked = []
  for names in itertools.permutations(given):
    search = searches.greedy_soup({name: given[name] for name in names})
    asked.append(search.ask(search.init()))
  # Of equal ones the first by name.
  assert all(each == ({'a': 0.5, 'b': 0.0, 'c': 0.5},) for each in asked)


def test_it_asks_once_for_every_model_but_the_best():
  search = searches.greedy_soup(scores())
  asked = []

  def worse(weights):
    asked.append({name for name in weights if weights[name]})
    return -1e9

  state = searches.maximize(search, worse)
  assert asked == [{'a', 'e'}, {'a', 'b'}, {'a', 'c'}, {'a', 'd'}]
  assert search.best(state) == ({'a': 1, 'b': 0, 'c': 0, 'd': 0, 'e': 0}, -1.0)
  assert search.done(state)
  assert search.ask(state) == ()


def test_it_goes_on_where_it_was_stopped():
  search = searches.greedy_soup(scores())

  def held_out(weights):
    return score(soup(weights))

  whole = searches.maximize(search, held_out)
  state = search.init()
  while not search.done(state):
    assert search.best(state)[1] <= search.best(whole)[1]
    written = json.dumps(state)
    again = searches.greedy_soup(scores())
    resumed = searches.GreedyState(*json.loads(written))
    assert again.ask(resumed) == search.ask(state)
    finished = searches.maximize(again, held_out, resumed)
    assert again.best(finished) == search.best(whole)
    state = search.tell(state, [held_out(each) for each in search.ask(state)])


def test_one_model_is_its_own_soup():
  search = searches.greedy_soup({'a': 0.5})
  assert search.done(search.init())
  assert search.best(search.init()) == ({'a': 1.0}, 0.5)


def test_a_proposal_is_an_average_of_models():
  experts = {
    name: {'w': jnp.asarray(point, jnp.float32)}
    for name, point in POINTS.items()
  }
  base = {'w': jnp.array([3.0, -4.0])}
  [weights] = merging.search.greedy_soup(scores()).ask(
    searches.GreedyState(('a', 'b'), -1.0, 3)
  )
  chosen = {name: experts[name] for name in 'abc'}
  expected = merging.merge(merging.average(), base, chosen)['w']
  for make in (merging.weighted_average, merging.task_arithmetic):
    merged = merging.merge(make(weights), base, experts)['w']
    np.testing.assert_allclose(merged, expected, atol=1e-6)


def test_what_is_no_score_is_refused():
  with pytest.raises(ValueError, match="the score of 'b' is not a number"):
    searches.greedy_soup({'a': 0.5, 'b': float('nan')})
  with pytest.raises(ValueError, match='there are no scores'):
    searches.greedy_soup({})
  search = searches.greedy_soup({'a': 0.5, 'b': 0.4})
  with pytest.raises(ValueError, match='the score of a soup is not a number'):
    search.tell(search.init(), [float('nan')])
  with pytest.raises(ValueError, match='told 2 scores, but asked for 1'):
    search.tell(search.init(), [0.1, 0.2])
  done = search.tell(search.init(), [0.6])
  with pytest.raises(ValueError, match='told 1 scores, but asked for 0'):
    search.tell(done, [0.1])
