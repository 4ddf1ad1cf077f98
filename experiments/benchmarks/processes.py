"""What a whole process costs: time, CPU time and memory of its own."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from pathlib import Path
import subprocess
import tempfile
import threading
import time
from typing import NamedTuple

_EVERY = 0.02  # Seconds between looks at the memory.


class Cost(NamedTuple):
  """What a process took.

  Attributes:
    wall: Seconds that passed.
    cpu: Seconds of all its threads and children, in user and system mode.
    anonymous: The most bytes of memory seen that is no file's, every 20 ms;
      mapped inputs do not count.
    resident: The most bytes of all memory, mapped files among it.
    status: Exit status, negative for a signal.
    said: The last lines that it wrote.
  """

  wall: float
  cpu: float
  anonymous: int
  resident: int
  status: int
  said: str


def measure(
  command: Sequence[str | os.PathLike[str]],
  *,
  folder: str | os.PathLike[str] | None = None,
  environment: Mapping[str, str] | None = None,
) -> Cost:
  """Runs a command and returns what it took.

  Args:
    command: Program and arguments.
    folder: To run it in.
    environment: Variables to set.

  Raises:
    OSError: There is no such program.

  Examples:
    >>> cost = measure(['true'])
    >>> cost.status, cost.wall > 0, cost.said
    (0, True, '')
  """
  with tempfile.TemporaryFile() as said:
    start = time.perf_counter()
    process = subprocess.Popen(
      command,
      cwd=folder,
      env=os.environ | dict(environment or {}),
      stdin=subprocess.DEVNULL,
      stdout=said,
      stderr=subprocess.STDOUT,
    )
    peak = {'RssAnon': 0, 'VmHWM': 0}
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended))
    watcher.start()
    try:
      _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
      process.kill()
      process.wait()
      raise
    finally:
      wall = time.perf_counter() - start
      ended.set()
      watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
    return Cost(
      wall,
      usage.ru_utime + usage.ru_stime,
      peak['RssAnon'],
      max(peak['VmHWM'], 1024 * usage.ru_maxrss),
      process.returncode,
      said.read().decode(errors='replace').strip(),
    )


def _watch(pid: int, peak: dict[str, int], ended: threading.Event) -> None:
  """Keeps the largest values that Linux says; elsewhere there are none."""
  while not ended.wait(_EVERY):
    try:
      lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
      return
    for line in lines:
      name, _, value = line.partition(':')
      if name in peak:
        peak[name] = max(peak[name], 1024 * int(value.split()[0]))
