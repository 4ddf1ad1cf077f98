"""Times merges here and by peers in turns, and prints a table.

    python -m third_party.peers.time_merges [--repeats 3] [--experts 4]

Of one layer of a small transformer in float32, in memory on both sides and with
the same settings. Reading, starting and compiling are left out: the first merge
of either side is not counted. The table has medians of CPU seconds, of all
threads, which other work on the machine disturbs less than it does the time
that passes; and the least and greatest ratio of single turns.
"""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import statistics
import time
from typing import Any

import jax
import numpy as np

import merging
from third_party.peers import client

_SHAPES = {
  'mlp.up.weight': (3072, 768),
  'mlp.down.weight': (768, 3072),
  'attention.out.weight': (768, 768),
  'attention.out.bias': (768,),
}
_KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Contest:
  """One row of the table: our transform, and a peer's method and settings."""

  peer: str
  method: str
  parameters: dict[str, Any]
  ours: Callable[[], merging.MergeTransform]


CONTESTS = (
  Contest(
    'mergekit',
    'task_arithmetic',
    {'weight': 0.3},
    lambda: merging.task_arithmetic(0.3),
  ),
  Contest(
    'mergekit',
    'ties',
    {'weight': 1.0, 'density': 0.2},
    lambda: merging.ties(0.2, scope='tensor', ties='index', zero='positive'),
  ),
  Contest(
    'mergekit',
    'dare_ties',
    {'weight': 1.0, 'density': 0.3},
    lambda: merging.chain(
      merging.drop_and_rescale(0.7, key=_KEY, rescale='l1'),
      merging.elect_sign(zero='positive'),
      merging.total(),
    ),
  ),
  Contest(
    'mergekit',
    'della',
    {'weight': 1.0, 'density': 0.7, 'epsilon': 0.07},
    lambda: merging.della(0.7, 1.0, key=_KEY, rescale='l1', layout='out_in'),
  ),
  Contest(
    'fusion-bench',
    'task_arithmetic',
    {'scaling_factor': 0.3},
    lambda: merging.task_arithmetic(0.3),
  ),
  Contest(
    'fusion-bench',
    'ties',
    {
      'scaling_factor': 0.3,
      'threshold': 20,
      'merge_func': 'sum',
      'remove_keys': [],
    },
    lambda: merging.ties(0.2, 0.3, combine='sum'),
  ),
  Contest('fusion-bench', 'tsvm', {}, merging.tsv),
  Contest('fusion-bench', 'iso_c', {'scaling_factor': 1.0}, merging.iso_c),
)


def models(experts: int) -> tuple[client.Arrays, dict[str, client.Arrays]]:
  """Returns a base and experts, by path."""
  rng = np.random.default_rng(0)

  def draw(size):
    return {
      path: size * rng.standard_normal(shape, np.float32)
      for path, shape in _SHAPES.items()
    }

  base = draw(0.02)
  changes = {f'expert{i}': draw(0.001) for i in range(experts)}
  return base, {
    name: {path: base[path] + x for path, x in change.items()}
    for name, change in changes.items()
  }


def seconds_here(transform: merging.MergeTransform, base, experts) -> float:
  """Returns the CPU seconds of a merge."""
  start = time.process_time()
  jax.block_until_ready(merging.merge(transform, base, experts))
  return time.process_time() - start


def race(contest, peer, base, experts, repeats) -> list[tuple[float, float]]:
  """Returns our seconds and the peer's, of each turn."""
  transform = contest.ours()

  def turn():
    here = seconds_here(transform, base, experts)
    there = peer.merge(contest.method, contest.parameters, keep=False)
    return here, there.cpu

  turn()
  return [turn() for _ in range(repeats)]


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the table, for peers that are installed."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--experts', type=int, default=4)
  options = parser.parse_args(arguments)
  base, experts = models(options.experts)
  our_base, our_experts = jax.tree.map(jax.numpy.asarray, (base, experts))
  print(f'{options.experts} experts, {options.repeats} turns, load', end=' ')
  print(*(f'{x:.1f}' for x in os.getloadavg()), f'on {os.cpu_count()} CPUs\n')
  print('| peer | method | peer, CPU s | here, CPU s | ratio | range |')
  print('| :-- | :-- | --: | --: | --: | :-: |')
  with contextlib.ExitStack() as stack:
    peers = {}
    for name in client.RUNNERS:
      if client.python_of(name).exists():
        peers[name] = stack.enter_context(client.Merger(name))
        peers[name].load(base, experts)
    for contest in CONTESTS:
      if contest.peer not in peers:
        continue
      turns = race(
        contest, peers[contest.peer], our_base, our_experts, options.repeats
      )
      ours, theirs = map(statistics.median, zip(*turns, strict=True))
      ratios = sorted(there / here for here, there in turns)
      print(
        f'| {contest.peer} | {contest.method} | {theirs:.3f} | {ours:.3f} '
        f'| {theirs / ours:.1f} | {ratios[0]:.1f} to {ratios[-1]:.1f} |',
        flush=True,
      )


if __name__ == '__main__':
  main()
