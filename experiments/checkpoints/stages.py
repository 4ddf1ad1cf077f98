"""A progress line for work that says how far it is in one way or another."""

from experiments.checkpoints import run
from merging import streaming


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
    self._meter: run.Meter | None = None

  def bytes(self, done: int, total: int, path: str = '') -> None:
    """Takes the bytes read so far and in all."""
    if self._meter is None:
      self._meter = run.Meter(total)
    self._meter.update(streaming.Progress(self._name, path, done, total))
    if done >= total:
      self._meter.close()

  def share(self, done: float, path: str) -> None:
    """Takes the fraction that is done, and what was done last."""
    self.bytes(round(done * self._total), self._total, path)
