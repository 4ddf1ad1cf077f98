"""Killing a command at a moment."""

import subprocess
import time


def kill(command, delay, *, ready=True):
  """Starts a command and kills it, so that it can clean nothing up.

  Args:
    command: The program and its arguments.
    delay: Seconds until the kill.
    ready: Whether they are counted from the first line of the output, so that
      no moments go to the start of the interpreter.

  Returns:
    Whether it was still running.
  """
  with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
    assert process.stdout is not None
    if ready:
      assert process.stdout.readline(), 'it ended before it was ready'
    time.sleep(delay)
    running = process.poll() is None
    process.kill()
  return running
