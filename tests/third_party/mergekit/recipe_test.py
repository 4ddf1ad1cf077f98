"""Recipes of mergekit: what is read of them, and what is refused."""

import textwrap

import ml_dtypes
import numpy as np
import pytest

from third_party import problems
from third_party.huggingface import alignment
from third_party.mergekit import methods
from third_party.mergekit import names
from third_party.mergekit import parameters
from third_party.mergekit import recipe as recipe_lib

_MODELS = 'models: [{model: a, parameters: {weight: 1}}]'


def parse(text):
  return recipe_lib.parse(textwrap.dedent(text), 'r.yml')


def told(text):
  with pytest.raises(problems.ProblemError) as caught:
    parse(text)
  assert caught.value.status == 2
  return str(caught.value).splitlines()


def test_model_form():
  recipe = parse("""\
    merge_method: dare_ties
    base_model: org/base@main
    models:
      - model: org/base@main
      - model: org/math+org/adapter
        parameters: {density: 0.5, weight: [0, 0.5, 1]}
      - model: {model: {path: /data/code, revision: v2}}
        parameters:
          density:
          - {filter: mlp, value: [1e-1, 0.3]}
          - value: 0.25
          weight: 0.5
    parameters: {int8_mask: true, normalize: 1}
    dtype: bfloat16
    out_dtype: fp16
    tokenizer_source: union
    chat_template: chatml
    name: mine
    random_seed: 7
  """)
  base, math, code = (
    names.ModelRef('org/base', revision='main'),
    names.ModelRef('org/math', lora='org/adapter'),
    names.ModelRef('/data/code', revision='v2'),
  )
  assert recipe.models == (base, math, code)
  assert recipe.base == base
  assert recipe.method.name == 'dare_ties'
  (part,) = recipe.slices
  gradient = part.sources[1].settings['weight'][0]
  assert [gradient.at(t) for t in (0, 0.25, 0.5, 1)] == [0, 0.25, 0.5, 1]
  first, last = part.sources[2].settings['density']
  assert (first.filter, first.values) == ('mlp', (0.1, 0.3))
  assert (last.filter, last.values) == (None, (0.25,))
  assert recipe.parameters['normalize'][0].values == (True,)
  assert recipe.dtype == np.dtype(ml_dtypes.bfloat16)
  assert recipe.out_dtype == np.dtype(np.float16)
  assert recipe.vocabulary.source == 'union'
  assert recipe.vocabulary.chat_template == 'chatml'
  assert (recipe.name, recipe.seed) == ('mine', 7)
  assert recipe.notes == (
    'int8_mask changes nothing: masks take no memory here',
  )


def test_tokenizer():
  recipe = parse(f"""\
    merge_method: linear
    {_MODELS}
    tokenizer:
      source: base
      pad_to_multiple_of: 64
      tokens:
        <a>: {{source: org/x}}
        <b>: {{source: {{kind: zero}}, force: true}}
        <c>: {{source: {{kind: model_token, model: org/y, token_id: 3}}}}
        <d>: {{source: {{kind: model_token, model: org/y, token: '<e>'}}}}
  """)
  assert recipe.vocabulary.source == 'base'
  assert recipe.vocabulary.pad_to_multiple_of == 64
  assert recipe.vocabulary.tokens == {
    '<a>': alignment.Rule('org/x'),
    '<b>': alignment.Rule(force=True),
    '<c>': alignment.Rule('org/y', None, 3),
    '<d>': alignment.Rule('org/y', '<e>'),
  }


_BASED = """\
base_model: base
models:
- model: a
  parameters:
"""

