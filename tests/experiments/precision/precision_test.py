"""Rows of arithmetics, what is counted in them, and what is said of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory
from experiments.configs import precision as configs
from experiments.laboratory import problems as problems_lib
from experiments.precision import report
from experiments.precision import results as results_lib
from experiments.precision import rows as rows_lib
from experiments.precision import run as run_lib
from experiments.precision import scoring
from experiments.runtime import config as config_lib
from experiments.runtime import errors
import numerics

SMALL = configs.Config(
  model=laboratory.Config(
    layout=layouts.Layout(answer_order='reversed'),
    model=transformer.Shape(layers=1, heads=2, width=16),
    training=laboratory.Training(
      steps=2, warmup=1, batch_size=8, level_weights=(1, 1)
    ),
    levels=(2,),
    test_size=8,
    seeds=2,
  ),
  rows=('products/float8_e4m3fn', 'lmul/attention 4'),
)


def test_rows_are_all_different_and_cover_what_is_promised():
  keys = [row.key for row in rows_lib.ROWS]
  assert len(set(keys)) == len(keys)
  assert keys[0] == rows_lib.BASELINE
  assert {row.group for row in rows_lib.ROWS} == set(rows_lib.GROUPS)
  # Policies differ too, or two rows would be one.
  policies = {row.policy for row in rows_lib.ROWS}
  assert len(policies) == len(keys)
  for name in rows_lib.ROUNDED:
    assert f'products/{name}' in keys
    for mode in rows_lib.MODES:
      assert f'mode/{name} {mode}' in keys
  draws = {row.key for row in rows_lib.ROWS if row.policy.draws}
  assert draws == {key for key in keys if key.endswith(' stochastic')}


def test_bits_are_those_of_the_format():
  bits = {row.key: row.bits for row in rows_lib.ROWS}
  assert bits['blocks/mxfp4_e2m1'] == 4.25
  assert bits['blocks/nvfp4'] == 4.5
  assert bits['lmul/all 4'] == 13
  assert bits['sums/float8_e4m3fn in float16'] == 8


@pytest.mark.parametrize(
  ('setting', 'words'),
  [
    ('rows=products/bfloat61', "did you mean 'products/bfloat16'"),
    ('model.vary=model.width=16|32', 'vary'),
    ('model.layout.scratchpad=simplified', 'scratchpad'),
    ('model.model.dtype=bfloat16', 'float32'),
  ],
)
def test_a_wrong_setting_is_named(setting, words):
  with pytest.raises(errors.UsageError, match=words):
    config_lib.overlay(configs.cpu(), [setting])


def test_lmul_is_where_it_is_said():
  rows = {row.key: row for row in rows_lib.ROWS}
  for scope, attention in (
    ('Decoder.loop/blocks_0/attention/bihd,bjhd->bhij', True),
    ('Decoder.loop/blocks_0/attention/query_key_value', False),
    ('Decoder.loop/blocks_1/attention/output', False),
    ('Decoder.loop/blocks_1/up', False),
  ):
    assert rows['lmul/attention 3'].with_lmul(scope) == attention
    assert rows['lmul/all 3'].with_lmul(scope)
    assert not rows['attention/float8_e5m2'].with_lmul(scope)


@pytest.mark.slow  # It traces a decoder for every row.
def test_attention_alone_is_two_products_a_layer():
  problems = problems_lib.Problems(SMALL.model)
  params = jax.eval_shape(
    lambda key: transformer.init(key, problems.model), jax.random.key(0)
  )
  params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
  (row,) = (x for x in rows_lib.ROWS if x.key == 'attention/float8_e5m2')
  tokens = problems.test.tokens[0, :1]
  costs = numerics.count(problems.logits, row.policy)(params, tokens)
  eight = [x.operation.scope for x in costs.rows if x.bits == 8]
  assert len(eight) == 2
  rows = {x.key: x for x in rows_lib.ROWS}
  energies = {
    key: scoring.energy(problems, params, rows[key])
    for key in (
      *('all/float32', 'all/float16', 'blocks/mxint8', 'lmul/all 4'),
      *('lmul/attention 4', 'products/float8_e4m3fn'),
    )
  }
  assert energies['products/float8_e4m3fn'] is None  # It has no price.
  wide = energies['all/float32']
  assert wide is not None
  assert energies['all/float16'] == pytest.approx(wide * 1.5 / 4.6)
  assert energies['blocks/mxint8'] == pytest.approx(wide * 0.23 / 4.6)
  assert energies['lmul/all 4'] == pytest.approx(wide * 1.0 / 4.6)
  some = energies['lmul/attention 4']
  assert some is not None
  assert energies['lmul/all 4'] < some < wide


def test_what_is_no_number_is_wrong():
  batch = layouts.Batch(
    tokens=jnp.array([[0, 1, 2], [0, 1, 2]]),
    answer=jnp.array([[False, True, True]] * 2),
  )
  right = jax.nn.one_hot(batch.tokens[:, 1:], 4) * 8.0
  broken = right.at[1, 1, 3].set(jnp.nan)
  exact, tokens, finite, error = scoring.count(broken, right, batch)
  assert (exact, tokens, finite, error) == (0.5, 0.75, 0.5, 0.0)
  off = right.at[0, 0, 0].set(2.0)
  assert scoring.count(off, right, batch) == (1.0, 1.0, 1.0, 0.25)


def results_of(lost, **energies):
  """Results of rows by key, of two seeds that lose some share of 0.9."""
  rows = [
    x for x in rows_lib.ROWS if x.key == rows_lib.BASELINE or x.key in lost
  ]

  def scores(key):
    exact = np.array([0.9, 0.8]) - np.array(lost.get(key, [0.0, 0.0]))
    finite = np.ones(2) if key != 'all/bfloat16' else np.array([0.5, 1.0])
    return scoring.Scores(exact, exact, finite, np.array([0.1, 0.2]))

  return results_lib.Results(
    SMALL,
    8,
    '+12,34=64$',
    tuple(
      results_lib.Result(row, scores(row.key), energies.get(row.name))
      for row in rows
    ),
  )


LOST = {
  'all/bfloat16': [0.005, 0.005],
  'products/float8_e4m3fn': [0.0, 0.0],
  'products/float8_e5m2': [0.3, 0.4],
  'products/float4_e2m1fn': [0.8, 0.7],
  'blocks/mxfp4_e2m1': [0.1, 0.1],
  'blocks/mxfp4_e2m1_rceil': [0.02, 0.04],
  'sums/float8_e4m3fn in float16': [0.02, 0.04],
  'attention/float8_e4m3fn': [0.0, 0.0],
  'attention/float8_e5m2': [0.1, 0.2],
  'lmul/attention 4': [0.005, 0.005],
  'lmul/all 3': [0.1, 0.1],
  **{
    f'mode/{name} {mode}': [0.3, 0.2]
    for name in ('float8_e4m3fn', 'float8_e5m2')
    for mode in rows_lib.MODES
  },
}


@pytest.mark.parametrize(
  'said',
  [
    'In float32 the models answer 85.0 ± 7.1 % of 8 problems exactly.',
    'the narrowest format within a point of float32 is bfloat16 (16 bits, lost'
    ' 0.5 ± 0.0 points)',
    'without scales, the narrowest format within a point of float32 is'
    ' float8_e4m3fn (8 bits',
    'with scales, no format is within a point',
    'float4_e2m1fn with a scale for 32 neighbours (mxfp4_e2m1) against without:'
    ' +65.0 ± 7.1 points.',
    'mxfp4_e2m1 with scales that let nothing saturate (rceil) against those of'
    ' OCP: +7.0 ± 1.4 points.',
    'In attention alone, L-Mul loses 0.5 ± 0.0 points with 4 bits,'
    ' float8_e4m3fn 0.0 ± 0.0 points, float8_e5m2 15.0 ± 7.1 points.',
    'In attention alone, the claim that L-Mul with 4 bits is comparable to'
    ' float8_e4m3fn holds: -0.5 ± 0.0 points (no more than one apart); its'
    ' largest logit error is 1.00 times the other.',
    'In all products, the claim that L-Mul with 3 bits is better than'
    ' float8_e5m2 holds: +25.0 ± 7.1 points',
    'Rounding toward zero instead of to nearest makes most of a difference to'
    ' float8_e4m3fn: -25.0 points; no format gains more than 10.0.',
    'make most of a difference to float8_e4m3fn in float16: -3.0 ± 1.4 points.',
    'bfloat16: 25.0 ± 35.4 % of the answers have logits that are infinite',
  ],
)
def test_findings_follow_from_the_numbers(said):
  found = results_lib.findings(results_of(LOST))
  assert any(said in sentence for sentence in found), found
  assert not any('nan' in sentence for sentence in found)


def test_rows_that_did_not_run_are_not_spoken_of():
  assert len(results_lib.findings(results_of({}))) == 1


def test_page_has_the_table_and_its_figures(tmp_path):
  results = results_of(LOST, float32=1.5)
  start = {'argv': ['reproduce'], 'devices': ['cpu'], 'packages': {'jax': '0'}}
  table = report.write(results, directory=tmp_path, starts=[start])
  assert {path.name for path in tmp_path.iterdir()} == {
    *('table.md', 'table.csv', 'bits.png', 'modes.png', 'report.html'),
  }
  text = table.to_markdown()
  assert 'over 2 seeds' in text
  line = next(x for x in text.splitlines() if x.startswith('| bfloat16'))
  assert line.split('|')[6].strip() == ''  # Some logits are no numbers.
  page = (tmp_path / 'report.html').read_text()
  assert page.count('data:image/png;base64,') == 2
  assert 'Nothing was trained or tuned' in page


@pytest.mark.slow  # It compiles a program for every row.
@jax.numpy_dtype_promotion('standard')  # Schedules of optax count in floats.
def test_a_run_continues_and_ends_with_the_same(tmp_path):
  config = configs.smoke()
  table = run_lib.run(config, tmp_path / 'run')
  path = tmp_path / 'run/metrics.jsonl'
  lines = path.read_text().splitlines()
  keys = [json.loads(line)['stage'] for line in lines]
  rows = rows_lib.named(config.rows)
  assert len(rows) == 1 + len(config.rows)
  assert keys[-len(rows) :] == [row.key for row in rows]
  record = json.loads(lines[-len(rows)])
  assert record['test/error'] == [0.0, 0.0]
  assert np.shape(record['test/exact']) == (2,)
  # As if it had been killed before the last row but one was written, and in the
  # middle of a line.
  path.write_text('\n'.join([*lines[:-2], lines[-2][:20]]))
  again = run_lib.run(config, tmp_path / 'run')
  assert again.to_csv() == table.to_csv()
  assert path.read_text().splitlines() == lines
