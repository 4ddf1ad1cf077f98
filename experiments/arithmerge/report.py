"""What a person sees of a run: table, figures, page."""

from collections.abc import Mapping
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arithmerge import disentanglement
from experiments.arithmerge import scores as scores_lib
from experiments.arithmerge.methods import METHODS
from experiments.configs import arithmerge as configs
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables

_FEW_BITS = 'best merge, task vectors in few bits'
_CURVES = 7  # In one figure; more cannot be told apart.


def build_table(
  config: configs.Config, scores: scores_lib.Scores
) -> tables.Table:
  """Yardsticks, blocks of merges, and the best merge from few bits."""
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
      ' over tasks (in the tangent space, of the single expert trained there).'
      ' Coefficients were chosen for each seed on'
      f' {config.validation_size} problems of each task from the'
      ' validation split; "without validation" is the normalised accuracy'
      ' with a fixed default instead. Neither split is ever trained on; all'
      ' seeds are scored on the same problems.'
    ),
  )
  merges = scores.merges
  group = table.add_group('yardsticks', ranked=False)
  for row, accuracy in scores.yardsticks.items():
    table.add_row(group, row, _cells(merges, accuracy))
  for kind, block in scores.blocks.items():
    if block.others:
      group = table.add_group(f'yardsticks: {kind}', ranked=False)
      for row, accuracy in block.others.items():
        table.add_row(group, row, _cells(block, accuracy))
    group = table.add_group(block.title, ranked=kind != 'protect')
    for row, result in block.results.items():
      cells = _cells(block, result.test)
      if result.default is not None:
        cells['default'] = block.normalized(result.default)
      table.add_row(group, row, cells)
  group = table.add_group(_FEW_BITS, ranked=False)
  for bits, accuracy in scores.stored.items():
    row = f'{merges.best}, {bits}'
    table.add_row(group, row, _cells(merges, accuracy))
  return table


def _cells(block: scores_lib.Block, accuracy: np.ndarray) -> dict[str, Any]:
  return {
    'normalized': block.normalized(accuracy),
    'mean': accuracy.mean(axis=1),
    **dict(zip(block.tasks, accuracy.T, strict=True)),
  }


def draw_figures(
  config: configs.Config, scores: scores_lib.Scores
) -> Mapping[str, tuple[bytes, str]]:
  """PNG and caption of each figure, by file name."""
  groups = [scores.yardsticks]
  for block in scores.blocks.values():
    tests = {name: result.test for name, result in block.results.items()}
    rows = {**block.others, **tests}
    prefix = 'tangent: ' if block is scores.blocks.get('tangent') else ''
    groups.append(
      {f'{prefix}{k}': _spread(config, block, x) for k, x in rows.items()}
    )
  best = scores.merges.best
  groups.append({f'{best}, {k}': v for k, v in scores.stored.items()})
  names = [name.replace('_', ' ') for name in config.tasks]
  heatmap = plots.heatmap(
    np.stack([x.mean(axis=0) for rows in groups for x in rows.values()]),
    [name for rows in groups for name in rows],
    names,
    label='exact answers, %',
    breaks=list(itertools.accumulate(map(len, groups[:-1]))),
  )
  cosines = plots.matrix(scores.cosines.mean(axis=0), names)
  figures = {
    'heatmap.png': (
      plots.to_png(heatmap),
      'Exact answers in percent of every model on every task, mean over'
      f' {report_lib.seeds(config.seeds)}.',
    ),
    'cosines.png': (
      plots.to_png(cosines),
      'Cosine similarity between the task vectors (expert minus base) of'
      f' a seed, mean over {report_lib.seeds(config.seeds)}. Their norms are'
      f' {100 * scores.norms.min():.1f} to {100 * scores.norms.max():.1f} %'
      " of the base's.",
    ),
  }
  curve = _draw_curves(config, scores)
  if curve is not None:
    figures['coefficients.png'] = curve
  if scores.disentanglement:
    figures['disentanglement.png'] = _draw_disentanglement(config, scores)
  return figures


