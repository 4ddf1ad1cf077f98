"""Faults D and G: recipes, flags, and what else comes from elsewhere."""

import json
import os
import re

import numpy as np
import safetensors.numpy
import yaml

from tests.faults import table
from tests.faults import workspace

TABLE = table.Table()
_row = TABLE.row
_FRONT = {
  'license',
  'library_name',
  'tags',
  'base_model',
  'base_model_relation',
}
_GOOD = {
  'merge_method': 'ties',
  'base_model': 'base',
  'models': [{'model': name} for name in ('math', 'code')],
  'parameters': {'density': 0.5, 'weight': 0.5},
}


def _say(case, **fields):
  content = {**_GOOD, **fields}
  content = {key: value for key, value in content.items() if value is not None}
  case.say(json.dumps(content, indent=1))


@_row('D1 method', 2, "unknown method 'dare-ties'", "did you mean 'dare_ties'?")
def _(case):
  _say(case, merge_method='dare-ties')


@_row('D2 key', 2, 'recipe.yml:', "'out_dtpye'", "did you mean 'out_dtype'?")
def _(case):
  _say(case, out_dtpye='float32')


@_row('D3 lamda', 2, 'recipe.yml:', "'lamda'", "did you mean 'lambda'?")
def _(case):
  _say(case, parameters={**_GOOD['parameters'], 'lamda': 1})


@_row('D3 normalise', 2, 'recipe.yml:', "did you mean 'normalize'?")
def _(case):
  _say(case, parameters={**_GOOD['parameters'], 'normalise': True})


@_row('D4 filter', 2, "filter 'self_atn' matched 0 of", "'self_attn'?")
def _(case):
  rules = [{'filter': 'self_atn', 'value': 0.3}, {'value': 0.5}]
  _say(case, parameters={'weight': rules, 'density': 0.5})


@_row('D5 bf16', 0, count=0)
def _(case):
  _say(case, dtype='bf16', merge_method='linear', parameters={'weight': 0.5})


@_row('D6 no base', 2, 'ties needs base_model', 'is missing')
def _(case):
  _say(case, base_model=None)


@_row('D7 density above 1', 2, 'density', 'from 0 to 1, got 1.5')
def _(case):
  _say(case, parameters={'density': 1.5, 'weight': 1})


@_row('D7 density below 0', 2, 'density', 'from 0 to 1, got -1')
def _(case):
  _say(case, parameters={'density': -1, 'weight': 1})


@_row(
  'D8 key twice', 2, 'recipe.yml:3', "'merge_method' is here again", 'line 1'
)
def _(case):
  case.say('merge_method: ties\nbase_model: base\nmerge_method: linear\n')


@_row('D9 alias bomb', 2, 'recipe.yml:', 'values, once every alias is replaced')
def _(case):
  lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
  for i in range(1, 10):
    again = ', '.join([f'*a{i - 1}'] * 10)
    lines.append(f'a{i}: &a{i} [{again}]')
  case.say('\n'.join(lines))


@_row('D9 an alias of itself', 2, 'recipe.yml:1', 'alias is a part of itself')
def _(case):
  case.say('a: &a [*a]')


@_row('D9 2 MB', 2, 'recipe.yml', 'is larger than 1 MB')
def _(case):
  case.say('#' * 2_000_000)


@_row('D9 deep', 2, 'recipe.yml:1', 'is nested more than')
def _(case):
  case.say('[' * 10_000)


@_row('D9 a tag that runs code', 2, 'recipe.yml:1', 'tags are not read')
def _(case):
  case.say(
    f'merge_method: !!python/object/apply:os.mkdir ["{case.root}/pwned"]\n'
  )


@_row('D9 not UTF-8', 2, 'recipe.yml:1', 'is not UTF-8')
def _(case):
  case.say(b'merge_method: \xff\xfe\n')


@_row('D9 empty', 2, 'recipe.yml', 'is empty', 'merge_method')
def _(case):
  case.say('')


@_row('D9 control characters', 2, 'recipe.yml:')
def _(case):
  case.say('merge_method: "ti\\e[2Jes"\nmodels: []\n')


@_row('D10 a path like a name of the hub', 0, count=0)
def _(case):
  os.renames(case.math, case.root / 'org' / 'math')
  case.say(workspace.recipe(models=('org/math', 'code')))


@_row('D10 no such model', 3, 'org/none', 'no such directory', 'hf download')
def _(case):
  case.say(workspace.recipe(models=('org/none', 'code')))


@_row('D11 the output is an input', 2, 'is an input', 'another place')
def _(case):
  case.target = case.math
  case.flags['overwrite'] = True


@_row('D11 in an input', 2, 'lies in an input', 'another place')
def _(case):
  case.target = case.math / 'merged'


@_row('D11 around the inputs', 2, 'contains an input', 'another place', count=3)
def _(case):
  case.target = case.root
  case.flags['overwrite'] = True


@_row('D11 an input by a link', 2, 'is an input', 'another place')
def _(case):
  case.target = case.root / 'alias'
  case.target.symlink_to(case.math)
  case.flags['overwrite'] = True


@_row('D11 a model is there', 2, 'merged: exists', '--overwrite')
def _(case):
  workspace.save(case.target, case.arrays('base'))


