"""Recipes as model cards have them, read whole, and broken at random."""

import textwrap

import numpy as np
import pytest

from merging import transform
from third_party import problems
from third_party.mergekit import jobs as jobs_lib
from third_party.mergekit import recipe as recipe_lib

_LAYERS = 32
_RECIPES = {
  'slerp of two': (
    """\
    slices:
      - sources:
          - model: org/Alpha-7B
            layer_range: [0, 32]
          - model: org/Beta-7B
            layer_range: [0, 32]
    merge_method: slerp
    base_model: org/Alpha-7B
    parameters:
      t:
        - filter: self_attn
          value: [0, 0.4, 0.2, 0.6, 1]
        - filter: mlp
          value: [1, 0.6, 0.8, 0.4, 0]
        - value: 0.45 # fallback for rest of tensors
    dtype: bfloat16
    """,
    32,
  ),
  'slerp with heads': (
    """\
    merge_method: slerp
    base_model: org/Alpha-7B
    models:
      - model: org/Alpha-7B
      - model: org/Beta-7B
    parameters:
      t:
        - filter: lm_head
          value: [0.6]
        - filter: embed_tokens
          value: [0.7]
        - filter: self_attn
          value: [0.6, 0.35]
        - filter: mlp
          value:  [0.35, 0.6]
        - filter: layernorm
          value: [0.45, 0.55]
        - filter: modelnorm
          value: [0.6]
        - value: 0.5
    dtype: float16
    """,
    "filter 'modelnorm' matched 0 of 291 tensors",
  ),
  'ties': (
    """\
    models:
      - model: org/Base-7B # base
        # no parameters necessary for base model
      - model: org/Alpha-7B
        parameters:
          density: 0.6
          weight: 0.4
      - model: org/Beta-7B
        parameters:
          density: [1, 0.6, 0.2] # density gradient
          weight:
            - filter: mlp
              value: 0.4
            - value: 0
    merge_method: ties
    base_model: org/Base-7B
    parameters:
      normalize: true
      int8_mask: true
    dtype: float16
    tokenizer_source: union
    """,
    32,
  ),
  'dare': (
    """\
    models:
      - model: "org/Base-7B"
      - model: 'org/Alpha-7B'
        parameters: { density: 0.53, weight: 0.4 }
      - model: org/Beta-7B
        parameters: { density: 0.53, weight: 0.3 }
      - model: org/Gamma-7B
        parameters: { density: 0.53, weight: 0.3 }
    merge_method: dare_ties
    base_model: org/Base-7B
    parameters: { int8_mask: yes }
    dtype: bfloat16
    random_seed: 0
    """,
    32,
  ),
  'soup with an adapter': (
    """\
    models:
      - model: org/Alpha-7B+org/Adapter
        parameters:
          weight: 1.0
      - model: ./models/beta v2
        parameters:
          weight: 0.3
    merge_method: linear
    dtype: float16
    """,
    32,
  ),
  'self-merge': (
    """\
    slices:
    - sources:
      - layer_range: [0, 12]
        model: org/Alpha-7B
    - sources:
      - layer_range: [6, 20]
        model: org/Alpha-7B
    - sources:
      - layer_range: [14, 32]
        model: org/Alpha-7B
    merge_method: passthrough
    dtype: bfloat16
    """,
    44,
  ),
  'frankenmerge with silenced layers': (
    """\
    merge_method: passthrough
    slices:
    - sources:
      - {model: org/Alpha-7B, layer_range: [0, 16]}
    - sources:
      - model: org/Beta-7B
        layer_range: [8, 24]
        parameters:
          scale:
            - filter: o_proj
              value: 0.0
            - filter: down_proj
              value: 0.0
            - value: 1.0
    - sources:
      - {model: org/Alpha-7B, layer_range: [16, 32]}
    """,
    48,
  ),
  'stock': (
    """\
    models:
      - model: org/Alpha-7B
      - model: org/Beta-7B
      - model: org/Gamma-7B
    merge_method: model_stock
    base_model: org/Base-7B
    parameters:
      filter_wise: false
    dtype: bfloat16
    chat_template: auto
    """,
    32,
  ),
  'della': (
    """\
    merge_method: della
    base_model: org/Base-7B
    models:
      - model: org/Alpha-7B
        parameters: {weight: 0.7, density: 0.5, epsilon: 0.1}
      - model: org/Beta-7B
        parameters: {weight: 0.3, density: 0.6, epsilon: 0.15}
    parameters: {lambda: 1.1, normalize: false, int8_mask: true}
    dtype: float32
    out_dtype: bfloat16
    tokenizer: {source: union}
    """,
    32,
  ),
  'breadcrumbs of halves': (
    """\
    merge_method: breadcrumbs_ties
    base_model: org/Base-7B
    slices:
      - sources:
        - {model: org/Base-7B, layer_range: [0, 16]}
        - model: org/Alpha-7B
          layer_range: [0, 16]
          parameters: {density: [0.9, 0.5], gamma: 0.01, weight: 0.5}
      - sources:
        - {model: org/Base-7B, layer_range: [16, 32]}
        - model: org/Beta-7B
          layer_range: [16, 32]
          parameters: {weight: 0.25}
    parameters: {density: 0.7}
    dtype: bf16
    """,
    32,
  ),
  'as the Hub writes them': (
    """\
    base_model: org/Base-7B
    chat_template: auto
    dtype: bfloat16
    merge_method: dare_ties
    modules:
      default:
        slices:
        - sources:
          - layer_range: [0, 32]
            model: org/Alpha-7B
            parameters:
              density: 0.5
              weight: 0.3
          - layer_range: [0, 32]
            model: org/Base-7B
            parameters:
              density: 0.8
              weight: 0.8
          - layer_range: [0, 32]
            model: org/Beta-7B
            parameters:
              density: 0.5
              weight: [0.1, 0.2, 0.1]
    parameters:
      int8_mask: 1.0
      normalize: 1.0
    tokenizer: {}
    """,
    32,
  ),
  'an adapter made permanent': (
    """\
    base_model: org/Base-7B+org/Adapter
    dtype: bfloat16
    merge_method: task_arithmetic
    parameters:
      normalize: false
    slices:
    - sources:
      - layer_range: [0, 32]
        model: org/Base-7B+org/Adapter
        parameters:
          weight: 1.0
    """,
    32,
  ),
  'heads of two models by zero weights': (
    """\
    merge_method: linear
    parameters:
      weight: 1.0
    slices:
      - sources:
          - model: org/Alpha-7B # embed_tokens comes along
            layer_range: [0, 1]
          - model: org/Beta-7B
            layer_range: [0, 1]
            parameters:
              weight: 0
      - sources: [{model: org/Alpha-7B, layer_range: [1, 20]}]
      - sources: [{model: org/Beta-7B, layer_range: [10, 31]}]
      - sources:
          - {model: org/Alpha-7B, layer_range: [31, 32]}
          - model: org/Beta-7B
            layer_range: [31, 32]
            parameters:
              weight: 0
    dtype: float16
    tokenizer_source: model:org/Alpha-7B
    """,
    42,
  ),
  'definitions': (
    """\
    model_tag: &MODEL org/Alpha-7B
    attenuate: &attenuated
      parameters:
        scale:
        - filter: q_proj
          value: 0.7071067812
        - filter: k_proj
          value: 0.7071067812
        - value: 1.0
    slices:
    - sources: [{model: *MODEL, layer_range: [0, 20]}]
    - sources:
      - model: *MODEL
        layer_range: [10, 32]
        <<: *attenuated
    merge_method: passthrough
    """,
    42,
  ),
  'task arithmetic that forgets': (
    """\
    merge_method: task_arithmetic
    base_model: org/Base-7B
    models:
      - {model: org/Alpha-7B, parameters: {weight: 1.0}}
      - {model: org/Beta-7B, parameters: {weight: -1e-1}}
    dtype: float16
    """,
    32,
  ),
}
_PARTS = {
  'self_attn.q_proj': (4, 4),
  'self_attn.k_proj': (4, 4),
  'self_attn.v_proj': (4, 4),
  'self_attn.o_proj': (4, 4),
  'mlp.gate_proj': (8, 4),
  'mlp.up_proj': (8, 4),
  'mlp.down_proj': (4, 8),
  'input_layernorm': (4,),
  'post_attention_layernorm': (4,),
}


