"""After a kill at any moment the target is one model, whole."""

import json
import random
import sys

import pytest

from tests.faults import kills
from tests.faults import models


def _partial_version(target):
  """The version that a killed run was writing, if it got that far."""
  journal = target.with_name(f'.{target.name}.partial') / 'journal.jsonl'
  try:
    return json.loads(journal.read_text().split('\n')[0])['fingerprint'][
      'version'
    ]
  except FileNotFoundError:
    return None


def _kill_often(folder, count, seed):
  """Kills writers of one target; returns how many versions it saw."""
  moments = random.Random(seed)
  target = folder / 'merged'
  models.write(target, 0)
  seen, continued = {0}, 0
  for number in range(count):
    before = models.version_of(target)
    first = before + 1
    command = [sys.executable, '-m', 'tests.faults.write_models']
    assert kills.kill(
      [*command, str(target), str(first)], moments.uniform(0, 0.15)
    )
    after = models.version_of(target)
    assert after >= before
    seen.add(after)
    version = _partial_version(target)
    if version is not None and number % 2 == 0:
      models.write(target, version, resume=True)
      assert models.version_of(target) == version
      models.write(folder / 'uninterrupted', version)
      assert models.content(target) == models.content(folder / 'uninterrupted')
      leftovers = {path.name for path in folder.iterdir()}
      assert leftovers == {'merged', 'uninterrupted'}
      continued += 1
  return len(seen), continued


def test_some_kills(tmp_path):
  assert _kill_often(tmp_path, count=6, seed=0)[0] > 1


@pytest.mark.slow
def test_many_kills(tmp_path):
  seen, continued = _kill_often(tmp_path, count=200, seed=1)
  assert seen > 50
  assert continued > 50