def _draw_disentanglement(
  config: configs.Config, scores: scores_lib.Scores
) -> tuple[bytes, str]:
  first, second = (name.replace('_', ' ') for name in sorted(config.tasks[:2]))
  titles = {'experts': 'fine-tuned', 'tangent': 'in the tangent space'}
  figure = plots.fields(
    {titles[stage]: x for stage, x in scores.disentanglement.items()},
    disentanglement.ALPHAS,
    disentanglement.ALPHAS,
    x_label=f'coefficient of {second}',
    y_label=f'coefficient of {first}',
    label='disentanglement error',
    limits=(0.0, 2.0),
    mark=(1.0, 1.0),
  )
  return plots.to_png(figure), (
    'Disentanglement error of two experts of the first seed: the share of'
    ' problems of each task that are answered otherwise once the other task'
    ' vector is added too, summed over both, so 0 to 2. The cross is at (1, 1),'
    ' both experts whole.'
  )


def _spread(
  config: configs.Config, block: scores_lib.Block, accuracy: np.ndarray
) -> np.ndarray:
  """Accuracies of a block's tasks among all: f64[seeds, all tasks]."""
  full = np.full((len(accuracy), len(config.tasks)), np.nan)
  full[:, [config.tasks.index(name) for name in block.tasks]] = accuracy
  return full


def _draw_curves(
  config: configs.Config, scores: scores_lib.Scores
) -> tuple[bytes, str] | None:
  """Normalised validation accuracy against the scaling coefficient.

  Of task arithmetic and the best methods with a coefficient, each with its best
  other settings.
  """
  series: dict[str, tuple[list[float], np.ndarray]] = {}
  tops: dict[str, float] = {}
  for method in METHODS:
    values = scores.merges.results.get(method.name)
    lines: dict[str, list[int]] = {}
    for i, setting in enumerate(method.settings):
      if 'scale' in setting:
        rest = [f'{k} {v:g}' for k, v in setting.items() if k != 'scale']
        lines.setdefault(', '.join([method.name, *rest]), []).append(i)
    if values is None or not lines:
      continue
    means = values.validation.mean(axis=0)
    name = max(lines, key=lambda line: means[lines[line]].max())
    if len(lines[name]) < 3:
      continue
    index = sorted(lines[name], key=lambda i: method.settings[i]['scale'])
    scales = [method.settings[i]['scale'] for i in index]
    series[name] = scales, values.validation[:, index]
    first = method.recipe == 'task_arithmetic'
    tops[name] = np.inf if first else means[index].max()
  if not series:
    return None
  shown = sorted(tops, key=tops.__getitem__, reverse=True)[:_CURVES]
  base = scores.validation_base.mean()
  figure = plots.curves(
    {name: (series[name][0], 100 * series[name][1]) for name in shown},
    x_label='scaling coefficient',
    y_label='normalised accuracy on validation, %',
    levels={'base': 100 * float(base)},
    log_x=True,
  )
  return plots.to_png(figure), (
    'Normalised accuracy on the validation split against the scaling'
    ' coefficient: mean and standard deviation over'
    f' {report_lib.seeds(config.seeds)}, for task arithmetic and the'
    f' {len(shown) - 1} best of the other methods that have one. What'
    ' the coefficient multiplies differs: a sum of task vectors'
    f' (averaging is then {1 / len(config.tasks):g}), a mean of those that'
    ' agree, a sum with a levelled spectrum.'
  )


