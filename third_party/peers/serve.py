"""Runs in a peer's environment: answers requests, line by line.

The other side is `client.Peer`, which starts it and reads what it says of
itself first. A request is a line of JSON on standard input, and so is the
answer on what standard output was at the start. For merges, on whose other side
is `client.Merger`, a request is

    {'models': PATH, 'method': 'ties', 'parameters': {...}, 'out': PATH or null}

where the arrays of `models` are named `expert:path`, those of the base
`base:path`, and uniform numbers for methods that draw some
`uniform/expert:path`, and the answer is the seconds that the merge took.
"""

from collections.abc import Callable
from collections.abc import Iterable
import contextlib
import importlib.metadata
import json
import os
import sys
import time
import traceback

import numpy as np
import torch

State = dict[str, torch.Tensor]
Merge = Callable[[State, dict[str, State], dict], State]


def serve(
  packages: list[str], methods: list[str], answer: Callable[[dict], dict]
) -> None:
  """Answers requests until standard input ends.

  Args:
    packages: Whose versions to tell.
    methods: Names of what can be asked for.
    answer: From a request to its answer; what it raises is told instead.
  """
  answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w', buffering=1)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Peers print.
  versions = {each: importlib.metadata.version(each) for each in packages}
  print(json.dumps({'versions': versions, 'methods': methods}), file=answers)
  for line in sys.stdin:
    try:
      said = answer(json.loads(line))
    except Exception as error:
      traceback.print_exc()
      said = {'error': f'{type(error).__name__}: {error}'}
    print(json.dumps(said), file=answers)


def serve_merges(
  packages: list[str],
  methods: list[str],
  merge_of: Callable[[str], Merge],
  order: Callable[[str, State, dict[str, State]], Iterable[tuple[str, str]]],
) -> None:
  """Merges what is asked for, until standard input ends.

  Args:
    packages: Whose versions to tell.
    methods: Names of the methods there are.
    merge_of: Returns the merge of a method's name: from a base, experts by name
      and parameters, all of which are its own, to the merged parameters.
    order: The experts and paths for which a method draws numbers, in order.
  """
  serve(packages, methods, lambda request: _answer(request, merge_of, order))


def _answer(request, merge_of, order):
  method = request['method']
  base, experts, uniforms = _read(request['models'])
  merge = merge_of(method)
  drawing = contextlib.nullcontext()
  if uniforms:
    drawing = _draw([uniforms[each] for each in order(method, base, experts)])
  with drawing:
    cpu, wall = time.process_time(), time.perf_counter()
    merged = merge(base, experts, request['parameters'])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  if request['out']:
    arrays = {path: x.detach().float().numpy() for path, x in merged.items()}
    np.savez(request['out'], **arrays)
  return {'cpu': cpu, 'wall': wall}


def _read(path):
  base, experts, uniforms = {}, {}, {}
  with np.load(path) as arrays:
    for key in arrays.files:
      owner, _, leaf = key.partition(':')
      value = torch.from_numpy(arrays[key])
      if owner.startswith('uniform/'):
        uniforms[owner.removeprefix('uniform/'), leaf] = value
      elif owner == 'base':
        base[leaf] = value
      else:
        experts.setdefault(owner, {})[leaf] = value
  return base, experts, uniforms


@contextlib.contextmanager
def _draw(numbers):
  """Lets torch draw these numbers, `u < p` for a success of probability p."""
  left = list(reversed(numbers))

  def like(x):
    # DELLA makes a row of what has one axis only.
    return left.pop().reshape(x.shape)

  originals = torch.bernoulli, torch.rand_like
  torch.bernoulli = lambda p: (like(p) < p).to(p.dtype)
  torch.rand_like = lambda x: 1 - like(x)  # DARE keeps what is above its rate.
  try:
    yield
  finally:
    torch.bernoulli, torch.rand_like = originals
  if left:
    raise ValueError(f'{len(left)} of {len(numbers)} arrays were not drawn')
