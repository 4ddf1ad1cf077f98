"""What a person sees of a run: table, figures, page."""

from collections.abc import Mapping
from pathlib import Path
import shlex
from typing import Any

import numpy as np

from experiments.arithmerge import scoring
from experiments.arithmerge.methods import METHODS
from experiments.configs import arithmerge as configs
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables

_FEW_BITS = 'best merge, task vectors in few bits'


def build_table(config: configs.Config, scores: scoring.Scores) -> tables.Table:
  """Yardsticks, merges, and the best merge from few bits."""
  columns = [
    tables.Column(name='normalized', label='normalised'),
    tables.Column(name='default', label='without validation'),
    tables.Column(name='mean'),
    *(
      tables.Column(name=name, label=name.replace('_', ' '))
      for name in config.tasks
    ),
  ]
  table = tables.Table(
    'ArithMerge',
    columns,
    caption=(
      'Accuracy in percent: whole answers that are exactly right, on'
      f' {config.test_size} problems of each task from the test split.'
      ' Normalised: divided by the accuracy of the single expert, averaged'
      ' over tasks. Coefficients were chosen for each seed on'
      f' {config.validation_size} problems of each task from the'
      ' validation split; "without validation" is the normalised accuracy'
      ' with a fixed default instead. Neither split is ever trained on; all'
      ' seeds are scored on the same problems.'
    ),
  )
  rows = {row: scores.test[row] for row in scoring.YARDSTICKS}
  _add_rows(table, config, scores, 'yardsticks', rows)
  rows = {method.name: scores.test[method.name] for method in METHODS}
  _add_rows(table, config, scores, 'merges', rows, ranked=True)
  rows = {
    f'{scores.best}, {bits}': accuracy
    for bits, accuracy in scores.stored.items()
  }
  _add_rows(table, config, scores, _FEW_BITS, rows)
  return table


def _add_rows(
  table: tables.Table,
  config: configs.Config,
  scores: scoring.Scores,
  heading: str,
  rows: Mapping[str, np.ndarray],
  *,
  ranked: bool = False,
) -> None:
  group = table.add_group(heading, ranked=ranked)
  for row, accuracy in rows.items():
    values: dict[str, Any] = {
      'normalized': scores.normalized(accuracy),
      'mean': accuracy.mean(axis=1),
      **dict(zip(config.tasks, accuracy.T, strict=True)),
    }
    if row in scores.default:
      values['default'] = scores.normalized(scores.default[row])
    table.add_row(group, row, values)


def draw_figures(
  config: configs.Config, scores: scoring.Scores
) -> Mapping[str, tuple[bytes, str]]:
  """PNG and caption of each figure, by file name."""
  accuracies = {row: scores.test[row] for row in scoring.YARDSTICKS}
  accuracies |= {method.name: scores.test[method.name] for method in METHODS}
  accuracies |= {f'{scores.best}, {k}': v for k, v in scores.stored.items()}
  names = [name.replace('_', ' ') for name in config.tasks]
  values = np.stack([x.mean(axis=0) for x in accuracies.values()])
  heatmap = plots.heatmap(
    values,
    list(accuracies),
    names,
    label='exact answers, %',
    breaks=(
      len(scoring.YARDSTICKS),
      len(scoring.YARDSTICKS) + len(METHODS),
    ),
  )
  cosines = plots.matrix(scores.cosines.mean(axis=0), names)
  figures = {
    'heatmap.png': (
      plots.to_png(heatmap),
      'Exact answers in percent of every model on every task, mean over'
      f' {_seeds(config)}.',
    ),
    'cosines.png': (
      plots.to_png(cosines),
      'Cosine similarity between the task vectors (expert minus base) of'
      f' a seed, mean over {_seeds(config)}. Their norms are'
      f' {100 * scores.norms.min():.1f} to {100 * scores.norms.max():.1f} %'
      " of the base's.",
    ),
  }
  curve = _draw_curves(config, scores)
  if curve is not None:
    figures['coefficients.png'] = curve
  return figures


def _draw_curves(
  config: configs.Config, scores: scoring.Scores
) -> tuple[bytes, str] | None:
  """Normalised validation accuracy against the scaling coefficient.

  A method whose settings vary in more than `scale` gives one line for each
  combination of the others.
  """
  series: dict[str, tuple[list[float], np.ndarray]] = {}
  for method in METHODS:
    values = scores.validation_scores[method.name]
    lines: dict[str, list[int]] = {}
    for i, setting in enumerate(method.settings):
      if 'scale' in setting:
        rest = [f'{k} {v:g}' for k, v in setting.items() if k != 'scale']
        lines.setdefault(', '.join([method.name, *rest]), []).append(i)
    for name, index in lines.items():
      scales = [method.settings[i]['scale'] for i in index]
      series[name] = scales, values[:, index]
  if not series:
    return None
  base = scores.validation_base.mean()
  figure = plots.curves(
    {name: (x, 100 * y) for name, (x, y) in series.items()},
    x_label='scaling coefficient',
    y_label='normalised accuracy on validation, %',
    levels={'base': 100 * float(base)},
    log_x=True,
  )
  return plots.to_png(figure), (
    'Normalised accuracy on the validation split against the scaling'
    f' coefficient: mean and standard deviation over {_seeds(config)}. Task'
    ' arithmetic and DARE scale the sum of task vectors, so that averaging'
    f' is {1 / len(config.tasks):g}; TIES scales a mean of those that agree.'
  )


def _seeds(config: configs.Config) -> str:
  return '1 seed' if config.seeds == 1 else f'{config.seeds} seeds'


