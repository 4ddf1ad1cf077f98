"""The binary that measures."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.bench', *arguments],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'error'},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_misspelt_suite_is_one_line_and_status_two():
  done = run('--suite=metods')
  assert done.returncode == 2
  assert "did you mean 'methods'" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--experts=4,x', "numbers from 2 on, separated by commas; got 'x'"),
    ('--experts=1', "numbers from 2 on, separated by commas; got '1'"),
    ('--size=125m', "did you mean '125M'"),
    ('--methods=tie', "did you mean 'ties'"),
    ('--peer=/none', '--peer: there is no /none'),
  ],
)
def test_a_wrong_flag_of_merges_is_one_line(tmp_path, flag, said):
  done = run('--suite=merge', f'--workdir={tmp_path}', flag)
  assert done.returncode == 2
  assert said in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_it_measures_merges_of_checkpoints(tmp_path):
  done = run(
    '--suite=merge',
    '--size=1M',
    '--experts=2',
    '--methods=linear,ties',
    '--repeats=1',
    '--ours_only',
    f'--workdir={tmp_path}',
  )
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / 'table.md').read_text().splitlines()
  rows = [[x.strip() for x in line.split('|')] for line in lines]
  seconds = {
    (row[3], row[4]): float(row[5]) for row in rows if row[1:2] == ['1M']
  }
  assert set(seconds) == {
    (method, program)
    for method in ('linear', 'ties')
    for program in ('arithmerge', 'floor')
  }
  assert all(value > 0 for value in seconds.values())
  assert sorted(each.name for each in (tmp_path / 'models').iterdir()) == [
    '100-shards',
    '1M',
  ]
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_it_measures_methods_and_sweeps():
  done = run(
    '--suite=methods', '--layers=1', '--experts=2', '--methods=average,ties'
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split() for line in done.stdout.splitlines()]
  known = ('average', 'ties', 'iso_c', 'task_arithmetic')
  seconds = {
    row[0]: float(row[1]) for row in rows if row[:1] and row[0] in known
  }
  assert set(seconds) == set(known)
  assert all(value > 0 for value in seconds.values())