_FAULTS = {
  'D1 method': (
    f'merge_method: dare-ties\nbase_model: base\n{_MODELS}',
    "r.yml:1 / merge_method: unknown method 'dare-ties'; did you mean "
    "'dare_ties'?",
  ),
  'D2 key': (
    f'merge_method: linear\n{_MODELS}\nout_dtpye: float16',
    "r.yml:3: unknown key 'out_dtpye'; did you mean 'out_dtype'?",
  ),
  'D3 parameter': (
    f'merge_method: ties\nparameters:\n  lamda: 0.3\n{_BASED}    weight: 1',
    "r.yml:3 / parameters: unknown key 'lamda'; did you mean 'lambda'?",
  ),
  'D3 spelling': (
    f'merge_method: linear\nparameters:\n  normalise: true\n{_MODELS}',
    "r.yml:3 / parameters: unknown key 'normalise'; did you mean 'normalize'?",
  ),
  'D5 dtype': (
    f'merge_method: linear\n{_MODELS}\ndtype: bflot16',
    "r.yml:3 / dtype: unknown type 'bflot16'; did you mean 'bfloat16'?",
  ),
  'D6 base': (
    'merge_method: task_arithmetic\nmodels: [{model: a}]',
    'r.yml:1: task_arithmetic needs base_model, and it is missing',
  ),
  'D7 density': (
    f'merge_method: ties\n{_BASED}    weight: 1\n    density: 1.5',
    'r.yml:7 / models[0].parameters.density: expected a number from 0 to 1, '
    'got 1.5; 20 % is 0.2',
  ),
  'D7 negative': (
    f'merge_method: ties\n{_BASED}    weight: 1\n    density: [1, -1]',
    'r.yml:7 / models[0].parameters.density[1]: expected a number from 0 to 1, '
    'got -1; 20 % is 0.2',
  ),
  'D8 key twice': (
    f'merge_method: linear\n{_MODELS}\nmerge_method: ties',
    "r.yml:3: the key 'merge_method' is here again, after line 1",
  ),
  'C2 weight': (
    f'merge_method: ties\n{_BASED}    weight: .nan',
    'r.yml:6 / models[0].parameters.weight: expected a finite number, got '
    "'.nan'",
  ),
  'no method': (_MODELS, 'r.yml:1: expected the key merge_method'),
  'no models': (
    'merge_method: linear',
    'r.yml:1: expected one of models and slices, got neither',
  ),
  'models and slices': (
    f'merge_method: linear\n{_MODELS}\nslices: []',
    'expected one of models and slices, got both',
  ),
  'modules': (
    'merge_method: linear\nmodules: {vision: {models: [{model: a}]}}',
    "r.yml:2 / modules: expected 'default' alone, got 'vision'; merging "
    'modules of a model apart is not supported',
  ),
  'modules and models': (
    f'merge_method: linear\n{_MODELS}\nmodules: {{default: {{slices: []}}}}',
    'r.yml:2 / models: expected either this or modules, got both',
  ),
  'key of a module': (
    f'merge_method: linear\nmodules:\n  default: {{{_MODELS}, weight: 1}}',
    "r.yml:3 / modules.default: unknown key 'weight'; write it under "
    'parameters',
  ),
  'parameter at the top': (
    'merge_method: sce\nbase_model: b\nselect_topk: .1\nmodels: [{model: a}]',
    "r.yml:3: unknown key 'select_topk'; write it under parameters",
  ),
  'rows at the top': (
    f'merge_method: linear\npad_to_multiple_of: 8\n{_MODELS}',
    "r.yml:2: unknown key 'pad_to_multiple_of'; write it under tokenizer",
  ),
  'revision beside its model': (
    'merge_method: passthrough\nslices:\n- sources:\n'
    '  - {model: a, revision: v0, layer_range: [0, 3]}',
    "r.yml:4 / slices[0].sources[0]: unknown key 'revision'; write model: "
    'NAME@REVISION',
  ),
  'definition that nothing uses': (
    f'merge_method: linear\nmine: &x 1\n{_MODELS}',
    "r.yml:2: unknown key 'mine'",
  ),
  'mixture of experts': (
    'base_model: a\ngate_mode: hidden\nexperts: []',
    'this is a recipe of mergekit-moe, which is not supported',
  ),
  'two documents': (
    f'merge_method: linear\n{_MODELS}\n---\nmerge_method: linear',
    'r.yml:3: a second document begins; write one recipe for a file',
  ),
  'shared setting of a model': (
    f'merge_method: ties\n{_BASED}    weight: 1\n    normalize: true',
    'r.yml:7 / models[0].parameters.normalize: normalize is a setting of the '
    'whole merge, not of one model; move it to the parameters at the top',
  ),
  'setting of another method': (
    'merge_method: slerp\nbase_model: b\nmodels: [{model: a}]\n'
    'parameters: {t: 0.5, density: 0.5}',
    "r.yml:4 / parameters: unknown key 'density'; keys of slerp are 't'; "
    'mergekit takes no notice of others: remove it',
  ),
  'model twice': (
    'merge_method: karcher\nmodels: [{model: a}, {model: a}]',
    "r.yml:2 / models: 'a' is here twice; list every model once",
  ),
  'too many': (
    'merge_method: slerp\nbase_model: b\nparameters: {t: 1}\n'
    'models: [{model: a}, {model: c}]',
    "r.yml:4 / models: slerp takes 1 model besides the base, got 2: 'a', 'c'",
  ),
  'too few': (
    'merge_method: model_stock\nbase_model: b\nmodels: [{model: a}]',
    'r.yml:3 / models: model_stock takes 2 or more models besides the base, '
    "got 1: 'a'",
  ),
  'passthrough with base': (
    'merge_method: passthrough\nbase_model: b\nmodels: [{model: a}]',
    "passthrough takes 1 model, got 2: 'a', 'b'; remove base_model",
  ),
  'dead filter': (
    'merge_method: slerp\nbase_model: b\nmodels: [{model: a}]\n'
    'parameters:\n  t:\n  - value: 0.5\n  - {filter: mlp, value: 1}',
    'r.yml:7 / parameters.t[1]: is never used, for the one before it takes '
    'every tensor',
  ),
  'filter without value': (
    'merge_method: slerp\nbase_model: b\nmodels: [{model: a}]\n'
    'parameters: {t: [{filter: mlp}]}',
    'r.yml:4 / parameters.t[0]: expected the key value, and it is missing',
  ),
  'layers': (
    'merge_method: passthrough\n'
    'slices:\n- sources: [{model: a, layer_range: [4, 4]}]',
    'r.yml:3 / slices[0].sources[0].layer_range: expected layers from the '
    'first to before the second, got [4, 4]',
  ),
  'layers missing': (
    'merge_method: passthrough\nslices: [{sources: [{model: a}]}]',
    'expected the key layer_range, and it is missing',
  ),
  'unequal layers': (
    'merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources:\n'
    '  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [0, 3]}',
    'r.yml:4 / slices[0]: expected as many layers of every source, got a: 4, '
    'b: 3',
  ),
  'slices without their base': (
    'merge_method: slerp\nbase_model: b\nparameters: {t: 1}\nslices:\n'
    '- sources: [{model: a, layer_range: [0, 4]}]',
    "r.yml:5 / slices[0]: the base 'b' is not among the sources",
  ),
  'residual weight': (
    'merge_method: passthrough\nslices:\n'
    '- {sources: [{model: a, layer_range: [0, 1]}], residual_weight: 1}',
    'residual_weight has no effect in mergekit; remove it',
  ),
  'architecture': (
    'merge_method: linear\nmodels:\n'
    '- model: {model: a, override_architecture: X}',
    'override_architecture is not supported',
  ),
  'two adapters': (
    'merge_method: linear\nmodels: [{model: a+b+c}]',
    "expected a model as path or path+adapter, got 'a+b+c'",
  ),
  'two tokenizers': (
    f'merge_method: linear\n{_MODELS}\ntokenizer_source: base\n'
    'tokenizer: {source: base}',
    'r.yml:4 / tokenizer: expected tokenizer_source or tokenizer, got both',
  ),
  'rows to pad to': (
    f'merge_method: linear\n{_MODELS}\ntokenizer: {{pad_to_multiple_of: 0}}',
    'r.yml:3 / tokenizer.pad_to_multiple_of: expected 1 or more, got 0',
  ),
  'tokens as a list': (
    f'merge_method: linear\n{_MODELS}\ntokenizer: {{tokens: [a]}}',
    'r.yml:3 / tokenizer.tokens: expected a mapping as lines of',
  ),
  'force without a source': (
    f'merge_method: linear\n{_MODELS}\ntokenizer: {{tokens: {{a: '
    '{force: true}}}',
    'r.yml:3 / tokenizer.tokens.a: force needs a source',
  ),
  'kind of a token': (
    f'merge_method: linear\n{_MODELS}\ntokenizer: {{tokens: {{a: '
    '{source: {kind: zeros}}}}',
    "unknown kind 'zeros'; did you mean 'zero'?",
  ),
  'two names of a token': (
    f'merge_method: linear\n{_MODELS}\ntokenizer: {{tokens: {{a: '
    '{source: {kind: model_token, model: m, token: t, token_id: 1}}}}',
    'expected model, and one of token and token_id',
  ),
  'rows that pad by row': (
    f'merge_method: linear\n{_MODELS}\n'
    'tokenizer: {source: rows, pad_to_multiple_of: 8}',
    "r.yml:3 / tokenizer.pad_to_multiple_of: has no meaning with 'rows'",
  ),
  'a model that is a number': (
    'merge_method: linear\nmodels: [{model: 7}]',
    "YAML reads '7' as a number; put it in quotes",
  ),
}


