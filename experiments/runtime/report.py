"""A report: one HTML file that holds everything it shows.

No script, no font and no image is loaded from elsewhere, and a content
security policy in the page holds browsers to it. Everything added is escaped.
"""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import html
import os
from pathlib import Path
import shlex
import struct
from typing import Any

from experiments.runtime import files
from experiments.runtime import tables


class Report:
  """Sections of text, tables and figures, in the order they are added.

  Examples:
    >>> report = Report('Merging adders', 'Three seeds, two minutes.')
    >>> report.add_section('Result', 'Averages of <all> experts work.')
    >>> 'Averages of &lt;all&gt; experts work.' in report.to_html()
    True
  """

  def __init__(self, title: str, lead: str = ''):
    """Starts a report.

    Args:
      title: The heading of the page.
      lead: A sentence or two below it.
    """
    self._title = title
    self._lead = lead
    self._sections: list[str] = []
    self._parts: list[str] = []

  def add_section(self, heading: str, text: str = '') -> None:
    """Starts a section; the page links to it from its top."""
    number = len(self._sections)
    self._sections.append(heading)
    self._parts.append(f'<h2 id="s{number}">{_escape(heading)}</h2>\n')
    self.add_text(text)

  def add_text(self, text: str) -> None:
    """Adds paragraphs, separated by empty lines."""
    for paragraph in text.split('\n\n'):
      if paragraph.strip():
        self._parts.append(f'<p>{_escape(paragraph.strip())}</p>\n')

  def add_list(self, items: Sequence[str]) -> None:
    """Adds a list with a dot before each item."""
    lines = ''.join(f'<li>{_escape(item)}</li>' for item in items)
    self._parts.append(f'<ul>{lines}</ul>\n')

  def add_code(self, text: str) -> None:
    """Adds what is typed or printed, as it is."""
    self._parts.append(f'<pre>{_escape(text)}</pre>\n')

  def add_facts(self, facts: Mapping[str, object]) -> None:
    """Adds names with values, such as settings or versions."""
    rows = ''.join(
      f'<dt>{_escape(name)}</dt><dd>{_escape(str(value))}</dd>'
      for name, value in facts.items()
    )
    self._parts.append(f'<dl>{rows}</dl>\n')

  def add_table(self, table: tables.Table) -> None:
    """Adds a table of results."""
    self._parts.append(table.to_html())

  def add_figure(self, png: bytes, caption: str, *, alt: str = '') -> None:
    """Adds a picture.

    Args:
      png: From `plots.to_png`; shown at half its size in pixels, so that it
        is sharp on screens of double density.
      caption: What to see in it, below the picture.
      alt: What it shows, for those who do not see it; the caption by default.

    Raises:
      ValueError: If it is not a PNG.
    """
    if png[:8] != b'\x89PNG\r\n\x1a\n':
      raise ValueError(f'expected the bytes of a PNG, got {png[:8]!r}')
    width, height = struct.unpack('>II', png[16:24])
    data = base64.b64encode(png).decode()
    self._parts.append(
      '<figure><div class="scroll">'
      f'<img alt="{_escape(alt or caption)}" width="{width // 2}"'
      f' height="{height // 2}" src="data:image/png;base64,{data}"></div>'
      f'<figcaption>{_escape(caption)}</figcaption></figure>\n'
    )

  def to_html(self) -> str:
    """Returns the page."""
    title = _escape(self._title)
    lead = f'<p class="lead">{_escape(self._lead)}</p>\n' if self._lead else ''
    links = ''.join(
      f'<a href="#s{number}">{_escape(heading)}</a> '
      for number, heading in enumerate(self._sections)
    )
    contents = f'<nav>{links}</nav>\n' if len(self._sections) > 1 else ''
    return (
      '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
      '<meta http-equiv="Content-Security-Policy" content="default-src'
      " 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
      f'<title>{title}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n'
      f'<main>\n<h1>{title}</h1>\n{lead}{contents}{"".join(self._parts)}'
      '</main>\n</body>\n</html>\n'
    )

  def save(self, path: str | os.PathLike[str]) -> Path:
    """Writes the page."""
    return files.write(path, self.to_html())


