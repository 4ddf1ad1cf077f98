"""The laboratory: rows as they are named, problems that never meet, resumed."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import layouts
from arithmetic import tasks
from arithmetic import transformer
from experiments import reproduce
from experiments.configs import laboratory as configs
from experiments.laboratory import papers
from experiments.laboratory import problems as problems_lib
from experiments.laboratory import report
from experiments.laboratory import results as results_lib
from experiments.laboratory import run as run_lib
from experiments.runtime import config as config_lib
from experiments.runtime import errors
from experiments.runtime import problems as runtime_problems

SMALL = configs.Config(
  vary=('layout.answer_order=plain|reversed',),
  model=transformer.Shape(layers=1, heads=2, width=16),
  training=configs.Training(
    steps=4, warmup=1, batch_size=16, examples=40, level_weights=(1, 1)
  ),
  levels=(1, 2, 3),
  test_size=8,
  seeds=2,
  checkpoint_steps=2,
)


def test_rows_are_all_combinations_in_the_order_of_the_axes():
  config = dataclasses.replace(
    SMALL,
    vary=(
      'layout.answer_order=plain|reversed',
      'small: model.width=16 model.heads=1 | wide: model.width=32',
    ),
  )
  rows = configs.variants(config)
  assert [row.name for row in rows] == [
    'plain, small',
    'plain, wide',
    'reversed, small',
    'reversed, wide',
  ]
  assert [(row.config.model.width, row.config.model.heads) for row in rows] == [
    (16, 1),
    (32, 2),
  ] * 2
  assert rows[0].slug == 'plain-small'
  assert all(row.config.vary == () for row in rows)


@pytest.mark.parametrize(
  ('axis', 'match'),
  [
    ('layout.answer_order', 'setting=value'),
    ('layout.answr_order=plain|reversed', "did you mean 'layout.answer_order'"),
    ('layout.answer_order=plain|backwards', 'one of plain, reversed'),
    ('layout.scratchpad=simpified|detailed', "did you mean 'simplified'"),
    ('a: model.width=16 | model.width=32', 'name: setting=value'),
    ('training.steps=4|4', "two rows are called '4'"),
    ('seeds=1|2', 'seeds is one for all rows'),
    ('a: model.width=15 | b: model.width=16', 'heads divide the width'),
  ],
)
def test_a_wrong_axis_is_named(axis, match):
  with pytest.raises(errors.UsageError, match=match):
    configs.variants(dataclasses.replace(SMALL, vary=(axis,)))


@pytest.mark.parametrize(
  'changes',
  [
    {'task': 'adition'},
    {'levels': ()},
    {'levels': (2, 1)},
    {'levels': (0, 1)},
    {'seeds': 0},
    {'seed': 2**32},
  ],
)
def test_a_wrong_setting_is_refused(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
  ('settings', 'match'),
  [
    (('training.auxiliary.weight=1',), 'for multiplication and long_multi'),
    (
      (
        *('training.auxiliary.weight=1', 'task=multiplication'),
        'layout.answer_order=plain',
      ),
      'layout.answer_order=reversed',
    ),
    (('training.removal=2',), 'removal needs a layout with a scratchpad'),
    (('training.errors=0.1',), 'need a layout with turns'),
  ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, match):
  with pytest.raises(errors.UsageError, match=match):
    config_lib.overlay(dataclasses.replace(SMALL, vary=()), settings)


@pytest.fixture(scope='module')
def small():
  """Problems of `SMALL`, and what draws them, compiled once."""
  problems = problems_lib.Problems(SMALL)
  return problems, jax.jit(problems.draw), problems.examples(jax.random.key(3))


def test_nothing_that_is_scored_is_trained_on(small):
  problems, draw, examples = small
  tokens = np.asarray(problems.test.tokens)
  scored = {_line(x) for level in tokens for x in level}
  assert examples is not None
  assert tasks.split_of(examples, 'train').all()
  assert examples[0].length.shape == (40,)
  drawn = set()
  for i in range(20):
    for source in (examples, None):
      batch, _, trained, _ = draw(jax.random.key(i), source)
      drawn |= {_line(x) for x in np.asarray(batch.tokens)[np.asarray(trained)]}
  assert drawn
  assert not scored & drawn


def test_few_examples_are_all_that_is_seen(small):
  _, draw, examples = small
  known = set(zip(*map(tasks.to_strings, examples or ()), strict=True))
  seen = set()
  for i in range(20):
    batch = draw(jax.random.key(i), examples).batch
    seen |= {_line(x) for x in np.asarray(batch.tokens)}
  assert len(seen) == len(known)


def test_small_levels_count_every_problem_once(small):
  problems, _, _ = small
  size = problems.sizes[0]
  assert 0 < size < SMALL.test_size
  assert problems.sizes[1:] == (8, 8)
  first = [_line(x) for x in np.asarray(problems.test.tokens[0])]
  assert len(set(first)) == size
  assert set(first[size:]) <= set(first[:size])


def test_rows_are_scored_on_the_same_problems():
  rows = [
    problems_lib.Problems(row.config).line() for row in configs.variants(SMALL)
  ]
  plain, turned = (row.removesuffix('$').split('=') for row in rows)
  assert plain[0] == turned[0]
  assert plain[1] == turned[1][::-1]


@pytest.mark.parametrize(
  ('settings', 'line'),
  [
    (('tokenizer=left2',), '+ 78 8 , 33 0 = 81 11 $'),
    (('tokenizer=right2-left2',), '+ 7 88 , 3 30 = 81 11 $'),
    (('layout.notation=infix', 'layout.hints=4'), 'c7b8a8+c3b3a0=a8b1c1d1$'),
  ],
)
def test_a_line_is_as_the_factors_say(settings, line):
  config = config_lib.overlay(dataclasses.replace(SMALL, vary=()), settings)
  problems = problems_lib.Problems(config)
  assert problems.line() == line
  # The decoder knows which tokens are digits, and which marks come before.
  classes = problems.model.classes
  assert classes is not None
  digits = [problems._tokenizer.vocabulary[i] for i in classes.digits]
  assert set('0123456789') <= set(digits)
  assert not set(digits) & set('+,=$ ')


@jax.numpy_dtype_promotion('standard')  # Schedules of optax count in floats.
def test_a_run_leaves_everything_and_is_not_made_twice(tmp_path):
  config = dataclasses.replace(SMALL, vary=('training.examples=20|40',))
  table = run_lib.run(config, tmp_path / 'run')
  names = {path.name for path in (tmp_path / 'run').iterdir()}
  assert names >= {
    *('config.json', 'metrics.jsonl', 'models', 'table.md', 'table.csv'),
    *('levels.png', 'training.examples.png', 'losses.png', 'report.html'),
  }
  lines = (tmp_path / 'run/metrics.jsonl').read_text()
  records = [json.loads(line) for line in lines.splitlines()]
  scores = [each for each in records if each['stage'] == 'scores']
  assert np.shape([each['test/exact'] for each in scores]) == (2, 2, 3)
  assert [each['step'] for each in records if each['stage'] == '01-20'] == [
    2,
    4,
  ]
  again = run_lib.run(config, tmp_path / 'run')
  assert again.to_csv() == table.to_csv()
  assert (tmp_path / 'run/metrics.jsonl').read_text() == lines


def test_scores_are_shares_of_right_answers():
  class Knowing(problems_lib.Problems):
    """Knows every other test problem, and ends all others at once."""

    def logits(self, params, tokens):
      right = tokens[:, 1:]
      known = jnp.arange(tokens.shape[0]) % 2 == 0  # The first of two.
      return jax.nn.one_hot(jnp.where(known[:, None], right, 0), 14) * 9.0

  knowing = Knowing(SMALL)
  exact = np.asarray(knowing.scores({}, knowing.scored).exact)
  share = [np.mean(np.arange(size) % 2 == 0) for size in knowing.sizes]
  np.testing.assert_allclose(exact, share)


def test_work_may_differ_where_the_answer_is_right():
  config = dataclasses.replace(
    SMALL,
    task='longest_increasing',
    layout=layouts.Layout(scratchpad='lengths'),
    levels=(2,),
    test_size=8,
  )
  problems = problems_lib.Problems(config)
  assert problems.works
  true = np.asarray(problems.test.tokens)
  assert problems.right(true).tolist() == [1.0]
  # The first length of the work, and in another line the answer.
  begin = np.argmax(np.asarray(problems.test.answer)[0], axis=-1)
  written = true.copy()
  written[0, 0, begin[0]] += 1
  assert problems.right(written).tolist() == [1.0]
  place = np.argmax(np.asarray(problems.test.scored)[0, 1])
  written[0, 1, place] += 1
  assert problems.right(written).tolist() == [1 - 1 / problems.sizes[0]]
  # Without an end mark nothing is an answer.
  length = true.shape[-1]
  written[0, 2, begin[2] :] = true[0, 2, begin[2]] * np.ones(length - begin[2])
  assert problems.right(written).tolist() == [1 - 2 / problems.sizes[0]]


PRODUCTS = configs.Config(
  study='multiplication_auxiliary',
  vary=(
    'direct: | auxiliary: training.auxiliary.weight=1 | implicit:'
    ' layout.scratchpad=products training.removal=3',
  ),
  task='long_multiplication',
  layout=layouts.Layout(notation='infix', operand_order='reversed', pad=True),
  model=transformer.Shape(layers=1, heads=2, width=16),
  training=configs.Training(
    steps=4,
    warmup=1,
    batch_size=16,
    level_weights=(0, 1),
    removal_steps=2,
    removal_start=1,
  ),
  levels=(2,),
  test_size=8,
  inspect=True,
  seeds=2,
  checkpoint_steps=2,
)


def test_work_is_removed_step_by_step_and_gone_when_scored():
  (*_, row) = configs.variants(PRODUCTS)
  problems = problems_lib.Problems(row.config)
  draw = jax.jit(lambda key, step: problems.draw(key, None, step).batch)
  written = []
  for step in range(4):
    tokens = np.asarray(draw(jax.random.key(0), step).tokens[0])
    written.append(problems._tokenizer.decode(tokens).rstrip())
  prompt, work = written[0].split('||')
  assert '####' in work
  assert written == [f'{prompt}||{work[n:]}' for n in (0, 3, 3, 6)]
  test = problems._tokenizer.decode(np.asarray(problems.test.tokens)[0, 0])
  assert len(test.rstrip()) == len(written[3])


@jax.numpy_dtype_promotion('standard')  # Schedules of optax count in floats.
@pytest.mark.slow
def test_products_are_inspected_while_they_are_learned(tmp_path):
  table = run_lib.run(PRODUCTS, tmp_path / 'run')
  assert [c.name for c in table.columns][-3:] == [
    *('middle', 'waves', 'published'),
  ]
  names = {path.name for path in (tmp_path / 'run').iterdir()}
  assert {f'learning-{x}.png' for x in ('direct', 'implicit')} < names
  records = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  places = [
    record['test/places']
    for record in map(json.loads, records)
    if record['stage'] == '02-auxiliary'
  ]
  assert np.shape(places) == (2, 2, 5)
  assert run_lib.run(PRODUCTS, tmp_path / 'run').to_csv() == table.to_csv()


def test_when_a_token_is_learned():
  shares = {'plain': [[0.0]] * 2, 'reversed': [[0.0]] * 2}
  (row, _) = results_of(shares, levels=(2,)).rows
  learning = np.array([[[0.9, 0.0], [0.8, 0.9]], [[0.0, 0.5], [1.0, 0.6]]])
  first = row._replace(learning=learning).learned
  np.testing.assert_array_equal(first, [3.0, np.nan])  # Of 2 and 4; never.
  places = np.array([[1.0, 0.2, 0.4, 0.9, 1.0]] * 2)
  np.testing.assert_allclose(row._replace(places=places).middle, 0.3)


@jax.numpy_dtype_promotion('standard')  # Schedules of optax count in floats.
@pytest.mark.slow
def test_a_model_that_learned_its_work_answers(tmp_path):
  config = dataclasses.replace(
    SMALL,
    task='longest_increasing',
    layout=layouts.Layout(scratchpad='lengths'),
    vary=(),
    levels=(1,),
    test_size=8,
    model=transformer.Shape(layers=1, heads=2, width=32),
    training=configs.Training(steps=600, level_weights=(1,)),
    checkpoint_steps=600,
  )
  run_lib.run(config, tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  (scores,) = (each for each in records if 'test/exact' in each)
  assert np.mean(scores['test/exact']) > 0.8  # Of equal digits it learns last.


@pytest.mark.parametrize('table', sorted(reproduce.TABLES))
def test_every_preset_of_every_table_is_sound(table):
  module = importlib.import_module(f'experiments.configs.{table}')
  for preset in module.PRESETS.values():
    config = preset()
    if isinstance(config, configs.Config):
      assert configs.variants(config)
      assert config.study in papers.STUDIES


def results_of(shares, **changes):
  """Results of rows by name, with shares [seeds, levels]."""
  config = dataclasses.replace(SMALL, **changes)
  return results_lib.Results(
    config,
    tuple(
      results_lib.Result(
        row,
        (8,) * len(config.levels),
        '',
        np.asarray(shares[row.name]),
        np.asarray(shares[row.name]),
        np.ones((2, 4)),
        np.ones((2, len(config.grid), len(config.grid))),
        *(np.ones((2, 0)), np.ones((2, 1, 0)), np.ones((2, 0)), np.ones(2)),
        np.array([2, 4]),
        np.ones((2, 2)),
      )
      for row in configs.variants(config)
    ),
  )


POSITIONS = ('model.positions=learned|fire',)


@pytest.mark.parametrize(
  ('study', 'shares', 'changes', 'said'),
  [
    (
      'teaching_arithmetic',
      {'plain': [[0.1], [0.2]], 'reversed': [[0.4], [0.6]]},
      {'levels': (2,)},
      'Reversed is learned better than plain: reproduced (+35.0',
    ),
    (
      'teaching_arithmetic',
      {'plain': [[0.5], [0.6]], 'reversed': [[0.4], [0.6]]},
      {'levels': (2,)},
      'Reversed is learned better than plain: not reproduced (-5.0',
    ),
    (
      'length_generalization',
      {'learned': [[1.0, 0.1]] * 2, 'fire': [[1.0, 0.95], [0.8, 0.0]]},
      {'levels': (2, 3), 'vary': POSITIONS},
      'fire goes further than learned: reproduced in part (+37.5',
    ),
    (
      'length_generalization',
      {'learned': [[1.0], [1.0]], 'fire': [[0.5], [0.5]]},
      {'levels': (2,), 'vary': POSITIONS},
      'learned against fire: +50.0',  # Nothing lies beyond training.
    ),
    (
      'teaching_arithmetic',
      {'plain, 100': [[0.1], [0.2]], 'reversed, 100': [[0.4], [0.6]]},
      {
        'levels': (2,),
        'vary': (*SMALL.vary, 'training.examples=100'),
      },
      'With training.examples=100, reversed is learned better',
    ),
    (
      'nupa',
      {
        'digits, rotary': [[0.8, 0.1]] * 2,
        'digits, none': [[0.6, 0.3], [0.7, 0.1]],
        'pairs, rotary': [[0.4, 0.1]] * 2,
        'pairs, none': [[0.4, 0.1]] * 2,
      },
      {
        'levels': (2, 3),
        'vary': (
          'digits: tokenizer=digits | pairs: tokenizer=right2-left2',
          'model.positions=rotary|none',
        ),
      },
      'Over 2 pairs of rows, without positions it goes further: reproduced in'
      ' part (+5.0 ± 7.1 points, in 1 of 2 seeds)',
    ),
    (
      'teaching_arithmetic',
      {'plain': [[0.1], [0.2]], 'reversed': [[0.4], [0.6]]},
      {'levels': (3,)},  # Which was not trained on.
      '+35.0',
    ),
  ],
)
def test_findings_follow_from_the_numbers(study, shares, changes, said):
  found = papers.STUDIES[study].findings(results_of(shares, **changes))
  assert any(said in sentence for sentence in found), found
  assert not any('nan' in sentence for sentence in found)


def test_findings_of_products():
  shares = {'direct': [[0.0]] * 2, 'auxiliary': [[0.5]] * 2}
  results = results_of(
    shares, vary=('direct: | auxiliary: layout.pad=true',), levels=(2,)
  )
  places = np.array([[1.0, 0.2, 0.4, 0.9, 1.0], [1.0, 0.2, 0.2, 1.0, 1.0]])
  direct, other = results.rows
  results = results._replace(
    rows=(direct._replace(places=places), other._replace(places=places + 0.1))
  )
  said = papers.STUDIES['multiplication_auxiliary'].findings(results)
  assert said[0].startswith('direct: 97.5 ± 3.5 % of the first and last digits')
  assert 'worse than the ends: reproduced (+72.5' in said[2]
  assert 'auxiliary learns the digits between better than direct' in said[3]
  assert 'reproduced (+10.0 ± 0.0 points, in 2 of 2' in said[3]


def test_findings_of_recursions():
  shares = {
    'as they come': [[1.0, 0.9, 0.2, 0.0]] * 2,
    'every depth': [[1.0, 0.8, 0.7, 0.7]] * 2,
  }
  results = results_of(
    shares,
    vary=('as they come: | every depth: layout.pad=true',),
    levels=(1, 2, 3, 4),
  )
  said = papers.STUDIES['structural_recursion'].findings(results)
  assert said[0].startswith('as they come: right are 100.0 ± 0.0 % of the')
  assert 'sizes from 3 on are worse' in said[2]
  assert 'reproduced (+85.0 ± 0.0 points, in 2 of 2' in said[2]
  assert 'reproduced (+60.0 ± 0.0 points, in 2 of 2' in said[3]


def test_two_axes_of_numbers_have_a_figure_each():
  axes = ('training.steps=4|8', 'training.batch_size=4|8')
  shares = {f'{a}, {b}': [[a / 10] * 3] * 2 for a in (4, 8) for b in (4, 8)}
  figures = report.draw_figures(results_of(shares, vary=axes))
  assert {'training.steps.png', 'training.batch_size.png'} <= set(figures)


def test_pairs_of_lengths_have_a_figure_for_each_row():
  shares = {'plain': [[0.0] * 3] * 2, 'reversed': [[0.0] * 3] * 2}
  figures = report.draw_figures(results_of(shares, grid=(1, 3)))
  assert {'grid-plain.png', 'grid-reversed.png'} <= set(figures)


def test_pairs_of_lengths_are_what_they_say():
  task = tasks.addition
  cells = runtime_problems.held_out_grid(
    task, 'test', 20, (1, 3), key=jax.random.key(0)
  )
  written = [
    list(zip(*map(tasks.to_strings, cell), strict=True)) for cell in cells
  ]
  lengths = [{tuple(map(len, problem)) for problem in cell} for cell in written]
  assert lengths == [{(1, 1)}, {(1, 3)}, {(3, 1)}, {(3, 3)}]
  assert all(len(set(cell)) == len(cell) for cell in written)
  assert len(written[3]) == 20
  assert all(tasks.split_of(cell, 'test').all() for cell in cells)
  with pytest.raises(errors.UsageError, match='two operands'):
    runtime_problems.held_out_grid(
      tasks.reversing, 'test', 20, (1, 3), key=jax.random.key(0)
    )


def test_operands_of_their_own_levels_meet():
  a, b = tasks.addition.sample(
    jax.random.key(0), 64, level_weights=(1, 0, 1), independent=True
  )
  pairs = set(zip(a.length.tolist(), b.length.tolist(), strict=True))
  assert pairs == {(1, 1), (1, 3), (3, 1), (3, 3)}


def test_levels_are_called_what_they_count():
  shares = {'plain': [[0.0] * 3] * 2, 'reversed': [[0.0] * 3] * 2}
  assert results_of(shares).sized(2) == '2 digits'
  assert results_of(shares, task='running_sums').sized(2) == 'size 2'


def test_differences_are_taken_seed_by_seed():
  a, b = np.array([0.9, 0.8, 0.1]), np.array([0.5, 0.6, 0.2])
  said = results_lib.difference(a, b)
  assert said.startswith('+16.7 ±')
  assert said.endswith('ahead in 2 of 3 seeds')


def _line(tokens):
  """A line without what fills it up, which depends on what it stands with."""
  return tuple(np.trim_zeros(np.asarray(tokens), 'b').tolist())
