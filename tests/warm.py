"""Many runs of a binary for one start of the interpreter.

As a program, imports what the binary needs, and forks for every line of
standard input, so that a run costs little and is killed at a moment of its own
work. Importing starts no backend of JAX; forking after that would not be safe.
"""

from collections.abc import Mapping
import contextlib
import importlib
import json
import os
from pathlib import Path
import runpy
import signal
import subprocess
import sys
import time


class Binary:
  """`python -m MODULE`, imported already."""

  def __init__(
    self,
    module: str,
    *imports: str,
    warnings: str = 'ignore',
    environment: Mapping[str, str] = os.environ,
  ):
    """Starts it.

    Args:
      module: The binary, which every run imports anew, for it defines flags.
      *imports: Modules that it needs and that take long to import.
      warnings: What becomes of warnings, as `python -W` takes it.
      environment: Variables of the environment.
    """
    self._process = subprocess.Popen(
      [sys.executable, '-W', warnings, '-m', 'tests.warm', module, *imports],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
    )
    self._line()

  def start(self, *arguments, output, directory=None, largest_file=None) -> int:
    """Begins a run and returns its process.

    Args:
      *arguments: Of the binary.
      output: File for what it prints.
      directory: Where it runs.
      largest_file: What `ulimit -f` would be, in bytes.
    """
    request = {
      'arguments': [*map(str, arguments)],
      'output': str(output),
      'directory': str(directory or os.getcwd()),
      'largest_file': largest_file,
    }
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(request).encode() + b'\n')
    self._process.stdin.flush()
    return int(self._line())

  def wait(self) -> int:
    """Returns the exit status of the run, negative for a signal."""
    return int(self._line())

  def run(self, *arguments, output, **options) -> tuple[int, str]:
    """Returns the status of a whole run, and what it printed."""
    self.start(*arguments, output=output, **options)
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


def _child(module, arguments, output, directory, largest_file):
  descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
  for stream in (1, 2):
    os.dup2(descriptor, stream)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.chdir(directory)
  if largest_file is not None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
  sys.argv = [module, *arguments]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


def _serve(module, *imports):
  for name in imports:
    importlib.import_module(name)
  print('ready', flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    process = os.fork()
    if not process:
      _child(module, **request)
    print(process, flush=True)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == '__main__':
  _serve(*sys.argv[1:])
