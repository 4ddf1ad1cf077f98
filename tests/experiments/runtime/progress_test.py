"""Time left follows the measured rate; logs stay short."""

import io

import pytest

from experiments.runtime import progress


class _Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_time_left_is_exact_at_a_steady_rate():
  clock, out = _Clock(), io.StringIO()
  bar = progress.Progress({'a': 1, 'b': 3}, stream=out, clock=clock, interval=0)
  for stage, cost in (('a', 1), ('b', 3)):
    bar.begin(stage)
    for done in (0.5, 1.0):
      clock.now += 100 * cost / 2
      bar.update(done)
  lefts = [line.split('  ')[-1] for line in out.getvalue().splitlines()]
  assert lefts == ['5:50 left', '5:00 left', '2:30 left', '6:40 in all']


def test_work_from_a_checkpoint_is_done_but_was_not_fast():
  clock, out = _Clock(), io.StringIO()
  bar = progress.Progress({'a': 1, 'b': 1}, stream=out, clock=clock, interval=0)
  bar.begin('a', done=1.0)
  bar.begin('b', done=0.5)
  clock.now = 60
  bar.update(0.75)
  assert out.getvalue() == ' 87%  b  75%  1:00 left\n'


def test_a_log_has_a_line_at_most_every_interval_and_one_per_stage():
  clock, out = _Clock(), io.StringIO()
  bar = progress.Progress({'a': 1}, stream=out, clock=clock, interval=10)
  bar.begin('a')
  for step in range(1, 101):
    clock.now += 0.25
    bar.update(step / 100)
  lines = out.getvalue().splitlines()
  assert len(lines) == 3
  assert lines[-1] == '100%  a 100%  0:25 in all'


def test_a_terminal_has_one_line_that_fits(monkeypatch):
  monkeypatch.setenv('COLUMNS', '20')
  clock, out = _Clock(), _Terminal()
  bar = progress.Progress({'a': 1}, stream=out, clock=clock)
  bar.begin('a')
  for done in (0.25, 0.5):
    clock.now += 1
    bar.update(done, 'a note that is long')
  bar.message('kept')
  clock.now += 1
  bar.update(0.75)
  bar.close()
  pieces = out.getvalue().split('\r\x1b[K')
  assert pieces[0] == ''
  assert all(len(piece) <= 19 for piece in pieces[1:3])
  assert pieces[3] == 'kept\n'
  assert pieces[4].endswith('\n')


def test_costs_must_be_positive():
  with pytest.raises(ValueError, match='costs must be positive'):
    progress.Progress({'a': 0})
