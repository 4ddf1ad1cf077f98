"""From recipes and headers to merges of tensors."""

import textwrap
import zlib

import jax
import numpy as np
import pytest

import merging
from merging import transform
from third_party import problems
from third_party.mergekit import jobs as jobs_lib
from third_party.mergekit import names
from third_party.mergekit import recipe as recipe_lib

A, B, BASE = (names.ModelRef(name) for name in ('a', 'b', 'base'))


def shapes(layers=2, hidden=4, vocab=6):
  found = {'model.embed_tokens.weight': (vocab, hidden)}
  for layer in range(layers):
    for name in ('self_attn.q_proj', 'mlp.up_proj'):
      found[f'model.layers.{layer}.{name}.weight'] = (hidden, hidden)
    found[f'model.layers.{layer}.input_layernorm.weight'] = (hidden,)
  found |= {'model.norm.weight': (hidden,), 'lm_head.weight': (vocab, hidden)}
  return found


def specs_of(sizes):
  return {
    path: transform.LeafSpec(path, shape, np.dtype(np.float32))
    for path, shape in sizes.items()
  }


def jobs(text, specs=None, configs=None, **options):
  recipe = recipe_lib.parse(textwrap.dedent(text), 'r.yml')
  specs = {
    model: specs_of((specs or {}).get(str(model), shapes()))
    for model in recipe.models
  }
  configs = {names.ModelRef(k): v for k, v in (configs or {}).items()}
  return recipe.jobs(specs, configs, **options)


def told(text, *, status=2, **given):
  with pytest.raises(problems.ProblemError) as caught:
    jobs(text, **given)
  assert caught.value.status == status
  return str(caught.value).splitlines()


TIES = """\
merge_method: ties
base_model: base
models:
- model: b
  parameters: {weight: 0.5, density: [1.0, 0.5]}
- model: a
  parameters:
    weight: 1.0
    density:
    - {filter: mlp, value: 0.25}
    - {filter: lm_head, value: 0.75}
parameters:
  density: 0.125
"""


def test_settings_of_tensors():
  (job,) = jobs(TIES)
  assert job.base == BASE
  assert job.experts == {'0 b': B, '1 a': A}
  assert sorted(job.leaves) == sorted(shapes())
  path = 'model.layers.1.mlp.up_proj.weight'
  assert job.leaves[path] == {BASE: path, B: path, A: path}
  assert job.settings[path]['weight'] == {'0 b': 0.5, '1 a': 1.0}
  densities = {path: x['density'] for path, x in job.settings.items()}
  assert densities['model.norm.weight'] == {'0 b': 1.0, '1 a': 0.125}
  assert densities['lm_head.weight'] == {'0 b': 1.0, '1 a': 0.75}
  assert densities[path] == {'0 b': 0.5, '1 a': 0.25}
  assert job.settings[path]['normalize'] is True
  assert job.settings[path]['lambda'] == 1.0


def test_experts_sort_in_the_order_of_the_recipe():
  models = ''.join(f'- model: m{i}\n' for i in range(11, 0, -1))
  (job,) = jobs(f'merge_method: karcher\nmodels:\n{models}')
  assert list(job.experts.values()) == [
    names.ModelRef(f'm{i}') for i in range(11, 0, -1)
  ]
  assert sorted(job.experts) == list(job.experts)


def test_the_base_is_a_model_where_a_method_has_no_changes():
  (job,) = jobs("""\
    merge_method: linear
    base_model: base
    models: [{model: a}]
    parameters: {weight: 1}
  """)
  assert job.base is None
  assert job.experts == {'0 a': A, '1 base': BASE}


def test_filters_that_match_nothing():
  (line,) = told(TIES.replace('mlp', 'self_atn'))
  assert line == (
    "r.yml:10 / models[1].parameters.density[0]: filter 'self_atn' matched 0 "
    "of 9 tensors; did you mean 'self_attn'?; correct it, or remove it"
  )
  (line,) = told("""\
    merge_method: slerp
    base_model: base
    models: [{model: a}]
    parameters: {t: [{filter: mpl, value: 1}, {value: 0}]}
  """)
  assert "filter 'mpl' matched 0 of 9 tensors; did you mean 'mlp'?" in line


def test_missing_settings():
  (line,) = told('merge_method: slerp\nbase_model: base\nmodels: [{model: a}]')
  assert 'slerp needs t in the parameters at the top, and it is missing' in line
  (line,) = told(
    TIES.replace('weight: 1.0', 'weight: [{filter: mlp, value: 1}]')
  )
  assert line.startswith("r.yml:6 / models[1]: ties needs weight of 'a'")
  assert line.endswith('(for model.embed_tokens.weight and 6 more)')
  (line,) = told("""\
    merge_method: linear
    base_model: base
    models: [{model: a, parameters: {weight: 1}}]
  """)
  assert 'merges base_model as one more model' in line