@pytest.mark.parametrize('name', _FAULTS)
def test_fault(name):
  text, expected = _FAULTS[name]
  assert expected in '\n'.join(told(text))


@pytest.mark.parametrize(
  'text',
  [
    'merge_method: breadcrumbs\nbase_model: b\n'
    'models: [{model: a, weight: 1.0}]',
    'merge_method: passthrough\n'
    'slices: [{sources: [{model: a, layers: [0, 3]}]}]',
    'merge_method: linear\nmodules: {vision: {models: [{model: a}]}}',
    'merge_method: ties\nslices:\n'
    '- sources: [{model: a, layer_range: [0, 3]}]\n'
    '- sources: [{model: b, layer_range: [0, 3]}]',
  ],
)
def test_one_fault_is_told_once(text):
  assert len(told(text)) == 1


def test_modules():
  module = """
    slices:
    - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: b, layer_range: [0, 2]}
    parameters: {weight: [{filter: mlp, value: 2}]}
  """
  recipe = parse(f"""
merge_method: linear
modules:
  default: {textwrap.indent(module, '  ')}
parameters: {{weight: 3, normalize: 1.0}}
tokenizer: {{}}
  """)
  (part,) = recipe.slices
  assert recipe.sliced
  assert [source.layers for source in part.sources] == [(0, 2), (0, 2)]
  assert recipe.vocabulary.source == 'union'
  (weight, _) = methods.METHODS['linear'].parameters
  scopes = [(part.sources[i].settings, recipe.parameters) for i in range(2)]
  values = [
    parameters.resolve(weight, scope, name, 0)
    for scope in scopes
    for name in ('mlp', 'norm')
  ]
  assert values == [1, 1, 2, 3]


