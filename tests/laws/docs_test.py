"""Examples on the pages run as they stand, and their tables match the code."""

import inspect
from pathlib import Path
import re

import pytest

from docs import tables
from merging import recipes

ROOT = Path(__file__).parents[2]


def blocks(page):
  return re.findall(
    r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL
  )


@pytest.mark.parametrize('block', blocks('README.md'))
def test_example_of_the_readme_runs_alone(block, capsys):
  exec(compile(block, 'README.md', 'exec'), {})
  assert capsys.readouterr().out


def test_examples_on_merging_run_in_turn(capsys):
  found = blocks('docs/merging.md')
  assert len(found) > 3
  names = {}
  for block in found:
    exec(compile(block, 'docs/merging.md', 'exec'), names)
  out = capsys.readouterr().out
  assert 'cosine' in out.lower()
  assert 'Warning' not in out


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
