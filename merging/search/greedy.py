"""Greedy soups."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

from merging.search import ask_tell


class GreedyState(NamedTuple):
  """What a greedy soup knows; `GreedyState(*json.loads(json.dumps(state)))`.

  Attributes:
    chosen: Names of the models in the soup, in the order they came in.
    score: Score of the soup.
    tried: How many models have been tried, the best one included.
  """

  chosen: Sequence[str]
  score: float
  tried: int


def greedy_soup(scores: Mapping[str, float]) -> ask_tell.Search:
  """Adds models to an average, best first, where the held-out score permits.

  The soup begins with the best single model. The others are tried once each, in
  the order of their own scores; one is added if the average of all parameters
  in the soup and its own scores no worse. So the soup scores no worse on these
  data than the best model does, with one evaluation for each model.

  A proposal is a weight for every model: `1 / k` for those in it, else 0. Merge
  by `weighted_average` or `task_arithmetic`. Choose and report on different
  data: the score of a soup on the data that chose it is too good.

  Args:
    scores: Held-out scores of the single models by name, higher is better (give
      losses a minus). Of equal ones the first by name is tried first.

  Returns:
    The search; its state is a `GreedyState`, and each batch one proposal. Its
    `tell` raises `ValueError` unless it is told one score that is a number.

  Raises:
    ValueError: There is no score, or one is not a number.

  Examples:
    Two models whose errors cancel, and one that is in the way:

    >>> import jax.numpy as jnp, merging
    >>> experts = {'a': {'w': 1.0}, 'b': {'w': -1.5}, 'c': {'w': 9.0}}
    >>> base = {'w': jnp.float32(0)}
    >>> def score(weights):
    ...   merge = merging.weighted_average(weights)
    ...   return -abs(float(merging.merge(merge, base, experts)['w']))
    >>> search = greedy_soup({'a': -1.0, 'b': -1.5, 'c': -9.0})
    >>> state = search.init()
    >>> while not search.done(state):
    ...   [weights] = search.ask(state)
    ...   state = search.tell(state, [score(weights)])
    >>> search.best(state)
    ({'a': 0.5, 'b': 0.5, 'c': 0.0}, -0.25)

  References:
    Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre, Rebecca Roelofs,
    Raphael Gontijo-Lopes, Ari S. Morcos, Hongseok Namkoong, Ali Farhadi, Yair
    Carmon, Simon Kornblith, Ludwig Schmidt. "Model soups: averaging weights of
    multiple fine-tuned models improves accuracy without increasing inference
    time". ICML 2022. arXiv:2203.05482.
  """
  if not scores:
    raise ValueError('greedy_soup: there are no scores')
  for name, score in scores.items():
    _check_number(f'the score of {name!r}', score)
  order = sorted(scores, key=lambda name: (-scores[name], name))

  def weights(chosen):
    return {name: (name in chosen) / len(chosen) for name in sorted(scores)}

  def ask(state):
    if done(state):
      return ()
    return (weights([*state.chosen, order[state.tried]]),)

  def tell(state, results):
    if len(results) != len(ask(state)):
      raise ValueError(
        f'greedy_soup: told {len(results)} scores, but asked for '
        f'{len(ask(state))}'
      )
    [result] = results
    _check_number('the score of a soup', result)
    tried = state.tried + 1
    if result < state.score:
      return state._replace(tried=tried)
    chosen = (*state.chosen, order[state.tried])
    return GreedyState(chosen, float(result), tried)

  def done(state):
    return state.tried == len(order)

  return ask_tell.Search(
    init=lambda: GreedyState((order[0],), float(scores[order[0]]), 1),
    ask=ask,
    tell=tell,
    done=done,
    best=lambda state: (weights(state.chosen), state.score),
  )


def _check_number(what, value):
  if math.isnan(value):
    raise ValueError(
      f'greedy_soup: {what} is not a number; leave out models that fail'
    )
