"""What a person sees of a run: table, figures, page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.configs import laboratory as configs
from experiments.laboratory import results as results_lib
from experiments.laboratory import studies
from experiments.laboratory import turn_figures
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables

_INSPECTED = (
  'Middle digits: of the final answers, all but the first and the last, given'
  ' those before. Waves: how much of the embeddings of the ten digits is waves'
  ' of 0, 1, 2 and 5 cycles, R² in percent, the median over features; of'
  ' vectors at random it is a good half.'
)

_WITHOUT_WORK = (
  ' Answers are asked for without work all along, also while the model still'
  ' learned with some.'
)

_CURVES = 14  # In one figure; more cannot be told apart.


def write(
  results: results_lib.Results,
  study: studies.Study,
  *,
  directory: Path,
  starts: Any,
) -> tables.Table:
  """Writes `table.md`, `table.csv`, the figures and `report.html`.

  Args:
    results: What came out.
    study: What the run is about.
    directory: Where the files go.
    starts: The environments of the run's starts, the last one last.

  Returns:
    The table, for the console.
  """
  table = build_table(results, study)
  figures = draw_figures(results)
  page = report_lib.start(
    directory,
    table,
    study.findings(results),
    title=study.title,
    lead=study.lead,
  )
  for name, (heading, png, caption) in figures.items():
    files.write(directory / name, png)
    page.add_section(heading)
    page.add_figure(png, caption)
  page.add_section('What the models read')
  page.add_text(
    'The first problem of the largest level, as each row writes it:'
  )
  page.add_code('\n'.join(_lines(results)))
  if study.reading:
    page.add_section('How to read it')
    page.add_text(study.reading)
  report_lib.finish(page, directory, _details(results), starts=starts)
  return table


def build_table(
  results: results_lib.Results, study: studies.Study
) -> tables.Table:
  """A row for each variant, a column for each level."""
  config = results.config
  columns = [
    tables.Column(name=f'level {level}', label=results.sized(level))
    for level in config.levels
  ]
  if len(config.levels) > 1:
    columns.append(tables.Column(name='mean'))
  columns.append(tables.Column(name='tokens', label='right tokens'))
  if config.inspect:
    columns.append(tables.Column(name='middle', label='middle digits'))
    columns.append(tables.Column(name='waves', label='waves, R²', best=None))
  if results.turns:
    columns += turn_figures.columns(results)
  if study.published is not None:
    columns.append(tables.Column(name='published', best=None))
  table = tables.Table(
    study.title,
    columns,
    caption=_caption(results),
    notes=[
      *([study.published.source] if study.published else []),
      *([turn_figures.NOTE] if results.turns else []),
      *([_INSPECTED] if config.inspect else []),
    ],
  )
  groups: dict[str, tables.Group] = {}
  for row in results.rows:
    first, *rest = row.variant.labels or (row.name,)
    heading = first if rest else 'exact answers'
    if heading not in groups:
      groups[heading] = table.add_group(heading, ranked=len(results.rows) > 1)
    cells: dict[str, Any] = {
      f'level {level}': row.exact[:, i] for i, level in enumerate(config.levels)
    }
    if len(config.levels) > 1:
      cells['mean'] = row.exact.mean(axis=1)
    cells['tokens'] = row.tokens.mean(axis=1)
    if config.inspect:
      cells |= {'middle': row.middle, 'waves': row.waves}
    if results.turns:
      cells |= turn_figures.cells(results, row)
    if study.published is not None:
      cells['published'] = study.published.values.get(row.name)
    table.add_row(groups[heading], ', '.join(rest) or first, cells)
  return table


def draw_figures(
  results: results_lib.Results,
) -> Mapping[str, tuple[str, bytes, str]]:
  """Heading, PNG and caption of each figure, by file name."""
  figures = {}
  config, rows = results.config, results.rows
  largest = config.levels[-1]
  few = len(rows) <= _CURVES
  spread = f'Mean and standard deviation over {report_lib.seeds(config.seeds)}.'
  for place, axis in enumerate(configs.axes(config)):
    if axis.numbers and len(axis.labels) > 1:
      figures[f'{axis.name}.png'] = (
        f'Against {axis.name}',
        plots.to_png(_draw_axis(results, place, axis)),
        f'Exact answers, a mean over levels, against {axis.name}. {spread}',
      )
  if results.turns and few:
    figures |= turn_figures.draw(results, spread)
  if len(config.levels) > 2 and few and not results.turns:
    figures['levels.png'] = (
      'By the size of the problems',
      plots.to_png(_draw_levels(results)),
      f'Exact answers by the size of the problems. {spread}',
    )
  if len(config.levels) > 1 and len(rows) > 1:
    heatmap = plots.heatmap(
      np.stack([row.exact.mean(axis=0) for row in rows]),
      [row.name for row in rows],
      [
        results.sized(level) if results.turns else str(level)
        for level in config.levels
      ],
      label='exact answers, %',
    )
    figures['heatmap.png'] = (
      'Every row on every level',
      plots.to_png(heatmap),
      f'Exact answers in percent, mean over {report_lib.seeds(config.seeds)}.',
    )
  longest = max(row.places.shape[1] for row in rows)
  if longest > 2 and not results.turns:
    heatmap = plots.heatmap(
      np.stack([_padded(row.places.mean(axis=0), longest) for row in rows]),
      [row.name for row in rows],
      [str(place + 1) for place in range(longest)],
      label='right tokens, %',
    )
    figures['places.png'] = (
      'Token by token',
      plots.to_png(heatmap),
      f'Right tokens of the answers to problems of {results.sized(largest)}, in'
      ' the order of writing, in percent, given those before them; the last is'
      ' the end mark of the longest. Mean over'
      f' {report_lib.seeds(config.seeds)}.',
    )
  if config.inspect and few:
    figures |= _draw_learning(results, longest)
  for row in rows if config.grid and few else ():
    lengths = [str(length) for length in config.grid]
    heatmap = plots.heatmap(
      row.grid.mean(axis=0), lengths, lengths, label='exact answers, %'
    )
    figures[f'grid-{row.variant.slug}.png'] = (
      f'Pairs of lengths: {row.name}',
      plots.to_png(heatmap),
      'Exact answers in percent, by the digits of the first operand (down) and'
      f' of the second (across). Mean over {report_lib.seeds(config.seeds)}.'
      + (
        ' Work counts, too: it has to be the true one.'
        if row.variant.config.layout.scratchpad
        else ''
      ),
    )
  if few and all(len(row.steps) > 1 for row in rows):
    losses = plots.curves(
      {row.name: (row.steps, row.losses) for row in rows},
      x_label='steps',
      y_label='training loss, nats a token',
    )
    figures['losses.png'] = (
      'How they learned',
      plots.to_png(losses),
      f'Cross-entropy of the answers while training{_besides(rows)}. {spread}',
    )
  return figures


def _besides(rows):
  """What a loss has besides, of rows that have something."""
  names = [x.name for x in rows if x.variant.config.training.auxiliary.weight]
  return f', with the auxiliary loss of {", ".join(names)}' if names else ''


def _draw_learning(results, longest):
  """When the tokens of answers are learned, for all rows and for each."""
  config, rows = results.config, results.rows
  names = [str(place + 1) for place in range(longest)]
  first = np.stack([_padded(row.learned, longest) for row in rows])
  figures = {}
  if not np.isnan(first).all():
    figures['learned.png'] = (
      'When each token is learned',
      plots.to_png(
        plots.heatmap(
          first,
          [row.name for row in rows],
          names,
          label='steps',
          scale=1,
          limits=None,
        )
      ),
      'Steps after which the tokens of answers are right in nine of ten'
      f' problems of {results.sized(config.levels[-1])}, given those before'
      f' them, in the order of writing; scored every {config.checkpoint_steps}'
      ' steps. Mean over seeds; blank where one of them never got there.',
    )
  for row in rows:
    curves = {
      f'token {name}': (row.steps, 100 * row.learning[:, :, i])
      for i, name in zip(range(row.learning.shape[2]), names, strict=False)
    }
    figures[f'learning-{row.variant.slug}.png'] = (
      f'Token by token: {row.name}',
      plots.to_png(
        plots.curves(
          curves, x_label='steps', y_label='right tokens, %', limits=(-2, 102)
        )
      ),
      'Right tokens of the answers to problems of'
      f' {results.sized(config.levels[-1])}, given those before them, in the'
      ' order of writing; the last is the end mark.'
      + (_WITHOUT_WORK if row.variant.config.training.removal else '')
      + f' Mean and standard deviation over {report_lib.seeds(config.seeds)}.',
    )
  return figures


def _draw_axis(results, place, axis):
  """Exact answers against a number that differs, a line for all else."""
  lines: dict[str, dict[float, np.ndarray]] = {}
  for row in results.rows:
    labels = list(row.variant.labels)
    number = labels.pop(place)
    line = lines.setdefault(', '.join(labels) or results.config.task, {})
    line[float(number)] = 100 * row.exact.mean(axis=1)
  numbers = sorted(map(float, axis.labels))
  return plots.curves(
    {
      name: (sorted(line), np.stack([line[x] for x in sorted(line)], axis=1))
      for name, line in lines.items()
    },
    x_label=axis.name,
    y_label='exact answers, %',
    limits=(-2, 102),
    log_x=numbers[0] > 0 and numbers[-1] / numbers[0] > 4,
  )


def _draw_levels(results):
  """Exact answers against the level, with the levels that were trained on."""
  config = results.config
  trained = {
    tuple(
      i + 1
      for i, x in enumerate(row.variant.config.training.level_weights)
      if x
    )
    for row in results.rows
  }
  shaded = {}
  if len(trained) == 1:
    (levels,) = trained
    shaded['trained on'] = (min(levels) - 0.4, max(levels) + 0.4)
  return plots.curves(
    {row.name: (config.levels, 100 * row.exact) for row in results.rows},
    x_label=results.unit,
    y_label='exact answers, %',
    limits=(-2, 102),
    shaded=shaded,
  )


def _padded(values: np.ndarray, count: int) -> np.ndarray:
  """Values with NaN behind them, which are drawn as blanks."""
  return np.append(values, np.full(count - len(values), np.nan))


def _caption(results):
  sizes = sorted({size for row in results.rows for size in row.sizes})
  counts = str(sizes[-1]) if len(sizes) == 1 else f'{sizes[0]} to {sizes[-1]}'
  return (
    f'Accuracy in percent: whole answers that are exactly right, on {counts}'
    ' problems of each size from the test split, none of which was trained on.'
    ' Where a layout writes work before the answer, the model writes its own,'
    ' and its answer counts.'
    ' Right tokens: of all that is to be said, given the true tokens before.'
    ' All seeds, and all rows of one task, are scored on the same problems.'
  )


def _lines(results):
  width = max(len(row.name) for row in results.rows)
  return [f'{row.name:<{width}}  {row.line}' for row in results.rows]


def _details(results: results_lib.Results) -> Mapping[str, str]:
  config = results.config
  training = config.training
  return {
    'task': config.task,
    'varied': '; '.join(config.vary) or 'nothing',
    'seeds': f'{config.seeds}, all from seed={config.seed}',
    'training': (
      f'{training.steps} steps of {training.batch_size} problems, learning rate'
      f' {training.learning_rate:g}, '
      + (
        f'{training.examples} problems in all'
        if training.examples
        else 'new problems in every step'
      )
      + '; where rows differ, as they say'
    ),
  }