@pytest.mark.parametrize('method', ['linear', 'multislerp'])
def test_weights_that_add_up_to_zero(method):
  text = f"""\
    merge_method: {method}
    models:
    - {{model: a, parameters: {{weight: [-1, 0]}}}}
    - {{model: b, parameters: {{weight: 1}}}}
  """
  (line,) = told(text)
  assert line.startswith(
    'r.yml:3 / models: the weights -1, 1 add up to 0 and normalize'
  )
  option = 'normalize' if method == 'linear' else 'normalize_weights'
  jobs(f'{textwrap.dedent(text)}parameters: {{{option}: false}}')


def test_window_of_della():
  (line,) = told("""\
    merge_method: della
    base_model: base
    models: [{model: a}]
    parameters: {weight: 1, density: 0.9, epsilon: 0.2}
  """)
  assert "density 0.9 and epsilon 0.2 of '0 a' keep with probabilities" in line


PAIR = """\
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
"""


def test_shapes_and_names_of_all_models_at_once():
  odd = shapes()
  odd['model.norm.weight'] = (1, 4)
  odd['lm_head.weight'] = (8, 4)
  del odd['model.layers.0.mlp.up_proj.weight']
  odd['model.layers.0.mlp.up_projection.weight'] = (4, 4)
  lines = told(PAIR, status=4, specs={'b': odd})
  assert lines == [
    "b / model.layers.0.mlp.up_proj.weight: is missing, and 'a' has it; did "
    "you mean 'model.layers.1.mlp.up_proj.weight'?; --extra=base keeps the "
    "base's",
    "b / model.layers.0.mlp.up_projection.weight: is not in 'a'; --extra=drop "
    'leaves it out',
    "b / model.norm.weight: has the shape [1, 4], and [4] in 'a'",
    "b / lm_head.weight: has the shape [8, 4], and [6, 4] in 'a'; say "
    'tokenizer_source: base or union',
  ]


def test_many_tensors_are_counted():
  lines = told(PAIR, status=4, specs={'b': shapes(hidden=8)})
  assert len(lines) == 9
  assert lines[-1] == 'b: 1 more tensors have other shapes'


def test_numbers_of_layers():
  lines = told(PAIR, status=4, specs={'b': shapes(layers=3)})
  assert lines == [
    "b / model.layers: has 3 layers, and 2 in 'a'; say with slices which "
    'layers to merge'
  ]


def test_configs_are_compared():
  known = {'model_type': 'llama', 'hidden_size': 32, 'num_hidden_layers': 2}
  other = {'model_type': 'llama', 'hidden_size': 48, 'num_hidden_layers': 3}
  lines = told(
    PAIR,
    status=4,
    specs={'b': shapes(hidden=8)},
    configs={'a': known, 'b': other},
  )
  assert lines == [
    "b / config.json: hidden_size is 48, and 32 in 'a'; merge models of one "
    'architecture',
    "b / config.json: has 3 layers, and 'a' has 2; say with slices which "
    'layers to merge',
  ]


def test_policies_of_tensors_that_not_all_have():
  more = shapes() | {'model.layers.0.mlp.bias': (4,)}
  fewer = shapes()
  del fewer['lm_head.weight']
  assert told(PAIR, status=4, specs={'b': more})
  (job,) = jobs(PAIR, specs={'b': more}, extra='drop')
  assert jobs_lib.outputs([job]) == sorted(shapes())
  assert told(PAIR, status=4, specs={'b': fewer}, extra='drop')
  given = {'b': more, 'a': shapes() | {'only.weight': (2,)}}
  first, copy = jobs(PAIR, specs=given, extra='base')
  assert sorted(first.leaves) == sorted(shapes())
  assert copy.leaves == {'only.weight': {A: 'only.weight'}}
  made = jobs(PAIR, specs=given, extra='keep')
  assert jobs_lib.outputs(made) == sorted(
    [*shapes(), 'only.weight', 'model.layers.0.mlp.bias']
  )
  with pytest.raises(ValueError, match="extra is 'keeep'"):
    jobs(PAIR, extra='keeep')


SLICES = """\
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [1, 2]}]
"""


def test_slices():
  first, second = jobs(SLICES)
  assert (first.experts, second.experts) == ({'0 a': A}, {'0 b': B})
  assert first.base is None
  assert second.leaves == {
    **{
      f'model.layers.2.{rest}': {B: f'model.layers.1.{rest}'}
      for rest in (
        'self_attn.q_proj.weight',
        'mlp.up_proj.weight',
        'input_layernorm.weight',
      )
    },
    'model.norm.weight': {B: 'model.norm.weight'},
    'lm_head.weight': {B: 'lm_head.weight'},
  }
  assert jobs_lib.outputs([first, second]) == sorted(shapes(layers=3))


