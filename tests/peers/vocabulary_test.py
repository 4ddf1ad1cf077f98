"""Merged embeddings, token by token, against mergekit's, and what loads."""

import json
import pathlib
import subprocess

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from third_party import strict_yaml
from third_party.huggingface import chat_templates
from third_party.huggingface import checkpoint
from third_party.huggingface import tied
from third_party.huggingface import vocabulary
from third_party.mergekit import tokens
from third_party.peers import client

RUNNER = pathlib.Path(client.__file__).with_name('on_tokenizers.py')
LEAVES = ('model.embed_tokens.weight', 'lm_head.weight')
UNTIED = ('llama', 'mistral', 'mixtral', 'qwen2', 'qwen3', 'gpt_neox', 'phi')
TOKENIZERS = {
  'union': {'source': 'union'},
  'base': {'source': 'base'},
  'expert': {'source': 'x'},
  'padded': {'source': 'union', 'pad_to_multiple_of': 8},
  'rules': {
    'source': 'union',
    'tokens': {
      '<x>': {'source': {'kind': 'zero'}, 'force': True},
      '<|im_start|>': {'source': 'y'},
      'bc': {'source': 'y', 'force': True},
      '<new>': {'source': {'kind': 'model_token', 'model': 'x', 'token': 'ca'}},
    },
  },
}


def _run(folder, task, value):
  python = client.python_of('mergekit')
  if not python.exists():
    pytest.skip('mergekit is not installed: see third_party/peers/README.md')
  process = subprocess.run(
    [python, RUNNER, folder, task],
    input=json.dumps(value),
    capture_output=True,
    text=True,
    check=False,
    env={'HF_HUB_OFFLINE': '1', 'PATH': '/usr/bin:/bin', 'HOME': str(folder)},
  )
  assert process.returncode == 0, process.stderr[-4000:]


def _with_paths(value, folder):
  """The same tokenizer for mergekit, to which a model is its directory."""
  if isinstance(value, dict):
    return {k: _with_paths(v, folder) for k, v in value.items()}
  return str(folder / value) if value in ('x', 'y') else value


def _recipe(tokenizer, folder, with_base):
  models = [
    {'model': str(folder / name), 'parameters': {'weight': weight}}
    for name, weight in (('x', 0.25), ('y', 0.5))
  ]
  recipe = {
    'dtype': 'float32',
    'tokenizer': _with_paths(tokenizer, folder),
    'models': models,
  }
  if with_base:
    return recipe | {
      'merge_method': 'task_arithmetic',
      'base_model': str(folder / 'base'),
    }
  # Without a base mergekit takes the tokenizer of the first model of a set, so
  # that any may be extended; the rows do not depend on it.
  return recipe | {
    'merge_method': 'linear',
    'parameters': {'normalize': False},
  }


def _plan(folder, name, chat_template=None):
  opened = {
    each: checkpoint.open_checkpoint(folder / each, name=each)
    for each in ('base', 'x', 'y')
  }
  fields = {'tokenizer': TOKENIZERS.get(name, {'source': 'union'})}
  if chat_template is not None:
    fields['chat_template'] = chat_template
  # JSON is YAML.
  root = strict_yaml.load(json.dumps(fields))
  policy = tokens.read_policy(root.mapping())
  base = None if name == 'baseless' else opened['base']
  plan = vocabulary.plan(policy, base, [opened['x'], opened['y']])
  assert not plan.problems
  weights = {}
  for path in LEAVES:
    rows = {}
    for each, source in plan.sources.items():
      spec = source.specs[path]
      rows[each] = np.empty(spec.shape, spec.dtype)
      source.read(path, 0, rows[each].reshape(-1))
    start = rows.get('base', np.zeros_like(rows['x']))
    x, y = rows['x'] - start, rows['y'] - start
    weights[path] = start + 0.25 * x + 0.5 * y
  for each in opened.values():
    each.close()
  return plan, weights


