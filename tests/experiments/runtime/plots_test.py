"""Figures show the numbers they are given, with labels that do not collide."""

import io
import itertools

from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
import numpy as np
import pytest

from experiments.runtime import plots

_ROWS = [f'method_{i}' for i in range(30)]
_COLUMNS = [f'task number {i}' for i in range(20)]


def _values():
  values = np.random.default_rng(0).random((30, 20))
  values[3, 4] = np.nan
  return values


def _texts(axes):
  return [text.get_text() for text in axes.texts]


def _boxes(figure, texts):
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return [text.get_window_extent(canvas.get_renderer()) for text in texts]


def test_heatmap_prints_every_number_and_leaves_blanks():
  values = _values()
  figure = plots.heatmap(values, _ROWS, _COLUMNS, breaks=[4, 10])
  axes, bar = figure.axes
  shown = [f'{100 * v:.0f}' for v in values.flat if not np.isnan(v)]
  assert _texts(axes) == shown
  assert [t.get_text() for t in axes.get_yticklabels()] == _ROWS
  assert [t.get_text() for t in axes.get_xticklabels()] == _COLUMNS
  assert bar.get_ylim() == (0.0, 100.0)


def test_large_heatmaps_stay_legible():
  figure = plots.heatmap(_values(), _ROWS, _COLUMNS, digits=1, title='T')
  (axes, _) = figure.axes
  boxes = _boxes(figure, axes.texts)
  assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
  labels = _boxes(figure, axes.get_yticklabels())
  assert not any(a.overlaps(b) for a, b in itertools.pairwise(labels))
  assert all(text.get_fontsize() >= 7 for text in axes.texts)


def test_dark_cells_have_light_numbers():
  figure = plots.heatmap([[0.0, 1.0]], ['r'], ['a', 'b'])
  pale, dark = figure.axes[0].texts
  assert (pale.get_color(), dark.get_color()) == ('#222222', 'white')


def test_matrix_is_white_at_zero_and_has_no_minus_zero():
  figure = plots.matrix([[1.0, -1e-9], [-1e-9, 1.0]], ['a', 'b'])
  axes = figure.axes[0]
  assert _texts(axes) == ['1.00', '0.00', '0.00', '1.00']
  (mesh,) = axes.collections
  np.testing.assert_allclose(mesh.to_rgba(0.0)[:3], 0.97, atol=0.02)


def test_dots_show_means_and_ranges_in_rows_that_do_not_collide():
  values = np.random.default_rng(0).random((30, 3)) * 90 - 5
  kinds = [('wide', 'narrow')[i % 2] for i in range(30)]
  figure = plots.dots(
    values, _ROWS, kinds, breaks=[4, 10], level=('a point', 1.0)
  )
  (axes,) = figure.axes
  assert [t.get_text() for t in axes.get_yticklabels()] == _ROWS
  boxes = _boxes(figure, axes.get_yticklabels())
  assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
  found = [point for line in axes.lines[:2] for point in line.get_xdata()]
  means = values.mean(axis=1)
  np.testing.assert_allclose(found, [*means[::2], *means[1::2]])
  ranges = [
    tuple(path.vertices[:, 0])
    for lines in axes.collections
    for path in lines.get_paths()
  ]
  least, most = values.min(axis=1), values.max(axis=1)
  order = [*range(0, 30, 2), *range(1, 30, 2)]
  np.testing.assert_allclose(ranges, np.stack([least, most], axis=1)[order])
  (legend,) = figure.legends
  assert [t.get_text() for t in legend.get_texts()] == ['wide', 'narrow']


def test_curves_show_means_deviations_and_levels():
  x = np.linspace(0, 1, 5)
  seeds = np.random.default_rng(0).random((3, 5))
  figure = plots.curves(
    {'a': (x, seeds), 'b': (x[:4], seeds[0, :4])}, levels={'base': 0.25}
  )
  axes = figure.axes[0]
  line, other, level = axes.lines
  np.testing.assert_allclose(line.get_xydata().T, [x, seeds.mean(0)])
  np.testing.assert_allclose(other.get_xydata().T, [x[:4], seeds[0, :4]])
  assert set(level.get_ydata()) == {0.25}
  assert [text.get_text() for text in axes.texts] == ['base']
  (band,) = axes.collections
  y = band.get_paths()[0].vertices[:, 1]
  std = seeds.std(0, ddof=1)
  assert y.min() == pytest.approx((seeds.mean(0) - std).min())
  assert y.max() == pytest.approx((seeds.mean(0) + std).max())
  assert line.get_color() != other.get_color()


def test_many_series_all_look_different():
  series = {f's{i}': ([0, 1], [i, i + 1]) for i in range(20)}
  lines = plots.curves(series).axes[0].lines
  looks = {(x.get_color(), str(x._unscaled_dash_pattern)) for x in lines}
  assert len(looks) == 20


def test_the_same_figure_is_the_same_bytes(tmp_path):
  files = [
    plots.save(plots.matrix(np.eye(3), 'abc', title='T'), tmp_path / name)
    for name in ('a.png', 'b.png')
  ]
  first, second = (file.read_bytes() for file in files)
  assert first == second
  assert image.imread(io.BytesIO(first)).shape[2] == 4


@pytest.mark.parametrize(
  'draw',
  [
    lambda: plots.heatmap(np.zeros((2, 3)), ['a'], ['b']),
    lambda: plots.matrix(np.zeros((2, 3)), ['a', 'b']),
    lambda: plots.curves({'a': ([0, 1], [1, 2, 3])}),
  ],
)
def test_shapes_are_checked(draw):
  with pytest.raises(ValueError, match='should have the shape'):
    draw()
