"""Trains and decodes with nanoGPT; runs in its environment (see `serve`).

Its source is beside the environment's other files, in `nanoGPT/`. Its model,
its optimiser and its `generate` are used as they are; the loop around them is
what its `train.py` does for every step, without logging.
"""

import pathlib
import sys
import time

import serve
import torch

sys.path.insert(0, str(pathlib.Path(sys.prefix, 'nanoGPT')))

import model as nanogpt

_MODELS = {}


def _model(shape, compiled):
  """The model and optimiser of a shape, made once."""
  key = (*sorted(shape.items()), compiled)
  if key not in _MODELS:
    torch.manual_seed(0)
    module = nanogpt.GPT(
      nanogpt.GPTConfig(
        block_size=shape['length'],
        vocab_size=shape['vocabulary'],
        n_layer=shape['layers'],
        n_head=shape['heads'],
        n_embd=shape['width'],
        dropout=0.0,
        bias=True,
      )
    )
    optimizer = module.configure_optimizers(0.1, 1e-3, (0.9, 0.99), 'cpu')
    _MODELS[key] = (
      module,
      torch.compile(module) if compiled else module,
      optimizer,
    )
  return _MODELS[key]


def _train(request):
  shape, batch = request['shape'], request['batch']
  module, run, optimizer = _model(shape, request['compiled'])
  data = torch.randint(shape['vocabulary'], (request['stream'],))
  module.train()
  cpu, wall = time.process_time(), time.perf_counter()
  for _ in range(request['models']):
    for _ in range(request['steps']):
      starts = torch.randint(len(data) - shape['length'], (batch,))
      inputs, targets = (
        torch.stack([data[i + j : i + j + shape['length']] for i in starts])
        for j in range(2)
      )
      _, loss = run(inputs, targets)
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
      optimizer.step()
  loss = loss.item()
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  count = sum(p.numel() for p in module.parameters())
  return {'wall': wall, 'cpu': cpu, 'loss': loss, 'parameters': count}


def _generate(request):
  shape = request['shape']
  module, _, _ = _model(shape, False)
  module.eval()
  prompts = torch.randint(
    shape['vocabulary'], (request['prompts'], request['prompt'])
  )
  cpu, wall = time.process_time(), time.perf_counter()
  for some in prompts.split(request['batch']):
    module.generate(some, request['tokens'], top_k=1)
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return {'wall': wall, 'cpu': cpu}


_JOBS = {'train': _train, 'generate': _generate}


if __name__ == '__main__':
  serve.serve(
    ['torch'], list(_JOBS), lambda request: _JOBS[request['job']](request)
  )