def findings(config: configs.Config, scores: scoring.Scores) -> list[str]:
  """What the numbers say, in sentences computed from them."""

  def say(accuracy: np.ndarray) -> str:
    score = 100 * scores.normalized(accuracy)
    spread = f' ± {score.std(ddof=1):.1f}' if config.seeds > 1 else ''
    return f'{score.mean():.1f}{spread}'

  def against(accuracy: np.ndarray, other: np.ndarray) -> str:
    gain = 100 * (scores.normalized(accuracy) - scores.normalized(other))
    if config.seeds == 1:
      return f'{gain.mean():+.1f} points, with one seed'
    return (
      f'{gain.mean():+.1f} ± {gain.std(ddof=1):.1f} points, ahead in'
      f' {int((gain > 0).sum())} of {config.seeds} seeds'
    )

  test = scores.test
  best = test[scores.best]
  experts = 100 * scores.test['experts'].mean()
  base = 100 * scores.test['base'].mean()
  sentences = [
    f"Room: single experts answer {experts:.1f} % of their own task's problems"
    f' exactly, the base {base:.1f} %; normalised, the base scores'
    f' {say(test["base"])}.',
    f'The best merge on validation is {scores.best}, at {say(best)}. Averaging'
    f' scores {say(test["average"])}; {scores.best} against it is'
    f' {against(best, test["average"])}.',
    f'Joint training reaches {say(test["joint training"])}; an ensemble of all'
    f' experts, {len(config.tasks)} times as large,'
    f' {say(test["ensemble of experts"])}.',
  ]
  for method in METHODS:
    scales = [s['scale'] for s in method.settings if 'scale' in s]
    if len(set(scales)) < 3:
      continue
    picked = [scales[i] for i in scores.chosen[method.name]]
    inside = sum(min(scales) < scale < max(scales) for scale in picked)
    sentences.append(
      f'The scaling coefficient of {method.name} that validation chooses is'
      f' {_listed(picked)}: inside the range searched'
      f' ({min(scales):g} to {max(scales):g}) in {inside} of'
      f' {config.seeds} seeds.'
    )
  for bits, accuracy in scores.stored.items():
    sentences.append(
      f'With task vectors in {bits}, {scores.best} scores {say(accuracy)};'
      f' against full precision that is {against(accuracy, best)}.'
    )
  return sentences


def write(
  config: configs.Config,
  scores: scoring.Scores,
  *,
  directory: Path,
  starts: Any,
) -> tables.Table:
  """Writes `table.md`, `table.csv`, the figures and `report.html`.

  Args:
    config: The run.
    scores: Its scores.
    directory: Where the files go.
    starts: The environments of the run's starts, the last one last.

  Returns:
    The table, for the console.
  """
  table = build_table(config, scores)
  files.write(directory / 'table.md', table.to_markdown())
  files.write(directory / 'table.csv', table.to_csv())
  figures = draw_figures(config, scores)
  for name, (png, _) in figures.items():
    files.write(directory / name, png)
  page = report_lib.Report(
    'ArithMerge',
    lead=(
      'One small transformer, the base, learns'
      f' {len(config.tasks)} exact arithmetic tasks on short problems. From'
      ' it, one expert for each task learns longer problems. This page'
      ' shows how well each way of merging the experts into one model does'
      ' the longer problems of all tasks.'
    ),
  )
  page.add_section('What came out')
  page.add_list(findings(config, scores))
  page.add_section('The table')
  page.add_table(table)
  captions = {
    'heatmap.png': 'Every model on every task',
    'coefficients.png': 'How far to go',
    'cosines.png': 'How alike the task vectors are',
  }
  for name, heading in captions.items():
    if name in figures:
      png, caption = figures[name]
      page.add_section(heading)
      page.add_figure(png, caption)
  page.add_section('How to read it')
  page.add_text(_READING)
  page.add_section('How it was run')
  page.add_facts(_details(config, starts))
  page.save(directory / 'report.html')
  return table


_READING = (
  'The base has seen long problems only rarely, so it fails many of them;'
  ' each expert was trained on the long problems of one task. A task vector is'
  ' an expert minus the base. Averaging takes an equally small step along all'
  ' task vectors; task arithmetic scales their sum; TIES keeps the largest'
  ' entries of each and averages those that agree in sign; DARE drops entries'
  ' at random and scales up the rest. Joint training, from the same base on'
  ' all tasks at once, shows what one model of this size can learn; a merge has'
  ' seen the experts only. Scores above 100 % would mean that it beats the'
  ' experts at their own tasks.'
)


def _details(config: configs.Config, starts: Any) -> Mapping[str, str]:
  model, now = config.model, starts[-1]
  return {
    'command': shlex.join(
      ['python', '-m', 'experiments.reproduce', *now['argv'][1:]]
    ),
    'seeds': f'{config.seeds}, all from seed={config.seed}',
    'model': (
      f'{model.layers} layers, width {model.width}, {model.heads} heads,'
      f' {model.positions} positions, {model.dtype}'
    ),
    'base': _training(config.base),
    'experts': _training(config.expert),
    'joint training': f'{config.joint_steps} steps, otherwise as experts',
    'scored on': (
      f'levels weighted {_listed(config.test_level_weights)};'
      f' {config.validation_size} validation and {config.test_size} test'
      ' problems of each task'
    ),
    'devices': ', '.join(map(str, now['devices'])),
    'versions': ', '.join(f'{k} {v}' for k, v in now['packages'].items()),
    'files': (
      'config.json, environment.json, metrics.jsonl, table.csv, table.md,'
      ' models/'
    ),
  }


def _training(settings: configs.Training) -> str:
  return (
    f'{settings.steps} steps of {settings.batch_size} problems, learning rate'
    f' {settings.learning_rate:g}, levels weighted'
    f' {_listed(settings.level_weights)}'
  )


def _listed(values: Any) -> str:
  return ', '.join(f'{value:g}' for value in values)
