"""The main job as a person runs it: from a command, in an empty directory."""

import csv
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import warm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """Compiled programs are shared by the runs of this file, to save time."""
  return os.environ | {
    'PYTHONPATH': str(ROOT),
    'PYTHONWARNINGS': 'error',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PLATFORMS': 'cpu',
  }


def _command(*arguments):
  return [sys.executable, '-m', 'experiments.reproduce', *arguments]


def _run(arguments, cwd, environment, **kwargs):
  return subprocess.run(
    _command(*arguments),
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
    **kwargs,
  )


SMOKE = ('--table=arithmerge', '--preset=smoke', '--workdir=results')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, environment):
  """A directory in which the smoke preset ran to its end."""
  folder = tmp_path_factory.mktemp('finished')
  done = _run(SMOKE, folder, environment)
  assert done.returncode == 0, done.stderr
  return folder / 'results', done


def test_leaves_everything_that_it_promises(finished):
  results, done = finished
  names = {path.name for path in results.iterdir()}
  assert names >= {
    'config.json',
    'environment.json',
    'metrics.jsonl',
    'models',
    'table.md',
    'table.csv',
    'heatmap.png',
    'coefficients.png',
    'cosines.png',
    'report.html',
  }
  assert 'left' in done.stderr
  assert 'task arithmetic' in done.stdout
  assert 'report.html' in done.stdout
  for name in ('heatmap.png', 'coefficients.png', 'cosines.png'):
    assert (results / name).read_bytes().startswith(b'\x89PNG')


def test_table_has_yardsticks_and_merges_with_spread(finished):
  results, _ = finished
  rows = list(csv.DictReader((results / 'table.csv').read_text().splitlines()))
  by_name = {row['row']: row for row in rows}
  assert {
    'base',
    'experts',
    'ensemble of experts',
    'joint training',
    'average',
    'task arithmetic',
    'TIES',
    'DARE',
    'TSV-M',
    'TALL masks',
    'SLERP',
  } < set(by_name)
  assert sum(name.endswith(' bits') for name in by_name) == 2
  assert float(by_name['experts']['normalized mean']) == 1.0
  assert by_name['SLERP']['copying mean'] == ''  # Of two experts only.
  for row in rows:
    assert int(row['normalized n']) == 2
    assert 0 <= float(row['addition mean']) <= 1
    assert float(row['addition std']) >= 0


@pytest.mark.slow
def test_the_tangent_space_is_a_block_and_a_figure(tmp_path, environment):
  more = ('--set=tangent=true', '--set=methods=TIES', '--set=seeds=1')
  done = _run((*SMOKE, *more), tmp_path, environment)
  assert done.returncode == 0, done.stderr
  text = (tmp_path / 'results/table.csv').read_text()
  rows = list(csv.DictReader(text.splitlines()))
  tangent = {row['row'] for row in rows if 'tangent' in row['group']}
  assert {'average', 'task arithmetic', 'TIES'} < tangent
  figure = tmp_path / 'results/disentanglement.png'
  assert figure.read_bytes().startswith(b'\x89PNG')


def test_page_is_self_contained(finished):
  page = (finished[0] / 'report.html').read_text()
  assert 'validation split' in page
  assert 'test split' in page
  assert page.count('data:image/png;base64,') == 3
  assert not re.search(r'(src|href)="https?:', page)


def test_the_base_learns(finished):
  records = [
    json.loads(line)
    for line in (finished[0] / 'metrics.jsonl').read_text().splitlines()
  ]
  losses = [r['train/loss'] for r in records if r['stage'] == 'base']
  assert all(
    last[0] < first[0]
    for first, last in zip(losses[0], losses[-1], strict=True)
  )


def _without_time(results):
  """Every number of a run, and nothing that may differ between two."""
  return {
    name: (results / name).read_bytes()
    for name in ('config.json', 'metrics.jsonl', 'table.csv', 'table.md')
  }


