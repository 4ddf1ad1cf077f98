"""Whole recipes, merged by mergekit's command and by ours."""

import json
import subprocess
import textwrap

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

import merging
from merging import streams
from third_party.mergekit import recipe as recipe_lib
from third_party.peers import client

_LAYERS = 4
_CONFIG = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'hidden_size': 8,
  'intermediate_size': 12,
  'num_attention_heads': 2,
  'num_key_value_heads': 2,
  'num_hidden_layers': _LAYERS,
  'vocab_size': 16,
  'tie_word_embeddings': False,
  'torch_dtype': 'float32',
}
_RUN = """
import sys, torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
import yaml
for name in sys.argv[1:]:
  text = open(name + '.yml').read()
  config = MergeConfiguration.model_validate(yaml.safe_load(text))
  options = MergeOptions(copy_tokenizer=False, write_model_card=False)
  run_merge(config, name, options)
"""

_RECIPES = {
  'linear': """
    merge_method: linear
    models:
    - model: a
      parameters: {weight: [0.2, 0.6, 1.0]}
    - model: b
      parameters: {weight: 0.5}
    dtype: float32
  """,
  'linear_and_base': """
    merge_method: linear
    base_model: base
    models: [{model: b}, {model: a}]
    parameters: {weight: 0.5, normalize: 0}
  """,
  'slerp': """
    merge_method: slerp
    base_model: base
    slices:
    - sources:
      - {model: base, layer_range: [0, 4]}
      - {model: a, layer_range: [0, 4]}
    parameters:
      t:
      - filter: self_attn
        value: [0, 0.5, 0.3, 0.7, 1]
      - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
      - value: 0.5
    dtype: float32
  """,
  'ties': """
    merge_method: ties
    base_model: base
    models:
    - {model: base}
    - model: b
      parameters:
        density: [1, 0.7, 0.1]
        weight: 1.0
    - model: a
      parameters:
        density: 0.33
        weight: [{filter: mlp, value: 0.5}, {value: 0.25}]
    parameters: {normalize: true, int8_mask: true, lambda: 0.8}
  """,
  'ties_rescaled': """
    merge_method: ties
    base_model: base
    models:
    - {model: a, parameters: {density: 0.001, weight: 1}}
    - {model: b, parameters: {density: 0.4, weight: 2}}
    parameters: {rescale: true}
  """,
  'task_arithmetic': """
    merge_method: task_arithmetic
    base_model: base
    models:
    - {model: a, parameters: {weight: 0.6}}
    - {model: b, parameters: {weight: -0.3}}
    parameters: {normalize: true, lambda: 0.5}
  """,
  'breadcrumbs': """
    merge_method: breadcrumbs
    base_model: base
    models:
    - {model: a, parameters: {weight: 0.6, density: 0.7, gamma: 0.03}}
    - {model: b, parameters: {weight: 0.3, density: 0.45, gamma: 0.2}}
    - {model: c, parameters: {weight: 0.3, density: 0.99, gamma: 0.2}}
  """,
  'breadcrumbs_ties': """
    merge_method: breadcrumbs_ties
    base_model: base
    models: [{model: a}, {model: b}, {model: c}]
    parameters: {density: 0.71, gamma: 0.01, weight: 0.5, rescale: true}
  """,
  'model_stock': """
    merge_method: model_stock
    base_model: base
    models: [{model: a}, {model: b}, {model: c}]
    parameters: {filter_wise: true}
  """,
  'karcher': """
    merge_method: karcher
    models: [{model: c}, {model: a}, {model: b}]
  """,
  'nuslerp': """
    merge_method: nuslerp
    base_model: base
    models:
    - {model: c, parameters: {weight: 0.3}}
    - {model: a, parameters: {weight: [0, 1]}}
    parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
  """,
  'multislerp': """
    merge_method: multislerp
    models: [{model: c}, {model: a}, {model: b}]
    parameters: {weight: 0.5}
  """,
  'nearswap': """
    merge_method: nearswap
    base_model: base
    models: [{model: c}]
    parameters: {t: 0.05}
  """,
  'arcee_fusion': """
    merge_method: arcee_fusion
    base_model: base
    models: [{model: base}, {model: c}]
  """,
  'sce': """
    merge_method: sce
    base_model: base
    models: [{model: c}, {model: b}]
    parameters: {select_topk: 0.3}
  """,
  'ram': """
    merge_method: ram
    base_model: base
    models: [{model: c}, {model: b}]
    parameters: {epsilon: 0.05}
  """,
  'ramplus_tl': """
    merge_method: ramplus_tl
    base_model: base
    models: [{model: c}, {model: b}]
    parameters: {r: 0.3, alpha: 0.9, epsilon: 0.1}
  """,
  'dare_of_all': """
    merge_method: dare_ties
    base_model: base
    models:
    - {model: a, parameters: {weight: 0.6}}
    - {model: b, parameters: {weight: 0.3, density: 1.0}}
  """,
  'frankenmerge': """
    merge_method: passthrough
    slices:
    - sources: [{model: a, layer_range: [0, 3]}]
    - sources:
      - model: b
        layer_range: [1, 4]
        parameters:
          scale: [{filter: o_proj, value: 0.5}, {value: 1}]
  """,
  'modules': """
    merge_method: ties
    base_model: base
    modules:
      default:
        slices:
        - sources:
          - {model: a, layer_range: [0, 4], parameters: {weight: [0.2, 0.7]}}
          - {model: b, layer_range: [0, 4]}
          - {model: base, layer_range: [0, 4]}
        parameters: {weight: [{filter: mlp, value: 0.4}], density: 0.5}
    parameters: {weight: 0.9, normalize: 1.0}
  """,
  'base_alone': """
    merge_method: task_arithmetic
    base_model: a
    slices:
    - sources: [{model: a, layer_range: [0, 4], parameters: {weight: 1.0}}]
    parameters: {normalize: false}
  """,
  'definitions': """
    model_tag: &MODEL b
    attenuate: &attenuated
      parameters:
        scale: [{filter: q_proj, value: 0.5}, {value: 1.0}]
    merge_method: passthrough
    slices:
    - sources: [{model: *MODEL, layer_range: [0, 2]}]
    - sources: [{model: *MODEL, layer_range: [1, 4], <<: *attenuated}]
  """,
  'slices_of_other_depth': """
    merge_method: linear
    slices:
    - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: b, layer_range: [2, 4], parameters: {weight: [0, 2]}}
      parameters: {normalize: false}
    - sources:
      - {model: c, layer_range: [1, 4]}
    parameters: {weight: 0.5}
  """,
}


