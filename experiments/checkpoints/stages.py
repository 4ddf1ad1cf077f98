"""A progress line for work that says how far it is in one way or another."""

import shutil
import sys
import time
from typing import TextIO

from experiments.checkpoints import text
from experiments.runtime import progress as progress_lib
from merging import streaming


class Meter:
  """One line on a terminal: how far, how fast, how long; silent elsewhere."""

  def __init__(self, total: int, stream: TextIO | None = None):
    """Takes the bytes that will be read, and where to write."""
    self._stream = stream or sys.stderr
    self._shown = self._stream.isatty()
    self._total = total
    self._before = self._now = 0
    self._start = self._last = time.monotonic()
    self._open = False

  def update(self, progress: streaming.Progress) -> None:
    """Shows what a merge reports."""
    now = time.monotonic()
    ended = progress.done == progress.total
    if self._shown and (now - self._last > 0.1 or ended):
      self._last = now
      done = self._before + progress.done
      rate = done / max(now - self._start, 1e-3)
      left = max(self._total - done, 0) / max(rate, 1)
      line = (
        f'{100 * done // max(self._total, 1):3d}%  {text.size_of(done)} of '
        f'{text.size_of(self._total)}  {text.size_of(rate)}/s  '
        f'{progress_lib.duration(left)} left  {progress.stage}  {progress.path}'
      )
      room = shutil.get_terminal_size().columns - 1
      self._stream.write(f'\r\x1b[K{line[:room]}')
      self._stream.flush()
      self._open = True
    if ended:
      self._before += progress.total

  def close(self) -> None:
    """Clears the line."""
    if self._open:
      self._stream.write('\r\x1b[K')
      self._stream.flush()
      self._open = False


class Stage:
  """One line on a terminal, which is cleared when the work is done.

  Examples:
    >>> stage = Stage('copying', total=100)
    >>> stage.bytes(50, 100)
    >>> stage.share(1.0, 'lm_head.weight')
  """

  def __init__(self, name: str, total: int = 0):
    """Begins.

    Args:
      name: What is done.
      total: Bytes that will be read; needed for `share`.
    """
    self._name = name
    self._total = total
    self._meter: Meter | None = None

  def bytes(self, done: int, total: int, path: str = '') -> None:
    """Takes the bytes read so far and in all."""
    if self._meter is None:
      self._meter = Meter(total)
    self._meter.update(streaming.Progress(self._name, path, done, total))
    if done >= total:
      self._meter.close()

  def share(self, done: float, path: str) -> None:
    """Takes the fraction that is done, and what was done last."""
    self.bytes(round(done * self._total), self._total, path)
