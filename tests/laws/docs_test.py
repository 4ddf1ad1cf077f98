"""Examples on the pages run as they stand, and their tables match the code."""

import fnmatch
import inspect
from pathlib import Path
import re
import shlex
from typing import Any

import pytest

from docs import tables
from experiments.checkpoints import command
from experiments.checkpoints import recipes as recipes_lib
from experiments.checkpoints import tools
from merging import recipes
from third_party import problems

ROOT = Path(__file__).parents[2]


def blocks(page):
  return re.findall(
    r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL
  )


@pytest.mark.parametrize('block', blocks('README.md'))
def test_example_of_the_readme_runs_alone(block, capsys):
  exec(compile(block, 'README.md', 'exec'), {})
  assert capsys.readouterr().out


@pytest.mark.parametrize(
  ('page', 'word'),
  [
    ('docs/merging.md', 'cosine'),
    ('docs/arithmetic.md', 'off_by_one=true'),
    ('docs/positions.md', "attention='fire'"),
  ],
)
def test_examples_on_a_page_run_in_turn(page, word, capsys):
  found = blocks(page)
  assert len(found) > 1
  names = {}
  for block in found:
    exec(compile(block, page, 'exec'), names)
  out = capsys.readouterr().out
  assert word in out.lower()
  assert 'Warning' not in out


@pytest.mark.slow  # It compiles a program for every transformation.
def test_examples_on_numerics_run_in_turn(capsys):
  names = {}
  for block in blocks('docs/numerics.md'):
    exec(compile(block, 'docs/numerics.md', 'exec'), names)
  printed = capsys.readouterr().out
  assert 'False True True' in printed  # Which gradients are in which format.
  assert 'nan' not in printed


def run(line):
  """Does what a line for the shell does, and prints the same."""
  python, module, name, *rest = shlex.split(line)
  assert [python, module] == ['python', '-m']
  given: dict[str, Any] = {}
  for flag in (each for each in rest if each.startswith('--')):
    key, _, value = flag.removeprefix('--').partition('=')
    given[key] = int(value) if value.isdigit() else value or True
  arguments = [each for each in rest if not each.startswith('--')]
  try:
    if name == 'experiments.merge':
      recipe, target = map(Path, arguments)
      command.merge(recipe, target, command.Flags(**given))
    else:
      assert name == 'experiments.checkpoint'
      tool, *arguments = arguments
      if tool == 'kinship':
        arguments = [arguments[0], arguments[1:]]
      elif tool == 'extract':
        arguments = [arguments[0], arguments[1:-1], arguments[-1]]
      print(getattr(tools, tool)(*arguments, **given).text)
  except problems.ProblemError as error:
    print(*(f'error: {each}' for each in error.problems), sep='\n')


def check_shown(shown, printed):
  """Every line of a page was printed, in this order; … stands for anything."""
  lines = iter(printed.splitlines())
  for wanted in filter(None, shown.splitlines()):
    pattern = wanted.replace('[', '[[]').replace('…', '*')
    assert any(fnmatch.fnmatchcase(line, pattern) for line in lines), (
      f'not printed here: {wanted}\n{printed}'
    )


def test_the_page_on_checkpoints_is_what_happens(tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  text = (ROOT / 'docs/checkpoints.md').read_text()
  found = re.findall(r'```(python|sh|text|yaml)\n(.*?)```', text, re.DOTALL)
  names = {}
  printed = ''
  for kind, block in found:
    if kind == 'yaml':
      file = Path(block.splitlines()[0].removeprefix('# '))
      file.write_text(block)
      if file.name != 'wrong.yml':
        recipes_lib.read(file)
    elif kind == 'python':
      exec(compile(block, 'docs/checkpoints.md', 'exec'), names)
    elif kind == 'sh':
      capfd.readouterr()
      for line in block.replace('\\\n', '').splitlines():
        run(line)
      streams = capfd.readouterr()
      printed = streams.err + streams.out
    elif kind == 'text':
      check_shown(block, printed)


@pytest.mark.parametrize('page', tables.PAGES)
def test_tables_are_in_step_with_the_code(page):
  name, make = tables.PAGES[page]
  text = (ROOT / page).read_text()
  assert tables.rewritten(text, name, make()) == text, 'run make docs'


def test_every_recipe_is_in_the_tables():
  public = {
    name for name, each in vars(recipes).items() if inspect.isfunction(each)
  }
  assert public <= {entry.name for entry in tables.entries()}


@pytest.mark.parametrize(
  'entry', tables.entries(), ids=lambda entry: entry.name
)
def test_every_method_has_an_oracle_and_a_row(entry):
  assert bool(tables.oracles(entry)) != bool(entry.tests)
  if entry.tests:
    assert (ROOT / 'tests' / 'merging' / entry.tests).exists()
  assert bool(tables.rows(entry)) != bool(entry.no_row)
