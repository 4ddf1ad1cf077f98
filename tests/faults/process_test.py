"""Runs of the binary that are killed, stopped, starved or hurried."""

import json
import os
from pathlib import Path
import random
import re
import signal
import subprocess
import sys
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from experiments.runtime import lock
from tests import warm
from tests.faults import workspace

_SHARDS = '--shard_size=4KB'


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
  """Models that fit each other."""
  root = tmp_path_factory.mktemp('sound')
  workspace.build(root)
  return root


@pytest.fixture(scope='module')
def binary():
  """The binary, imported already."""
  binary = warm.Binary('experiments.merge', 'experiments.checkpoints.command')
  yield binary
  binary.close()


@pytest.fixture
def case(sound, tmp_path):
  """A workspace of the binary."""
  return workspace.copy(sound, tmp_path / 'work')


@pytest.fixture
def output(tmp_path):
  """Where the binary prints to."""
  return tmp_path / 'output'


def _only_line(result, expected):
  """The one line that the error of a run is."""
  status, text = result
  assert status == expected, text
  lines = [x for x in text.splitlines() if not x.startswith('note: ')]
  assert len(lines) == 1, text
  assert 'Traceback' not in text
  return lines[0]


@pytest.mark.parametrize(
  ('arguments', 'parts'),
  [
    (['--shrad_size=4KB'], ['--shrad_size', "did you mean '--shard_size'?"]),
    (['--shard_size=-4'], ['--shard_size', 'expected a size', "'-4'"]),
    (['--workers=0'], ['--workers=0', 'not a positive integer']),
    (['--seed=-3'], ['seed', '-3']),
    (['--extra=all'], ['extra', 'all']),
    (['again'], ["unexpected argument 'again'"]),
  ],
)
def test_d12_flags(case, output, binary, arguments, parts):
  before = case.snapshot()
  status, text = binary.run(case.recipe, case.target, *arguments, output=output)
  line = _only_line((status, text), 2)
  assert all(part in line for part in parts), line
  assert case.snapshot() == before


def test_d12_no_arguments(output, binary):
  status, text = binary.run(output=output)
  assert 'missing RECIPE' in _only_line((status, text), 2)


def test_statuses(case, output, binary):
  """0, 2, 3, 4 and 5 as the binary ends with them, each with its line."""

  def run(*flags):
    return binary.run(case.recipe, case.target, *flags, output=output)

  line = _only_line(run('--max_memory=1MB'), 5)
  assert line.startswith('error: --max_memory: expected at least ')
  arrays = case.arrays('code')
  case.change('code', **{'x\n\x1b[2J\u202e': np.ones(1, np.float32)})
  line = _only_line(run('--extra=error'), 4)
  assert 'code / x \\x1b[2J\\u202e: ' in line
  os.truncate(case.code / workspace.FILE, 100)
  line = _only_line(run(), 3)
  assert line.startswith(f'error: code / {workspace.FILE}: ')
  case.recipe.unlink()
  assert 'recipe.yml: cannot be read' in _only_line(run(), 2)
  workspace.store(case.code / workspace.FILE, arrays)
  case.say(workspace.recipe())
  status, text = run()
  assert status == 0, text
  assert text.splitlines()[-1] == f'{case.target} is ready'


# Version 1 of the target is of this recipe, version 2 of another.
_RECIPES = {
  1: workspace.recipe(),
  2: workspace.recipe('task_arithmetic', base='base', name='other'),
}


class _Versions:
  """Two models that take turns at one target."""

  def __init__(self, case, binary, output):
    self.case, self.binary, self.output = case, binary, output
    self.expected = {}
    for version, text in _RECIPES.items():
      case.say(text)
      target = case.root / f'whole {version}'
      status, told = binary.run(case.recipe, target, _SHARDS, output=output)
      assert status == 0, told
      self.expected[version] = self.bytes_of(target)
    self.seconds = 0.0
    self.write(1)

  @staticmethod
  def bytes_of(directory):
    """All that does not tell the time."""
    return {
      path.name: path.read_bytes()
      for path in directory.iterdir()
      if path.name not in ('README.md', 'merge_report.json')
    }

  def arguments(self, version, *flags):
    self.case.say(_RECIPES[version])
    return [self.case.recipe, self.case.target, _SHARDS, *flags]

  def write(self, version, *flags):
    began = time.monotonic()
    status, text = self.binary.run(
      *self.arguments(version, '--overwrite', *flags), output=self.output
    )
    assert status == 0, text
    self.seconds = time.monotonic() - began
    return text

  def current(self):
    """The version that the target wholly is."""
    found = self.bytes_of(self.case.target)
    (version,) = (v for v, each in self.expected.items() if each == found)
    recipe = (self.case.target / 'README.md').read_text()
    report = json.loads((self.case.target / 'merge_report.json').read_text())
    method = json.loads(_RECIPES[version])['merge_method']
    assert f'`{method}`' in recipe
    assert method in json.dumps(report)
    return version

  def partial(self):
    """Whether a killed run left something to continue."""
    folder = self.case.root / '.merged.partial'
    return (folder / 'journal.jsonl').exists()