@_row('D11 replaced', 0, count=0)
def _(case):
  workspace.save(case.target, case.arrays('base'))
  case.shard('merged')
  case.flags['overwrite'] = True

  def check():
    names = {path.name for path in case.target.iterdir()}
    assert workspace.FILE in names
    assert not names & {workspace.INDEX, *workspace.SHARDS}

  return check


@_row('D11 something else is there', 2, "holds 'thesis.docx'", 'delete it')
def _(case):
  workspace.save(case.target, case.arrays('base'))
  (case.target / 'thesis.docx').write_text('years')
  case.flags['overwrite'] = True


@_row('D11 a file', 2, 'merged: is a file')
def _(case):
  case.target.write_text('mine')
  case.flags['overwrite'] = True


@_row('D12 size', 2, '--max_memory: expected a size such as', "'lots'")
def _(case):
  case.flags['max_memory'] = 'lots'


@_row('D12 model_path', 2, '--model_path: expected NAME=DIR', "'math'")
def _(case):
  case.flags['model_paths'] = ['math']


@_row('D12 model_path of none', 2, '--model_path zzz', 'no model has it')
def _(case):
  case.flags['model_paths'] = [f'zzz={case.math}']


@_row('D two recipes in one', 2, "'merge'")
def _(case):
  _say(case, merge='ties')


@_row('D native: transform', 2, "no transform 'tiess'", "'ties'")
def _(case):
  case.say('{base: base, experts: {math: math}, merge: tiess}')


@_row('D native: value', 2, 'recipe.yml:1', 'density')
def _(case):
  case.say('{base: base, experts: {math: math}, merge: {ties: 7}}')


@_row('D native: argument', 2, "no argument 'densty'", "'density'")
def _(case):
  case.say('{base: base, experts: {a: math}, merge: {ties: {densty: 1}}}')


@_row('D all at once', 2, "'lamda'", count=3)
def _(case):
  _say(case, parameters={'density': 7, 'lamda': 1}, out_dtpye='f')


@_row('G1 pickle', 3, 'math / pytorch_model.bin', 'pickles run code', 'convert')
def _(case):
  (case.math / workspace.FILE).unlink()
  (case.math / 'pytorch_model.bin').write_bytes(b'\x80\x02cos\nsystem\n.')


@_row('G4 code of a model is not copied', 0, count=0)
def _(case):
  for name in workspace.NAMES:
    case.configure(name, auto_map={'AutoModel': 'modeling_evil.Evil'})
    code = case.root / name / 'modeling_evil.py'
    code.write_text('raise SystemExit("ran")')

  def check():
    assert not list(case.target.glob('*.py'))

  return check


@_row('G5 template is text', 0, count=0)
def _(case):
  template = '{{ cycler.__init__.__globals__.os.mkdir("pwned") }}'
  for name in workspace.NAMES:
    (case.root / name / 'chat_template.jinja').write_text(template)

  def check():
    assert (case.target / 'chat_template.jinja').read_text() == template
    assert not os.path.exists('pwned')

  return check


def _adapter(case, **fields):
  directory = case.root / 'adapter'
  directory.mkdir()
  config = {
    'peft_type': 'LORA',
    'base_model_name_or_path': 'base',
    'r': 2,
    'lora_alpha': 2,
    'target_modules': ['layers.1.self_attn.q_proj'],
    **fields,
  }
  (directory / 'adapter_config.json').write_text(json.dumps(config))
  path = workspace.PROJECTION.removesuffix('.weight')
  safetensors.numpy.save_file(
    {
      f'base_model.model.{path}.lora_A.weight': np.ones((2, 16), np.float32),
      f'base_model.model.{path}.lora_B.weight': np.ones((16, 2), np.float32),
    },
    directory / 'adapter_model.safetensors',
  )
  case.say(workspace.recipe('task_arithmetic', ('base+adapter',), base='base'))


@_row('G6 adapter that is sound', 0, count=0)
def _(case):
  _adapter(case)

  def check():
    base = case.arrays('base')[workspace.PROJECTION]
    merged = case.arrays('merged')[workspace.PROJECTION]
    expected = (base.astype(np.float32) + 1).astype(base.dtype)
    np.testing.assert_array_equal(merged, expected)

  return check


@_row('G6 huge rank', 3, 'adapter', 'r', '1000000000')
def _(case):
  _adapter(case, r=10**9)


@_row('G6 negative alpha', 3, 'adapter', 'lora_alpha', '-2')
def _(case):
  _adapter(case, lora_alpha=-2)


@_row('G6 regex bomb', 3, 'adapter', 'target_modules')
def _(case):
  _adapter(case, target_modules='(a+)+' * 20 + '$')


@_row('G7 front matter', 0, count=0)
def _(case):
  name = 'x\n---\nevil: true\n<script>alert(1)<_script>'
  os.rename(case.math, case.root / name)
  case.say(workspace.recipe(models=(name, 'code')))

  def check():
    text = (case.target / 'README.md').read_text()
    _, front, body = text.split('---\n', 2)
    assert set(yaml.safe_load(front)) <= _FRONT
    # Marks of Markdown and HTML are text in a span or block of code.
    body = re.sub(r'(`{3,})yaml\n.*?\n\1', '', body, flags=re.DOTALL)
    assert '<script' not in re.sub(r'(`+).+?\1', '', body)

  return check
