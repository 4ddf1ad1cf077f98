"""Whatever is wrong with a merge is told in a line, and nothing is written."""

import shutil

import numpy as np
import pytest

from merging import streaming
from tests.faults import content_faults
from tests.faults import file_faults
from tests.faults import recipe_faults
from tests.faults import workspace

_FAULTS = [
  fault
  for module in (file_faults, content_faults, recipe_faults)
  for fault in module.TABLE.faults
]


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
  """Models that fit each other."""
  root = tmp_path_factory.mktemp('sound')
  workspace.build(root)
  return root


@pytest.mark.parametrize('fault', _FAULTS, ids=lambda fault: fault.name)
def test_fault(fault, sound, tmp_path, capsys):
  case = workspace.copy(sound, tmp_path / 'work', capsys)
  check = fault.inject(case)
  before = case.snapshot()
  status, lines = case.merge()
  told = lines if status else case.notices.splitlines()
  assert status == fault.status, told
  assert len(told) == fault.count, told
  assert all(line.isprintable() or status for line in told)
  if fault.says:
    assert any(all(part in line for part in fault.says) for line in told), told
  if status:
    assert case.snapshot() == before
  else:
    added = {
      name.split('/')[0] for name in case.snapshot() if name not in before
    }
    assert added <= {case.target.name}
    assert workspace.weights(case.target)
  if check is not None:
    check()


def test_there_is_a_row_for_each_fault_of_the_list():
  wanted = [('A', 16), ('B', 9), ('C', 15), ('D', 12)]
  numbers = {fault.name.split()[0] for fault in _FAULTS}
  assert numbers >= {f'{x}{i + 1}' for x, count in wanted for i in range(count)}


def _merged(sound, root, text, **flags):
  case = workspace.copy(sound, root)
  case.say(text)
  case.flags = flags
  assert case.merge() == (0, [])
  return case


_RECIPES = {
  'linear': workspace.recipe(),
  **{
    method: workspace.recipe(method, base='base', parameters=parameters)
    for method, parameters in {
      'ties': {'density': 0.5},
      'dare_ties': {'density': 0.5},
      'della': {'density': 0.5, 'epsilon': 0.1},
    }.items()
  },
}


@pytest.mark.parametrize(
  'method',
  [
    *('linear', 'dare_ties'),
    *(pytest.param(each, marks=pytest.mark.slow) for each in ('ties', 'della')),
  ],
)
def test_what_is_merged_depends_on_recipe_and_seed_alone(
  method, sound, tmp_path
):
  """E10: shards, threads and the files of the inputs do not count."""
  text = _RECIPES[method]
  first = _merged(sound, tmp_path / 'a', text, seed=3)
  expected = workspace.weights(first.target)
  report = (first.target / 'merge_report.json').read_text()
  assert '"seed": 3' in report
  assert '--seed=3' in (first.target / 'README.md').read_text()
  again = _merged(
    sound, tmp_path / 'b', text, seed=3, shard_size='4KB', workers=1
  )
  assert len(list(again.target.glob('*.safetensors'))) > 2
  assert workspace.weights(again.target) == expected
  other = workspace.copy(sound, tmp_path / 'c')
  other.say(text)
  other.shard('math')
  other.shard('base')
  other.flags = {'seed': 3, 'workers': 7, 'max_memory': '4GB'}
  assert other.merge() == (0, [])
  assert workspace.weights(other.target) == expected
  if method in ('dare_ties', 'della'):
    other = _merged(sound, tmp_path / 'd', text, seed=4)
    assert workspace.weights(other.target) != expected


def test_e7_an_input_that_changes_while_it_is_read(
  sound, tmp_path, monkeypatch
):
  case = workspace.copy(sound, tmp_path)
  path = case.math / workspace.FILE
  raw = path.read_bytes()
  merge_stream = streaming.merge_stream

  def change(*args, **kwargs):
    merge_stream(*args, **kwargs)
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))

  before = case.snapshot()
  monkeypatch.setattr('merging.merge_stream', change)
  status, lines = case.merge()
  assert status == 6
  assert [line.split(': ')[0] for line in lines] == [f'math / {workspace.FILE}']
  assert 'replaced or modified' in lines[0]
  assert case.target.exists() is False
  assert case.snapshot().keys() >= before.keys()


def test_e8_a_limit_that_is_too_small_is_refused_with_what_is_needed(
  sound, tmp_path
):
  case = workspace.copy(sound, tmp_path)
  case.flags['max_memory'] = '1MB'
  before = case.snapshot()
  status, (line,) = case.merge()
  assert status == 5
  assert line.startswith('--max_memory: expected at least ')
  assert line.endswith('got 1 MB')
  assert case.snapshot() == before


def test_e12_names_of_all_kinds(sound, tmp_path):
  case = workspace.copy(sound, tmp_path / 'a dir, süß – 模型')
  case.math.rename(case.root / 'мате матика')
  text = workspace.recipe(models=('мате матика', 'code'))
  case.say(b'\xef\xbb\xbf' + text.replace(', ', ',\r\n').encode())
  assert case.merge() == (0, [])
  assert len(workspace.weights(case.target)) == 30


def _flip(raw, rng):
  """Changes some bytes, half of the time where a file says what it holds."""
  raw = bytearray(raw)
  most = len(raw) if rng.random() < 0.5 else min(len(raw), 400)
  for _ in range(int(rng.integers(1, 4))):
    raw[int(rng.integers(most))] ^= int(rng.integers(1, 256))
  return bytes(raw)


def _values(directory):
  """The tensors of a directory as numbers."""
  return {
    path: x.astype(np.float32)
    for path, x in workspace.load(directory / workspace.FILE).items()
  }


@pytest.mark.parametrize(
  ('cases', 'seed'),
  [(120, 0), pytest.param(2000, 1, marks=pytest.mark.slow)],
)
def test_flipped_bytes(cases, seed, sound, tmp_path, capsys):
  """They are refused, or the output is the mean of what the bytes say."""
  rng = np.random.default_rng(seed)
  files = [workspace.FILE] * 3 + ['config.json', 'tokenizer.json', 'recipe.yml']
  whole = _merged(sound, tmp_path / 'whole', workspace.recipe())
  expected = workspace.weights(whole.target)
  outcomes = dict.fromkeys([0, 2, 3, 4], 0)
  for number in range(cases):
    root = tmp_path / str(number % 2)
    case = workspace.copy(sound, root, capsys)
    name = files[number % len(files)]
    path = case.recipe if name == 'recipe.yml' else case.math / name
    path.write_bytes(_flip(path.read_bytes(), rng))
    before = case.snapshot()
    status, lines = case.merge()
    outcomes[status] += 1  # None of another kind.
    if status:
      assert lines
      assert case.snapshot() == before
    elif name.endswith('.json'):
      assert workspace.weights(case.target) == expected
    elif name == workspace.FILE:
      math, code, merged = map(_values, (case.math, case.code, case.target))
      for path, x in merged.items():
        mean = (0.5 * math[path] + 0.5 * code[path]).astype(np.float32)
        np.testing.assert_allclose(x, mean, rtol=2**-8, err_msg=path)
    shutil.rmtree(root)
  print(outcomes)  # Shown by -s, to state the counts.
  assert all(outcomes.values())
