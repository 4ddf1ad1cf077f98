"""Settings: what is set is what is asked for, or an error that names it."""

import dataclasses
import json
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st
import pytest

from experiments.runtime import config
from experiments.runtime import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  rate: float = 1e-2
  name: Literal['adam', 'sgd'] = 'adam'
  warmup: int | None = None

  def __post_init__(self):
    if self.rate <= 0:
      raise ValueError(f'rate must be positive, got {self.rate}')
    if self.warmup is not None and self.warmup > 10 and self.rate > 1:
      raise ValueError('a long warmup needs a small rate')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  steps: int = 100
  remat: bool = False
  label: str = 'base'
  lengths: tuple[int, ...] = (4, 8)
  span: tuple[float, float] = (0.0, 1.0)
  optimizer: Optimizer = Optimizer()
  finetune: Optimizer | None = None


@pytest.mark.parametrize(
  ('text', 'path', 'value'),
  [
    ('steps=7', 'steps', 7),
    ('steps=1_000', 'steps', 1000),
    ('steps = -7 ', 'steps', -7),
    ('remat=true', 'remat', True),
    ('remat=False', 'remat', False),
    ('label=a=b', 'label', 'a=b'),
    ('label=3', 'label', '3'),
    ("label=''", 'label', ''),
    ('lengths=1,2,3', 'lengths', (1, 2, 3)),
    ('lengths=(1, 2)', 'lengths', (1, 2)),
    ('lengths=5', 'lengths', (5,)),
    ('lengths=5,', 'lengths', (5,)),
    ('lengths=()', 'lengths', ()),
    ('span=0,1e-3', 'span', (0.0, 1e-3)),
    ('optimizer.rate=1e-3', 'optimizer.rate', 1e-3),
    ('optimizer.rate=3', 'optimizer.rate', 3.0),
    ('optimizer.name=sgd', 'optimizer.name', 'sgd'),
    ('optimizer.warmup=5', 'optimizer.warmup', 5),
    ('optimizer.warmup=none', 'optimizer.warmup', None),
  ],
)
def test_sets_one_field_and_nothing_else(text, path, value):
  before = Training()
  after = config.overlay(before, [text])
  got = after
  for name in path.split('.'):
    got = getattr(got, name)
  assert got == value
  assert type(got) is type(value)
  changed = {line.split(':')[0] for line in config.differences(before, after)}
  assert changed <= {path}


@pytest.mark.parametrize(
  ('assignments', 'message'),
  [
    (['stesp=1'], "no setting 'stesp'; did you mean 'steps'?"),
    (
      ['optimizer.rat=1'],
      "no setting 'optimizer.rat'; did you mean 'optimizer.rate'?",
    ),
    (['steps=1e3'], "steps should be an integer; got '1e3'"),
    (['steps=1.5'], "steps should be an integer; got '1.5'"),
    (['remat=1'], "remat should be true or false; got '1'"),
    (
      ['optimizer.rate=fast'],
      "optimizer.rate should be a number; got 'fast'",
    ),
    (
      ['optimizer.rate=nan'],
      "optimizer.rate should be a number; got 'nan' (a finite number)",
    ),
    (
      ['optimizer.name=adm'],
      "optimizer.name should be one of adam, sgd; got 'adm'"
      " (did you mean 'adam'?)",
    ),
    (
      ['optimizer.warmup=x'],
      "optimizer.warmup should be an integer or none; got 'x'",
    ),
    (['span=1'], "span should be 2 comma-separated values; got '1'"),
    (
      ['lengths=1,a'],
      "lengths should be a comma-separated list, each an integer; got '1,a'",
    ),
    (['steps=1', 'steps=2'], "steps is set twice: '1' and '2'"),
    (['steps'], "expected path=value, such as steps=100; got 'steps'"),
    (['steps='], "expected path=value, such as steps=100; got 'steps='"),
    (['=1'], "expected path=value, such as steps=100; got '=1'"),
    (
      ['optimizer=adam'],
      'optimizer is a group of settings: optimizer.rate, optimizer.name,'
      ' optimizer.warmup',
    ),
    (
      ['steps.a=1'],
      "no setting 'steps.a'; steps is 100, not a group",
    ),
    (
      ['finetune.rate=1'],
      "no setting 'finetune.rate'; finetune is none, not a group",
    ),
    (['optimizer.rate=-1'], 'optimizer.rate must be positive, got -1.0'),
    (
      ['optimizer.rate=2', 'optimizer.warmup=20'],
      'optimizer: a long warmup needs a small rate',
    ),
  ],
)
def test_refuses_in_one_line_what_it_cannot_set(assignments, message):
  with pytest.raises(errors.UsageError) as caught:
    config.overlay(Training(), assignments)
  assert str(caught.value) == message


