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
