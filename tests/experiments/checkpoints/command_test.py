"""What a person is told by `experiments.merge` before anything is merged."""

import contextlib
import pathlib

import numpy as np
import pytest

from experiments.checkpoints import command
from tests.experiments.checkpoints import tiny
from third_party import problems
from third_party.huggingface import checkpoint as checkpoint_lib


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


@contextlib.contextmanager
def checkpoint(directory):
  model = checkpoint_lib.open_checkpoint(directory)
  yield model
  model.close()


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
NATIVE = """\
base: base
experts: {{math: math, code: code}}
merge: {}
"""


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
  assert problem.startswith('recipe.yml:3 / merge: the transform leaves 2')
  assert 'end the chain with mean() or total()' in problem


NESTED = """
- trim: 0.5
- dare:
    rate: 0.5
    inner:
      tsv: {leaves: zz}
"""


@pytest.mark.parametrize(
  ('merge', 'where', 'what'),
  [
    (NESTED, '8 / merge[1].dare.inner', "no leaf with two axes matches 'zz'"),
    ('\n- weigh: {mth: 1}\n- total', '4 / merge[0]', "did you mean 'math'?"),
    ('{iso_c: {leaves: norm}}', '3 / merge', 'no leaf with two axes'),
    ('{slerp: 0.5}', '3 / merge', "Say so with toward='math'"),
  ],
)
def test_what_only_models_show_to_be_wrong_has_a_line(home, merge, where, what):
  (problem,) = told(NATIVE.format(merge))
  assert problem.startswith(f'recipe.yml:{where}: ')
  assert what in problem


@pytest.mark.parametrize('source', ['code', 'there', './here/../link', 'here/'])
def test_the_tokenizer_of_an_expert_by_any_of_its_names(home, source):
  config = {**tiny.CONFIG, 'vocab_size': 12}
  model = tiny.tensors(3)
  for path in ('lm_head.weight', 'model.embed_tokens.weight'):
    model[path] = model[path][:12]
  here = tiny.save(home / 'here', model, config, tokens=12)
  (home / 'link').symlink_to(here)
  source = str(here) if source == 'there' else source
  merge(f"""
    base: base
    experts: {{math: math, code: ./here}}
    merge: average
    tokenizer_source: {source}
  """)
  with checkpoint(home / 'out') as out:
    assert out.specs['lm_head.weight'].shape == (12, 8)


SPELLINGS = ['base/', './base', 'code/../base', 'absolute', 'link']


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_a_directory_by_two_names_is_one_model(home, capsys, spelling):
  (home / 'link').symlink_to(home / 'base')
  spelling = str(home / 'base') if spelling == 'absolute' else spelling
  recipe = GRADIENT.replace('base_model: base', f'base_model: {spelling}')
  merge(recipe.replace('models:', 'models:\n- model: base'), plan=True)
  shown = capsys.readouterr()
  assert shown.out.count('39 tensors, ') == 3
  assert f'note: base and {spelling} are one model' in shown.err
  (problem,) = told(recipe.replace('model: code', f'model: {home}/math'))
  assert problem == (
    "recipe.yml:5 / models: 'math' is here twice; list every model once"
  )


def test_a_place_that_no_model_has(home):
  (problem, *_) = told(GRADIENT, model_paths=['maht=code'])
  assert problem == "--model_path maht: no model has it; did you mean 'math'?"


def test_vocabularies_that_differ_are_told_once(home):
  config = {**tiny.CONFIG, 'vocab_size': 18}
  model = tiny.tensors(1)
  for path in ('lm_head.weight', 'model.embed_tokens.weight'):
    model[path] = model[path].repeat(2, axis=0)[:18]
  tiny.save(home / 'math', model, config, tokens=18)
  (problem,) = told(GRADIENT)
  assert 'expected the vocabulary of base (16 tokens' in problem


def test_float64_is_told_and_refused_if_strict(home, capsys):
  model = tiny.tensors(3)
  model['model.norm.weight'] = model['model.norm.weight'].astype(np.float64)
  tiny.save(home / 'code', model)
  said = (
    'code: has tensors of float64, which are merged in float32: '
    "'model.norm.weight'"
  )
  merge(GRADIENT, plan=True)
  assert f'note: {said}' in capsys.readouterr().err
  assert said in told(GRADIENT, strict=True)


def test_values_are_told_by_the_models_of_the_recipe(home):
  model = tiny.tensors()
  model['model.norm.weight'][3] = float('nan')
  tiny.save(home / 'code', model)
  (problem,) = told(GRADIENT)
  assert "'code' at 'model.norm.weight'" in problem
