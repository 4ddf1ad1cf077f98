"""The memory of the process: how much it holds, and how it keeps it."""

import contextlib
import ctypes

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
