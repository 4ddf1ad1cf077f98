"""What a person sees of a run: table, figures, page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.precision import results as results_lib
from experiments.precision import rows as rows_lib
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables

_TITLE = 'What a format costs a model that does sums'

_LEAD = (
  'A small decoder learns to add in float32. Then every row runs the same'
  ' weights, on the same problems, with its forward pass in another arithmetic:'
  ' of every operation, or of products of matrices alone; in floating-point'
  ' formats bare, or with scales; added up in less than float32; or with L-Mul,'
  ' which adds mantissas instead of multiplying them (Luo and Sun, 2024).'
)

_EMULATED = (
  'numerics.emulate interprets the program of the decoder, and rounds operands'
  ' and results of every operation that a row names to the values of its'
  ' format; between roundings it computes in float32, so that a product of'
  ' matrices adds its terms in float32 unless the row says otherwise. Weights'
  ' are operands like others and are rounded where they are used. Lookups of'
  ' embeddings, maxima and masks compute nothing and round nothing. Rounding is'
  ' to nearest, ties to even, and FP8 saturates, unless the row says otherwise;'
  ' at random, every model draws once.\n\n'
  'Rows by tensor have one scale in float32, for all problems at once. MX'
  ' formats have a power of two for 32 neighbours along the axis that is added'
  ' up, rounded down as OCP recommends, so that the largest of them may'
  ' saturate (rceil: up, so that none does); NVFP4 has a scale in FP8 for 16'
  ' and one for the tensor. L-Mul truncates operands to the mantissa bits that'
  ' are named, keeps the exponents of float32, and adds bit patterns.\n\n'
  'Nothing was trained or tuned in these arithmetics: this is what is lost by'
  ' casting a model after training in float32, without calibration.'
)

_NOTES = (
  'Exact: whole answers; right tokens: given those before. Lost: exact answers'
  ' of float32 less those of the row, in points, seed by seed. Logit error: the'
  ' largest difference from float32 of a logit of an answer, in percent of the'
  ' largest magnitude there.',
  'Energy: of the products of matrices of one problem, in microjoules, by the'
  ' prices of Horowitz (2014, 45 nm), additions at the width of the operands;'
  ' empty where he has no price. An L-Mul is priced as an addition of integers'
  ' of 32 bits, and its sum in float32. Scales, memory and all else are not in'
  ' it.',
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
  for name, (heading, png, caption) in draw_figures(results).items():
    files.write(directory / name, png)
    page.add_section(heading)
    page.add_figure(png, caption)
  page.add_section('What was emulated, and how', _EMULATED)
  report_lib.finish(page, directory, _details(results), starts=starts)
  return table


def build_table(results: results_lib.Results) -> tables.Table:
  """A row for each arithmetic."""
  table = tables.Table(
    _TITLE,
    [
      tables.Column(name='bits', scale=1, digits=2, best=None, fixed=True),
      tables.Column(name='exact', best=None),
      tables.Column(name='lost', best=None),
      tables.Column(name='tokens', label='right tokens', best=None),
      tables.Column(name='error', label='logit error', best=None),
      tables.Column(
        name='energy',
        label='energy, µJ',
        scale=1,
        digits=2,
        best=None,
        fixed=True,
      ),
    ],
    caption=_caption(results),
    notes=_NOTES,
    empty='an empty logit error: some are infinite or no number',
  )
  groups: dict[str, tables.Group] = {}
  for result in results.rows:
    row, scores = result.row, result.scores
    if row.group not in groups:
      heading = rows_lib.GROUPS[row.group]
      groups[row.group] = table.add_group(heading, ranked=False)
    table.add_row(
      groups[row.group],
      _shown(row),
      {
        'bits': row.bits,
        'exact': scores.exact,
        'lost': results.lost(result),
        'tokens': scores.tokens,
        'error': scores.error if (scores.finite == 1).all() else None,
        'energy': result.energy,
      },
    )
  return table


def draw_figures(
  results: results_lib.Results,
) -> Mapping[str, tuple[str, bytes, str]]:
  """Heading, PNG and caption of each figure, by file name."""
  figures = {}
  if len(results.rows) > 2:
    figures['bits.png'] = (
      'Against bits',
      plots.to_png(_draw_bits(results)),
      'Exact answers lost against float32, in points; a logarithmic scale from'
      ' 1 on. The widest operands are on top, their bits in parentheses. Mean,'
      f' least and most of {report_lib.seeds(results.config.model.seeds)}.',
    )
  names = [x for x in rows_lib.ROUNDED if _modes(results, x)]
  if len(names) > 1:
    heatmap = plots.heatmap(
      np.array([_modes(results, name) for name in names]),
      names,
      ['nearest', *(each.replace('_', ' ') for each in rows_lib.MODES)],
      label='exact answers, %',
      digits=1,
    )
    figures['modes.png'] = (
      'Formats and modes of rounding',
      plots.to_png(heatmap),
      'Exact answers in percent where operands of products are rounded to a'
      ' format in one of three ways, without scales. Mean over'
      f' {report_lib.seeds(results.config.model.seeds)}.',
    )
  return figures


def _modes(results: results_lib.Results, name: str) -> list[float]:
  """Exact answers by mode of rounding; none if a mode did not run."""
  keys = [f'products/{name}', *(f'mode/{name} {x}' for x in rows_lib.MODES)]
  found = [results.named(key) for key in keys]
  return (
    [float(x.scores.exact.mean()) for x in found if x] if all(found) else []
  )


def _draw_bits(results):
  # Stable: rows of as many bits stay in the order of the table.
  rows = [x for x in results.rows[1:] if x.row.group != 'mode']
  rows = sorted(rows, key=lambda x: -x.row.bits)
  bits = [x.row.bits for x in rows]
  return plots.dots(
    100 * np.stack([results.lost(x) for x in rows]),
    [f'{_alone(x.row)}  ({x.row.bits:g})' for x in rows],
    [rows_lib.GROUPS[x.row.group] for x in rows],
    x_label='exact answers lost, points',
    breaks=[i for i in range(1, len(bits)) if int(bits[i]) != int(bits[i - 1])],
    level=('a point', 1.0),
  )


def _shown(row: rows_lib.Row) -> str:
  """What a row is called under the heading of its group."""
  if row.group == 'lmul':
    place, bits = row.name.split()
    where = {'all': 'all products', 'attention': 'attention alone'}[place]
    return f'{where}, {bits} bits'
  return row.name.replace('_zero', ' zero')


def _alone(row: rows_lib.Row) -> str:
  """What it is called where there is no heading."""
  return {
    'all': f'{row.name}, every operation',
    'attention': f'{row.name}, attention alone',
    'lmul': f'L-Mul, {_shown(row)}',
    'sums': row.name.replace(' in ', ', sums in '),
  }.get(row.group, row.name)


def _caption(results):
  config = results.config.model
  levels = ', '.join(map(str, config.levels))
  return (
    f'Problems of {config.task} of level {levels} (digits of an operand),'
    f' after training in float32: {results.problems} of the test split, none of'
    ' which was trained on, the same for every seed and every row. Percent,'
    ' where a column does not say otherwise.'
  )


def _details(results: results_lib.Results) -> Mapping[str, str]:
  config = results.config.model
  training, model = config.training, config.model
  return {
    'task': f'{config.task}, as in {results.line}',
    'model': (
      f'{model.layers} layers, {model.heads} heads, width {model.width}'
    ),
    'training': (
      f'{training.steps} steps of {training.batch_size} problems in float32,'
      f' learning rate {training.learning_rate:g}'
    ),
    'seeds': f'{config.seeds}, all from seed={config.seed}',
    'rows': ' '.join(results.config.rows) or 'all',
  }
