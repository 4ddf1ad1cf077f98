"""Tells a person how far a job of several stages is, and how long it takes."""

from collections.abc import Callable
from collections.abc import Mapping
import shutil
import sys
import time
from typing import TextIO


class Progress:
  """One line on stderr, with the time left.

  The time left comes from the rate measured in this process: work done since
  the start, in the units of `costs`, over the time it took. Work restored from
  a checkpoint counts as done but not towards the rate. On a terminal the line
  is updated in place; otherwise there is a new line at most every `interval`
  seconds, and one for each stage that ends.

  Examples:
    >>> clock = iter([0, 10, 20, 30]).__next__
    >>> progress = Progress(
    ...   {'base': 1, 'experts': 3}, stream=sys.stdout, clock=clock
    ... )
    >>> progress.begin('base')
    >>> progress.update(0.5, 'loss 1.25')
     12%  base  50%  loss 1.25  1:10 left
    >>> progress.update(1.0)
     25%  base 100%  1:00 left
  """

  def __init__(
    self,
    costs: Mapping[str, float],
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    interval: float = 10.0,
  ):
    """Starts the clock.

    Args:
      costs: The stages in order, with their relative costs.
      stream: Where to write; stderr by default.
      clock: Seconds from any origin.
      interval: Seconds between lines where there is no terminal.
    """
    if not costs or min(costs.values()) <= 0:
      raise ValueError(f'costs must be positive, got {dict(costs)}')
    self._costs = dict(costs)
    self._width = max(map(len, costs))
    self._stream = stream or sys.stderr
    self._updates = self._stream.isatty()
    self._interval = 0.1 if self._updates else interval
    self._clock = clock
    self._start = self._last = clock()
    self._done = dict.fromkeys(costs, 0.0)
    self._worked = 0.0
    self._stage = ''
    self._open_line = False

  def begin(self, stage: str, done: float = 0.0) -> None:
    """Enters a stage.

    Args:
      stage: One of the stages.
      done: The fraction that a checkpoint already holds.
    """
    self._stage = stage
    self._done[stage] = done

  def update(self, done: float, note: str = '') -> None:
    """Reports the stage that was entered last.

    Args:
      done: The fraction of the stage that is done.
      note: A few words, such as the loss.
    """
    cost = self._costs[self._stage]
    self._worked += cost * (done - self._done[self._stage])
    self._done[self._stage] = done
    now = self._clock()
    if now - self._last >= self._interval or done >= 1.0:
      self._last = now
      self._show(self._line(now - self._start, note))

  def message(self, text: str) -> None:
    """Writes a line that stays."""
    clear = '\r\x1b[K' if self._open_line else ''
    self._open_line = False
    print(f'{clear}{text}', file=self._stream, flush=True)

  def close(self) -> None:
    """Ends the line on a terminal."""
    if self._open_line:
      print(file=self._stream, flush=True)
      self._open_line = False

  def _line(self, elapsed: float, note: str) -> str:
    total = sum(self._costs.values())
    done = sum(cost * self._done[s] for s, cost in self._costs.items())
    parts = [
      f'{_percent(done / total)}',
      f'{self._stage:<{self._width}} {_percent(self._done[self._stage])}',
      note,
    ]
    if self._worked > 0 and done < total:
      left = elapsed * (total - done) / self._worked
      parts.append(f'{duration(left)} left')
    else:
      parts.append(f'{duration(elapsed)} in all')
    return '  '.join(part for part in parts if part)

  def _show(self, line: str) -> None:
    if self._updates:
      room = shutil.get_terminal_size().columns - 1  # A line must not wrap.
      self._stream.write(f'\r\x1b[K{line[:room]}')
      self._stream.flush()
      self._open_line = True
    else:
      print(line, file=self._stream, flush=True)


def duration(seconds: float) -> str:
  """Says a time as `0:42`, `12:05` or `3:00:00`.

  Examples:
    >>> duration(42), duration(725), duration(10800)
    ('0:42', '12:05', '3:00:00')
  """
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'


def _percent(fraction: float) -> str:
  """Rounds down: 100% means done."""
  return f'{int(100 * fraction + 1e-9):3}%'
