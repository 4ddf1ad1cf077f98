"""Faults C: values and models that do not go together."""

import functools
import json

import ml_dtypes
import numpy as np

from tests.faults import table
from tests.faults import workspace

TABLE = table.Table()
_row = TABLE.row
_PATH = workspace.PROJECTION


def _spoil(case, value):
  x = case.arrays('math')[_PATH]
  x[3, 5] = x[4, 0] = value
  case.change('math', **{_PATH: x})


def _say(method='linear', models=('math', 'code'), **fields):
  return lambda case: case.say(workspace.recipe(method, models, **fields))


@_row(
  'C1 NaN', 3, 'math', _PATH, '2 values are not finite', '[3, 5]', '--allow'
)
def _(case):
  _spoil(case, np.nan)


@_row('C1 infinity', 3, 'math', _PATH, '2 values are not finite', '[3, 5]')
def _(case):
  _spoil(case, np.inf)


@_row('C1 NaN in the base', 3, 'base', _PATH, 'not finite', '[0, 7]')
def _(case):
  x = case.arrays('base')[_PATH]
  x[0, 7] = np.nan
  case.change('base', **{_PATH: x})
  case.say(workspace.recipe('task_arithmetic', base='base'))


@_row('C1 NaN allowed', 0, count=0)
def _(case):
  _spoil(case, np.nan)
  case.flags['allow_nonfinite'] = True

  def check():
    merged = case.arrays('merged')
    assert np.isnan(merged.pop(_PATH).astype(np.float32)).sum() == 2
    assert all(np.isfinite(x.astype(np.float32)).all() for x in merged.values())

  return check


def _weights(case, *weights):
  models = [
    {'model': name, 'parameters': {'weight': weight}}
    for name, weight in zip(('math', 'code'), weights, strict=True)
  ]
  case.say(json.dumps({'merge_method': 'linear', 'models': models}))


@_row('C2 weights of sum 0', 2, 'recipe.yml:', 'weight', 'sum', 'normalize')
def _(case):
  _weights(case, 1, -1)


@_row('C2 weight .nan', 2, 'recipe.yml:', 'weight', 'expected a finite number')
def _(case):
  case.say(
    'merge_method: linear\nmodels:\n  - model: math\n    parameters:\n'
    '      weight: .nan\n  - model: code\n'
  )


@_row('C3 tensor missing', 4, f'code / {_PATH}: is missing', "'math' has it")
def _(case):
  case.change('code', **{_PATH: None})


@_row('C3 all are named', 4, 'code /', 'is missing', count=2)
def _(case):
  case.change('code', **{_PATH: None, 'model.norm.weight': None})


def _surplus(case, **flags):
  case.change('math', score=np.ones((2, 16), ml_dtypes.bfloat16))
  case.say(workspace.recipe('task_arithmetic', base='base'))
  case.flags.update(flags)


@_row('C4 extra tensor', 4, 'math / score', "is not in 'base'", '--extra=drop')
def _(case):
  _surplus(case)


@_row('C4 dropped', 0, count=0)
def _(case):
  _surplus(case, extra='drop')
  return lambda: _same(set(case.arrays('merged')), set(case.arrays('base')))


@_row('C4 the base has it', 0, count=0)
def _(case):
  case.change('base', score=np.ones((2, 16), ml_dtypes.bfloat16))
  case.say(workspace.recipe('task_arithmetic', base='base'))
  case.flags['extra'] = 'base'
  return lambda: _same(set(case.arrays('merged')), set(case.arrays('base')))


def _same(found, expected):
  assert found == expected


@_row('C5 shape', 4, f'code / {_PATH}', '[8, 16]', '[16, 16]', "'math'")
def _(case):
  case.change('code', **{_PATH: np.ones((8, 16), ml_dtypes.bfloat16)})


@_row('C5 a shape that broadcasts', 4, f'code / {_PATH}', '[1, 16]', '[16, 16]')
def _(case):
  case.change('code', **{_PATH: np.ones((1, 16), ml_dtypes.bfloat16)})


@_row(
  'C6 vocabularies',
  4,
  'code',
  '34 rows',
  '32 rows',
  'tokenizer: {source: base}',
)
def _(case):
  arrays = case.arrays('code')
  for path in (workspace.EMBEDDINGS, workspace.HEAD):
    arrays[path] = np.concatenate([arrays[path], arrays[path][:2]])
  config = {**workspace.CONFIG, 'vocab_size': 34}
  workspace.save(case.code, arrays, config, words=34)


@_row('C6 config of another vocabulary', 4, 'vocab_size', '40', count=2)
def _(case):
  for name in workspace.NAMES:
    case.configure(name, vocab_size=40)


@_row('C7 tied and untied', 4, 'head in code, but not in math', '--untie')
def _(case):
  case.change('code', **{workspace.HEAD: None})
  case.configure('code', tie_word_embeddings=True)


@_row('C7 untied', 0, count=1)
def _(case):
  case.change('code', **{workspace.HEAD: None})
  case.configure('code', tie_word_embeddings=True)
  case.flags['untie'] = True

  def check():
    config = json.loads((case.target / 'config.json').read_text())
    assert config['tie_word_embeddings'] is False
    merged = case.arrays('merged')[workspace.HEAD].astype(np.float32)
    math = case.arrays('math')[workspace.HEAD].astype(np.float32)
    code = case.arrays('code')[workspace.EMBEDDINGS].astype(np.float32)
    expected = ((math + code) / 2).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(merged, expected.astype(np.float32))

  return check


