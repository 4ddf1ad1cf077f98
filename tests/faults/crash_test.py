"""A process that dies before any one of its calls of the system.

Kills at random moments seldom meet the few calls that publish a model. Here a
run ends before its first call, before its second, and so on: from then on
every call fails, as none is made by a process that is dead.
"""

import os

import pytest

from experiments.runtime import exchange
from tests.faults import models
from third_party import problems

_CALLS = (
  *('mkdir', 'rename', 'replace', 'unlink', 'rmdir', 'pwrite', 'fsync'),
  *('posix_fallocate', 'ftruncate'),
)


class Killed(BaseException):
  """Not caught by anything that repairs errors."""


class _Death:
  """Ends all calls from a number on."""

  def __init__(self, monkeypatch, last):
    self.calls = 0
    self._last = last
    for name in _CALLS:
      self._guard(monkeypatch, os, name)
    self._guard(monkeypatch, exchange, 'exchange')

  def _guard(self, monkeypatch, module, name):
    function = getattr(module, name)

    def guarded(*arguments, **keywords):
      self.calls += 1
      if self.calls <= self._last:
        return function(*arguments, **keywords)
      if self.calls == self._last + 1 and name == 'pwrite':
        descriptor, data, offset = arguments
        function(descriptor, data[: len(data) // 2], offset)
      raise Killed

    monkeypatch.setattr(module, name, guarded)


def _run_until(last, target, version, **options):
  """Returns whether a run died, and how many calls it made."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    death = _Death(monkeypatch, last)
    try:
      models.write(target, version, **options)
    except Killed:
      return True, death.calls
  return False, death.calls


def _exchange_is_unsupported(monkeypatch):
  monkeypatch.setattr(exchange, 'exchange', lambda *_: False)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  ('old', 'resume', 'atomic'),
  [
    pytest.param(True, True, True, id='over-resume-exchange'),
    pytest.param(True, False, False, id='over-again-renames'),
    pytest.param(True, True, False, id='over-resume-renames', marks=_SLOW),
    pytest.param(True, False, True, id='over-again-exchange', marks=_SLOW),
    pytest.param(False, True, True, id='new-resume', marks=_SLOW),
    pytest.param(False, False, True, id='new-again', marks=_SLOW),
  ],
)
def test_death_before_every_call(tmp_path, monkeypatch, old, resume, atomic):
  if not atomic:
    _exchange_is_unsupported(monkeypatch)
  models.write(tmp_path / 'uninterrupted', 2)
  expected = models.content(tmp_path / 'uninterrupted')
  _, count = _run_until(10**9, tmp_path / 'count', 2)
  assert count > 50
  # The end is where models change names; before it a sample is enough.
  numbers = [*range(0, count - 45, 15), *range(count - 45, count + 40)]
  deaths, missing = 0, 0
  for number in numbers:
    target = tmp_path / f'{number}' / 'merged'
    target.parent.mkdir()
    if old:
      models.write(target, 1)
    died, _ = _run_until(number, target, 2)
    if not died:
      break
    deaths += 1
    if target.exists():
      assert models.version_of(target) in ((1, 2) if old else (2,))
    elif old:
      assert not atomic
      missing += 1
      with pytest.raises(problems.ProblemError, match='exists'):
        models.write(target, 2, overwrite=False)
      assert models.version_of(target) == 1  # It is back.
    models.write(target, 2, resume=resume)
    assert models.content(target) == expected
    assert os.listdir(target.parent) == ['merged']
  assert not died
  assert deaths > 40
  assert missing == (1 if old and not atomic else 0)


def test_a_death_while_a_death_is_repaired(tmp_path, monkeypatch):
  _exchange_is_unsupported(monkeypatch)
  target = tmp_path / 'merged'
  models.write(target, 1)
  calls = 0
  died = True
  while died:  # Every run gets a little farther than the one before.
    died, _ = _run_until(calls, target, 2, resume=True)
    calls += 3
    partial = tmp_path / '.merged.partial'
    assert target.exists() or (partial / 'old').exists()
  assert models.version_of(target) == 2
  assert os.listdir(tmp_path) == ['merged']
