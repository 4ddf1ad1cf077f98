"""Sums of input files, beside those of hashlib over the whole file."""

import hashlib
import json
import pathlib

import pytest

from experiments.checkpoints import command
from experiments.checkpoints import hashes
from experiments.checkpoints import opening
from tests.experiments.checkpoints import tiny
from third_party import problems
from third_party.mergekit import names

FILE = 'model.safetensors'
RECIPE = """
merge_method: linear
models: [{model: base}, {model: math}]
parameters: {weight: 0.5}
"""


def _sum_of(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(path, digest):
  """Makes a file one that came from the Hub, which gave a sum."""
  notes = path.parent / '.cache' / 'huggingface' / 'download'
  notes.mkdir(parents=True)
  (notes / f'{path.name}.metadata').write_text(f'c0ffee\n{digest}\n9e12\n')


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  base = tiny.tensors()
  tiny.save(tmp_path / 'base', base)
  tiny.save(tmp_path / 'math', tiny.nudged(base, 0.05, 1))
  (tmp_path / 'recipe.yml').write_text(RECIPE)
  return tmp_path


def _open(home, *wanted):
  refs = [names.ModelRef(each) for each in wanted]
  return list(opening.open_models(refs, beside=home, places={}).values())


def test_sums_are_those_of_whole_files(home, monkeypatch):
  monkeypatch.setattr(hashes, '_PIECE', 1000)
  seen = []
  found = hashes.taken(
    _open(home, 'base', 'math'), progress=lambda *each: seen.append(each)
  )
  paths = [home / name / FILE for name in ('base', 'math')]
  assert found == {path: _sum_of(path) for path in paths}
  total = sum(path.stat().st_size for path in paths)
  assert seen[-1] == (total, total)
  assert sorted(seen) == seen


def test_sums_of_the_hub_are_known_and_held_to_the_files(home):
  path = home / 'base' / FILE
  _download(path, _sum_of(path))
  models = _open(home, 'base', 'math')
  assert hashes.known(models) == {path: _sum_of(path)}
  hashes.taken(models)
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  with pytest.raises(problems.ProblemError) as error:
    hashes.taken(_open(home, 'base', 'math'))
  (problem,) = error.value.problems
  assert problem.where == ('base', FILE)
  assert f'its SHA-256 is {_sum_of(path)}, expected ' in problem.what
  assert problem.kind == problems.Kind.INPUT


def test_a_file_that_is_gone_is_told(home):
  models = _open(home, 'base')
  (home / 'base' / FILE).unlink()
  with pytest.raises(problems.ProblemError, match='cannot be read'):
    hashes.taken(models)


def _merged(**flags):
  target = pathlib.Path('out')
  command.merge(pathlib.Path('recipe.yml'), target, command.Flags(**flags))
  report = json.loads((target / 'merge_report.json').read_text())
  files = {each['name']: each['files'][FILE] for each in report['models']}
  return files, (target / 'README.md').read_text()


def test_a_report_says_what_is_known(home):
  base = home / 'base' / FILE
  _download(base, _sum_of(base))
  files, card = _merged()
  assert files['base']['hub_sha256'] == _sum_of(base)
  assert 'sha256' not in files['base']
  assert not {'sha256', 'hub_sha256'} & files['math'].keys()
  assert len(files['math']['header_sha256']) == 64
  assert f'`{_sum_of(base)[:12]}`' in card
  assert 'as the Hub gave them; of headers' in card


def test_a_report_has_the_sums_of_all_files_if_asked(home):
  files, card = _merged(hash='full')
  for name, file in files.items():
    assert file['sha256'] == _sum_of(home / name / FILE)
    assert f'`{file["sha256"][:12]}`' in card
  assert 'of whole files, read for this card.' in card


def test_a_file_that_is_not_the_hubs_is_refused_before_the_merge(home):
  _download(home / 'math' / FILE, 'ab' * 32)
  _merged()
  with pytest.raises(problems.ProblemError, match='not the file that the Hub'):
    _merged(hash='full', overwrite=True)
  assert sorted(each.name for each in home.iterdir()) == [
    'base',
    'math',
    'out',
    'recipe.yml',
  ]
