"""What a person sees of a run: table, figures, page, the best programs."""

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
import statistics
from typing import Any

import numpy as np

from experiments.autonumerics import search
from experiments.configs import autonumerics as configs
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables
from numerics import functions

_LEAD = (
  'Real et al. (2023) evolve programs of additions, products and quotients that'
  ' compute a function in few operations, and find one that gives 2^x to 14'
  ' digits in 10 operations. Here an evolution on one machine looks for such'
  ' programs, for every number of operations.'
)

_READING = (
  'Digits are those of the largest relative error in the interval, in float64:'
  ' -log10 of it. Constants are free; only operations on the argument and on'
  ' what follows from it count. Polynomials have the least largest error that'
  ' there is, by Horner’s rule, and the series is Taylor’s around the middle,'
  ' whose distance to the argument is not counted.\n\n'
  'In float32 every step is rounded, so that a program of more digits than'
  ' float32 has may err by more units in the last place than one of fewer'
  ' operations: squares of squares multiply what was rounded before.'
)

# Digits of the paper, for 2^x on [0, 1], by operations.
_PUBLISHED = {10: 14.3}
_PROGRAMS = {10: functions.EXP2_TEN_OPERATIONS}


def write(
  config: configs.Config,
  found: Sequence[search.Evolved],
  *,
  directory: Path,
  starts: Any,
) -> tables.Table:
  """Writes `table.md`, `table.csv`, figures, programs and `report.html`.

  Args:
    config: The run.
    found: What every seed found.
    directory: Where the files go.
    starts: The environments of the run's starts, the last one last.

  Returns:
    The table, for the console.
  """
  best = best_programs(found)
  table = build_table(config, found)
  page = report_lib.start(
    directory,
    table,
    findings(config, found),
    title=_title(config),
    lead=_LEAD,
  )
  page.add_section('Digits')
  for name, (png, caption) in draw_figures(config, found).items():
    files.write(directory / name, png)
    page.add_figure(png, caption)
  page.add_section('The programs')
  for count, each in best.items():
    page.add_text(f'{count} operations, {each.digits:.2f} digits:')
    page.add_code(str(each.program))
  page.add_section('How to read it', _READING)
  report_lib.finish(
    page, directory, _details(config), starts=starts, left='programs/'
  )
  return table


def best_programs(
  found: Sequence[search.Evolved],
) -> dict[int, functions.Found]:
  """The best program of all seeds, by operations."""
  best: dict[int, functions.Found] = {}
  for each in (x for evolved in found for x in evolved.front):
    count = each.program.operations
    if count not in best or each.error < best[count].error:
      best[count] = each
  return dict(sorted(best.items()))


def build_table(
  config: configs.Config, found: Sequence[search.Evolved]
) -> tables.Table:
  """A row for each number of operations."""

  def column(
    name: str, label: str, *, digits: int = 2, fixed: bool = True
  ) -> tables.Column:
    return tables.Column(
      name=name, label=label, scale=1, digits=digits, best=None, fixed=fixed
    )

  table = tables.Table(
    _title(config),
    [
      column('evolved', 'evolved', fixed=False),
      column('best', 'its best'),
      column('ulps', 'its ulps in float32', digits=1),
      column('polynomial', 'polynomial'),
      column('series', 'series'),
      column('measured', 'of the paper, here'),
      column('published', 'as published'),
    ],
    caption=(
      f'Decimal digits of {search.PROBLEMS[config.function].name}, by'
      ' operations: of programs that evolved, of the best polynomial, of'
      ' Taylor’s series, and of the program of Real et al. (2023).'
    ),
    empty='an empty cell has no such program',
  )
  best = best_programs(found)
  polynomial = search.polynomial_digits(config)
  series = search.series_digits(config)
  published = _published(config)
  group = table.add_group('Operations', ranked=False)
  for count in range(1, config.operations + 1):
    own = _digits_of(found, count)
    row: dict[str, Any] = {
      'evolved': own,
      'polynomial': polynomial.get(count),
      'series': series.get(count),
      'published': published.get(count),
    }
    if count in best:
      row['best'] = best[count].digits
      row['ulps'] = search.float32_ulps(config, best[count].program)
    if count in published and count in _PROGRAMS:
      row['measured'] = search.digits(config, _PROGRAMS[count])
    table.add_row(group, str(count), row)
  return table