def test_slices_beyond_the_model():
  (line,) = told(SLICES.replace('[1, 2]', '[1, 5]'))
  assert line == (
    'r.yml:4 / slices[1].sources[0]: expected layers of the 2 that the model '
    'has, got [1, 5]'
  )


def test_slices_of_two_stacks():
  two = shapes() | {'vision.blocks.0.weight': (4,), 'vision.blocks.1.w': (4,)}
  (line,) = told(SLICES, status=4, specs={'a': two})
  assert line.startswith('a: expected one stack of layers to slice')
  deep = shapes() | {f'vision.blocks.{i}.weight': (4,) for i in range(3)}
  made = jobs(
    SLICES, specs={'a': deep}, configs={'a': {'num_hidden_layers': 2}}
  )
  expected = [*shapes(layers=3), *(set(deep) - set(shapes()))]
  assert jobs_lib.outputs(made) == sorted(expected)


def uniform(seed, path, expert, shape):
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
  key = jax.random.fold_in(key, zlib.crc32(expert.encode()))
  return np.asarray(jax.random.uniform(key, shape))


def random_models(count, shape=(6, 7)):
  rng = np.random.default_rng(count)
  return [
    {'w': rng.normal(size=shape).astype(np.float32)} for _ in range(count)
  ]


def run(text, base, experts, **options):
  sizes = {'w': base['w'].shape}
  (job,) = jobs(text, specs=dict.fromkeys(('base', 'a', 'b'), sizes), **options)
  named = dict(zip(job.experts, experts, strict=True))
  return np.asarray(merging.merge(job.transform, base, named)['w'])


DARE = """\
merge_method: dare_linear
base_model: base
models:
- {model: a, parameters: {weight: 0.5, density: 0.3}}
- {model: b, parameters: {weight: 2, density: 0.6}}
"""


def test_densities_of_experts_differ():
  base, *experts = random_models(3)
  total = base['w'].astype(np.float64)
  for name, weight, density, expert in zip(
    ('0 a', '1 b'), (0.5, 2), (0.3, 0.6), experts, strict=True
  ):
    delta = expert['w'] - base['w']
    kept = delta * (uniform(3, 'w', name, delta.shape) < density)
    total += weight * kept * np.abs(delta).sum() / np.abs(kept).sum()
  ours = run(DARE, base, experts, seed=3)
  np.testing.assert_allclose(ours, total, atol=1e-5)
  assert np.any(ours != run(DARE, base, experts, seed=4))
  assert np.all(ours == run(f'{DARE}random_seed: 3', base, experts))


@pytest.mark.parametrize('epsilon', [0.1, 0.2])
def test_della_with_windows_of_experts(epsilon):
  base, *experts = random_models(3)
  text = f"""\
    merge_method: della_linear
    base_model: base
    models:
    - {{model: a, parameters: {{density: 0.5, epsilon: {epsilon}}}}}
    - {{model: b, parameters: {{density: 0.6, epsilon: 0.1}}}}
    parameters: {{weight: 1, rescale: false}}
  """
  total = base['w'].astype(np.float64)
  for name, density, window, expert in zip(
    ('0 a', '1 b'), (0.5, 0.6), (epsilon, 0.1), experts, strict=True
  ):
    delta = expert['w'] - base['w']
    rank = np.abs(delta).argsort(axis=1).argsort(axis=1)
    chance = density - window + 2 * window * rank / (delta.shape[1] - 1)
    total += delta * (uniform(0, 'w', name, delta.shape) < chance)
  np.testing.assert_allclose(run(text, base, experts), total, atol=1e-5)


@pytest.mark.parametrize(
  'method', ['ties', 'dare_ties', 'breadcrumbs', 'della']
)
@pytest.mark.parametrize(('density', 'whole'), [(0, 0.0), (1, 1.0)])
def test_densities_at_their_ends(method, density, whole):
  base, expert = random_models(2)
  text = f"""\
    merge_method: {method}
    base_model: base
    models: [{{model: a}}]
    parameters: {{weight: 1, density: {density}}}
  """
  expected = base['w'] + whole * (expert['w'] - base['w'])
  np.testing.assert_allclose(run(text, base, [expert]), expected, atol=1e-6)


def test_a_trimmed_tensor_keeps_one_entry():
  base, expert = random_models(2, (7, 7))
  merged = run(
    'merge_method: ties\nbase_model: base\nmodels: [{model: a}]\n'
    'parameters: {weight: 1, density: 0.001}',
    base,
    [expert],
  )
  assert np.sum(merged != base['w']) == 1