def start(
  directory: Path,
  table: tables.Table,
  findings: Sequence[str],
  *,
  title: str,
  lead: str,
) -> Report:
  """Writes a table, and begins the page that shows it below what came out.

  Args:
    directory: Where `table.md` and `table.csv` go.
    table: The table.
    findings: Sentences on it.
    title: The heading of the page.
    lead: A sentence or two below it.
  """
  files.write(directory / 'table.md', table.to_markdown())
  files.write(directory / 'table.csv', table.to_csv())
  report = Report(title, lead)
  report.add_section('What came out')
  report.add_list(findings)
  report.add_section('The table')
  report.add_table(table)
  return report


def finish(
  report: Report,
  directory: Path,
  facts: Mapping[str, object],
  *,
  starts: Sequence[Mapping[str, Any]],
  left: str = 'metrics.jsonl, models/',
) -> None:
  """Ends a page with how its run was made, and writes `report.html`.

  Args:
    report: The page.
    directory: Where it goes.
    facts: What was run, names with values.
    starts: The environments of the run's starts, the last one last.
    left: Files that the run leaves besides those that all leave.
  """
  now = starts[-1]
  report.add_section('How it was run')
  report.add_facts(
    {
      'command': shlex.join(
        ['python', '-m', 'experiments.reproduce', *now['argv'][1:]]
      ),
      **facts,
      'devices': ', '.join(map(str, now['devices'])),
      'versions': ', '.join(f'{k} {v}' for k, v in now['packages'].items()),
      'files': f'config.json, environment.json, table.csv, table.md, {left}',
    }
  )
  report.save(directory / 'report.html')


def seeds(count: int) -> str:
  """Says how many seeds there are.

  Examples:
    >>> seeds(1), seeds(3)
    ('1 seed', '3 seeds')
  """
  return '1 seed' if count == 1 else f'{count} seeds'


def _escape(text: str) -> str:
  return html.escape(text)


_STYLE = """\
:root { color-scheme: light; --ink: #1f2933; --soft: #5b6773;
  --line: #e3e7eb; --tint: #f5f7f9; --accent: #0b5c8f; }
* { box-sizing: border-box; }
body { margin: 0; background: #fbfbfa; color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .75rem;
  padding-top: 1.25rem; border-top: 1px solid var(--line); }
p, ul { max-width: 44rem; margin: .75rem 0; }
.lead { font-size: 1.1rem; color: var(--soft); }
nav { margin: 1.25rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
figure { margin: 1.5rem 0; padding: 1rem 1.25rem; background: #fff;
  border: 1px solid var(--line); border-radius: 8px; }
figcaption { color: var(--soft); font-size: .92rem; }
figcaption b { color: var(--ink); font-size: 1rem; }
figcaption p { margin: .15rem 0 .5rem; }
.scroll { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto .75rem; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tbody th { text-align: left; font-weight: 400; position: sticky; left: 0;
  background: #fff; }
tbody tr:not(.group):hover > * { background: var(--tint); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.group > * { padding-top: .9rem; }
.group th { font-weight: 600; color: var(--soft); }
td small { color: var(--soft); font-size: .8em; }
td b { color: var(--accent); }
.notes { color: var(--soft); font-size: .88rem; }
.notes p { margin: .6rem 0 0; }
pre { overflow-x: auto; padding: .8rem 1rem; background: var(--tint);
  border: 1px solid var(--line); border-radius: 8px; font-size: .86rem;
  line-height: 1.5; }
dl { display: grid; grid-template-columns: max-content 1fr;
  gap: .2rem 1.25rem; font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { font-size: 15px; }
  main { padding: 1.25rem .9rem 3rem; }
  h1 { font-size: 1.55rem; }
  figure { padding: .75rem; margin-left: -.4rem; margin-right: -.4rem; }
  th, td { padding: .3rem .5rem; }
  img { max-width: max(100%, 36rem); }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print { body { background: #fff; } figure { break-inside: avoid; } }
"""