def findings(
  config: configs.Config, found: Sequence[search.Evolved]
) -> list[str]:
  """Sentences computed from the numbers."""
  said = []
  best = best_programs(found)
  polynomial = search.polynomial_digits(config)
  shared = [count for count in polynomial if count in best]
  if shared:
    count = shared[-1]
    gain = best[count].digits - polynomial[count]
    word = 'more' if gain > 0 else 'fewer'
    said.append(
      f'In {count} operations, evolution finds a program of'
      f' {best[count].digits:.1f} digits, {abs(gain):.1f} {word} than the best'
      f' polynomial of as many, {polynomial[count]:.1f}.'
    )
  for count, digits in _published(config).items():
    own = _digits_of(found, count)
    if own:
      verdict = (
        'reached' if max(own) >= digits - 0.05 else 'not reached by this search'
      )
      spread = f' ± {statistics.stdev(own):.1f}' if len(own) > 1 else ''
      said.append(
        f'The {digits} digits that the paper reports for {count} operations are'
        f' {verdict}: {statistics.fmean(own):.1f}{spread} digits over'
        f' {report_lib.seeds(len(own))}, {max(own):.1f} at best. The paper'
        ' searched for days on thousands of processes.'
      )
  return said or ['No program was found.']


def draw_figures(
  config: configs.Config, found: Sequence[search.Evolved]
) -> Mapping[str, tuple[bytes, str]]:
  """PNG and caption of each figure, by file name."""
  name = search.PROBLEMS[config.function].name
  counts = range(1, config.operations + 1)
  everywhere = [k for k in counts if len(_digits_of(found, k)) == len(found)]
  series = {
    'evolved': (
      everywhere,
      np.array([_digits_of(found, k) for k in everywhere]).T,
    )
  }
  for label, digits in (
    ('best polynomial', search.polynomial_digits(config)),
    ('Taylor’s series', search.series_digits(config)),
  ):
    series[label] = (list(digits), np.array([list(digits.values())]))
  against = plots.curves(
    {k: v for k, v in series.items() if len(v[0])},
    x_label='operations',
    y_label='decimal digits',
    levels={
      f'{count} operations of the paper': digits
      for count, digits in _published(config).items()
    },
  )
  figures = {
    'operations.png': (
      plots.to_png(against),
      f'Digits of {name} against the operations that it takes; mean and'
      f' standard deviation over {report_lib.seeds(len(found))}.',
    )
  }
  time = {}
  for count in everywhere:
    digits = np.stack([each.digits[:, count - 1] for each in found])
    known = np.all(np.isfinite(digits), axis=0)
    if known.any():
      turns = np.array(found[0].generations)[known]
      label = '1 operation' if count == 1 else f'{count} operations'
      time[label] = turns, digits[:, known]
  if time and any(len(turns) > 1 for turns, _ in time.values()):
    figures['generations.png'] = (
      plots.to_png(
        plots.curves(time, x_label='generations', y_label='decimal digits')
      ),
      f'Digits of the best program of {name} so far, by generations; mean and'
      f' standard deviation over {report_lib.seeds(len(found))}.',
    )
  return figures


def _digits_of(found: Sequence[search.Evolved], count: int) -> list[float]:
  return [
    each.digits
    for evolved in found
    for each in evolved.front
    if each.program.operations == count
  ]


def _published(config: configs.Config) -> dict[int, float]:
  if config.function != 'exp2':
    return {}
  return {k: v for k, v in _PUBLISHED.items() if k <= config.operations}


def _title(config: configs.Config) -> str:
  return f'{search.PROBLEMS[config.function].name} in few operations'


def _details(config: configs.Config) -> Mapping[str, str]:
  return {
    'search': (
      f'{config.generations:,} generations of {config.children} programs, of'
      f' which {config.kept} are kept for each number of operations'
    ),
    'seeds': f'{config.seeds}, all from seed={config.seed}',
  }
