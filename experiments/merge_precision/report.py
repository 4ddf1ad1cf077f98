"""What a person sees of a run: table, figures, page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.merge_precision import results as results_lib
from experiments.merge_precision import rows as rows_lib
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables

_TITLE = 'Merges in narrow formats'

_LEAD = (
  'Experts on exact arithmetic are trained in float32 from one base, and merged'
  ' with something in another format: base and experts as they are stored, the'
  ' task vectors, every operation of the merge, or the merged model.'
)

_METHOD = (
  'bfloat16 and float16 are cast to. Other formats have a float32 scale for'
  ' each row of a leaf, block formats (mx…, nvfp4) one for each block along it,'
  ' and outlier pairs (Guo et al., 2023) one for the leaf. Everything else is'
  ' in float32. Operations of the merge are rounded by numerics.emulate,'
  ' operands and results. Settings are those that the authors of a merge name,'
  ' the same in every row; nothing was tuned.'
)

_NOTES = (
  'Lost: exact answers of the merge in float32 less those of the row, a mean'
  ' over the tasks, in points, seed by seed; the first row has the answers'
  ' themselves. Off: how far the change of the base by the merge is from that'
  ' in float32, in percent of it, by norm over all weights. Bits: of a number,'
  " with a block's share of its scale. Blank: an operation of the merge, such"
  ' as an SVD, has no such arithmetic.',
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
  if len(results.rows) > 1:
    page.add_section('How far a merge moves')
  for name, (png, caption) in draw_figures(results).items():
    files.write(directory / name, png)
    page.add_figure(png, caption)
  page.add_section('What was rounded, and how', _METHOD)
  report_lib.finish(page, directory, _details(results), starts=starts)
  return table


def build_table(results: results_lib.Results) -> tables.Table:
  """A row for each format."""
  columns = [
    tables.Column(name='bits', scale=1, digits=2, best=None, fixed=True)
  ]
  for method in results.config.methods:
    columns += [
      tables.Column(name=f'lost {method}', label=f'{method}: lost', best=None),
      tables.Column(name=f'off {method}', label='off', best=None),
    ]
  table = tables.Table(_TITLE, columns, caption=_caption(results), notes=_NOTES)
  groups: dict[str, tables.Group] = {}
  for result in results.rows:
    row = result.row
    if row.group not in groups:
      heading = rows_lib.GROUPS[row.group]
      groups[row.group] = table.add_group(heading, ranked=False)
    cells: dict[str, Any] = {'bits': row.bits}
    for method, scores in result.scores.items():
      if scores is not None:
        first = row.key == rows_lib.BASELINE
        cells[f'lost {method}'] = (
          scores.exact if first else results.lost(result, method)
        )
        cells[f'off {method}'] = scores.error
    table.add_row(groups[row.group], row.name, cells)
  return table


def draw_figures(
  results: results_lib.Results,
) -> Mapping[str, tuple[bytes, str]]:
  """PNG and caption of each figure, by file name."""
  rows = results.rows[1:]
  figures = {}
  for method in results.config.methods:
    known = [(x, s) for x in rows if (s := x.scores[method]) is not None]
    if not known:
      continue
    groups = [x.row.group for x, _ in known]
    figure = plots.dots(
      100 * np.stack([scores.error for _, scores in known]),
      [x.row.name for x, _ in known],
      [rows_lib.GROUPS[group] for group in groups],
      x_label=f'{method}: change of the base off by, %',
      breaks=[i for i in range(1, len(known)) if groups[i] != groups[i - 1]],
    )
    slug = method.lower().replace(' ', '-')
    figures[f'off-{slug}.png'] = (
      plots.to_png(figure),
      f'{method}: how far the change of the base is from that in float32, in'
      ' percent of it. A logarithmic scale from 1 on. Mean, least and most of'
      f' {report_lib.seeds(results.config.models.seeds)}.',
    )
  return figures


def _caption(results):
  config = results.config.models
  return (
    f'{len(config.tasks)} experts ({", ".join(config.tasks)}), scored on'
    f' {config.test_size} problems of each task from the test split, none of'
    ' which was trained on, the same for every seed and every row.'
  )


def _details(results: results_lib.Results) -> Mapping[str, str]:
  config = results.config.models
  model = config.model
  return {
    'model': (
      f'{model.layers} layers, {model.heads} heads, width {model.width},'
      f' {model.positions} positions'
    ),
    'training': (
      f'base {config.base.steps} steps of {config.base.batch_size} problems on'
      f' all tasks, experts {config.expert.steps} steps of'
      f' {config.expert.batch_size} on one'
    ),
    'seeds': f'{config.seeds}, all from seed={config.seed}',
  }