@pytest.mark.parametrize(
  'stage',
  [
    pytest.param('base', marks=pytest.mark.slow),
    'experts',
    pytest.param('scores', marks=pytest.mark.slow),
  ],
)
def test_killed_and_started_again_it_ends_with_the_same_numbers(
  stage, finished, tmp_path, environment
):
  metrics = tmp_path / 'results' / 'metrics.jsonl'
  process = subprocess.Popen(
    _command(*SMOKE),
    cwd=tmp_path,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 300
  # Kill it once it has written something of the stage.
  while not (metrics.exists() and f'"stage": "{stage}"' in metrics.read_text()):
    assert process.poll() is None, 'it ended before it could be killed'
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (tmp_path / 'results' / 'table.csv').exists()
  done = _run(SMOKE, tmp_path, environment)
  assert done.returncode == 0, done.stderr
  assert _without_time(tmp_path / 'results') == _without_time(finished[0])
  starts = json.loads((tmp_path / 'results' / 'environment.json').read_text())
  assert len(starts) == 2


@pytest.fixture(scope='module')
def binary(environment):
  """The binary, imported already."""
  binary = warm.Binary(
    'experiments.reproduce',
    'experiments.arithmerge.run',
    'experiments.configs.arithmerge',
    'experiments.runtime.cli',
    warnings='error',
    environment=environment,
  )
  yield binary
  binary.close()


def test_a_finished_run_is_told_again_without_work(finished, environment):
  results, _ = finished
  before = _without_time(results)
  done = _run(SMOKE, results.parent, environment)
  assert done.returncode == 0, done.stderr
  assert _without_time(results) == before


def test_an_earlier_config_is_a_preset(finished, tmp_path, binary):
  results, _ = finished
  status, text = binary.run(
    '--table=arithmerge',
    f'--config={results / "config.json"}',
    '--set=seeds=1',
    f'--workdir={results}',
    output=tmp_path / 'output',
  )
  assert status == 2
  assert 'seeds: 2 != 1' in text


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], '--table is required'),
    (
      ['--table=arithmarge'],
      "no table 'arithmarge'; did you mean 'arithmerge'",
    ),
    (
      ['--table=arithmerge', '--preset=cup'],
      "no preset 'cup'; did you mean 'cpu'",
    ),
    (
      ['--table=arithmerge', '--set=expert.step=3'],
      "no setting 'expert.step'; did you mean 'expert.steps'",
    ),
    (
      ['--table=arithmerge', '--set=expert.steps=three'],
      "expert.steps should be an integer; got 'three'",
    ),
    (['--table=arithmerge', '--set=seeds=0'], 'seeds'),
    (
      ['--table=arithmerge', '--set=tasks=addition,sortin'],
      "no task 'sortin'; did you mean 'sorting'",
    ),
    (
      ['--table=arithmerge', '--set=methods=TSVM'],
      "no row 'TSVM'",
    ),
    (
      ['--table=precision', '--set=rows=products/bfloat61'],
      "no row 'products/bfloat61'; did you mean 'products/bfloat16'",
    ),
    (
      ['--table=lmul', '--set=mantissa_bits=0,4'],
      'mantissa_bits are one or more, from 1 to 23',
    ),
    (['--table=arithmerge', '--presets=cpu'], 'unknown flag --presets'),
    (['--table=arithmerge', '--set=seed=4294967296'], 'seed is below 2^32'),
    (
      ['--table=arithmerge', '--set=test_level_weights=0,1,0'],
      'test_level_weights',
    ),
    (
      ['--table=arithmerge', '--preset=smoke', '--set=test_level_weights=1'],
      'lower validation_size from 64',
    ),
    (
      [
        '--table=arithmerge',
        '--set=model.positions=rotary',
        '--set=model.width=20',
      ],
      'come in pairs',
    ),
    (
      ['--table=arithmerge', '--preset=cpu', '--config=nowhere.json'],
      'not both',
    ),
    (['--table=arithmerge', '--config=nowhere.json'], 'nowhere.json'),
  ],
)
def test_bad_input_is_one_line_and_status_two(
  arguments, words, tmp_path, binary
):
  place = tmp_path / 'place'
  place.mkdir()
  status, text = binary.run(
    *arguments, output=tmp_path / 'output', directory=place
  )
  assert status == 2
  assert len(text.strip().splitlines()) == 1
  assert words in text
  assert not list(place.iterdir())


def test_a_directory_that_is_not_a_run_is_refused(tmp_path, binary):
  (tmp_path / 'results').mkdir()
  (tmp_path / 'results' / 'thesis.tex').write_text('years of work')
  status, text = binary.run(
    *SMOKE, output=tmp_path / 'output', directory=tmp_path
  )
  assert status == 2
  assert 'thesis.tex' in text
  assert [p.name for p in (tmp_path / 'results').iterdir()] == ['thesis.tex']


def test_help_and_list(tmp_path, binary):
  status, text = binary.run('--help', output=tmp_path / 'output')
  assert status == 0
  assert '--preset' in text
  status, text = binary.run('--list', output=tmp_path / 'output')
  assert status == 0
  assert text.startswith('arithmerge')
