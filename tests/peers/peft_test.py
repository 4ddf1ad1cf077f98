"""PEFT's own adapters and merges, and PEFT as the reader of ours."""

import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from safetensors import numpy as safetensors

from experiments.checkpoints import extract
from merging import streams
from third_party import problems
from third_party.peers import client
from third_party.peft import adapted
from third_party.peft import adapter as adapter_lib
from third_party.peft import write

_CASES = (
  'bias_all',
  'bias_lora',
  'conv1d',
  'conv1d_dora',
  'convolution',
  'dora',
  'embedding',
  'factor_bias',
  'half',
  'layers',
  'lokr',
  'lokr_whole',
  'pattern',
  'plain',
  'rslora',
  'saved',
)
# What `write` has no place for.
_NOT_WRITTEN = ('convolution', 'factor_bias', 'lokr', 'lokr_whole')
_PROGRAM = pathlib.Path(client.__file__).with_name('on_peft.py')


def _run(*arguments):
  python = client.python_of('mergekit')  # Its environment has PEFT.
  if not python.exists():
    pytest.skip('mergekit is not installed: see third_party/peers/README.md')
  done = subprocess.run(
    [python, _PROGRAM, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, 'HF_HUB_OFFLINE': '1'},
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('made')
  _run('make', folder)
  return folder


def _load(folder):
  return safetensors.load_file(folder / 'model.safetensors')


def _applied(base, folder):
  source = streams.InMemory(base)
  adapter = adapter_lib.open_adapter(folder).fit(source.specs)
  full = adapted.Adapted(source, adapter)
  leaves = {}
  for path, spec in full.specs.items():
    out = np.empty(base[path].size, spec.dtype)
    full.read(path, 0, out)
    leaves[path] = out.reshape(spec.shape)
  return leaves, adapter


def _check(got, want):
  assert set(got) == set(want)
  for path, leaf in want.items():
    wide = leaf.astype(np.float32), got[path].astype(np.float32)
    np.testing.assert_allclose(*wide, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('case', _CASES)
def test_what_peft_wrote_is_read(made, case):
  base = _load(made / case / 'base')
  applied, adapter = _applied(base, made / case / 'adapter')
  merged = _load(made / case / 'merged')
  _check(applied, merged)
  changed = {
    path
    for path, leaf in merged.items()
    if not np.array_equal(leaf, base[path].astype(np.float32))
  }
  assert set(adapter) == changed
  assert not adapter.notes


def test_an_adapter_of_a_tied_head_is_refused(made):
  base = streams.InMemory(_load(made / 'tied' / 'base'))
  files = adapter_lib.open_adapter(made / 'tied' / 'adapter')
  with pytest.raises(problems.ProblemError, match='untie the base'):
    files.fit(base.specs)


@pytest.fixture(scope='module')
def loaded(made, tmp_path_factory):
  """All that we write, loaded by PEFT: its merged tensors by case."""
  folder = tmp_path_factory.mktemp('written')
  for case in set(_CASES) - set(_NOT_WRITTEN):
    specs = streams.InMemory(_load(made / case / 'base')).specs
    files = adapter_lib.open_adapter(made / case / 'adapter')
    shutil.copytree(made / case / 'base', folder / case / 'base')
    write.write_adapter(folder / case / 'adapter', files.fit(specs), specs)
  case = folder / 'extracted'
  shutil.copytree(made / 'conv1d' / 'base', case / 'base')
  base = _load(case / 'base')
  random = np.random.default_rng(0)
  expert = {
    path: leaf + 0.1 * random.standard_normal(leaf.shape).astype(np.float32)
    for path, leaf in base.items()
  }
  config = json.loads((case / 'base' / 'config.json').read_text())
  extract.extract_lora(
    streams.InMemory(base),
    streams.InMemory(expert),
    case / 'adapter',
    rank=16,
    modules=r'h\.',
    in_out=extract.in_out_pattern(config),
  )
  safetensors.save_file(expert, folder / 'expert.safetensors')
  expert_file = (folder / 'expert.safetensors').rename(
    tmp_path_factory.mktemp('expert') / 'model.safetensors'
  )
  _run('load', folder)
  return folder, expert_file.parent


@pytest.mark.parametrize('case', sorted(set(_CASES) - set(_NOT_WRITTEN)))
def test_what_we_write_peft_reads(made, loaded, case):
  folder, _ = loaded
  _check(_load(folder / case / 'merged'), _load(made / case / 'merged'))


def test_peft_restores_a_gpt2_from_what_was_extracted(loaded):
  """Of full rank, with layer norms, biases and the tied embedding whole.

  PEFT unties the head of such a model, and leaves it as it was in the base.
  """
  folder, expert = loaded
  merged, want = _load(folder / 'extracted' / 'merged'), _load(expert)
  assert set(merged) == {*want, 'lm_head.weight'}
  for path, leaf in want.items():
    np.testing.assert_allclose(merged[path], leaf, atol=1e-4)
