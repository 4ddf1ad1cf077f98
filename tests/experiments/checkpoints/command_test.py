"""What a person is told by `experiments.merge` before anything is merged."""

import pathlib

import pytest

from experiments.checkpoints import command
from tests.experiments.checkpoints import tiny
from third_party import problems


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A base and two experts, where the recipes are."""
  monkeypatch.chdir(tmp_path)
  base = tiny.tensors()
  tiny.save(tmp_path / 'base', base)
  tiny.save(tmp_path / 'math', tiny.nudged(base, 0.05, 1))
  tiny.save(tmp_path / 'code', tiny.nudged(base, 0.05, 2))
  return tmp_path


def merge(recipe, target='out', **flags):
  path = pathlib.Path('recipe.yml')
  path.write_text(recipe)
  command.merge(path, pathlib.Path(target), command.Flags(**flags))


def told(recipe, target='out', **flags):
  with pytest.raises(problems.ProblemError) as error:
    merge(recipe, target, **flags)
  assert not pathlib.Path('out').exists()
  return [str(each) for each in error.value.problems]


GRADIENT = """
merge_method: task_arithmetic
base_model: base
models:
- {model: math, parameters: {weight: [1, 0]}}
- {model: code, parameters: {weight: 0.5}}
parameters: {lambda: [{filter: lm_head, value: 2}, {value: 1}]}
"""
NATIVE = '{{base: base, experts: {{math: math, code: code}}, merge: {}}}'


def test_the_plan_has_a_line_for_equal_layers(home, capsys):
  merge(GRADIENT, plan=True)
  _, table = capsys.readouterr().out.split('\n\n')
  assert [line.split() for line in table.splitlines()] == [
    ['tensors', 'lambda', 'normalize', 'weight'],
    ['lm_head.weight', '2', 'False', '1', '0.5'],
    ['model.embed_tokens.weight', '1', 'False', '1', '0.5'],
    ['model.layers.0.*', '1', 'False', '1', '0.5'],
    ['model.layers.1.*', '1', 'False', '0.6667', '0.5'],
    ['model.layers.2.*', '1', 'False', '0.3333', '0.5'],
    ['model.layers.3.*', '1', 'False', '0', '0.5'],
    ['model.norm.weight', '1', 'False', '1', '0.5'],
  ]


def test_layers_that_are_not_alike_are_told_apart(home, capsys):
  mlp = '{lambda: [{filter: mlp, value: 2}, {value: 1}]}'
  merge(
    GRADIENT.replace('[1, 0]', '1').partition('parameters: {lambda')[0]
    + f'parameters: {mlp}',
    plan=True,
  )
  out = capsys.readouterr().out
  assert 'model.layers.0-3.mlp.up_proj.weight               2' in out
  assert 'model.layers.0-3.self_attn.q_proj.weight          1' in out
  assert '.* ' not in out


def test_an_input_is_no_target(home):
  first, *_ = told(GRADIENT, 'math')
  assert 'is an input' in first
  assert sorted(each.name for each in (home / 'math').iterdir()) == [
    'config.json',
    'model.safetensors',
    'tokenizer.json',
  ]


def test_a_plan_for_a_target_that_exists_is_shown_too(home, capsys):
  (home / 'there').mkdir()
  (home / 'there' / 'model.safetensors').write_bytes(b'')
  (problem,) = told(GRADIENT, 'there', plan=True)
  assert '--overwrite' in problem
  assert 'passes over the data' in capsys.readouterr().out


def test_models_and_target_are_told_together(home):
  assert len(told(GRADIENT.replace('math', 'nowhere'), 'not/there')) == 2


def test_a_name_that_is_nearly_one_beside_it(home):
  (problem,) = told(GRADIENT.replace('math', 'maht'))
  assert problem.endswith("did you mean 'math'?")


def test_recipes_are_of_one_kind(home):
  (problem,) = told(GRADIENT + 'merge: ties')
  assert "unknown key 'merge'" in problem


@pytest.mark.parametrize('seed', [2**32, 10**30])
def test_seeds_that_jax_would_shorten_are_refused(home, seed):
  (problem,) = told(NATIVE.format('average'), seed=seed)
  assert 'expected less than 2**32' in problem


def test_a_transform_that_does_not_end_in_one_change(home):
  (problem,) = told(NATIVE.format('{trim: 0.5}'))
  assert 'end the chain with mean() or total()' in problem


def test_vocabularies_that_differ_are_told_once(home):
  config = {**tiny.CONFIG, 'vocab_size': 18}
  model = tiny.tensors(1)
  for path in ('lm_head.weight', 'model.embed_tokens.weight'):
    model[path] = model[path].repeat(2, axis=0)[:18]
  tiny.save(home / 'math', model, config, tokens=18)
  (problem,) = told(GRADIENT)
  assert 'expected the vocabulary of base (16 tokens' in problem


def test_values_are_told_by_the_models_of_the_recipe(home):
  model = tiny.tensors()
  model['model.norm.weight'][3] = float('nan')
  tiny.save(home / 'code', model)
  (problem,) = told(GRADIENT)
  assert "'code' at 'model.norm.weight'" in problem
