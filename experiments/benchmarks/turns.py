"""Programs that are timed in turns, in this process and in peers'."""

from collections.abc import Callable
from collections.abc import Mapping
import time
from typing import Any
from typing import NamedTuple

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