def _kill_often(versions, count, seed, late=1.2):
  moments = random.Random(seed)
  outcomes = {'old': 0, 'new': 0, 'continued': 0, 'kept shards': 0}
  for number in range(count):
    before = versions.current()
    wanted = 3 - before
    status = versions.binary.kill(
      *versions.arguments(wanted, '--overwrite'),
      output=versions.output,
      delay=moments.uniform(0, late * versions.seconds),
    )
    assert status in (0, -signal.SIGKILL)
    after = versions.current()
    outcomes['old' if after == before else 'new'] += 1
    if after == before and number % 2 == 0:
      text = versions.write(wanted, '--resume')
      outcomes['continued'] += 1
      outcomes['kept shards'] += 'tensors are there already' in text
      assert versions.current() == wanted
      left = {path.name for path in versions.case.root.iterdir()}
      assert not {x for x in left if x.startswith('.')}
  return outcomes


def test_e1_some_kills(case, output, binary):
  outcomes = _kill_often(_Versions(case, binary, output), 3, seed=0, late=0.6)
  assert outcomes['continued']


@pytest.mark.slow
def test_e1_many_kills(case, output, binary):
  outcomes = _kill_often(_Versions(case, binary, output), 200, seed=1)
  print(outcomes)  # Shown by -s, to state the counts.
  assert outcomes['old'] > 50
  assert outcomes['new'] > 5
  assert outcomes['kept shards'] > 2


@pytest.mark.parametrize(
  ('number', 'status', 'word'),
  [
    (signal.SIGTERM, 143, 'terminated'),
    pytest.param(signal.SIGINT, 130, 'interrupted', marks=pytest.mark.slow),
  ],
)
def test_e5_stops(case, output, binary, number, status, word):
  partial = case.root / '.merged.partial'
  got = binary.kill(
    case.recipe, case.target, output=output, number=number, until=partial
  )
  line = _only_line((got, output.read_text()), status)
  remedy = 'the target is as it was; --resume may continue'
  assert line == f'merge: {word}; {remedy}'
  assert not case.target.exists()
  got, text = binary.run(case.recipe, case.target, '--resume', output=output)
  assert got == 0, text
  assert not partial.exists()


