"""Evolutions as a table: what is kept, and what is said of it."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.autonumerics import report
from experiments.autonumerics import run as run_lib
from experiments.autonumerics import search
from experiments.configs import autonumerics as configs
from experiments.runtime import config as config_lib
from experiments.runtime import errors
from numerics import functions

TINY = dataclasses.replace(configs.smoke(), generations=8)


@pytest.mark.parametrize(
  ('setting', 'words'),
  [
    ('function=sin', 'one of exp2, cos, rsqrt'),
    ('operations=1', 'operations is at least 2'),
    ('generation=1', "did you mean 'generations'"),
  ],
)
def test_a_wrong_setting_is_named(setting, words):
  with pytest.raises(errors.UsageError, match=words):
    config_lib.overlay(configs.cpu(), [setting])


@pytest.mark.parametrize('name', configs.FUNCTIONS)
def test_series_are_those_of_taylor(name):
  problem = search.PROBLEMS[name]
  # Divided differences of close points, from values alone.
  width = 1e-2
  x = problem.middle + width * np.arange(-3, 4)
  fitted = np.polynomial.polynomial.polyfit(
    x - problem.middle, problem.exact(x), 6
  )
  np.testing.assert_allclose(problem.series(4), fitted[:4], rtol=1e-6)


def test_a_run_leaves_programs_that_do_what_the_table_says(tmp_path):
  table = run_lib.run(TINY, tmp_path)
  kept = json.loads((tmp_path / 'programs/seed0.json').read_text())
  found = search.evolved(TINY, 0, tmp_path / 'programs/seed0.json', print)
  x = np.linspace(0, 1, 1001)
  for each, record in zip(found.front, kept['front'], strict=True):
    error = np.max(np.abs(each.program(x) / np.exp2(x) - 1))
    assert error <= record['error'] * 1.01
  rows = {row.name: row.cells for row in table.groups[0].rows}
  assert list(rows) == ['1', '2', '3', '4']
  assert rows['2']['best'].mean == max(rows['2']['evolved'].values)
  assert rows['1']['polynomial'].n == 0
  assert 'digits' in (tmp_path / 'report.html').read_text()
  # The same command says the same, and evolves nothing again.
  before = (tmp_path / 'table.csv').read_text()
  (tmp_path / 'table.csv').unlink()
  run_lib.run(TINY, tmp_path)
  assert (tmp_path / 'table.csv').read_text() == before


def given(*digits):
  front = [
    functions.Found(functions.EXP2_TEN_OPERATIONS, 10.0**-each)
    for each in digits
  ]
  return [search.Evolved([each], [1], np.zeros((1, 10))) for each in front]


def test_findings_follow_from_the_numbers():
  config = configs.cpu()
  fewer, reached = report.findings(config, given(11.0, 12.0))
  assert '12.0 digits, 4.9 more than the best polynomial' in fewer
  assert 'not reached by this search: 11.5 ± 0.7' in reached
  _, reached = report.findings(config, given(14.4))
  assert 'are reached: 14.4 digits over 1 seed' in reached
  other = dataclasses.replace(config, function='cos')
  assert len(report.findings(other, given(5.0))) == 1
  assert 'fewer' in report.findings(other, given(5.0))[0]


def test_the_program_of_the_paper_has_its_digits_here():
  assert search.digits(configs.cpu(), functions.EXP2_TEN_OPERATIONS) > 14.2


def test_errors_in_float32_are_in_its_last_place():
  config = configs.cpu()
  half = functions.Program((functions.Step('*', 0, 1.0),))
  assert search.float32_ulps(config, half) > 1e6
  assert 1 < search.float32_ulps(config, functions.EXP2_TEN_OPERATIONS) < 20