def findings(config: configs.Config, scores: scores_lib.Scores) -> list[str]:
  """What the numbers say, in sentences computed from them."""

  def say(accuracy: np.ndarray) -> str:
    score = 100 * scores.merges.normalized(accuracy)
    spread = f' ± {score.std(ddof=1):.1f}' if config.seeds > 1 else ''
    return f'{score.mean():.1f}{spread}'

  def against(accuracy: np.ndarray, other: np.ndarray) -> str:
    normalized = scores.merges.normalized
    gain = 100 * (normalized(accuracy) - normalized(other))
    if config.seeds == 1:
      return f'{gain.mean():+.1f} points, with one seed'
    return (
      f'{gain.mean():+.1f} ± {gain.std(ddof=1):.1f} points, ahead in'
      f' {int((gain > 0).sum())} of {config.seeds} seeds'
    )

  yardsticks, merges = scores.yardsticks, scores.merges
  best, average = merges.results[merges.best], merges.results['average']
  experts = 100 * yardsticks['experts'].mean()
  base = 100 * yardsticks['base'].mean()
  sentences = [
    f"Room: single experts answer {experts:.1f} % of their own task's problems"
    f' exactly, the base {base:.1f} %; normalised, the base scores'
    f' {say(yardsticks["base"])}.',
    f'The best merge on validation is {merges.best}, at {say(best.test)}.'
    f' Averaging scores {say(average.test)}; {merges.best} against it is'
    f' {against(best.test, average.test)}.',
    f'Joint training reaches {say(yardsticks["joint training"])}; an ensemble'
    f' of all experts, {len(config.tasks)} times as large,'
    f' {say(yardsticks["ensemble of experts"])}.',
  ]
  edges = []
  for method in METHODS:
    scales = [s['scale'] for s in method.settings if 'scale' in s]
    if method.name not in merges.results or len(set(scales)) < 3:
      continue
    picked = [each['scale'] for each in merges.results[method.name].chosen]
    inside = sum(min(scales) < scale < max(scales) for scale in picked)
    if inside < len(picked):
      edges.append(f'{method.name} ({_listed(picked)})')
  sentences.append(
    'The scaling coefficient that validation chooses lies inside the range'
    ' that was searched for every method and seed.'
    if not edges
    else 'Validation chooses a scaling coefficient at an end of the range that'
    f' was searched for {", ".join(edges)}: a wider range may do better.'
  )
  if 'tangent' in scores.blocks:
    tangent = scores.blocks['tangent']
    single = 100 * tangent.experts.mean()
    top = tangent.results[tangent.best].test
    sentences.append(
      f'Experts trained in the tangent space answer {single:.1f} % of their own'
      f" task's problems; the best merge of them, {tangent.best}, keeps"
      f' {100 * tangent.normalized(top).mean():.1f} % of that and answers'
      f' {100 * top.mean():.1f} % (the best merge of the others'
      f' {100 * best.test.mean():.1f} %).'
    )
  for bits, accuracy in scores.stored.items():
    sentences.append(
      f'With task vectors in {bits}, {merges.best} scores {say(accuracy)};'
      f' against full precision that is {against(accuracy, best.test)}.'
    )
  return sentences


def write(
  config: configs.Config,
  scores: scores_lib.Scores,
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
    'disentanglement.png': 'How much two task vectors disturb each other',
    'cosines.png': 'How alike the task vectors are',
  }
  for name, heading in captions.items():
    if name in figures:
      png, caption = figures[name]
      page.add_section(heading)
      page.add_figure(png, caption)
  page.add_section('How to read it')
  page.add_text(_READING)
  report_lib.finish(page, directory, _details(config), starts=starts)
  return table


_READING = (
  'The base has seen long problems only rarely, so it fails many of them;'
  ' each expert was trained on the long problems of one task. A task vector'
  ' is an expert minus the base. Averaging takes an equally small step along'
  ' all task vectors; task arithmetic scales their sum; TIES keeps the'
  ' largest entries of each and averages those that agree in sign; DARE drops'
  ' entries at random and scales up the rest. Joint training, from the same'
  ' base on all tasks at once, shows what one model of this size can learn; a'
  ' merge has seen the experts only. Methods that act on matrices (TSV-M,'
  ' Iso-C, SWUDI and their kin) look at directions rather than entries;'
  ' docs/merging.md says what each does. Restored models know the task they'
  ' are asked, protected experts were rewritten so that merging them fails,'
  ' and in the tangent space the model is linear in its parameters. Scores'
  ' above 100 % would mean that it beats the experts at their own tasks.'
)


def _details(config: configs.Config) -> Mapping[str, str]:
  model = config.model
  return {
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
  }


def _training(settings: configs.Training) -> str:
  return (
    f'{settings.steps} steps of {settings.batch_size} problems, learning rate'
    f' {settings.learning_rate:g}, levels weighted'
    f' {_listed(settings.level_weights)}'
  )


def _listed(values: Any) -> str:
  return ', '.join(f'{value:g}' for value in values)
