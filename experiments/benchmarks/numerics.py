"""Rounding to narrow formats, in turns with pychop's three back ends.

Float32 arrays of normal numbers; behind a first call of each, which compiles.
The limit is a copy of the same array by a program of XLA.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import turns as turns_lib
from experiments.runtime import config as config_lib
import numerics
from numerics import rounding
from third_party.peers import client

_LIBRARIES = ('jax', 'torch', 'numpy')
_SIZES = (1_000_000, 10_000_000)
FORMATS: Mapping[str, numerics.Format] = {
  'bfloat16': numerics.bfloat16,
  'float16': numerics.float16,
  'float8_e4m3': numerics.float8_e4m3,
}
# Those that both have.
_MODES: tuple[rounding.Mode, ...] = (
  'nearest_even',
  'up',
  'down',
  'toward_zero',
  'stochastic',
  'stochastic_equal',
)


def run(*, names: Sequence[str], repeats: int, peer: str) -> None:
  """Prints a table.

  Args:
    names: Formats, of `FORMATS`; all if none.
    repeats: Turns.
    peer: The environment that has pychop (see `turns.peer`).
  """
  for name in names:
    config_lib.choose('format', name, FORMATS)
  with turns_lib.peer('pychop', peer) as pychop:
    if pychop is not None:
      print(f'pychop {pychop.versions["pychop"]}', end='; ')
    print(
      f'{turns_lib.machine()}; {repeats} turns, medians; nanoseconds of CPU'
      ' time an entry, and how many times ours pychop takes by CPU time\n'
    )
    turns_lib.row(
      *('entries', 'format', 'mode', 'copy', 'ours', 'ours, wall'),
      *(text for each in _LIBRARIES for text in (each, 'times')),
    )
    print('| -: | :- | :- ' + '| -: ' * 9 + '|', flush=True)
    for size in _SIZES:
      for name in names or FORMATS:
        for mode in _MODES:
          times = turns_lib.race(
            _programs(size, FORMATS[name], mode, pychop), repeats
          )
          _print(size, name, mode, times)


def _programs(
  size: int,
  fmt: numerics.Format,
  mode: rounding.Mode,
  pychop: client.Peer | None,
) -> Mapping[str, Callable[[], turns_lib.Time]]:
  values = jnp.asarray(
    np.random.default_rng(0).standard_normal(size, dtype=np.float32)
  )
  key = jax.random.key(0) if mode.startswith('stochastic') else None
  copy = jax.jit(jnp.copy)

  def ours(function) -> turns_lib.Time:
    begin = turns_lib.now()
    function().block_until_ready()
    return turns_lib.since(begin)

  rounded = functools.partial(
    numerics.round_to, values, fmt, mode=mode, key=key
  )
  programs: dict[str, Callable[[], turns_lib.Time]] = {
    'copy': functools.partial(ours, functools.partial(copy, values)),
    'ours': functools.partial(ours, rounded),
  }
  if pychop is not None:
    for library in _LIBRARIES:
      programs[library] = functools.partial(
        turns_lib.ask,
        pychop,
        job='round',
        library=library,
        size=size,
        mode=mode,
        exponent_bits=fmt.exponent_bits,
        mantissa_bits=fmt.mantissa_bits,
      )
  return programs


def _print(size, name, mode, times) -> None:
  def nanoseconds(program: str, field: str = 'cpu') -> float:
    if not times.get(program):
      return float('nan')
    return statistics.median(getattr(x, field) for x in times[program]) / (
      size * 1e-9
    )

  ours = nanoseconds('ours')
  cells = []
  for library in _LIBRARIES:
    theirs = nanoseconds(library)
    known = theirs == theirs
    cells += [f'{theirs:.0f}', f'{theirs / ours:.0f}'] if known else ['', '']
  turns_lib.row(
    *(f'{size:,}', name, mode, f'{nanoseconds("copy"):.2f}', f'{ours:.2f}'),
    *(f'{nanoseconds("ours", "wall"):.2f}', *cells),
  )
