"""Figures for reports and papers: one style, safe for colour-blind readers.

Matplotlib is imported when a figure is made, without pyplot's global state.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import io
import itertools
import os
from pathlib import Path
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from experiments.runtime import files

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.cm import ScalarMappable
  from matplotlib.figure import Figure
  from numpy.typing import ArrayLike

# Okabe and Ito, Color Universal Design, 2008; yellow left out, too pale here.
COLORS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#000000',
)
_DASHES = ('solid', (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1, 1, 1)))

_GAP = 0.4  # Height of the gap between groups of rows, in rows.

_STYLE = {
  'axes.axisbelow': True,
  'axes.edgecolor': '#666666',
  'axes.labelcolor': '#333333',
  'axes.labelsize': 9,
  'axes.linewidth': 0.8,
  'axes.titlelocation': 'left',
  'axes.titlepad': 10,
  'axes.titlesize': 10,
  'axes.titleweight': 'bold',
  'figure.facecolor': 'white',
  'font.family': ['DejaVu Sans'],
  'font.size': 8.5,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.8,
  'legend.fontsize': 8.5,
  'legend.frameon': False,
  'xtick.color': '#333333',
  'xtick.labelsize': 8.5,
  'ytick.color': '#333333',
  'ytick.labelsize': 8.5,
}


def heatmap(
  values: 'ArrayLike',
  rows: Sequence[str],
  columns: Sequence[str],
  *,
  title: str = '',
  label: str = '%',
  scale: float = 100.0,
  digits: int = 0,
  limits: tuple[float, float] | None = (0.0, 1.0),
  breaks: Sequence[int] = (),
) -> 'Figure':
  """Draws a table of numbers as coloured cells.

  Args:
    values: [rows, columns]; NaN where nothing was run, left blank.
    rows: Names, such as methods.
    columns: Names, such as tasks.
    title: A few words.
    label: What the numbers are, beside the colour bar.
    scale: Factor from values to the numbers shown.
    digits: Digits after the point.
    limits: The values at the two ends of the colours; the data's if `None`.
    breaks: Rows before which to leave a gap, between groups.

  Returns:
    A figure that grows with the number of cells, to keep them legible.
  """
  values = _numbers(values, (len(rows), len(columns)), 'values')
  low, high = limits or _limits(values)
  width, height = max(0.42, 0.075 * (digits + 4)), 0.25
  size = (
    _label_width(rows) + width * len(columns) + 0.9,
    height * (len(rows) + _GAP * len(breaks)) + _label_width(columns) + 0.6,
  )
  with _figure(size) as figure:
    axes = figure.add_subplot()
    cells = _cells(
      axes,
      values * scale,
      (rows, columns),
      colors='YlGnBu',
      limits=(low * scale, high * scale),
      digits=digits,
      breaks=breaks,
    )
    axes.set_title(title)
    _color_bar(figure, axes, cells, label)
  return figure


def matrix(
  values: 'ArrayLike',
  names: Sequence[str],
  *,
  title: str = '',
  label: str = 'cosine similarity',
  digits: int = 2,
  limit: float = 1.0,
) -> 'Figure':
  """Draws a symmetric matrix, such as cosines between task vectors.

  Args:
    values: [names, names], in [-limit, limit].
    names: One for each row and column.
    title: A few words.
    label: What the numbers are, beside the colour bar.
    digits: Digits after the point.
    limit: The value at the end of the colours; white is zero.

  Returns:
    A figure with square cells.
  """
  values = _numbers(values, (len(names), len(names)), 'values')
  cell = max(0.42, 0.085 * (digits + 3))
  side = cell * len(names) + _label_width(names)
  with _figure((side + 0.9, side + 0.5)) as figure:
    axes = figure.add_subplot()
    cells = _cells(
      axes,
      values,
      (names, names),
      colors='RdBu_r',
      limits=(-limit, limit),
      digits=digits,
    )
    axes.set_aspect('equal')
    axes.set_title(title)
    _color_bar(figure, axes, cells, label)
  return figure


def curves(
  series: 'Mapping[str, tuple[ArrayLike, ArrayLike]]',
  *,
  title: str = '',
  x_label: str = '',
  y_label: str = '',
  levels: Mapping[str, float] | None = None,
  limits: tuple[float, float] | None = None,
  log_x: bool = False,
  shaded: Mapping[str, tuple[float, float]] | None = None,
) -> 'Figure':
  """Draws means over seeds as lines, and ± one standard deviation as bands.

  Args:
    series: Name to x [points] and y, [points] or [seeds, points].
    title: A few words.
    x_label: With the unit.
    y_label: With the unit.
    levels: Values of y to compare with, drawn as named horizontal lines.
    limits: The ends of the y axis; the data's by default.
    log_x: Whether x is on a logarithmic scale.
    shaded: Named ranges of x, drawn behind the lines.

  Returns:
    A figure with a legend beside the axes.
  """
  from matplotlib import ticker

  levels = levels or {}
  looks = itertools.product(_DASHES, COLORS)
  names = [*series, *levels]
  size = (5.2 + _label_width(names), max(3.2, 0.22 * len(names) + 0.6))
  with _figure(size) as figure:
    axes = figure.add_subplot()
    axes.grid(visible=True)
    axes.spines[['top', 'right']].set_visible(False)
    if log_x:
      axes.set_xscale('log')
      # Plain numbers, also within a decade: 0.2 and 0.5 are read as such.
      axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      axes.xaxis.set_major_formatter('{x:g}')
      axes.xaxis.set_minor_formatter('')
    for (name, (points, y)), (dash, color) in zip(
      series.items(), itertools.cycle(looks), strict=False
    ):
      x = np.asarray(points, np.float64)
      seeds = np.atleast_2d(np.asarray(y, np.float64))
      seeds = _numbers(seeds, (len(seeds), len(x)), name)
      mean = seeds.mean(axis=0)
      axes.plot(x, mean, color=color, linestyle=dash, linewidth=1.6, label=name)
      if len(seeds) > 1:
        std = seeds.std(axis=0, ddof=1)
        axes.fill_between(
          x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0
        )
    for name, (low, high) in (shaded or {}).items():
      axes.axvspan(low, high, color='#5b6773', alpha=0.08, linewidth=0)
      axes.annotate(
        name,
        (low, 1.0),
        xycoords=('data', 'axes fraction'),
        xytext=(3, 2),
        textcoords='offset points',
        color='#5b6773',
      )
    for name, level in levels.items():
      axes.axhline(level, color='#5b6773', linewidth=1.0, dashes=(1, 2))
      axes.annotate(
        name,
        (1.0, level),
        xycoords=('axes fraction', 'data'),
        xytext=(-2, 3),
        textcoords='offset points',
        ha='right',
        color='#5b6773',
      )
    axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=limits)
    axes.margins(x=0.01)
    points = np.concatenate([np.ravel(x) for x, _ in series.values()])
    if not log_x and np.array_equal(points, np.round(points)):
      axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if len(series) > 1:
      figure.legend(loc='outside right center', handlelength=2.2)
  return figure


def dots(
  values: 'ArrayLike',
  rows: Sequence[str],
  kinds: Sequence[str],
  *,
  x_label: str = '',
  breaks: Sequence[int] = (),
  linear: float = 1.0,
  level: tuple[str, float] | None = None,
) -> 'Figure':
  """Draws a dot a row, the mean over seeds, on a line from least to most.

  What is large is on a logarithmic scale.

  Args:
    values: [rows, seeds].
    rows: Names, the first on top.
    kinds: What each row is one of; the colour of its dot, and the legend.
    x_label: With the unit.
    breaks: Rows before which to leave a gap, between groups.
    linear: Up to this, also below 0, x is linear.
    level: A name and a value to compare with, drawn as a vertical line.

  Returns:
    A figure that grows with the number of rows.
  """
  values = np.atleast_2d(np.asarray(values, np.float64))
  values = _numbers(values, (len(rows), values.shape[1]), 'values')
  tops = np.arange(len(rows)) + _GAP * np.searchsorted(
    sorted(breaks), np.arange(len(rows)), side='right'
  )
  kinds = list(kinds)
  names = list(dict.fromkeys(kinds))
  size = (5.0 + _label_width(rows), 0.19 * (tops[-1] + 1) + 0.25 * len(names))
  with _figure((size[0], size[1] + 0.8)) as figure:
    axes = figure.add_subplot()
    axes.grid(visible=True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xscale('symlog', linthresh=linear, linscale=0.6)
    axes.xaxis.set_major_formatter('{x:g}')
    for place, (name, color) in enumerate(
      zip(names, itertools.cycle(COLORS), strict=False)
    ):
      chosen = [i for i, kind in enumerate(kinds) if kind == name]
      low, high = values[chosen].min(axis=1), values[chosen].max(axis=1)
      axes.hlines(tops[chosen], low, high, color=color, linewidth=1.0)
      axes.plot(
        values[chosen].mean(axis=1),
        tops[chosen],
        'osD^vPX'[place % 7],
        color=color,
        markersize=4.5,
        label=name,
      )
    if level is not None:
      name, value = level
      axes.axvline(value, color='#5b6773', linewidth=1.0, dashes=(1, 2))
      axes.annotate(
        name,
        (value, 1.0),
        xycoords=('data', 'axes fraction'),
        xytext=(3, 3),
        textcoords='offset points',
        color='#5b6773',
      )
    axes.set_yticks(tops, rows)
    axes.set_ylim(tops[-1] + 0.7, -0.7)
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel(x_label)
    figure.legend(loc='outside lower center', ncols=2)
  return figure


def fields(
  panels: 'Mapping[str, ArrayLike]',
  x: 'ArrayLike',
  y: 'ArrayLike',
  *,
  x_label: str = '',
  y_label: str = '',
  label: str = '',
  limits: tuple[float, float] | None = None,
  mark: tuple[float, float] | None = None,
) -> 'Figure':
  """Draws functions of two variables side by side, in one scale of colours.

  Args:
    panels: Title to values, [y, x].
    x: [x], evenly spaced.
    y: [y], evenly spaced.
    x_label: With the unit.
    y_label: With the unit.
    label: What the values are, beside the colour bar.
    limits: The values at the two ends of the colours; the data's by default.
    mark: A point to mark with a cross.

  Returns:
    A figure with one square panel for each function.
  """
  x, y = (np.asarray(each, np.float64) for each in (x, y))
  values = {
    name: _numbers(each, (len(y), len(x)), name)
    for name, each in panels.items()
  }
  low, high = limits or _limits(np.stack(list(values.values())))
  with _figure((2.9 * len(values) + 1.0, 3.1)) as figure:
    axes = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
    for each, (name, field) in zip(axes, values.items(), strict=True):
      shown = each.pcolormesh(
        x, y, field, cmap='YlGnBu', vmin=low, vmax=high, shading='nearest'
      )
      if mark is not None:
        each.plot(*mark, marker='+', color='#D55E00', markersize=9)
      each.set_aspect('equal')
      each.set(title=name, xlabel=x_label)
    axes[0].set_ylabel(y_label)
    _color_bar(figure, list(axes), shown, label)
  return figure


def to_png(figure: 'Figure', *, dpi: int = 200) -> bytes:
  """Returns the figure as PNG; the same figure gives the same bytes."""
  buffer = io.BytesIO()
  figure.savefig(
    buffer,
    format='png',
    dpi=dpi,
    bbox_inches='tight',
    pad_inches=0.08,
    metadata={'Software': None},
  )
  return buffer.getvalue()


def save(
  figure: 'Figure', path: str | os.PathLike[str], *, dpi: int = 200
) -> Path:
  """Writes the figure as a PNG file."""
  return files.write(path, to_png(figure, dpi=dpi))


@contextlib.contextmanager
def _figure(size: tuple[float, float]) -> 'Iterator[Figure]':
  """Makes an empty figure in the house style, in inches."""
  # Imported here: it takes a second, and most of a run draws nothing.
  import matplotlib as mpl
  from matplotlib import figure as figure_lib

  with mpl.rc_context(_STYLE):
    yield figure_lib.Figure(figsize=size, layout='constrained')


def _numbers(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.shape != shape:
    raise ValueError(f'{name} should have the shape {shape}: {values.shape}')
  return values


def _cells(
  axes: 'Axes',
  values: np.ndarray,
  names: tuple[Sequence[str], Sequence[str]],
  *,
  colors: str,
  limits: tuple[float, float],
  digits: int,
  breaks: Sequence[int] = (),
) -> 'ScalarMappable':
  """Draws cells with their numbers, rows from the top, labels above."""
  import matplotlib as mpl
  from matplotlib import cm
  from matplotlib import colors as mcolors

  rows, columns = names
  x = np.arange(len(columns) + 1)
  tops = np.arange(len(rows)) + _GAP * np.searchsorted(
    sorted(breaks), np.arange(len(rows)), side='right'
  )
  shades = mpl.colormaps[colors].with_extremes(bad='#f4f4f4')
  norm = mcolors.Normalize(*limits)
  colored = cm.ScalarMappable(norm, shades)
  for part in np.split(np.arange(len(rows)), sorted(breaks)):
    if part.size:
      axes.pcolormesh(
        x,
        [*tops[part], tops[part[-1]] + 1],
        np.ma.masked_invalid(values[part]),
        norm=norm,
        cmap=shades,
        edgecolors='white',
        linewidth=1,
      )
  for (i, j), value in np.ndenumerate(values):
    if not np.isnan(value):
      red, green, blue, _ = colored.to_rgba(value)
      dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
      axes.text(
        j + 0.5,
        tops[i] + 0.5,
        f'{round(float(value), digits) + 0.0:.{digits}f}',  # No minus zero.
        color='white' if dark else '#222222',
        fontsize=7.5,
        ha='center',
        va='center',
      )
  axes.set_xlim(0, len(columns))
  axes.set_ylim(tops[-1] + 1, 0)
  axes.set_yticks(tops + 0.5, rows)
  slanted = max(map(len, columns), default=0) > 4
  axes.set_xticks(
    np.arange(len(columns)) + 0.5,
    columns,
    rotation=40 if slanted else 0,
    ha='left' if slanted else 'center',
    rotation_mode='anchor',
  )
  axes.xaxis.tick_top()
  axes.tick_params(length=0, pad=3)
  axes.spines[:].set_visible(False)
  return colored


def _color_bar(
  figure: 'Figure',
  axes: 'Axes | list[Axes]',
  cells: 'ScalarMappable',
  label: str,
) -> None:
  bar = figure.colorbar(cells, ax=axes, shrink=0.7, aspect=22, pad=0.02)
  bar.outline.set_visible(False)
  bar.ax.tick_params(length=0, labelsize=7.5)
  bar.set_label(label, fontsize=8)


def _limits(values: np.ndarray) -> tuple[float, float]:
  finite = values[np.isfinite(values)]
  return (finite.min(), finite.max()) if finite.size else (0.0, 1.0)


def _label_width(names: Sequence[str]) -> float:
  """Inches that the longest of some labels takes."""
  return 0.075 * max(map(len, names), default=0) + 0.1