def _model(seed):
  rng = np.random.default_rng(seed)
  hidden, inner = 8, 12
  shapes = {'model.embed_tokens.weight': (16, hidden)}
  for layer in range(_LAYERS):
    prefix = f'model.layers.{layer}'
    for name in 'qkvo':
      shapes[f'{prefix}.self_attn.{name}_proj.weight'] = (hidden, hidden)
    shapes[f'{prefix}.mlp.up_proj.weight'] = (inner, hidden)
    shapes[f'{prefix}.mlp.gate_proj.weight'] = (inner, hidden)
    shapes[f'{prefix}.mlp.down_proj.weight'] = (hidden, inner)
    shapes[f'{prefix}.input_layernorm.weight'] = (hidden,)
    shapes[f'{prefix}.post_attention_layernorm.weight'] = (hidden,)
  shapes |= {'model.norm.weight': (hidden,), 'lm_head.weight': (16, hidden)}
  return {
    path: rng.normal(size=shape).astype(np.float32)
    for path, shape in shapes.items()
  }


@pytest.fixture(scope='module')
def models():
  base = _model(0)
  found = {'base': base}
  for seed, name in enumerate('abc', 1):
    change = _model(seed)
    found[name] = {
      path: leaf + np.float32(0.1) * change[path] for path, leaf in base.items()
    }
  return found


@pytest.fixture(scope='module')
def theirs(models, tmp_path_factory):
  python = client.python_of('mergekit')
  if not python.exists():
    pytest.skip('mergekit is not installed: see third_party/peers/README.md')
  folder = tmp_path_factory.mktemp('recipes')
  for name, leaves in models.items():
    (folder / name).mkdir()
    safetensors.save_file(
      leaves, folder / name / 'model.safetensors', {'format': 'pt'}
    )
    (folder / name / 'config.json').write_text(json.dumps(_CONFIG))
  for name, text in _RECIPES.items():
    (folder / f'out_{name}.yml').write_text(textwrap.dedent(text))
  names = [f'out_{name}' for name in _RECIPES]
  done = subprocess.run(
    [python, '-c', _RUN, *names],
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


def merge(text, models, seed=0):
  """Runs the jobs of a recipe on models in memory."""
  recipe = recipe_lib.parse(textwrap.dedent(text), 'recipe.yml')
  sources = {ref: streams.InMemory(models[str(ref)]) for ref in recipe.models}
  specs = {ref: source.specs for ref, source in sources.items()}
  configs = dict.fromkeys(recipe.models, _CONFIG)
  merged = {}
  for job in recipe.jobs(specs, configs, seed=seed):

    def view(ref, job=job):
      paths = {out: paths[ref] for out, paths in job.leaves.items()}
      return {out: models[str(ref)][path] for out, path in paths.items()}

    experts = {name: view(ref) for name, ref in job.experts.items()}
    first = next(iter(experts.values()))
    zeros = {path: np.zeros_like(leaf) for path, leaf in first.items()}
    base = zeros if job.base is None else view(job.base)
    merged |= merging.merge(job.transform, base, experts)
  return recipe, jax.tree.map(np.asarray, merged)


@pytest.mark.slow
@pytest.mark.parametrize('name', _RECIPES)
def test_as_mergekit(name, models, theirs):
  recipe, ours = merge(_RECIPES[name], models)
  folder = theirs / f'out_{name}'
  expected = {}
  for path in folder.glob('*.safetensors'):
    expected |= safetensors.load_file(path)
  assert sorted(ours) == sorted(expected)
  for path, leaf in expected.items():
    np.testing.assert_allclose(ours[path], leaf, atol=2e-6, err_msg=path)
  config = json.loads((folder / 'config.json').read_text())
  mine = recipe.config(dict.fromkeys(recipe.models, _CONFIG))
  assert mine['num_hidden_layers'] == config['num_hidden_layers']
