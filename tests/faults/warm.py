"""Many runs of the binary for one start of the interpreter.

As a program, imports what a merge needs, and forks for every line of standard
input, so that a run is killed at a moment of its own work. Importing starts no
backend of JAX; forking after that would not be safe.
"""

import contextlib
import json
import os
from pathlib import Path
import runpy
import signal
import subprocess
import sys
import time


class Binary:
  """`python -m experiments.merge`, imported already."""

  def __init__(self, **environment: str):
    """Starts it, with variables of the environment."""
    self._process = subprocess.Popen(
      [sys.executable, '-W', 'ignore', '-m', 'tests.faults.warm'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env={**os.environ, **environment},
    )
    self._line()

  def start(self, *arguments, output, largest_file=None) -> int:
    """Begins a run and returns its process.

    Args:
      *arguments: Of the binary.
      output: File for what it prints.
      largest_file: What `ulimit -f` would be, in bytes.
    """
    request = [list(map(str, arguments)), str(output), largest_file]
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(request).encode() + b'\n')
    self._process.stdin.flush()
    return int(self._line())

  def wait(self) -> int:
    """Returns the exit status of the run, negative for a signal."""
    return int(self._line())

  def run(self, *arguments, output, largest_file=None) -> tuple[int, str]:
    """Returns the status of a whole run, and what it printed."""
    self.start(*arguments, output=output, largest_file=largest_file)
    return self.wait(), Path(output).read_text()

  def kill(
    self, *arguments, output, delay=0.0, number=signal.SIGKILL, until=None
  ):
    """Sends a run a signal after some seconds, or once a path is there.

    Returns:
      The status, which is that of the run if it had ended before.
    """
    process = self.start(*arguments, output=output)
    end = time.monotonic() + 60
    while until is not None and not until.exists():
      assert time.monotonic() < end, 'it does not begin'
      time.sleep(0.002)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
      os.kill(process, number)
    return self.wait()

  def close(self) -> None:
    """Ends it."""
    self._process.communicate()

  def _line(self) -> bytes:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    assert line, 'it ended'
    return line


def _child(arguments, output, largest_file):
  descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
  for stream in (1, 2):
    os.dup2(descriptor, stream)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  if largest_file is not None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
  sys.argv = ['merge.py', *arguments]
  runpy.run_module('experiments.merge', run_name='__main__')


def _serve():
  # What takes long to import; `experiments.merge` itself defines flags once.
  from experiments.checkpoints import command as command

  print('ready', flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    process = os.fork()
    if not process:
      _child(*request)
    print(process, flush=True)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == '__main__':
  _serve()