def _write(plan, folder):
  folder.mkdir(parents=True)
  for name, content in plan.files.items():
    copied = isinstance(content, pathlib.Path)
    (folder / name).write_bytes(content.read_bytes() if copied else content)
  (folder / 'config.json').write_text('{"model_type": "llama"}')


@pytest.fixture(scope='module')
def merged(tmp_path_factory):
  folder = tmp_path_factory.mktemp('vocabulary')
  recipes = {
    name: _recipe(tokenizer, folder, True)
    for name, tokenizer in TOKENIZERS.items()
  }
  recipes['baseless'] = _recipe({'source': 'union'}, folder, False)
  _run(folder, 'make', recipes)
  weights, names = {}, []
  for name in recipes:
    plan, weights[name] = _plan(folder, name)
    _write(plan, folder / 'ours' / name)
    names += [f'out/{name}', f'ours/{name}']
  for name in chat_templates.NAMED:
    plan, _ = _plan(folder, 'base', name)
    _write(plan, folder / 'templates' / name)
    names.append(f'templates/{name}')
  families = [*tied._TIED_FAMILIES, *UNTIED]
  _run(folder, 'describe', {'names': names, 'families': families})
  said = json.loads((folder / 'described.json').read_text())
  return folder, weights, said


@pytest.mark.slow
@pytest.mark.parametrize('name', [*TOKENIZERS, 'baseless'])
def test_rows_are_those_of_mergekit(merged, name):
  folder, weights, said = merged
  theirs, ours = said[f'out/{name}'], said[f'ours/{name}']
  # Its order of what is appended is that of a hash table.
  assert set(ours['vocabulary']) == set(theirs['vocabulary'])
  if name != 'baseless':
    assert ours['special'] == theirs['special']
    assert ours['tokens'] == theirs['tokens']
  expected = {}
  for file in (folder / 'out' / name).glob('*.safetensors'):
    expected |= safetensors_numpy.load_file(file)
  for path in LEAVES:
    assert weights[name][path].shape == expected[path].shape
    for token, row in ours['vocabulary'].items():
      np.testing.assert_allclose(
        weights[name][path][row],
        expected[path][theirs['vocabulary'][token]],
        rtol=1e-5,
        atol=1e-6,
        err_msg=token,
      )
    last = len(ours['vocabulary'])
    np.testing.assert_allclose(
      weights[name][path][last:], expected[path][last:], rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_templates_render_the_public_formats(merged):
  said = merged[2]
  rendered = {
    name: said[f'templates/{name}']['rendered'] for name in chat_templates.NAMED
  }
  assert rendered == {
    'chatml': (
      '<|im_start|>system\nsystem says<|im_end|>\n'
      '<|im_start|>user\nuser says<|im_end|>\n'
      '<|im_start|>assistant\nassistant says<|im_end|>\n'
      '<|im_start|>user\nuser says<|im_end|>\n'
      '<|im_start|>assistant\n'
    ),
    'alpaca': (
      'system says\n\n### Instruction:\nuser says\n\n### Response:\n'
      'assistant says</s>\n\n### Instruction:\nuser says\n\n### Response:\n'
    ),
    'llama3': (
      '<s><|start_header_id|>system<|end_header_id|>\n\nsystem says<|eot_id|>'
      '<|start_header_id|>user<|end_header_id|>\n\nuser says<|eot_id|>'
      '<|start_header_id|>assistant<|end_header_id|>\n\n'
      'assistant says<|eot_id|>'
      '<|start_header_id|>user<|end_header_id|>\n\nuser says<|eot_id|>'
      '<|start_header_id|>assistant<|end_header_id|>\n\n'
    ),
    'mistral': (
      '<s>[INST] system says\n\nuser says [/INST] assistant says</s>'
      '[INST] user says [/INST]'
    ),
    'exaone': (
      '[|system|]system says[|endofturn|]\n[|user|]user says\n'
      '[|assistant|]assistant says[|endofturn|]\n[|user|]user says\n'
      '[|assistant|]'
    ),
  }


@pytest.mark.slow
def test_families_that_are_tied_when_they_do_not_say(merged):
  assert set(merged[2]['tied']) == tied._TIED_FAMILIES
