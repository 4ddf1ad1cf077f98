"""Rounds as pychop does; runs in its environment (see `serve`).

Arrays are made here, by the same generator as on our side. pychop is timed on
arrays of the library of its back end, in one call of a `Chop` that was made and
called before.
"""

import time

import numpy as np
import pychop
import serve

# Numbers of its modes.
_MODES = {
  'nearest_even': 1,
  'up': 2,
  'down': 3,
  'toward_zero': 4,
  'stochastic': 5,
  'stochastic_equal': 6,
}
_MADE = {}


def _array(library, size):
  values = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
  if library == 'jax':
    import jax.numpy as jnp

    return jnp.asarray(values)
  if library == 'torch':
    import torch

    return torch.from_numpy(values)
  return values


def _round(request):
  """The time of one call, which is not the first of its kind."""
  library, size = request['library'], request['size']
  key = (library, request['exponent_bits'], request['mantissa_bits'])
  key += (request['mode'], size)
  pychop.backend(library)
  if key not in _MADE:
    chop = pychop.Chop(
      request['exponent_bits'],
      request['mantissa_bits'],
      rmode=_MODES[request['mode']],
    )
    _MADE.clear()  # Arrays of other sizes.
    _MADE[key] = chop, _array(library, size)
    _wait(chop(_MADE[key][1]))
  chop, values = _MADE[key]
  cpu, wall = time.process_time(), time.perf_counter()
  _wait(chop(values))
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return {'wall': wall, 'cpu': cpu}


def _wait(result):
  if hasattr(result, 'block_until_ready'):
    result.block_until_ready()


if __name__ == '__main__':
  serve.serve(['pychop'], ['round'], _round)