def _specs(layers):
  shapes = {'model.embed_tokens.weight': (8, 4), 'lm_head.weight': (8, 4)}
  shapes['model.norm.weight'] = (4,)
  for layer in range(layers):
    for name, shape in _PARTS.items():
      shapes[f'model.layers.{layer}.{name}.weight'] = shape
  return {
    path: transform.LeafSpec(path, shape, np.dtype(np.float32))
    for path, shape in shapes.items()
  }


@pytest.mark.parametrize('name', _RECIPES)
def test_published(name):
  text, expected = _RECIPES[name]
  recipe = recipe_lib.parse(textwrap.dedent(text), f'{name}.yml')
  specs = dict.fromkeys(recipe.models, _specs(_LAYERS))
  config = {'num_hidden_layers': _LAYERS, 'hidden_size': 4}
  configs = dict.fromkeys(recipe.models, config)
  if isinstance(expected, str):
    with pytest.raises(problems.ProblemError) as caught:
      recipe.jobs(specs, configs)
    assert expected in str(caught.value)
    return
  made = recipe.jobs(specs, configs)
  assert recipe.config(configs)['num_hidden_layers'] == expected
  assert jobs_lib.outputs(made) == sorted(_specs(expected))
  outputs = _specs(expected)
  for job in made:
    assert sorted(job.settings) == sorted(job.leaves)
    some = [outputs[path] for path in sorted(job.leaves)[:3]]
    job.transform.init(tuple(some), tuple(job.experts))
    assert all(job.transform.route(spec) is not None for spec in some)


def _broken(rng, text):
  data = bytearray(text.encode())
  for _ in range(rng.integers(1, 4)):
    place = rng.integers(len(data))
    match rng.integers(3):
      case 0:
        data[place] = rng.integers(256)
      case 1:
        del data[place : place + rng.integers(1, 20)]
      case _:
        data[place:place] = data[: rng.integers(1, 40)]
  return bytes(data)


def _error_of(text):
  try:
    recipe_lib.parse(text, 'r.yml')
  except problems.ProblemError as error:
    return error
  return None


def _check_broken(count):
  rng = np.random.default_rng(0)
  texts = [textwrap.dedent(text) for text, _ in _RECIPES.values()]
  refused = 0
  for number in range(count):
    error = _error_of(_broken(rng, texts[number % len(texts)]))
    if error is not None:
      refused += 1
      assert error.status == 2
      assert all(each.where[0].startswith('r.yml:') for each in error.problems)
  assert refused > count // 3


def test_broken_recipes_are_refused_or_read():
  _check_broken(200)


@pytest.mark.slow
def test_many_broken_recipes_are_refused_or_read():
  _check_broken(5000)
