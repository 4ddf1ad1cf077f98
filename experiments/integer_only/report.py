"""What a person sees of a run: table, figures, page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.integer_only import arithmetics
from experiments.integer_only import results as results_lib
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables

_TITLE = 'A transformer that does sums, in integers only'

_LEAD = (
  'A small decoder learns to add in float32. Then it becomes integers, without'
  ' any training: weights and activations of 8 bits, and softmax, GELU and norm'
  ' by shifts, additions and divisions of 32 bits, as I-ViT has them (Li and'
  ' Gu, 2023).'
)

_METHOD = (
  'Scales are symmetric: one for each column of a kernel, one for each tensor'
  ' of activations, by the largest magnitude over problems of the training'
  ' split.'
  ' Products of int8 are added up in int32; from one scale to another it goes'
  ' by a multiplier of 31 bits and a shift (numerics.integer.rescale). The'
  ' residual stream has 16 bits where a row does not say otherwise. Logits are'
  ' int32.\n\n'
  'As published: Shiftmax of scores of 8 bits, which gives shares of 8 bits;'
  ' ShiftGELU with the maximum of a row and 23 halvings; the norm with a root'
  ' by ten steps of Newton. Its authors train in these integers, and simulate'
  ' them in float32. Rows below change one thing after another (…): the exact'
  ' root; ShiftGELU of each number by itself, with 15 halvings; scales that fit'
  ' exponentials, which are such that 1 is a whole number of steps, as the'
  ' algorithm takes it to be, and that sums leave six bits to the quotient of a'
  ' share; 16 bits for scores, shares and the sigmoid; rounding as gemmlowp has'
  ' it, twice. Rows with fewer bits for weights and activations have all of'
  ' these changes but the last, or none.\n\n'
  'Rows with one function in integers compute the others in float32, from the'
  ' same codes, to the same codes.'
)

_NOTES = (
  'Exact: whole answers; right tokens: given those before. Lost: exact answers'
  ' of float32 less those of the row, in points, seed by seed. Logit error: the'
  ' largest difference from float32 of a logit of an answer, in percent of the'
  ' largest magnitude there. Proved: operations from tokens to logits, none of'
  ' which has a floating number.',
  'Rows that begin with … have the changes of those above them, too.',
  results_lib.SOURCE,
)


def write(
  results: results_lib.Results, *, directory: Path, starts: Any
) -> tables.Table:
  """Writes `table.md`, `table.csv`, the figures and `report.html`.

  Args:
    results: What came out.
    directory: Where the files go.
    starts: The environments of the run's starts, the last one last.

  Returns:
    The table, for the console.
  """
  table = build_table(results)
  page = report_lib.start(
    directory,
    table,
    results_lib.findings(results),
    title=_TITLE,
    lead=_LEAD,
  )
  page.add_section('How far it is from float32')
  for name, (png, caption) in draw_figures(results).items():
    files.write(directory / name, png)
    page.add_figure(png, caption)
  page.add_section('What was quantised, and how', _METHOD)
  report_lib.finish(page, directory, _details(results), starts=starts)
  return table


def build_table(results: results_lib.Results) -> tables.Table:
  """A row for each arithmetic."""
  table = tables.Table(
    _TITLE,
    [
      tables.Column(name='exact', best=None),
      tables.Column(name='lost', best=None),
      tables.Column(name='tokens', label='right tokens', best=None),
      tables.Column(name='error', label='logit error', best=None),
      tables.Column(
        name='operations',
        label='proved',
        scale=1,
        digits=0,
        best=None,
        fixed=True,
      ),
      tables.Column(
        name='published',
        label='published, DeiT-S',
        scale=1,
        digits=2,
        best=None,
        fixed=True,
      ),
    ],
    caption=_caption(results),
    notes=_NOTES,
  )
  in_float, in_integers = results_lib.PUBLISHED['DeiT-S']
  published = {
    arithmetics.BASELINE: in_float,
    arithmetics.PUBLISHED: in_integers,
  }
  groups: dict[str, tables.Group] = {}
  for result in results.rows:
    row, scores = result.row, result.scores
    if row.group not in groups:
      heading = arithmetics.GROUPS[row.group]
      groups[row.group] = table.add_group(heading, ranked=False)
    table.add_row(
      groups[row.group],
      row.name,
      {
        'exact': scores.exact,
        'lost': results.lost(result),
        'tokens': scores.tokens,
        'error': scores.error,
        'operations': result.operations,
        'published': published.get(row.key),
      },
    )
  return table


def draw_figures(
  results: results_lib.Results,
) -> Mapping[str, tuple[bytes, str]]:
  """PNG and caption of each figure, by file name."""
  rows = results.rows[1:]
  seeds = report_lib.seeds(results.config.model.seeds)
  spread = f'A logarithmic scale from 1 on. Mean, least and most of {seeds}.'
  lost = np.stack([results.lost(x) for x in rows])
  error = np.stack([x.scores.error for x in rows])
  return {
    'error.png': (
      _draw(rows, error, 'logit error, %', None),
      'The largest difference from float32 of a logit of an answer, in percent'
      f' of the largest logit. {spread}',
    ),
    'lost.png': (
      _draw(rows, lost, 'exact answers lost, points', ('a point', 1.0)),
      f'Exact answers lost against float32, in points. {spread}',
    ),
  }


def _draw(rows, values, label, level) -> bytes:
  groups = [x.row.group for x in rows]
  figure = plots.dots(
    100 * values,
    [x.row.name for x in rows],
    [arithmetics.GROUPS[group] for group in groups],
    x_label=label,
    breaks=[i for i in range(1, len(rows)) if groups[i] != groups[i - 1]],
    level=level,
  )
  return plots.to_png(figure)


def _caption(results):
  config = results.config
  levels = ', '.join(map(str, config.model.levels))
  return (
    f'Problems of {config.model.task} of level {levels} (digits of an operand),'
    f' after training in float32: {results.problems} of the test split, none of'
    ' which was trained or calibrated on, the same for every seed and every'
    ' row. Percent, where a column does not say otherwise.'
  )


def _details(results: results_lib.Results) -> Mapping[str, str]:
  config = results.config.model
  training, model = config.training, config.model
  return {
    'task': f'{config.task}, as in {results.line}',
    'model': (
      f'{model.layers} layers, {model.heads} heads, width {model.width},'
      f' {model.norm} norm, {model.activation}'
    ),
    'training': (
      f'{training.steps} steps of {training.batch_size} problems in float32,'
      f' learning rate {training.learning_rate:g}'
    ),
    'calibration': f'{results.config.calibration} problems',
    'seeds': f'{config.seeds}, all from seed={config.seed}',
  }