@_row(
  'C7 config ties what differs',
  3,
  f'code / {workspace.HEAD}',
  'differs',
  count=2,
)
def _(case):
  for name in workspace.NAMES:
    case.configure(name, tie_word_embeddings=True)


@_row('C8 int8 codes', 3, 'math: is quantised', _PATH, 'int8', 'unquantised')
def _(case):
  case.change('math', **{_PATH: np.ones((16, 16), np.int8)})


@_row('C8 config says so', 0, 'math / config.json', 'quantised')
def _(case):
  case.configure('math', quantization_config={'quant_method': 'gptq'})


@_row('C9 bfloat16 and float32', 0, "code: 'float32'", 'merged in float32')
def _(case):
  arrays = {p: x.astype(np.float32) for p, x in case.arrays('code').items()}
  workspace.store(case.code / workspace.FILE, arrays)

  def check():
    math = case.arrays('math')[_PATH].astype(np.float32)
    expected = (math + case.arrays('code')[_PATH]) / 2
    got = case.arrays('merged')[_PATH]
    np.testing.assert_array_equal(got, expected.astype(got.dtype))

  return check


@_row('C10 layers', 4, 'code', '2', '3', 'layers', count=1)
def _(case):
  config = {**workspace.CONFIG, 'num_hidden_layers': 2}
  workspace.save(case.code, workspace.tensors(5, layers=2), config)


@_row('C11 widths', 4, 'code / config.json', 'hidden_size is 24', '16')
def _(case):
  config = {**workspace.CONFIG, 'hidden_size': 24}
  workspace.save(case.code, workspace.tensors(5, hidden=24), config)


@_row('C11 family', 4, 'code / config.json', "model_type is 'gpt2'", "'llama'")
def _(case):
  case.configure('code', model_type='gpt2')


@_row(
  'C11 config of other widths', 4, _PATH, '[32, 16] by config.json', count=6
)
def _(case):
  for name in workspace.NAMES:
    case.configure(name, num_attention_heads=4, head_dim=8)


@_row('C11 config of fewer layers', 4, 'expected 2 layers, got tensors of 3')
def _(case):
  for name in workspace.NAMES:
    case.configure(name, num_hidden_layers=2)


@_row('C12 another base', 0, 'code is 1.', 'was it made from this base?')
def _(case):
  workspace.store(case.code / workspace.FILE, workspace.tensors(9))
  case.say(workspace.recipe('task_arithmetic', base='base'))


@_row('C12 strict', 4, 'code is 1.', 'was it made from this base?')
def _(case):
  TABLE.named('C12 another base').inject(case)
  case.flags['strict'] = True


@_row('C13 beyond float16', 3, _PATH, 'float16', 'wider type')
def _(case):
  for name in ('math', 'code'):
    arrays = {p: x.astype(np.float32) for p, x in case.arrays(name).items()}
    arrays[_PATH][2, 2] = 1e5
    workspace.store(case.root / name / workspace.FILE, arrays)
  case.say(workspace.recipe(out_dtype='float16'))


def _buffers(case, last):
  for name in workspace.NAMES:
    ids = np.arange(8)
    ids[-1] = last if name == 'code' else 7
    case.change(name, position_ids=ids, mask=np.ones(4, np.bool_))


@_row('C14 integers differ', 4, 'code', 'position_ids', "differs from 'math'")
def _(case):
  _buffers(case, 8)


@_row('C14 integers agree', 0, count=0)
def _(case):
  _buffers(case, 7)

  def check():
    merged = case.arrays('merged')
    np.testing.assert_array_equal(merged['position_ids'], np.arange(8))
    assert merged['mask'].dtype == np.bool_

  return check


def _equal_models(case, method, **fields):
  """Both experts are the base: all changes are zero."""
  for name in ('math', 'code'):
    workspace.store(case.root / name / workspace.FILE, case.arrays('base'))
  case.say(workspace.recipe(method, base='base', **fields))

  def check():
    merged = case.arrays('merged')
    for path, x in case.arrays('base').items():
      np.testing.assert_array_equal(
        merged[path].astype(np.float32), x.astype(np.float32), path
      )

  return check


for _method in ('task_arithmetic', 'ties'):
  _row(f'C15 {_method} of no change', 0, count=0)(
    functools.partial(_equal_models, method=_method)
  )


@_row('C15 slerp of one model with itself', 0, count=0)
def _(case):
  workspace.store(case.math / workspace.FILE, case.arrays('base'))
  case.say(
    json.dumps(
      {
        'merge_method': 'slerp',
        'base_model': 'base',
        'models': [{'model': 'base'}, {'model': 'math'}],
        'parameters': {'t': 0.5},
      }
    )
  )

  def check():
    for path, x in case.arrays('base').items():
      got = case.arrays('merged')[path].astype(np.float32)
      np.testing.assert_allclose(got, x.astype(np.float32), rtol=1e-2)

  return check


@_row('C15 slerp of zeros', 0, count=0)
def _(case):
  check = TABLE.named('C15 slerp of one model with itself').inject(case)
  for name in ('base', 'math'):
    arrays = case.arrays(name)
    arrays[_PATH][:] = 0
    workspace.store(case.root / name / workspace.FILE, arrays)
  return check


@_row('C15 one model', 0, count=0)
def _(case):
  _say(models=('math',))(case)

  def check():
    assert workspace.weights(case.target) == workspace.weights(case.math)

  return check


@_row('C15 no model', 2, 'recipe.yml', 'models')
def _(case):
  _say(models=())(case)