def test_checks_across_fields_see_the_final_values():
  start = Training(optimizer=Optimizer(rate=2.0, warmup=5))
  done = config.overlay(start, ['optimizer.warmup=20', 'optimizer.rate=0.5'])
  assert done.optimizer == Optimizer(rate=0.5, warmup=20)


def test_a_group_can_be_left_out_and_its_fields_set():
  start = Training(finetune=Optimizer())
  assert config.overlay(start, ['finetune=none']).finetune is None
  set_ = config.overlay(start, ['finetune.rate=0.5'])
  assert set_.finetune == Optimizer(rate=0.5)


@st.composite
def _trainings(draw):
  optimizers = st.builds(
    Optimizer,
    rate=st.floats(1e-8, 1.0),
    name=st.sampled_from(['adam', 'sgd']),
    warmup=st.none() | st.integers(0, 10),
  )
  return draw(
    st.builds(
      Training,
      steps=st.integers(),
      remat=st.booleans(),
      label=st.text(),
      lengths=st.lists(st.integers(), max_size=3).map(tuple),
      optimizer=optimizers,
      finetune=st.none() | optimizers,
    )
  )


@given(_trainings())
def test_json_and_back_is_the_identity(training):
  data = json.loads(json.dumps(config.to_dict(training)))
  assert config.from_dict(Training, data) == training
  assert config.differences(training, data) == []


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ({'step': 1}, "no setting 'step'; did you mean 'steps'?"),
    ({'steps': '1'}, 'steps should be an integer; got "1"'),
    ({'steps': True}, 'steps should be an integer; got true'),
    ({'lengths': [1, 'a']}, 'lengths[1] should be an integer; got "a"'),
    ({'span': [1.0]}, 'span should be 2 comma-separated values; got [1.0]'),
    ({'optimizer': 3}, 'optimizer should be Optimizer; got 3'),
    ({'optimizer': {'rate': 0}}, 'optimizer.rate must be positive, got 0.0'),
  ],
)
def test_from_dict_is_strict(data, message):
  with pytest.raises(errors.UsageError) as caught:
    config.from_dict(Training, data)
  assert str(caught.value) == message


def test_from_dict_needs_fields_without_a_default():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Seeded:
    seed: int

  with pytest.raises(errors.UsageError, match='seed is missing'):
    config.from_dict(Seeded, {})


def test_differences_are_symmetric_in_where_they_are():
  a, b = Training(steps=1), Training(optimizer=Optimizer(rate=2.0))
  assert config.differences(a, a) == []
  assert config.differences(a, b) == [
    'optimizer.rate: 0.01 != 2.0',
    'steps: 1 != 100',
  ]
  assert len(config.differences(b, a)) == 2


def test_what_json_cannot_hold_is_no_setting():
  with pytest.raises(TypeError, match='a setting cannot be a set'):
    config.to_dict({'a': {1}})


def test_choose_says_what_there_is():
  with pytest.raises(
    errors.UsageError, match=r'no table .x.; choose from a, b'
  ):
    config.choose('table', 'x', {'b': 1, 'a': 2})
