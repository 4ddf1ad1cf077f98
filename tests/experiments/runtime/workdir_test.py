"""A run's directory belongs to one configuration and one process."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

from experiments.runtime import errors
from experiments.runtime import workdir

_CONFIG = {'table': 'arithmerge', 'seed': 0, 'base': {'steps': 10}}


def test_a_new_directory_says_everything(tmp_path):
  path = tmp_path / 'a' / 'b'
  with workdir.open_workdir(path, _CONFIG) as opened:
    assert opened.path == path
    assert opened.is_new
    assert opened.changes() == []
  assert json.loads((path / 'config.json').read_text()) == _CONFIG
  (start,) = json.loads((path / 'environment.json').read_text())
  assert start['argv'] == sys.argv
  assert start['cpus'] == os.cpu_count()
  assert set(start['packages']) == set(workdir.PACKAGES)
  assert len(start['devices']) == 8
  assert start['date'].endswith('+00:00')


def test_the_same_run_continues_and_every_start_is_recorded(tmp_path):
  with workdir.open_workdir(tmp_path / 'run', _CONFIG):
    pass
  before = (tmp_path / 'run' / 'config.json').read_bytes()
  with workdir.open_workdir(tmp_path / 'run', _CONFIG) as opened:
    assert not opened.is_new
    assert len(opened.starts) == 2
  assert (tmp_path / 'run' / 'config.json').read_bytes() == before


def test_other_versions_are_told(tmp_path):
  with workdir.open_workdir(tmp_path, _CONFIG):
    pass
  file = tmp_path / 'environment.json'
  starts = json.loads(file.read_text())
  starts[0]['packages']['jax'] = '0.0.1'
  file.write_text(json.dumps(starts))
  with workdir.open_workdir(tmp_path, _CONFIG) as opened:
    (change,) = opened.changes()
  assert change.startswith('packages.jax: "0.0.1" != ')


def test_another_configuration_is_refused_with_the_differences(tmp_path):
  with workdir.open_workdir(tmp_path, _CONFIG):
    pass
  before = sorted(p.name for p in tmp_path.iterdir())
  other = {'table': 'arithmerge', 'seed': 1, 'base': {'steps': 20}}
  with (
    pytest.raises(
      errors.UsageError,
      match=r'base\.steps: 10 != 20; seed: 0 != 1.*another --workdir',
    ),
    workdir.open_workdir(tmp_path, other),
  ):
    pytest.fail('opened')
  assert sorted(p.name for p in tmp_path.iterdir()) == before
  with workdir.open_workdir(tmp_path, _CONFIG) as opened:
    assert len(opened.starts) == 2  # The refused one was no start.


def test_something_else_is_refused_untouched(tmp_path):
  (tmp_path / 'thesis.tex').write_text('text')
  with (
    pytest.raises(errors.UsageError, match=r'holds no run.*thesis\.tex'),
    workdir.open_workdir(tmp_path, _CONFIG),
  ):
    pytest.fail('opened')
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_a_file_in_the_way_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(errors.UsageError, match='cannot be used as a directory'),
    workdir.open_workdir(tmp_path / 'file', _CONFIG),
  ):
    pytest.fail('opened')


def test_a_first_start_that_was_killed_early_is_no_obstacle(tmp_path):
  (tmp_path / '.lock').write_text('')
  (tmp_path / '.config.json.abc.tmp').write_text('{')
  (tmp_path / 'environment.json').write_text('[]')
  with workdir.open_workdir(tmp_path, _CONFIG) as opened:
    assert opened.is_new


def test_a_damaged_configuration_is_told(tmp_path):
  (tmp_path / 'config.json').write_text('{')
  with (
    pytest.raises(errors.UsageError, match='not readable as JSON'),
    workdir.open_workdir(tmp_path, _CONFIG),
  ):
    pytest.fail('opened')


def test_a_second_process_is_refused_until_the_first_dies(tmp_path):
  holder = subprocess.Popen(
    [
      sys.executable,
      '-c',
      'import fcntl, sys, time; f = open(sys.argv[1], "w");'
      'fcntl.flock(f, fcntl.LOCK_EX); print("held", flush=True);'
      'time.sleep(60)',
      str(tmp_path / '.lock'),
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  with holder:
    assert holder.stdout is not None
    assert holder.stdout.readline() == 'held\n'
    with (
      pytest.raises(errors.UsageError, match='in use by another process'),
      workdir.open_workdir(tmp_path, _CONFIG),
    ):
      pytest.fail('opened')
    holder.kill()
  with workdir.open_workdir(tmp_path, _CONFIG) as opened:
    assert opened.is_new


def test_opening_twice_in_one_process_is_refused(tmp_path):
  with (
    workdir.open_workdir(tmp_path, _CONFIG),
    pytest.raises(errors.UsageError, match='in use'),
    workdir.open_workdir(tmp_path, _CONFIG),
  ):
    pytest.fail('opened')


def test_git_state_is_of_this_checkout_or_of_none(tmp_path, monkeypatch):
  for name in ('GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'):
    monkeypatch.delenv(name, raising=False)

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', '-c', 'user.name=a', '-c', 'user.email=a', *arguments],
      cwd=tmp_path,
      check=True,
      capture_output=True,
      text=True,
    ).stdout.strip()

  assert workdir.git_state(tmp_path) is None
  git('init', '-q')
  assert workdir.git_state(tmp_path) == {'commit': None, 'dirty': False}
  (tmp_path / 'a').write_text('a')
  git('add', 'a')
  git('commit', '-qm', 'a')
  commit = git('rev-parse', 'HEAD')
  assert workdir.git_state(tmp_path) == {'commit': commit, 'dirty': False}
  (tmp_path / 'a').write_text('b')
  assert workdir.git_state(tmp_path) == {'commit': commit, 'dirty': True}
  inside = Path(tmp_path / 'site-packages')
  inside.mkdir()
  assert workdir.git_state(inside) is None
