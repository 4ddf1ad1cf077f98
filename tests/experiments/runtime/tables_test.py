"""A table says the same thing in every form."""

import csv
from html import parser
import io
import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime import tables


def _table():
  table = tables.Table(
    'A | B',
    [
      tables.Column(name='add'),
      tables.Column(name='time', label='time (s)', scale=1, best='min'),
    ],
    caption='On <all> tasks.',
    notes=['Reduced size.'],
  )
  yardsticks = table.add_group('Yardsticks', ranked=False)
  table.add_row(yardsticks, 'expert', {'add': [1.0, 1.0, 1.0]})
  merges = table.add_group('Merges', ranked=True)
  table.add_row(merges, 'average', {'add': [0.1, 0.2, 0.6], 'time': 2.0})
  table.add_row(merges, 'ties|<x>', {'add': np.float32([0.5]), 'time': [1.0]})
  table.add_row(merges, 'not run', {'add': None, 'time': []})
  return table


def test_a_cell_is_the_mean_and_the_sample_deviation():
  values = (0.1, 0.2, 0.6)
  cell = tables.Cell(values)
  assert cell.mean == pytest.approx(np.mean(values))
  assert cell.std == pytest.approx(np.std(values, ddof=1))
  assert cell.std == statistics.stdev(values)
  assert tables.Cell((0.5,)).std is None
  assert tables.Cell(()).mean is None


def test_csv_reads_back_at_full_precision():
  rows = list(csv.DictReader(io.StringIO(_table().to_csv())))
  assert [row['row'] for row in rows] == [
    'expert',
    'average',
    'ties|<x>',
    'not run',
  ]
  assert float(rows[1]['add mean']) == statistics.fmean((0.1, 0.2, 0.6))
  assert float(rows[1]['add std']) == statistics.stdev((0.1, 0.2, 0.6))
  assert rows[1]['add n'] == '3'
  assert rows[2]['add std'] == ''
  assert (rows[3]['add mean'], rows[3]['add n']) == ('', '0')
  assert rows[0]['group'] == 'Yardsticks'


def test_markdown_is_a_grid_of_equal_columns():
  text = _table().to_markdown()
  grid = [line for line in text.splitlines() if line.startswith('|')]
  assert len({len(line) for line in grid}) == 1
  bars = {tuple(i for i, c in enumerate(line) if c == '|') for line in grid}
  assert len(bars) == 2  # One row has an escaped bar in its name.
  assert '**50.0**' in text
  assert '30.0 ± 26.5' in text
  assert 'ties\\|\\<x>' in text
  assert text.startswith('**A \\| B**\n\nOn \\<all> tasks.\n')
  assert text.endswith('\nReduced size.\n')


def test_only_ranked_groups_have_a_best_and_a_column_says_which():
  table = _table()
  yardsticks, merges = table.groups
  add, time = table.columns
  assert table.best(yardsticks, add) == set()
  assert table.best(merges, add) == {'ties|<x>'}
  assert table.best(merges, time) == {'ties|<x>'}


def test_what_looks_equal_is_equally_good():
  table = tables.Table('t', [tables.Column(name='a')])
  group = table.add_group('g', ranked=True)
  for name, value in (('x', 0.50001), ('y', 0.50002), ('z', 0.4)):
    table.add_row(group, name, {'a': value})
  assert table.best(group, table.columns[0]) == {'x', 'y'}


def test_legend_states_the_seeds_and_what_is_missing():
  assert _table().legend() == (
    'Mean ± sample standard deviation over 1 to 3 seeds; best mean of each'
    ' column among Merges in bold; an empty cell was not run.'
  )
  table = tables.Table('t', [tables.Column(name='a', best=None)])
  table.add_row(table.add_group('g', ranked=False), 'r', {'a': jnp.zeros(5)})
  assert table.legend() == 'Mean ± sample standard deviation over 5 seeds.'


def test_legend_counts_no_columns_that_are_fixed_and_says_what_is_empty():
  columns = [
    tables.Column(name='score'),
    tables.Column(name='size', fixed=True),
  ]
  table = tables.Table('T', columns, empty='an empty cell has no price')
  group = table.add_group('all', ranked=False)
  table.add_row(group, 'a', {'score': [0.1, 0.2], 'size': 3})
  assert table.legend() == 'Mean ± sample standard deviation over 2 seeds.'
  table.add_row(group, 'b', {'size': 3})
  assert table.legend().endswith('; an empty cell has no price.')


class _Cells(parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.open = []
    self.text = []

  def handle_starttag(self, tag, attrs):
    self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append((self.open[-1] if self.open else '', data))


def test_html_is_closed_escaped_and_marks_the_best():
  page = _Cells()
  page.feed(_table().to_html())
  assert page.open == []
  assert ('th', 'ties|<x>') in page.text
  assert ('p', 'On <all> tasks.') in page.text
  assert [text for tag, text in page.text if tag == 'b'] == [
    'A | B',
    '50.0',
    '1.0',
  ]


@pytest.mark.parametrize('width', [30, 60, 200])
def test_text_fits_and_keeps_every_number(width):
  text = _table().to_text(width)
  assert max(map(len, text.splitlines())) <= max(width, 26)
  for shown in ('30.0 ± 26.5', '50.0*', '2.0', 'time (s)', '[Merges]'):
    assert shown in text


def test_wrong_columns_are_refused():
  table = _table()
  with pytest.raises(KeyError, match=r"has values for \['sub'\]"):
    table.add_row(table.groups[0], 'r', {'sub': 1.0})
  with pytest.raises(ValueError, match='same name'):
    tables.Table('t', [tables.Column(name='a'), tables.Column(name='a')])
