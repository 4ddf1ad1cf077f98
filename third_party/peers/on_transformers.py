"""Runs models as transformers does; runs in an environment that has it.

    python on_transformers.py FOLDER

Each folder in FOLDER is a case: `case.json` names a class of transformers, the
fields of its config, and what to call; `inputs.npz` has the arguments. A model
of random weights is made; its checkpoint and `outputs.npz` are added.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers


def main() -> None:
  """Runs all cases."""
  for path in sorted(pathlib.Path(sys.argv[1]).glob('*/case.json')):
    _run(path.parent, json.loads(path.read_text()))


@torch.no_grad()
def _run(folder, case):
  torch.manual_seed(0)
  kind = getattr(transformers, case['class'])
  config = kind.config_class(**case['config'])
  config._attn_implementation = 'eager'
  model = kind(config).eval()
  for name, weight in model.named_parameters():
    weight.copy_(_draw(name, weight))
  model.save_pretrained(folder)
  with np.load(folder / 'inputs.npz') as arrays:
    inputs = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
  outputs = {
    key: x.numpy()
    for key, x in model(**inputs).items()
    if isinstance(x, torch.Tensor)
  }
  if case.get('generate'):
    outputs['generated'] = model.generate(
      **{key: inputs[key] for key in ('input_ids', 'attention_mask')},
      max_new_tokens=case['generate'],
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    ).numpy()
  np.savez(folder / 'outputs.npz', **outputs)


def _draw(name, weight):
  """Weights of a size at which all parts of a model show in its outputs."""
  noise = torch.randn(weight.shape)
  if weight.ndim >= 2 and 'embed' not in name and 'wte' not in name:
    return noise * 1.5 / weight[0].numel() ** 0.5
  if weight.ndim == 1 and 'norm' in name and name.endswith('weight'):
    return 1 + 0.2 * noise
  if not weight.ndim:
    return weight
  return 0.5 * noise


if __name__ == '__main__':
  main()