def test_e2_a_limit_on_files(case, output, binary):
  before = case.snapshot()
  line = _only_line(
    binary.run(case.recipe, case.target, output=output, largest_file=9000),
    5,
  )
  assert 'ulimit -f' in line
  assert case.snapshot() == before


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MB."""
  place = tmp_path / 'small'
  place.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(place)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('mounting is not permitted')
  yield place
  subprocess.run(['umount', str(place)], check=True)


def test_e2_a_full_disk(case, output, binary, small_disk):
  rows = np.ones((1024, 1024), np.float32)  # 4 MB, and more with the others.
  for name in workspace.NAMES:
    case.change(name, value_head=rows)
  case.target = small_disk / 'merged'
  line = _only_line(binary.run(case.recipe, case.target, output=output), 5)
  assert re.search(r'there is no space: 4\.\d+ MB needed, 4\.\d+ MB free', line)
  assert list(small_disk.iterdir()) == []
  # What is there to be replaced is there still.
  workspace.save(case.target, case.arrays('math') | {'value_head': rows[:9]})
  before = workspace.weights(case.target)
  status, text = binary.run(
    case.recipe, case.target, '--overwrite', output=output
  )
  assert 'there is no space' in _only_line((status, text), 5)
  assert workspace.weights(case.target) == before
  assert os.listdir(small_disk) == ['merged']


def test_e3_a_fault_in_the_last_shard(case, output, binary):
  x = case.arrays('math')['model.norm.weight']
  x[-1] = np.nan
  case.change('math', **{'model.norm.weight': x})
  arguments = [case.recipe, case.target, _SHARDS]
  status, text = binary.run(*arguments, output=output)
  assert status == 3
  kept, line = text.splitlines()
  assert '--resume continues' in kept
  assert line.startswith("error: 'math' at 'model.norm.weight': one value is")
  assert not case.target.exists()
  # Finished shards are kept for who wants the value merged after all.
  status, text = binary.run(
    *arguments, '--resume', '--allow_nonfinite', output=output
  )
  assert status == 0, text
  assert 'tensors are there already' in text
  names = {path.name for path in case.root.iterdir()}
  assert not {each for each in names if each.startswith('.')}


@pytest.mark.parametrize(
  ('place', 'status', 'part'),
  [
    ('none/merged', 2, 'does not exist; make it first'),
    ('recipe.yml/merged', 2, 'is not a directory'),
    ('x' * 300, 2, 'the name has 300 bytes, expected at most'),
    ('/proc/merged', 5, '/proc'),
  ],
)
def test_e4_targets(case, output, binary, place, status, part):
  before = case.snapshot()
  line = _only_line(
    binary.run(case.recipe, case.root / place, output=output), status
  )
  assert part in line
  assert case.snapshot() == before


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_e4_no_permission(case, output, binary):
  closed = case.root / 'closed'
  closed.mkdir(mode=0o500)
  line = _only_line(
    binary.run(case.recipe, closed / 'merged', output=output), 5
  )
  assert 'no permission' in line


def test_e6_two_runs(case, output, binary):
  with lock.held(case.root / '.merged.lock', str(case.target)):
    line = _only_line(binary.run(case.recipe, case.target, output=output), 2)
  assert f'is being written by process {os.getpid()} on' in line


def _clean_environment(**more):
  names = ('XLA_FLAGS', 'JAX_PLATFORMS', 'JAX_NUM_CPU_DEVICES')
  kept = {key: x for key, x in os.environ.items() if key not in names}
  return {**kept, **more}


@pytest.mark.slow
def test_e9_e11_e12_other_environments(case, output):
  """Devices, locale, time, network and turns of the interpreter: same bytes."""
  case.say(
    workspace.recipe('dare_ties', base='base', parameters={'density': 0.5})
  )
  environments = [
    {},
    {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
    {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONHASHSEED': '7'},
    {'HF_HUB_OFFLINE': '1', 'HTTPS_PROXY': 'http://127.0.0.1:9', 'TZ': 'X-14'},
  ]
  found = []
  for number, environment in enumerate(environments):
    target = case.root / f'{number}'
    command = [sys.executable, '-m', 'experiments.merge', '--seed=1']
    done = subprocess.run(
      [*command, case.recipe, target],
      env=_clean_environment(**environment),
      capture_output=True,
      check=False,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    found.append(workspace.weights(target))
  assert all(each == found[0] for each in found)


def _peak(process, done):
  """The most anonymous memory that a process held, looked at often."""
  most = 0
  while not done.is_set():
    try:
      text = Path(f'/proc/{process}/status').read_text()
    except OSError:  # It has ended.
      break
    match = re.search(r'RssAnon:\s+(\d+) kB', text)
    most = max(most, 1024 * int(match[1]) if match else 0)
    time.sleep(0.002)
  return most


@pytest.mark.slow
@pytest.mark.parametrize('method', ['linear', 'ties'])
def test_e8_memory(method, tmp_path, output, binary):
  """Three models of 200 MB each, of rows of 64 MB, within 700 MB."""
  rng = np.random.default_rng(0)
  case = workspace.Workspace(tmp_path)
  for name in workspace.NAMES:
    arrays = {
      f'layers.{i}.weight': rng.normal(size=(8192, 4096)).astype(
        ml_dtypes.bfloat16
      )
      for i in range(3)
    }
    workspace.save(case.root / name, arrays, {'model_type': 'other'})
  fields = {'base': 'base', 'parameters': {'density': 0.5}}
  case.say(workspace.recipe(method, **({} if method == 'linear' else fields)))
  limit = 700_000_000
  process = binary.start(
    case.recipe, case.target, f'--max_memory={limit}', output=output
  )
  done, found = threading.Event(), []
  thread = threading.Thread(target=lambda: found.append(_peak(process, done)))
  thread.start()
  status = binary.wait()
  done.set()
  thread.join()
  assert status == 0, output.read_text()
  print(method, found)  # Shown by -s, to state the numbers.
  assert 100_000_000 < found[0] <= limit
