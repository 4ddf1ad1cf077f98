"""What a person sees of a run: table, figures, page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.quantized_training import results as results_lib
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib
from experiments.runtime import tables

_TITLE = 'Learning sums in low precision'

_LEAD = (
  'A small decoder learns to add, from scratch, with its products of'
  ' matrices in another arithmetic, in the forward pass and the backward.'
  ' Every row begins with the same weights and sees the same problems.'
)

_EMULATED = (
  'numerics.emulate interprets the program of the decoder; training is the'
  ' same otherwise: weights, the optimiser, norms, softmax and the loss are'
  ' in float32.\n\n'
  'bfloat16 rounds operands and results of all products of both passes.'
  ' DFP-16 (Das et al., 2018) has integers of 16 bits with an exponent for a'
  ' tensor, in all three products of a layer, and exact sums. INT8'
  ' (Krishnamoorthi, 2018) is fake quantisation: weights by output channel,'
  ' activations by a moving average of their range, after a delay; its'
  ' backward pass is in float32.\n\n'
  'Rows of MXFP4 round the products of dense layers, and leave those of'
  ' attention in float32. To nearest, all operands of both passes have the'
  ' blocks of OCP. Backward at random rounds those of the backward pass'
  ' stochastically, with the scales of OCP, under which the largest numbers'
  ' of a block clip. Quartet (Castro et al., 2025) rotates blocks by'
  ' Hadamard matrices, rounds the forward pass with the scale that is best'
  ' for normal numbers, and the backward pass stochastically without'
  ' clipping; its scale is a power of two rounded down, as in the official'
  ' code, or to nearest.'
)

_NOTES = (
  'Bits: what an operand of a product takes in the forward pass, with its'
  ' share of a scale. Loss: cross-entropy of the answers in nats a token, a'
  ' mean of the last steps of training. Exact: whole answers, in the'
  ' arithmetic of the row; in float32: the same weights; right tokens: given'
  ' those before. Logit error: the largest difference of a logit from'
  ' float32, in percent of the largest magnitude.',
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
      tables.Column(name='loss', scale=1, digits=3, best='min'),
      tables.Column(name='exact'),
      tables.Column(name='wide', label='in float32'),
      tables.Column(name='tokens', label='right tokens'),
      tables.Column(name='error', label='logit error', best=None),
    ],
    caption=_caption(results),
    notes=_NOTES,
  )
  groups: dict[str, tables.Group] = {}
  for result in results.rows:
    heading = 'MXFP4, dense layers' if result.row.bits < 8 else 'all products'
    if heading not in groups:
      groups[heading] = table.add_group(heading, ranked=True)
    scores = result.scores
    table.add_row(
      groups[heading],
      result.row.name,
      {
        'bits': result.row.bits,
        'loss': result.loss,
        'exact': scores.exact,
        'wide': scores.wide,
        'tokens': scores.tokens,
        'error': scores.error,
      },
    )
  return table


def draw_figures(
  results: results_lib.Results,
) -> Mapping[str, tuple[str, bytes, str]]:
  """Heading, PNG and caption of each figure, by file name."""
  seeds = report_lib.seeds(results.config.model.seeds)
  losses = plots.curves(
    {x.row.name: (x.steps, x.losses) for x in results.rows},
    x_label='steps',
    y_label='training loss, nats a token',
  )
  figures = {
    'losses.png': (
      'How they learned',
      plots.to_png(losses),
      'Cross-entropy of the answers while training, a mean since the point'
      f' before. Mean and standard deviation over {seeds}; a curve that is not'
      ' seen lies under another.',
    )
  }
  if len(results.rows) > 2:
    wide, *others = results.rows
    ratios = plots.dots(
      np.stack([100 * (x.loss / wide.loss - 1) for x in others]),
      [x.row.name for x in others],
      [f'{x.row.bits:g} bits' for x in others],
      x_label='loss at the end more than that of float32, %',
      level=('float32', 0.0),
    )
    figures['against.png'] = (
      'Against float32',
      plots.to_png(ratios),
      'By how much the loss at the end is above that of float32, seed by seed;'
      f' a logarithmic scale from 1 on. Mean, least and most of {seeds}.',
    )
  return figures


def _caption(results):
  config = results.config.model
  levels = ', '.join(map(str, config.levels))
  return (
    f'Problems of {config.task} of level {levels} (digits of an operand):'
    f' {results.problems} of the test split, none of which was trained on, the'
    ' same for every seed and every row. Percent, where a column does not say'
    ' otherwise.'
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
      f'{training.steps} steps of {training.batch_size} problems, learning rate'
      f' {training.learning_rate:g}; nothing was tuned for an arithmetic'
    ),
    'products': '; '.join(
      f'{x.row.name}: forward {x.row.passes[0]}, backward {x.row.passes[1]}'
      for x in results.rows
    ),
    'seeds': f'{config.seeds}, all from seed={config.seed}',
  }
