"""How long merges of a vision transformer take, and what `vmap` saves.

The tree is that of CLIP's ViT-B/32 image encoder with separate query, key and
value kernels, and `layers` blocks; values are random.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runtime import config as config_lib
import merging

_KEY = jax.random.key(0)

METHODS: Mapping[str, Callable[[], merging.MergeTransform]] = {
  'average': merging.average,
  'task_arithmetic': lambda: merging.task_arithmetic(0.3),
  'ties': merging.ties,
  'dare_ties': lambda: merging.dare_ties(0.5, key=_KEY),
  'breadcrumbs': merging.breadcrumbs,
  'consensus': merging.consensus,
  'karcher': merging.karcher,
  'iso_c': merging.iso_c,
  'tsv': merging.tsv,
  'della': lambda: merging.della(key=_KEY),
  'pcb': merging.pcb,
  'iso_cts': merging.iso_cts,
  'opcm': merging.opcm,
  'aswudi': merging.aswudi,
}
_USUAL = tuple(METHODS)[:9]
_SWEEP = 64


def vision_transformer(layers: int, seed: int) -> Any:
  """Random parameters, f32, in the layout of Flax."""
  rng = np.random.default_rng(seed)

  def draw(*shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape, np.float32))

  def dense(inputs: int, outputs: int) -> Any:
    return {'kernel': draw(inputs, outputs), 'bias': draw(outputs)}

  blocks = {
    str(i): {
      **{name: dense(768, 768) for name in ('query', 'key', 'value', 'out')},
      'up': dense(768, 3072),
      'down': dense(3072, 768),
      'norms': draw(2, 2, 768).reshape(-1),
    }
    for i in range(layers)
  }
  return {
    'blocks': blocks,
    'patches': draw(3072, 768),
    'positions': draw(50, 768),
    'projection': draw(768, 512),
    'token': draw(768),
  }


def run(
  *, layers: int, experts: int, names: Sequence[str], repeats: int
) -> None:
  """Prints seconds for each method, then the gain of a sweep.

  Args:
    layers: Blocks.
    experts: Models that are merged.
    names: Of `METHODS`.
    repeats: Measurements, of which the median counts.
  """
  chosen = {
    name: config_lib.choose('method', name, METHODS)
    for name in (names or _USUAL)
  }
  base = vision_transformer(layers, 0)
  ends = {
    f'expert{i}': jax.tree.map(
      lambda x, y: x + y / 1000, base, vision_transformer(layers, i)
    )
    for i in range(1, experts + 1)
  }
  count = sum(x.size for x in jax.tree.leaves(base))
  read = 4 * count * (experts + 2)  # All models in, one out.
  print(
    f'{count / 1e6:.1f} million parameters, base and {experts} experts,'
    f' {read / 1e9:.2f} GB of float32 in and out; devices {jax.devices()}'
  )
  copied = _seconds(lambda: jax.tree.map(jnp.copy, ends), repeats)
  limit = 8 * count * experts / copied / 1e9
  print(f'memory copy: {limit:.1f} GB/s\n')
  print(f'{"method":18}{"first, s":>10}{"then, s":>10}{"GB/s":>8}')
  for name, make in chosen.items():
    merge = functools.partial(merging.merge, make(), base, ends)
    first = _seconds(merge, 1, warm=False)
    then = _seconds(merge, repeats)
    print(f'{name:18}{first:10.2f}{then:10.3f}{read / then / 1e9:8.2f}')
  _sweep(repeats)


def _sweep(repeats: int) -> None:
  """64 coefficients of a small model, as one `vmap` and one by one."""
  rng = np.random.default_rng(0)
  base = {
    f'layer{i}': jnp.asarray(rng.standard_normal((64, 64), np.float32))
    for i in range(8)
  }
  ends = {
    name: jax.tree.map(
      lambda x: x + jnp.asarray(rng.standard_normal(x.shape, np.float32)), base
    )
    for name in 'abcd'
  }
  grid = jnp.linspace(0.1, 1.0, _SWEEP)
  print(f'\n{_SWEEP} coefficients, 8 leaves of 64 x 64, 4 experts')
  print(f'{"method":18}{"calls, s":>10}{"vmap, s":>10}{"ratio":>8}')
  for name, make in {
    'task_arithmetic': merging.task_arithmetic,
    'ties': lambda scale: merging.ties(0.2, scale),
    'iso_c': merging.iso_c,
  }.items():

    def one(scale: jax.Array, make: Callable[..., Any] = make) -> Any:
      return merging.merge(make(scale), base, ends)

    together = jax.jit(jax.vmap(one))
    calls = _seconds(lambda f=one: [f(scale) for scale in grid], repeats)
    swept = _seconds(lambda f=together: f(grid), repeats)
    print(f'{name:18}{calls:10.3f}{swept:10.3f}{calls / swept:8.1f}')


def _seconds(
  function: Callable[[], Any], repeats: int, *, warm: bool = True
) -> float:
  """The median time of a call until its result is there."""
  if warm:
    jax.block_until_ready(function())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - start)
  return statistics.median(times)
