"""The benchmark of whole processes: what it makes, runs and says."""

import csv
import json
from pathlib import Path
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import yaml

from experiments.benchmarks import floor
from experiments.benchmarks import merge
from experiments.benchmarks import processes
from experiments.benchmarks import synthetic


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  return synthetic.models(tmp_path_factory.mktemp('models'), '1M', 2)


def test_models_are_what_their_config_says_and_experts_are_near_the_base(
  models,
):
  base, one, two = (
    safetensors.numpy.load_file(each / 'model.safetensors') for each in models
  )
  config = json.loads((models[1] / 'config.json').read_text())
  assert base['model.embed_tokens.weight'].shape == (
    config['vocab_size'],
    config['hidden_size'],
  )
  blocks = {name.split('.')[2] for name in base if '.layers.' in name}
  assert len(blocks) == config['num_hidden_layers']
  assert set(base) == set(one) == set(two)
  for name, value in base.items():
    assert value.dtype.name == 'bfloat16'
    assert value.shape == one[name].shape
  first, second = (
    np.concatenate(
      [(each[name] != base[name]).reshape(-1) for name in sorted(base)]
    )
    for each in (one, two)
  )
  # Rounding hides some of the fifth that changed.
  assert 0.15 < first.mean() < 0.2
  assert abs((first & second).mean() - first.mean() * second.mean()) < 0.01


def test_models_are_made_once(models):
  times = [(each / 'model.safetensors').stat().st_mtime_ns for each in models]
  again = synthetic.models(models[0].parents[1], '1M', 2)
  assert again == models
  assert times == [
    (each / 'model.safetensors').stat().st_mtime_ns for each in again
  ]


def test_hollow_models_have_whole_headers_and_take_no_room(tmp_path):
  for model in synthetic.hollow(tmp_path, 3):
    index = json.loads((model / 'model.safetensors.index.json').read_text())
    names = set()
    for path in model.glob('*.safetensors'):
      with safetensors.safe_open(path, 'numpy') as file:
        here = {*file.offset_keys()}
      assert {index['weight_map'][name] for name in here} == {path.name}
      names |= here
      assert path.stat().st_blocks * 512 < 2**20 < path.stat().st_size
    assert names == set(index['weight_map'])


@pytest.mark.parametrize('name', merge.METHODS)
def test_recipes_name_their_models(name):
  paths = [Path('/m/base'), Path('/m/a'), Path('/m/b')]
  text, inputs = merge.recipe(name, paths)
  content = yaml.safe_load(text)
  assert content['merge_method'] == name
  named = {each['model'] for each in content['models']}
  named |= {content['base_model']} if 'base_model' in content else set()
  assert named == set(map(str, inputs))
  expected = {'linear': ['/m/a', '/m/b'], 'slerp': ['/m/base', '/m/a']}
  assert [*map(str, inputs)] == expected.get(name, [*map(str, paths)])


def test_a_process_is_measured():
  program = (
    'import sys, time\n'
    'held = bytearray(b"a") * 100_000_000\n'
    'end = time.process_time() + 0.3\n'
    'while time.process_time() < end: pass\n'
    'print("first"); sys.exit("last")'
  )
  cost = processes.measure([sys.executable, '-c', program])
  assert cost.status == 1
  assert set(cost.said.split()) == {'first', 'last'}
  assert 0.3 <= cost.cpu < 5
  assert cost.wall >= 0.3
  assert 100e6 < cost.anonymous < 200e6
  assert cost.resident >= cost.anonymous


@pytest.mark.parametrize('language', ['C', 'Python'])
def test_the_floor_reads_everything_and_writes_as_much_as_the_first(
  tmp_path, monkeypatch, language
):
  if language == 'Python':
    monkeypatch.setattr(floor.shutil, 'which', lambda _: None)
  command, found = floor.command(tmp_path)
  if found != language:
    pytest.skip('there is no compiler')
  first, second, out = (tmp_path / name for name in ('a', 'b', 'out'))
  first.write_bytes(bytes(9_000_001))
  second.write_bytes(b'b')
  assert processes.measure([*command, out, first, second]).status == 0
  assert out.stat().st_size == 9_000_001
  assert processes.measure([*command, out, first, tmp_path / 'c']).status != 0


def test_limits_are_rates(tmp_path):
  file = tmp_path / 'file'
  file.write_bytes(bytes(2**20))
  assert all(1e6 < rate < 1e13 for rate in floor.limits(file, tmp_path, 1))
  assert [each.name for each in tmp_path.iterdir()] == ['file']


def _program(text):
  return lambda recipe, out, read: [sys.executable, '-S', '-c', text, str(out)]


def test_programs_take_turns_and_a_failure_is_an_empty_cell(
  tmp_path, models, capsys
):
  turns = tmp_path / 'turns'
  start = (
    'import os, sys\nout = sys.argv[1]\nassert not os.path.exists(out)\n'
    f'turns = open({str(turns)!r}, "a")\n'
  )
  programs = {
    'arithmerge': _program(f'{start}turns.write("o"); os.mkdir(out)'),
    'mergekit': _program(f'{start}turns.write("p"); sys.exit("it broke")'),
    'floor': _program(f'{start}turns.write("f"); open(out, "w")'),
  }
  costs = merge.race('ties', models, programs, tmp_path, 3)
  assert turns.read_text() == 'opfofof'
  assert not (tmp_path / 'out').exists()
  report = merge.Report(tmp_path)
  report.head()
  report.add(('1M', '2', 'ties'), costs, 10**9)
  assert 'it broke' in capsys.readouterr().err
  head, _, *rows = (
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in report.markdown.read_text().splitlines()[1:]
  )
  assert {len(row) for row in rows} == {len(head)}
  ours, peer, least = rows
  assert ours[:4] == ['1M', '2', 'ties', 'arithmerge']
  assert ours[8:10] == ['', '']  # Nothing to compare with.
  assert float(ours[10].split()[0]) > 0
  assert peer[4] == 'status 1'
  assert not any(peer[5:])
  assert least[10:] == ['', '']
  with report.raw.open() as file:
    raw = list(csv.DictReader(file))
  assert [row['program'] for row in raw] == 3 * ['arithmerge'] + [
    'mergekit'
  ] + 3 * ['floor']
  middle = sorted(float(row['wall']) for row in raw[:3])[1]
  assert ours[4].startswith(f'{middle:.2f} [')
