"""The least that a merge can cost here: all inputs read, an output written."""

from collections.abc import Callable
import os
from pathlib import Path
import shutil
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

_PROGRAM = r"""
#define _FILE_OFFSET_BITS 64
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* Reads every file named after the first, and writes as many bytes as the
   first of them has to the file named first. */
int main(int count, char **names) {
  const size_t size = 8u << 20;
  char *buffer = malloc(size);
  off_t left = 0;
  ssize_t got;
  int out;
  if (buffer == NULL || count < 3) return 2;
  for (int i = 2; i < count; i++) {
    int in = open(names[i], O_RDONLY);
    off_t at = 0;
    if (in < 0) return 3;
    while ((got = pread(in, buffer, size, at)) > 0) at += got;
    if (got < 0) return 3;
    if (i == 2) left = at;
    close(in);
  }
  out = open(names[1], O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (out < 0) return 4;
  while (left > 0) {
    got = write(out, buffer, left < (off_t)size ? (size_t)left : size);
    if (got <= 0) return 5;
    left -= got;
  }
  return close(out) ? 6 : 0;
}
"""
_PIECE = 2**23


def command(folder: Path) -> tuple[list[str], str]:
  """Returns a program that takes an output and inputs, and what it is.

  Args:
    folder: Where to compile it.

  Returns:
    Its command line, and `'C'`, or `'Python'` if there is no compiler.
  """
  compiler = shutil.which('cc')
  program = folder / 'floor'
  if compiler:
    source = folder / 'floor.c'
    source.write_text(_PROGRAM)
    done = subprocess.run(
      [compiler, '-O2', '-o', program, source], capture_output=True, check=False
    )
    if done.returncode == 0:
      return [str(program)], 'C'
  return [sys.executable, '-I', __file__], 'Python'


class Limits(NamedTuple):
  """What the machine does at most, in bytes per second, with one thread."""

  read: float
  write: float
  copy: float


def limits(file: Path, folder: Path, repeats: int) -> Limits:
  """Measures the machine.

  Args:
    file: To read, from the cache if it fits there.
    folder: To write a file of a quarter GB to, for a moment.
    repeats: Measurements, of which the median counts.
  """
  source = memoryview(bytearray(b'a') * 2**28)
  target = memoryview(bytearray(2**28))
  scratch = folder / 'scratch'

  def write() -> None:
    with scratch.open('wb', buffering=0) as out:
      for start in range(0, source.nbytes, _PIECE):
        out.write(source[start : start + _PIECE])

  def copy() -> None:
    target[:] = source

  try:
    writing = _seconds(write, repeats)
  finally:
    scratch.unlink(missing_ok=True)
  return Limits(
    file.stat().st_size / _seconds(lambda: read(file), repeats),
    source.nbytes / writing,
    source.nbytes / _seconds(copy, repeats),
  )


def read(file: Path) -> int:
  """Reads a file piece by piece, and returns its size."""
  buffer = bytearray(_PIECE)
  done = 0
  with file.open('rb', buffering=0) as source:
    while got := source.readinto(buffer):
      done += got
  return done


def _seconds(function: Callable[[], object], repeats: int) -> float:
  function()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def _main(output: str, *inputs: str) -> None:
  """The program in Python, for machines without a compiler."""
  left, *_ = [read(Path(file)) for file in inputs]
  piece = bytes(_PIECE)
  with open(output, 'wb', buffering=0) as out:
    while left:
      left -= os.write(out.fileno(), piece[: min(left, _PIECE)])


if __name__ == '__main__':
  _main(*sys.argv[1:])
