"""Rows of arithmetics to learn in, and what is said of what was learned."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory
from experiments.configs import quantized_training as configs
from experiments.laboratory import problems as problems_lib
from experiments.quantized_training import learning
from experiments.quantized_training import report
from experiments.quantized_training import results as results_lib
from experiments.quantized_training import rows as rows_lib
from experiments.quantized_training import run as run_lib
from experiments.runtime import config as config_lib
from experiments.runtime import errors
import numerics

SMALL = configs.Config(
  model=laboratory.Config(
    layout=layouts.Layout(answer_order='reversed'),
    model=transformer.Shape(layers=1, heads=2, width=32),
    training=laboratory.Training(
      steps=2, warmup=1, batch_size=8, level_weights=(1, 1)
    ),
    levels=(2,),
    test_size=8,
    seeds=2,
  )
)
ROWS = {row.key: row for row in rows_lib.ROWS}


def test_rows_are_all_different():
  assert next(iter(ROWS)) == rows_lib.BASELINE
  assert len(ROWS) == len(rows_lib.ROWS)
  how = {(row.forward, row.backward, row.aware) for row in rows_lib.ROWS}
  assert len(how) == len(ROWS)
  assert {key for key, row in ROWS.items() if row.blocked} == {
    *('quartet', 'quartet_nearest'),
  }


@pytest.mark.parametrize(
  ('setting', 'words'),
  [
    ('rows=quintet', "no row 'quintet'; did you mean 'quartet'"),
    ('model.vary=model.width=32|64', 'vary'),
    ('model.model.dropout=0.1', 'nothing is dropped'),
    ('model.model.width=48', 'blocks of 32'),
    ('delay=0', 'delay is at least 1'),
  ],
)
def test_a_wrong_setting_is_named(setting, words):
  with pytest.raises(errors.UsageError, match=words):
    config_lib.overlay(configs.cpu(), [setting])


def test_widths_are_free_without_blocks():
  settings = ['model.model.width=48', 'rows=int8']
  assert config_lib.overlay(configs.cpu(), settings).model.model.width == 48


@pytest.mark.parametrize('key', ['mxfp4', 'mxfp4_stochastic'])
def test_products_of_attention_stay_in_float32(key):
  problems = problems_lib.Problems(SMALL.model)
  params = jax.eval_shape(
    lambda key: transformer.init(key, problems.model), jax.random.key(0)
  )
  params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
  tokens = problems.test.tokens[0, :1]
  row = ROWS[key]

  def widths(function, policy):
    costs = numerics.count(function, policy)(params, tokens)
    return [
      cost.bits
      for cost in costs.rows
      if cost.operation.primitive == 'dot_general'
    ]

  forward = widths(problems.logits, row.forward)
  assert sorted(forward) == [4] * 5 + [32] * 2  # Four layers and the logits.
  both = widths(
    jax.grad(lambda *args: problems.logits(*args).sum()), row.backward
  )
  assert both.count(32) == 3 * 2
  assert both.count(4) == 3 * 5 - 1  # Nobody asks for the logits.


def results_of(losses, exact):
  """Results of rows by key, of two seeds."""
  rows = []
  for key, loss in losses.items():
    share = np.array(exact[key])
    scores = learning.Scores(share, share, share + 0.05, np.array([0.1, 0.2]))
    curve = np.array([[2.0, 1.0], [2.0, 1.0]]) * np.array(loss)[:, None]
    rows.append(results_lib.Result(ROWS[key], scores, np.array([5, 9]), curve))
  return results_lib.Results(SMALL, 8, '+12,34=64$', tuple(rows))


LOSSES = {
  'float32': [0.1, 0.2],
  'int8': [0.1, 0.2],
  'mxfp4': [0.4, 0.7],
  'mxfp4_stochastic': [0.2, 0.4],
  'quartet': [0.2, 0.4],
  'quartet_nearest': [0.3, 0.5],
}
EXACT = {key: [0.9, 0.8] for key in LOSSES} | {'mxfp4': [0.5, 0.6]}


@pytest.mark.parametrize(
  'said',
  [
    'Trained in float32, the models answer 85.0 ± 7.1 % of 8 problems exactly,'
    ' at a loss of 0.150 nats a token at the end.',
    'Trained in INT8, quantisation-aware: exact answers +0.0 ± 0.0 points,'
    ' ahead in 0 of 2 seeds; the loss is 1.00 ± 0.00 times that of float32.',
    'Quartet learns better than MXFP4 rounded to nearest holds: exact answers'
    ' +30.0 ± 14.1 points, ahead in 2 of 2 seeds; the loss is 0.54 ± 0.05',
    'backward pass at random that clips cannot be told: exact answers +0.0',
    'scales that are not rounded down does not hold:',
    'Run in float32, weights answer most otherwise than in their own arithmetic'
    ' where that is INT8, quantisation-aware: +5.0 points.',
  ],
)
def test_findings_follow_from_the_numbers(said):
  found = results_lib.findings(results_of(LOSSES, EXACT))
  assert any(said in sentence for sentence in found), found


def test_rows_that_did_not_run_are_not_spoken_of():
  alone = {'float32': LOSSES['float32']}
  assert len(results_lib.findings(results_of(alone, EXACT))) == 1


def test_page_has_the_table_and_its_figures(tmp_path):
  start = {'argv': ['reproduce'], 'devices': ['cpu'], 'packages': {'jax': '0'}}
  table = report.write(
    results_of(LOSSES, EXACT), directory=tmp_path, starts=[start]
  )
  assert {path.name for path in tmp_path.iterdir()} == {
    *('table.md', 'table.csv', 'losses.png', 'against.png', 'report.html'),
  }
  assert 'over 2 seeds' in table.to_markdown()
  page = (tmp_path / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == 2
  assert 'nothing was tuned for an arithmetic' in page


@pytest.mark.slow  # It compiles a program for every row.
@jax.numpy_dtype_promotion('standard')  # Schedules of optax count in floats.
def test_a_run_continues_and_ends_with_the_same(tmp_path):
  config = dataclasses.replace(
    SMALL,
    model=dataclasses.replace(
      SMALL.model,
      training=dataclasses.replace(SMALL.model.training, steps=4),
      checkpoint_steps=2,
    ),
    rows=('int8', 'quartet'),
    delay=1,
  )
  table = run_lib.run(config, tmp_path / 'run')
  path = tmp_path / 'run/metrics.jsonl'
  lines = path.read_text().splitlines()
  stages = [json.loads(line)['stage'] for line in lines]
  assert stages == [
    each
    for key in ('float32', 'int8', 'quartet')
    for each in (key, key, f'scores/{key}')
  ]
  assert json.loads(lines[2])['test/error'] == [0.0, 0.0]
  # As if it had been killed before the last row was scored.
  path.write_text('\n'.join([*lines[:-1], lines[-1][:20]]))
  again = run_lib.run(config, tmp_path / 'run')
  assert again.to_csv() == table.to_csv()
  assert path.read_text().splitlines() == lines