def test_definitions():
  recipe = parse("""
    const_tag: &MODEL org/base
    attenuated: &attenuated
      parameters:
        scale:
        - filter: q_proj
          value: 0.5
        - value: 1.0
    merge_method: passthrough
    slices:
    - sources: [{model: *MODEL, layer_range: [0, 2]}]
    - sources:
      - model: *MODEL
        layer_range: [1, 4]
        <<: *attenuated
  """)
  assert recipe.models == (names.ModelRef('org/base'),)
  first, second = (part.sources[0].settings for part in recipe.slices)
  assert first == {}
  assert [rule.values for rule in second['scale']] == [(0.5,), (1.0,)]


def test_tokenizer_of_a_model_as_it_was_written_once():
  recipe = parse(f'merge_method: linear\n{_MODELS}\ntokenizer_source: model:a')
  assert recipe.vocabulary.source == 'a'


def test_base_and_an_adapter_alone():
  recipe = parse("""
    merge_method: task_arithmetic
    base_model: a+lora
    slices:
    - sources: [{model: a+lora, layer_range: [0, 2]}]
  """)
  assert recipe.notes == ('there is nothing to merge: the output is a+lora',)


def test_all_faults_at_once():
  lines = told("""\
    merge_method: ties
    dtpye: float16
    dtype: float17
    parameters: {lamda: 1}
    models:
    - model: a
      parameters: {density: 2, weight: x}
  """)
  assert len(lines) == 6
  assert [line.split(':')[1][:1] for line in lines] == list('123477')


_METHODS = """
arcee_fusion breadcrumbs breadcrumbs_ties dare_linear dare_ties della
della_linear karcher linear model_stock multislerp nearswap nuslerp passthrough
ram ramplus_tl sce slerp task_arithmetic ties
"""


_METHODS = """
arcee_fusion breadcrumbs breadcrumbs_ties dare_linear dare_ties della
della_linear karcher linear model_stock multislerp nearswap nuslerp passthrough
ram ramplus_tl sce slerp task_arithmetic ties
"""


def test_every_method_of_mergekit_is_here():
  assert sorted(methods.METHODS) == _METHODS.split()


def test_slice_config():
  recipe = parse("""\
    merge_method: passthrough
    dtype: bf16
    slices:
    - sources: [{model: a, layer_range: [0, 3]}]
    - sources: [{model: b, layer_range: [1, 4]}]
  """)
  config = {
    'num_hidden_layers': 4,
    'hidden_size': 8,
    'torch_dtype': 'float32',
    'layer_types': ['full', 'slide', 'full', 'slide'],
    'eos_token_id': [1, 2],
  }
  before = dict(config)
  changed = recipe.config(dict.fromkeys(recipe.models, config))
  assert config == before
  assert changed == {
    'num_hidden_layers': 6,
    'hidden_size': 8,
    'torch_dtype': 'bfloat16',
    'layer_types': ['full', 'slide', 'full', 'slide', 'full', 'slide'],
    'eos_token_id': [1, 2],
  }


def test_config_of_a_language_model_within():
  recipe = parse("""\
    merge_method: passthrough
    slices: [{sources: [{model: a, layer_range: [1, 2]}]}]
  """)
  config = {'text_config': {'num_hidden_layers': 2}, 'dtype': 'float32'}
  assert recipe.config({recipe.models[0]: config}) == {
    'text_config': {'num_hidden_layers': 1},
    'dtype': 'float32',
  }
