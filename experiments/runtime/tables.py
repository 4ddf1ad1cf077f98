"""Tables of results: mean and spread over seeds, in every form people read.

A table holds raw values, one per seed; what is shown (percent, digits, which
one is best) is a property of the column. A cell that was not run is empty.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import html
import io
import statistics
import textwrap
from typing import Any
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
  """How the values of a column are shown.

  Attributes:
    name: What cells are keyed by, and the heading in CSV.
    label: The heading elsewhere; the name by default.
    scale: Factor from stored to shown values: 100 for percent.
    digits: Digits after the point.
    best: Which mean is emphasised in ranked groups, if any.
    fixed: Whether it has one value for all seeds, such as a size.
  """

  name: str
  label: str = ''
  scale: float = 100.0
  digits: int = 1
  best: Literal['max', 'min'] | None = 'max'
  fixed: bool = False

  @property
  def heading(self) -> str:
    """What is shown above the column."""
    return self.label or self.name


@dataclasses.dataclass(frozen=True)
class Cell:
  """The values of one cell, one per seed; none if it was not run.

  Examples:
    >>> cell = Cell((0.5, 0.7))
    >>> round(cell.mean, 3), round(cell.std, 3), cell.n
    (0.6, 0.141, 2)
  """

  values: tuple[float, ...] = ()

  @property
  def n(self) -> int:
    """How many seeds."""
    return len(self.values)

  @property
  def mean(self) -> float | None:
    """The mean over seeds."""
    return statistics.fmean(self.values) if self.values else None

  @property
  def std(self) -> float | None:
    """The sample standard deviation, defined from two seeds on."""
    return statistics.stdev(self.values) if self.n > 1 else None


@dataclasses.dataclass(frozen=True)
class Row:
  """A named row of cells."""

  name: str
  cells: Mapping[str, Cell]


@dataclasses.dataclass
class Group:
  """Rows under one heading.

  Attributes:
    name: The heading.
    ranked: Whether the best mean of each column is emphasised.
    rows: In the order they were added.
  """

  name: str
  ranked: bool
  rows: list[Row] = dataclasses.field(default_factory=list)


class Table:
  """A table of groups of rows.

  Examples:
    >>> table = Table('Merges', [Column(name='add'), Column(name='sub')])
    >>> group = table.add_group('Merging', ranked=True)
    >>> table.add_row(group, 'average', {'add': [0.5, 0.7], 'sub': [0.25]})
    >>> table.add_row(group, 'ties', {'add': [0.9, 0.8]})
    >>> print(table.to_markdown())
    **Merges**
    <BLANKLINE>
    |             |            add |      sub |
    | :---------- | -------------: | -------: |
    | **Merging** |                |          |
    | average     |    60.0 ± 14.1 | **25.0** |
    | ties        | **85.0 ± 7.1** |          |
    <BLANKLINE>
    Mean ± sample standard deviation over 1 to 2 seeds; best mean of each
    column among Merging in bold; an empty cell was not run.
    <BLANKLINE>
  """

  def __init__(
    self,
    title: str,
    columns: Sequence[Column],
    *,
    caption: str = '',
    notes: Sequence[str] = (),
    empty: str = 'an empty cell was not run',
  ):
    """Makes an empty table.

    Args:
      title: A few words.
      columns: In order.
      caption: Shown under the title.
      notes: Shown below, a line each.
      empty: What an empty cell means, for the legend.
    """
    names = [column.name for column in columns]
    if len(set(names)) != len(names):
      raise ValueError(f'two columns have the same name: {names}')
    self.title = title
    self.columns = tuple(columns)
    self.caption = caption
    self.notes = tuple(notes)
    self.empty = empty
    self.groups: list[Group] = []

  def add_group(self, name: str, *, ranked: bool) -> Group:
    """Adds a heading, under which `add_row` puts rows."""
    group = Group(name, ranked)
    self.groups.append(group)
    return group

  def add_row(self, group: Group, name: str, values: Mapping[str, Any]) -> None:
    """Adds a row.

    Args:
      group: Made by `add_group`.
      name: The row's name.
      values: Column name to one value per seed: a sequence, an array, or a
        single number. Columns left out, `None` and `[]` were not run.

    Raises:
      KeyError: If there is no such column.
    """
    known = {column.name for column in self.columns}
    unknown = sorted(set(values) - known)
    if unknown:
      raise KeyError(
        f'row {name!r} has values for {unknown}; columns are {sorted(known)}'
      )
    cells = {c.name: Cell(_floats(values.get(c.name))) for c in self.columns}
    group.rows.append(Row(name, cells))

  def best(self, group: Group, column: Column) -> set[str]:
    """Returns the rows with the best mean as shown; ties are all best."""
    means = {
      row.name: _show_number(row.cells[column.name].mean, column)
      for row in group.rows
      if row.cells[column.name].n
    }
    if not group.ranked or column.best is None or not means:
      return set()
    pick = max if column.best == 'max' else min
    winner = pick(map(float, means.values()))
    return {name for name, mean in means.items() if float(mean) == winner}

  def legend(self) -> str:
    """Says in one sentence how to read the cells."""
    cells = [
      row.cells[column.name]
      for group in self.groups
      for row in group.rows
      for column in self.columns
      if not column.fixed
    ]
    counts = sorted({cell.n for cell in cells if cell.n})
    parts = []
    if counts and counts[-1] > 1:
      seeds = f'{counts[-1]} seeds'
      if len(counts) > 1:
        seeds = f'{counts[0]} to {seeds}'
      parts.append(f'mean ± sample standard deviation over {seeds}')
    elif counts:
      parts.append('one seed')
    ranked = [group.name for group in self.groups if group.ranked]
    if ranked:
      where = f'among {ranked[0]}' if len(ranked) == 1 else 'of a ranked group'
      parts.append(f'best mean of each column {where} in bold')
    if not all(cell.n for cell in cells):
      parts.append(self.empty)
    sentence = '; '.join(parts)
    return f'{sentence[:1].upper()}{sentence[1:]}.' if parts else ''

  def to_csv(self) -> str:
    """Returns stored values at full precision: mean, std, n per column."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    heads = [
      f'{column.name} {what}'
      for column in self.columns
      for what in ('mean', 'std', 'n')
    ]
    writer.writerow(['group', 'row', *heads])
    for group in self.groups:
      for row in group.rows:
        cells = [row.cells[column.name] for column in self.columns]
        numbers = [x for c in cells for x in (c.mean, c.std, c.n)]
        writer.writerow([group.name, row.name, *numbers])
    return buffer.getvalue()

  def to_markdown(self) -> str:
    """Returns Markdown that also reads well raw."""
    lines = [f'**{_markdown(self.title)}**', '']
    if self.caption:
      lines += [*textwrap.wrap(_markdown(self.caption), 80), '']
    rows = _aligned(self._rows(self.columns, _bold, '**{}**'.format, _markdown))
    rule = [f':{"-" * (len(rows[0][0]) - 1)}']
    rule += ['-' * (len(cell) - 1) + ':' for cell in rows[0][1:]]
    lines += [f'| {" | ".join(row)} |' for row in (rows[0], rule, *rows[1:])]
    lines.append('')
    for note in (self.legend(), *self.notes):
      if note:
        lines += [*textwrap.wrap(_markdown(note), 80), '']
    return '\n'.join(lines[:-1]) + '\n'

  def to_text(self, width: int = 80) -> str:
    """Returns plain text for a console, in blocks of columns that fit."""
    blocks: list[list[Column]] = []
    for column in self.columns:
      if blocks and len(self._lines([*blocks[-1], column])[1]) <= width:
        blocks[-1].append(column)
      else:
        blocks.append([column])
    parts = [self.title]
    for block in blocks:
      parts += ['', *self._lines(block)]
    note = self.legend().replace('in bold', 'marked *')
    return '\n'.join([*parts, '', *textwrap.wrap(note, width)]) + '\n'

  def to_html(self) -> str:
    """Returns a `<figure>`; `report` has the style for its classes."""
    heads = ''.join(f'<th>{_html(c.heading)}</th>' for c in self.columns)
    bodies = []
    for group in self.groups:
      best = {c.name: self.best(group, c) for c in self.columns}
      rows = [
        f'<tr><th scope="row">{_html(row.name)}</th>'
        + ''.join(
          _html_cell(row.cells[c.name], c, row.name in best[c.name])
          for c in self.columns
        )
        + '</tr>'
        for row in group.rows
      ]
      heading = (
        f'<tr class="group"><th scope="rowgroup">{_html(group.name)}</th>'
        f'<td colspan="{len(self.columns)}"></td></tr>'
      )
      bodies.append(f'<tbody>{heading}{"".join(rows)}</tbody>')
    below = ''.join(
      f'<p>{_html(note)}</p>' for note in (self.legend(), *self.notes) if note
    )
    caption = f'<p>{_html(self.caption)}</p>' if self.caption else ''
    return (
      f'<figure class="table"><figcaption><b>{_html(self.title)}</b>'
      f'{caption}</figcaption><div class="scroll"><table><thead><tr><th></th>'
      f'{heads}</tr></thead>{"".join(bodies)}</table></div>'
      f'<div class="notes">{below}</div></figure>\n'
    )

  def _rows(
    self,
    columns: Sequence[Column],
    emphasise: Callable[[str, bool], str],
    heading: Callable[[str], str],
    escape: Callable[[str], str] = str,
  ) -> list[list[str]]:
    """Lists the cells as shown: headings, then each group under its name."""
    rows = [['', *(escape(column.heading) for column in columns)]]
    for group in self.groups:
      best = {c.name: self.best(group, c) for c in columns}
      rows.append([heading(escape(group.name)), *('' for _ in columns)])
      for row in group.rows:
        cells = [
          emphasise(
            _show(row.cells[column.name], column),
            row.name in best[column.name],
          )
          for column in columns
        ]
        rows.append([escape(row.name), *cells])
    return rows

  def _lines(self, columns: Sequence[Column]) -> list[str]:
    """Aligns the rows as plain text; a star follows the best."""
    rows = self._rows(columns, _starred, '[{}]'.format)
    lines = ['  '.join(cells).rstrip() for cells in _aligned(rows)]
    return [lines[0], '-' * max(map(len, lines)), *lines[1:]]


