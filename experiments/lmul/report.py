"""What a person sees of a run: table, figures, page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lmul import measure
from experiments.lmul import results as results_lib
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables

_TITLE = 'How wrong L-Mul is'

_LEAD = (
  'L-Mul adds the mantissas of two numbers instead of multiplying them. Luo and'
  ' Sun (2024) claim that with 4 bits of mantissa it is about as exact as a'
  ' product of numbers in FP8 with 4 bits of exponent (e4m3), and with 3 bits'
  ' more exact than one with 5 (e5m2). Here both multiply the same numbers.'
)

_READING = (
  'L-Mul truncates operands to the mantissa bits that are named, and keeps'
  ' the exponents of float32. FP8 has few exponents: without a scale it loses'
  ' what is small, such as the weights of attention over many keys, which are'
  ' next to the smallest numbers of e4m3. Rows with a scale take the largest'
  ' number of a tensor to the largest of the format. All terms are added in'
  ' float32, and the softmax is in float32.\n\n'
  'The mean error is that of the product less the exact one, for factors drawn'
  ' evenly from [1, 2); numerics.LMul.expected_error has it in closed form.'
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
  page.add_section('Against mantissa bits')
  for name, (png, caption) in draw_figures(results).items():
    files.write(directory / name, png)
    page.add_figure(png, caption)
  page.add_section('How to read it', _READING)
  report_lib.finish(
    page, directory, _details(results), starts=starts, left='metrics.jsonl'
  )
  return table


def build_table(results: results_lib.Results) -> tables.Table:
  """A row for each arithmetic."""
  config = results.config

  def percent(name: str, label: str) -> tables.Column:
    return tables.Column(name=name, label=label, digits=2, best=None)

  table = tables.Table(
    _TITLE,
    [
      percent('uniform', 'uniform'),
      percent('largest', 'largest'),
      percent('normal', 'normal'),
      percent('matrices', 'matrices'),
      percent('attention', 'attention'),
      tables.Column(
        name='mean', label='mean error', scale=1, digits=4, best=None
      ),
      tables.Column(
        name='theory',
        label='by theory',
        scale=1,
        digits=4,
        best=None,
        fixed=True,
      ),
    ],
    caption=(
      f'Relative errors in percent. Of {config.products:,} products: the mean'
      ' for uniform mantissas, the largest of these, the mean for normal'
      f' numbers. Of a product of matrices of {config.size} by {config.size}'
      f' normal numbers, and of attention ({config.length} queries and keys of'
      f' {config.features} features), in the Frobenius norm. The mean error of'
      ' products of uniform mantissas with its sign, for factors in [1, 2),'
      ' beside its closed form.'
    ),
    empty='with scales, single numbers are not multiplied',
  )
  groups: dict[str, tables.Group] = {}
  for row, errors in results.rows:
    if row.group not in groups:
      heading = measure.GROUPS[row.group]
      groups[row.group] = table.add_group(heading, ranked=False)
    table.add_row(
      groups[row.group],
      f'{row.name} bits' if row.group in ('bits', 'value') else row.name,
      {**errors._asdict(), 'theory': row.theory},
    )
  return table


def draw_figures(
  results: results_lib.Results,
) -> Mapping[str, tuple[bytes, str]]:
  """PNG and caption of each figure, by file name."""
  figures = {}
  for name in measure.MEASURES:
    figures[f'{name}.png'] = (
      plots.to_png(_draw(results, name)),
      f'Relative error of {_OF[name]}, in percent, by the mantissa bits that'
      ' L-Mul keeps; formats are level lines. Mean and standard deviation'
      f' over {report_lib.seeds(results.config.seeds)}.',
    )
  return figures


_OF = {
  'uniform': 'products of numbers with uniform mantissas',
  'normal': 'products of normal numbers',
  'matrices': 'a product of matrices',
  'attention': 'the output of attention',
}


def _draw(results, name):
  series = {}
  for group in ('bits', 'value'):
    rows = [x for x in results.rows if x.row.group == group]
    series[measure.GROUPS[group]] = (
      [x.row.bits for x in rows],
      100 * np.stack([getattr(x.errors, name) for x in rows], axis=1),
    )
  bits = results.config.mantissa_bits
  ends = [bits[0], bits[-1]]
  for row, errors in results.rows:
    value = getattr(errors, name)
    if row.group in ('formats', 'scaled') and value is not None:
      scaled = ', with a scale' if row.group == 'scaled' else ''
      series[row.name + scaled] = (ends, 100 * np.stack([value] * 2, axis=1))
  return plots.curves(
    series,
    x_label='mantissa bits',
    y_label='relative error, %',
    limits=(0, 1.1 * max(float(np.max(y)) for _, y in series.values())),
  )


def _details(results: results_lib.Results) -> Mapping[str, str]:
  config = results.config
  return {
    'seeds': f'{config.seeds}, all from seed={config.seed}',
  }
