"""What a page shows of problems in turns."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.laboratory import results as results_lib
from experiments.runtime import plots
from experiments.runtime import tables

NOTE = (
  'Horizon: up to which turn at least half of the problems have no error; the'
  ' last turn, if it is never less. Own history: turns of the longest problems'
  ' that follow from what the model itself wrote before, right or wrong. Late'
  ' turns: those of the last quarter, after a history in which so many of the'
  ' states are wrong by up to 9 and gone on from.'
)


def columns(results: results_lib.Results) -> list[tables.Column]:
  """The columns that problems in turns have besides."""
  return [
    tables.Column(name='horizon', label='horizon, turns', scale=1),
    tables.Column(name='own', label='own history'),
    *(
      tables.Column(name=f'late {share}', label=f'late turns, {_wrong(share)}')
      for share in (0.0, *results.config.histories)
    ),
  ]


def cells(
  results: results_lib.Results, row: results_lib.Result
) -> dict[str, Any]:
  """The cells of a row in these columns."""
  shares = (0.0, *results.config.histories)
  return {
    'horizon': row.horizon,
    'own': row.own.mean(axis=1),
    **{f'late {x}': row.late[:, i] for i, x in enumerate(shares)},
  }


def draw(
  results: results_lib.Results, spread: str
) -> Mapping[str, tuple[str, bytes, str]]:
  """Heading, PNG and caption of each figure, by file name."""
  rows, count = results.rows, results.turns
  turn = np.arange(1, count + 1)
  whole = plots.curves(
    {row.name: (turn, 100 * row.whole) for row in rows},
    x_label='turn',
    y_label='problems right up to here, %',
    limits=(-2, 102),
    shaded=_trained(results),
    levels={'horizon': 50.0},
  )
  figures = {
    'horizon.png': (
      'How long nothing goes wrong',
      plots.to_png(whole),
      f'Problems of {count} turns that are right in every turn up to each, in'
      f' percent. {spread}',
    )
  }
  steps = {}
  for row in rows:
    steps[f'{row.name}, true history'] = turn, 100 * row.turns[:, 0]
    steps[f'{row.name}, own history'] = turn, 100 * row.own
  figures['turns.png'] = (
    'Turn by turn',
    plots.to_png(
      plots.curves(
        steps,
        x_label='turn',
        y_label='right turns, %',
        limits=(-2, 102),
        shaded=_trained(results),
      )
    ),
    'Turns that follow from the one before, in percent: after the true states,'
    f' and after those that the model wrote itself. {spread}',
  )
  shares = (0.0, *results.config.histories)
  if len(shares) > 1:
    figures['histories.png'] = (
      'After errors',
      plots.to_png(
        plots.curves(
          {row.name: (_percent(shares), 100 * row.late) for row in rows},
          x_label='wrong states before, %',
          y_label='right turns of the last quarter, %',
          limits=(-2, 102),
        )
      ),
      'Right turns of the last quarter, in percent, by how many of the states'
      f' in the history are wrong. {spread}',
    )
  return figures


def _trained(results: results_lib.Results) -> dict[str, tuple[float, float]]:
  """Up to which turn there was training, if all rows agree."""
  config = results.config
  longest = {
    len(row.variant.config.training.level_weights) for row in results.rows
  }
  if len(longest) > 1:
    return {}
  return {
    'trained on': (0.6, longest.pop() * results.turns / config.levels[-1] + 0.4)
  }


def _percent(shares: Sequence[float]) -> list[float]:
  return [100 * share for share in shares]


def _wrong(share: float) -> str:
  return f'{100 * share:g} % wrong' if share else 'none wrong'