def _aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
  """Pads cells to their column's width: names left, numbers right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    [row[0].ljust(widths[0])]
    + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
    for row in rows
  ]


def _show(cell: Cell, column: Column) -> str:
  """Shows `mean ± std`, the mean alone, or nothing."""
  if cell.mean is None:
    return ''
  mean = _show_number(cell.mean, column)
  if cell.std is None:
    return mean
  return f'{mean} ± {_show_number(cell.std, column)}'


def _show_number(value: float | None, column: Column) -> str:
  return '' if value is None else f'{value * column.scale:.{column.digits}f}'


def _html_cell(cell: Cell, column: Column, best: bool) -> str:
  mean = _show_number(cell.mean, column)
  std = _show_number(cell.std, column)
  mean = f'<b>{mean}</b>' if best else mean
  return f'<td>{mean}{f" <small>± {std}</small>" if std else ""}</td>'


def _floats(values: Any) -> tuple[float, ...]:
  if values is None:
    return ()
  values = values.tolist() if hasattr(values, 'tolist') else values
  if isinstance(values, (int, float)):
    return (float(values),)
  return tuple(map(float, values))


def _bold(text: str, best: bool) -> str:
  return f'**{text}**' if best and text else text


def _starred(text: str, best: bool) -> str:
  return f'{text}{"*" if best and text else " "}'


def _markdown(text: str) -> str:
  """Escapes what would break a Markdown table or change its text."""
  for mark in '\\|*`<':
    text = text.replace(mark, f'\\{mark}')
  return ' '.join(text.split())


def _html(text: str) -> str:
  return html.escape(text)
