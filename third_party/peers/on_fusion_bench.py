"""Merges as FusionBench does; runs in its environment (see `serve`).

Algorithms run as they are, on a pool of modules made of the state dicts. Where
there is none, or one wants an evaluation on data, the functions that do the
work are called, and put together here.
"""

from fusion_bench.method.dare import DareTaskArithmetic
from fusion_bench.method.dare import DareTiesMerging
from fusion_bench.method.doge_ta import DOGE_TA_Algorithm
from fusion_bench.method.isotropic_merging.iso import ISO_C_Merge
from fusion_bench.method.isotropic_merging.iso import ISO_CTS_Merge
from fusion_bench.method.knots.knots_utils import subspace_alignment
from fusion_bench.method.model_stock import ModelStock
from fusion_bench.method.opcm.opcm_general import OPCM
from fusion_bench.method.simple_average import SimpleAverageAlgorithm
from fusion_bench.method.slerp import SlerpMergeAlgorithm
from fusion_bench.method.tall_mask import utils as tall_mask
from fusion_bench.method.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.task_singular_vector import TaskSingularVectorMerging
from fusion_bench.method.ties_merging import ties_merging_utils
from fusion_bench.method.ties_merging import TiesMergingAlgorithm
from fusion_bench.method.weighted_average.weighted_average import (
  WeightedAverageAlgorithm,
)
from fusion_bench.method.wudi import WUDIMerging
from fusion_bench.modelpool import BaseModelPool
import serve
import torch
from torch import nn

_ALGORITHMS = {
  'dare_task_arithmetic': DareTaskArithmetic,
  'dare_ties': DareTiesMerging,
  'doge': DOGE_TA_Algorithm,
  'iso_c': ISO_C_Merge,
  'iso_cts': ISO_CTS_Merge,
  'model_stock': ModelStock,
  'opcm': OPCM,
  'simple_average': SimpleAverageAlgorithm,
  'slerp': SlerpMergeAlgorithm,
  'task_arithmetic': TaskArithmeticAlgorithm,
  'ties': TiesMergingAlgorithm,
  'tsvm': TaskSingularVectorMerging,
  'weighted_average': WeightedAverageAlgorithm,
  'wudi': WUDIMerging,
}


def merge_of(method):
  """Returns the merge of this name: `(base, experts, parameters) -> params`."""
  if method in _FUNCTIONS:
    return _FUNCTIONS[method]
  return lambda base, experts, parameters: _run(
    _ALGORITHMS[method](**parameters), base, experts
  )


def order(method, base, experts):
  """Returns for whom and what a method draws, in order."""
  paths = [path for path, _ in _module(base).named_parameters()]
  return ((name, path) for name in experts for path in paths)


def _run(algorithm, base, experts):
  models = {name: _module(expert) for name, expert in experts.items()}
  if not isinstance(algorithm, SlerpMergeAlgorithm):  # Which takes just two.
    models = {'_pretrained_': _module(base), **models}
  return dict(algorithm.run(BaseModelPool(models)).state_dict())


def _module(state):
  """A tree of modules whose state dict this is."""
  root = nn.Module()
  for path in state:
    *parents, last, _ = path.split('.')
    here = root
    for parent in parents:
      if not hasattr(here, parent):
        here.add_module(parent, nn.Module())
      here = getattr(here, parent)
    if not hasattr(here, last):
      prefix = path.rpartition('.')[0] + '.'
      own = {
        k.removeprefix(prefix): v
        for k, v in state.items()
        if k.startswith(prefix)
      }
      here.add_module(last, _leaf_module(last, own))
  return root


def _leaf_module(name, own):
  weight = own['weight']
  if weight.ndim != 2:
    module = nn.Module()
  elif 'embed' in name:
    module = nn.utils.skip_init(nn.Embedding, *weight.shape)
  else:
    module = nn.utils.skip_init(nn.Linear, *weight.T.shape, bias='bias' in own)
  for each, value in own.items():
    setattr(module, each, nn.Parameter(value.clone()))
  return module


@torch.no_grad()
def _tall(base, experts, parameters):
  """The experts restored by their masks, as `name/path`."""
  flatten = ties_merging_utils.state_dict_to_vector
  ends = torch.stack([flatten(expert) for expert in experts.values()])
  start = flatten(base)
  total = (ends - start).sum(0)
  masks = tall_mask.generate_task_masks(ends - start, ends, start, **parameters)
  restored = {}
  for name, mask in zip(experts, masks, strict=True):
    state = ties_merging_utils.vector_to_state_dict(start + mask * total, base)
    restored |= {f'{name}/{path}': x.clone() for path, x in state.items()}
  return restored


@torch.no_grad()
def _consensus(base, experts, parameters):
  """Consensus TA with one threshold for all experts."""
  flatten = ties_merging_utils.state_dict_to_vector
  ends = torch.stack([flatten(expert) for expert in experts.values()])
  start = flatten(base)
  masks = tall_mask.generate_task_masks(
    ends - start, ends, start, tall_mask_lambda=parameters['tall_mask_lambda']
  )
  states = {
    name: dict(ties_merging_utils.vector_to_state_dict(mask.float(), base))
    for name, mask in zip(experts, masks, strict=True)
  }
  states = {
    name: {path: x.clone() for path, x in state.items()}
    for name, state in states.items()
  }
  tall_mask.load_tall_mask = lambda *_: states  # Which would come from a file.
  shared = tall_mask.construct_consensus_mask(base, parameters['k'], None)
  merged = start + parameters['scale'] * shared * (ends - start).sum(0)
  return ties_merging_utils.vector_to_state_dict(merged, base)


@torch.no_grad()
def _knots_ties(base, experts, parameters):
  """TIES of coordinates in the joint basis; leaves that are no matrix stay."""
  bases, coordinates = {}, {name: {} for name in experts}
  for path, start in base.items():
    if start.ndim == 2:
      changes = [expert[path] - start for expert in experts.values()]
      u, s, parts = subspace_alignment(changes)
      bases[path] = u
      for name, part in zip(experts, parts, strict=True):
        coordinates[name][path] = s[:, None] * part
  flatten = ties_merging_utils.state_dict_to_vector
  flat = torch.stack([flatten(state) for state in coordinates.values()])
  merged = ties_merging_utils.ties_merging(flat, **parameters)
  like = next(iter(coordinates.values()))
  state = ties_merging_utils.vector_to_state_dict(merged, like)
  moved = {path: base[path] + u @ state[path] for path, u in bases.items()}
  return {**base, **moved}


_FUNCTIONS = {
  'consensus': _consensus,
  'knots_ties': _knots_ties,
  'tall': _tall,
}


if __name__ == '__main__':
  serve.serve_merges(
    ['fusion-bench', 'torch'],
    [*_ALGORITHMS, *_FUNCTIONS],
    merge_of,
    order,
  )
