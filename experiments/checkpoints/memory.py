"""The memory of the process: what it holds and keeps, and what is left."""

from collections.abc import Iterable
import contextlib
import ctypes
from typing import Any

from experiments.checkpoints import text
from third_party import problems

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_freed() -> None:
  """Lets glibc keep what is freed, for the next piece of a model.

  By default it gives large blocks back to the system, which then clears the
  pages of the next ones: a third of the processor time of a merge. It has to be
  called before there are other threads. Other C libraries are left as they are.
  """
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    mallopt(_M_ARENA_MAX, 1)  # Those of threads give back all the same.


def held(field: str = 'RssAnon') -> int:
  """Bytes of memory of the process, 0 if the system does not tell.

  Args:
    field: `'RssAnon'` is what it holds now besides files; `'VmHWM'` the most it
      held, with files.

  Returns:
    The bytes.

  Examples:
    >>> held('VmHWM') >= held('RssAnon')
    True
  """
  with contextlib.suppress(OSError), open('/proc/self/status') as status:
    for line in status:
      if line.startswith(f'{field}:'):
        return int(line.split()[1]) * 1024
  return 0


def room(max_memory: int | None, models: Iterable[Any] = ()) -> int | None:
  """Bytes that are left for tensors beside what the process holds now.

  Args:
    max_memory: Most bytes that the process may take, or `None`.
    models: Checkpoints and other sources: those of Orbax hold the pieces that
      they decode, models with adapters a few whole tensors.

  Returns:
    The bytes, or `None`.

  Raises:
    problems.ProblemError: Nothing is left.
  """
  if max_memory is None:
    return None
  floor = held() + (64 << 20)  # Compiling takes some.
  for model in {id(each): each for each in models}.values():
    floor += 3 * getattr(model, 'chunk_bytes', 0)
    floor += getattr(model, 'held_bytes', 0)
  if max_memory < floor + (16 << 20):
    raise problems.refuse(
      problems.Kind.SPACE,
      ('--max_memory',),
      f'expected at least {text.size_of(floor + (16 << 20))}, which the '
      f'program needs before it reads a tensor, got '
      f'{text.size_of(max_memory)}',
    )
  return max_memory - floor
