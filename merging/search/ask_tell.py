"""Searches without gradients: proposals are asked for, and scores told.

A search knows neither models nor data. It proposes, and whoever runs it merges,
scores on held-out data (in any order, on any machine) and tells. All it knows
is its state, plain data that can be written to a file between two calls.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

State = Any
Proposal = Any


class Search(NamedTuple):
  """A search, as pure functions of a state.

  Attributes:
    init: `() -> state`.
    ask: `state -> proposals`, a batch to be scored before the next one.
    tell: `(state, scores) -> state`, with one score for each proposal of `ask`,
      in order. Higher is better: tell losses with a minus.
    done: `state -> bool`; there is nothing left to ask.
    best: `state -> (proposal, score)`, the best so far.
  """

  init: Callable[[], State]
  ask: Callable[[State], Sequence[Proposal]]
  tell: Callable[[State, Sequence[float]], State]
  done: Callable[[State], bool]
  best: Callable[[State], tuple[Proposal, float]]


def maximize(
  search: Search,
  score: Callable[[Proposal], float],
  state: State | None = None,
) -> State:
  """Runs a search to its end.

  Args:
    search: The search.
    score: `proposal -> score` on held-out data, higher is better.
    state: Where an earlier run stopped; from the beginning if `None`.

  Returns:
    The last state, for `search.best`.

  Examples:
    >>> from merging.search import greedy
    >>> search = greedy.greedy_soup({'a': 0.5, 'b': 0.5, 'c': 0.1})
    >>> state = maximize(search, lambda weights: 0.6 - weights['c'])
    >>> search.best(state)
    ({'a': 0.5, 'b': 0.5, 'c': 0.0}, 0.6)
  """
  state = search.init() if state is None else state
  while not search.done(state):
    state = search.tell(state, [score(each) for each in search.ask(state)])
  return state
