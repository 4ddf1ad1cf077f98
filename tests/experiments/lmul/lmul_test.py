"""Errors of products: measured on given numbers, and what is said of them."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.configs import lmul as configs
from experiments.lmul import measure
from experiments.lmul import report
from experiments.lmul import results as results_lib
from experiments.lmul import run as run_lib
from experiments.runtime import config as config_lib
from experiments.runtime import errors

TINY = configs.Config(
  mantissa_bits=(3, 4),
  products=500,
  size=8,
  length=8,
  features=4,
  seeds=2,
)


def test_rows_are_two_forms_of_lmul_and_formats():
  keys = [row.key for row in measure.rows(TINY)]
  assert keys == [
    *('bits/3', 'bits/4', 'value/3', 'value/4'),
    *('formats/bfloat16', 'formats/float8_e4m3fn', 'formats/float8_e5m2'),
    *('scaled/float8_e4m3fn', 'scaled/float8_e5m2'),
  ]


@pytest.mark.parametrize(
  ('setting', 'words'),
  [
    ('mantissa_bits=0,4', 'from 1 to 23'),
    ('mantissa_bits=4,3', 'rise'),
    ('products=0', 'products is at least 1'),
    ('sizes=4', "did you mean 'size'"),
  ],
)
def test_a_wrong_setting_is_named(setting, words):
  with pytest.raises(errors.UsageError, match=words):
    config_lib.overlay(configs.cpu(), [setting])


def test_errors_are_those_of_the_literature():
  # A product of two numbers with 8 significant bits is wrong by 0.18 %, with 4
  # by 2.9 %; of matrices of normal numbers a little more.
  config = dataclasses.replace(TINY, products=20_000, size=64, seeds=1)
  rows = {row.key: row for row in measure.rows(config)}
  narrow = measure.measure(config, rows['formats/float8_e4m3fn'])
  assert narrow['uniform'] == pytest.approx(0.0294, rel=0.02)
  assert narrow['matrices'] == pytest.approx(0.036, rel=0.1)
  lmul = measure.measure(config, rows['bits/4'])
  assert lmul['uniform'] == pytest.approx(0.0296, rel=0.02)
  assert lmul['largest'] < 0.125
  theory = rows['bits/4'].theory
  assert lmul['mean'] == pytest.approx(theory, abs=0.003)


def test_scaled_rows_multiply_no_single_numbers():
  (row,) = (x for x in measure.rows(TINY) if x.key == 'scaled/float8_e5m2')
  assert set(measure.measure(TINY, row)) == {'matrices', 'attention'}


def results_of(**changes):
  """Results whose errors are all 0.04, but for some rows by name."""

  def errors_of(row):
    value = np.full(2, changes.get(row.key.replace('/', '_'), 0.04))
    numbers = (value,) * 4 if row.elementwise else (None,) * 4
    return measure.Errors(value, value, *numbers)

  return results_lib.Results(
    TINY,
    tuple(
      results_lib.Result(row, errors_of(row)) for row in measure.rows(TINY)
    ),
  )


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({}, 'L-Mul with 4 bits is comparable to float8_e4m3fn: holds.'),
    (
      {'bits_4': 0.06},
      'comparable to float8_e4m3fn: does not hold. Its error is, in units of'
      ' the other, 1.50 for uniform mantissas',
    ),
    ({'bits_3': 0.03}, 'L-Mul with 3 bits is better than float8_e5m2: holds.'),
    (
      {'scaled_float8_e5m2': 0.05},
      'is better than float8_e5m2 with scales: holds.',
    ),
    (
      {'bits_4': 0.02},
      'wrong by 2.00 % if bit patterns are added, and by 4.00 %',
    ),
    ({'bits_3': -0.0859375}, 'kinds of L-Mul differs from its closed form'),
  ],
)
def test_findings_follow_from_the_numbers(changes, said):
  found = results_lib.findings(results_of(**changes))
  assert any(said in sentence for sentence in found), found


def test_page_has_a_figure_for_every_measure(tmp_path):
  start = {'argv': ['reproduce'], 'devices': ['cpu'], 'packages': {'jax': '0'}}
  table = report.write(results_of(), directory=tmp_path, starts=[start])
  assert {path.name for path in tmp_path.iterdir()} == {
    *('table.md', 'table.csv', 'report.html'),
    *(f'{name}.png' for name in measure.MEASURES),
  }
  assert 'with scales, single numbers are not multiplied' in table.legend()


@pytest.mark.slow  # It compiles three programs for every row.
def test_a_run_continues_and_ends_with_the_same(tmp_path):
  table = run_lib.run(configs.smoke(), tmp_path / 'run')
  path = tmp_path / 'run/metrics.jsonl'
  lines = path.read_text().splitlines()
  stages = [json.loads(line)['stage'] for line in lines]
  assert stages == [row.key for row in measure.rows(configs.smoke())]
  path.write_text('\n'.join(lines[:-1]) + '\n')
  again = run_lib.run(configs.smoke(), tmp_path / 'run')
  assert again.to_csv() == table.to_csv()
  assert path.read_text().splitlines() == lines
