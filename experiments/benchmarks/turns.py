"""Programs that are timed in turns, in this process and in peers'."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
from pathlib import Path
import statistics
import time
from typing import Any
from typing import NamedTuple

import jax

from experiments.runtime import errors
from third_party.peers import client


class Time(NamedTuple):
  """Seconds that passed, and seconds of all threads."""

  wall: float
  cpu: float


def now() -> Time:
  """The clocks."""
  return Time(time.perf_counter(), time.process_time())


def since(begin: Time) -> Time:
  """What passed since then."""
  end = now()
  return Time(end.wall - begin.wall, end.cpu - begin.cpu)


def ask(peer: client.Peer, **request: Any) -> Time:
  """What a peer took for a request."""
  answer = peer.ask(request)
  return Time(answer['wall'], answer['cpu'])


def race(
  programs: Mapping[str, Callable[[], Time]], repeats: int
) -> Mapping[str, list[Time]]:
  """Lets programs run in turns, once before any is timed.

  A peer that cannot run is left out, and what it said is printed.
  """
  times: dict[str, list[Time]] = {}
  for name, program in programs.items():
    try:
      program()
    except RuntimeError as error:
      print(f'{name}: {str(error)[-300:]}', flush=True)
    else:
      times[name] = []
  for _ in range(repeats):
    for name, turns in times.items():
      turns.append(programs[name]())
  return times


def row(*cells: str) -> None:
  """Prints a row of a table, at once."""
  print(f'| {" | ".join(cells)} |', flush=True)


@contextlib.contextmanager
def peer(name: str, folder: str) -> Iterator[client.Peer | None]:
  """A running peer that is timed; None if it is not installed.

  Args:
    name: Of `client.RUNNERS`.
    folder: Its environment; by default where `make out/peers/NAME/.stamp`
      installs it.

  Raises:
    UsageError: There is no such environment.
  """
  python = client.python_of(name)
  if folder:
    python = Path(folder, 'bin', 'python').absolute()
    if not python.exists():
      raise errors.UsageError(f'--peer: there is no {python}')
  if not python.exists():
    yield None
    return
  with client.Peer(name, python) as found:
    yield found


def machine() -> str:
  """What runs here, and how busy it is."""
  load = ' '.join(f'{x:.1f}' for x in os.getloadavg())
  return (
    f'jax {jax.__version__} on {jax.devices()[0].device_kind},'
    f' {os.cpu_count()} processors, load {load}'
  )


def spread(values: Sequence[float]) -> str:
  """The median and, of several, the range."""
  middle = f'{statistics.median(values):.2f}'
  if len(values) == 1:
    return middle
  return f'{middle} [{min(values):.2f}-{max(values):.2f}]'
