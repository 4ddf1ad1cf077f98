"""Which leaves are matrices, which way round, and which are many in one.

Methods that take a matrix apart are written for a frame of `[out, in]`, as
papers and PyTorch have it. `on_matrices` brings each leaf into that frame and
back; it is the one place that knows how a model stores its kernels. `unstacked`
is for models that keep equal layers in one leaf, as `jax.lax.scan` wants them.
"""

from collections.abc import Callable
from collections.abc import Mapping
import itertools
import math
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import routing
from merging import transform

Layout = Literal['in_out', 'out_in']
_LAYOUTS = ('in_out', 'out_in')


def on_matrices(
  inner: transform.MergeTransform,
  otherwise: routing.Otherwise = 'mean',
  *,
  leaves: Callable[[str], bool] | str = '',
  layout: Layout | Mapping[str, Layout] = 'in_out',
) -> transform.MergeTransform:
  """Gives the leaves that are matrices to a transform, in a frame `[out, in]`.

  Args:
    inner: What happens to matrices; it sees each as `[out, in]`, and so any
      data of `merge(..., name=...)` that has the shape of the leaf.
    otherwise: What happens to all other leaves (see `masked`).
    leaves: Which leaves with two axes are matrices: a regular expression to
      find in the path, or `path -> bool`. By default all are, also embeddings.
      A leaf that it selects may not have more axes: `unstacked` takes stacked
      layers apart, `folded` makes a matrix of a kernel with several input or
      output axes, and what `leaves` leaves out goes to `otherwise`.
    layout: How the model stores matrices: `'in_out'` (Flax and Haiku kernels)
      or `'out_in'` (PyTorch's linear layers), or one of the two by the first
      regular expression that is found in the path.

  Returns:
    The transform. Its `init` raises `ValueError` if no leaf is a matrix, or
    one has more than two axes.

  Raises:
    ValueError: `layout` or `otherwise` is unknown.

  Examples:
    >>> import merging
    >>> def per_output(deltas):  # [out, in]
    ...   return jnp.stack(deltas).mean(axis=0).mean(axis=1, keepdims=True)
    >>> norms = merging.combine_deltas(
    ...   lambda deltas: per_output(deltas) * jnp.ones_like(deltas[0])
    ... )
    >>> base = {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)}
    >>> expert = {'kernel': jnp.array([[1.0, 2], [3, 4]]), 'bias': jnp.ones(2)}
    >>> merged = merging.merge(on_matrices(norms), base, {'expert': expert})
    >>> merged['kernel'].tolist(), merged['bias'].tolist()
    ([[2.0, 3.0], [2.0, 3.0]], [1.0, 1.0])
  """
  if isinstance(layout, Mapping):
    for each in layout.values():
      patterns.check_option('on_matrices', 'layout', each, _LAYOUTS)
    layout_of = patterns.labeller('on_matrices', layout)
  else:
    patterns.check_option('on_matrices', 'layout', layout, _LAYOUTS)
    layout_of = lambda path: layout  # noqa: E731
  selects = patterns.predicate('on_matrices', leaves)

  def label_of(spec):
    matrix = len(spec.shape) == 2 and selects(spec.path)
    return 'matrix' if matrix else 'other'

  grouped = routing.by_label(
    'on_matrices',
    {
      'matrix': _in_frame(inner, layout_of),
      'other': routing.policy('on_matrices', otherwise),
    },
    label_of,
  )

  def init(specs, models):
    found = [spec for spec in specs if label_of(spec) == 'matrix']
    if not found and len(specs) > 1:
      shapes = (f'{spec.path} {spec.shape}' for spec in specs)
      raise ValueError(
        f'on_matrices: no leaf with two axes matches {leaves!r}; the leaves '
        f'are {patterns.listing(shapes)}; take leaves of stacked layers apart '
        'with unstacked()'
      )
    for spec in specs:
      if len(spec.shape) > 2 and selects(spec.path):
        raise ValueError(
          f'on_matrices: leaf {spec.path!r} of shape {spec.shape} is no '
          'matrix; take stacked layers apart with unstacked(), fold input and '
          'output axes with folded(), or leave it out with leaves='
        )
    paths = [spec.path for spec in specs]
    for pattern in layout if isinstance(layout, Mapping) else ():
      patterns.check_found('on_matrices', pattern, paths)
    for spec in found:
      if layout_of(spec.path) not in _LAYOUTS:
        raise ValueError(
          f'on_matrices: no pattern of the layout {layout!r} matches '
          f"{spec.path!r}; a last pattern '.' takes all that is left"
        )
    return grouped.init(specs, models)

  return grouped._replace(init=init)


def _in_frame(inner, layout_of):
  def turned(spec):
    return layout_of(spec.path) == 'in_out'

  def framed(spec):
    return spec._replace(shape=spec.shape[::-1]) if turned(spec) else spec

  def selection(spec):
    found = None if turned(spec) else inner.selection(spec)
    return transform.selection_within(found, _look_framed)

  observers = tuple(
    each._replace(observe=transform.bind(_observe_frame, each.observe))
    for each in inner.observers
  )
  return inner._replace(
    init=lambda specs, models: inner.init(tuple(map(framed, specs)), models),
    observers=observers,
    update=transform.bind(_update_frame, inner.update),
    # Pieces of a leaf are rows of its matrix unless that is turned.
    entrywise=lambda spec: not turned(spec) and inner.entrywise(spec),
    rowwise=lambda spec: not turned(spec) and inner.rowwise(spec),
    selection=selection,
    route=lambda spec: (turned(spec), inner.route(framed(spec))),
  )


def _look_framed(function, leaf, state, *arguments):
  return function(_turn(leaf), state, *arguments)


def _turn(leaf):
  turn, route = leaf.route
  if turn:
    deltas = tuple(delta.T for delta in leaf.deltas)
    leaf = leaf._replace(base=leaf.base.T, deltas=deltas)
  return leaf._replace(route=route)


def _turn_extra(leaf, extra):
  """Turns data that has an entry for each of the leaf's."""
  turn, _ = leaf.route
  if not turn:
    return extra
  shape = leaf.base.shape

  def turned(value):
    return value.T if value.shape == shape else value

  return {
    name: values if values is None else tuple(map(turned, values))
    for name, values in extra.items()
  }


def _update_frame(update, leaf, state, **extra):
  merged = update(_turn(leaf), state, **_turn_extra(leaf, extra))
  return _turn(merged._replace(route=leaf.route))._replace(route=leaf.route)


def _observe_frame(observe, leaf, state, **extra):
  return observe(_turn(leaf), state, **_turn_extra(leaf, extra))


def folded(
  inner: transform.MergeTransform, axes: Mapping[str, tuple[int, ...]]
) -> transform.MergeTransform:
  r"""Shows leaves with several input or output axes with one axis for each.

  Flax keeps the kernel of a query projection as `[in, heads, channels]` and its
  bias as `[heads, channels]`. To the inner transform they are `[in, heads *
  channels]` and `[heads * channels]`.

  Args:
    inner: The merge.
    axes: By a regular expression to find in the path, how many axes make one:
      `(1, 2)` for that kernel, `(2, 1)` for the output projection, `(2,)` for
      the bias, `(3, 1)` for the kernel of a convolution in Flax. The first
      expression found in a path counts; other leaves stay as they are.

  Returns:
    The transform. Its `init` raises `ValueError` if an expression finds no
    leaf, or a leaf has another number of axes.

  Examples:
    >>> import merging
    >>> base = {'query': jnp.zeros((6, 2, 3)), 'mlp': jnp.zeros((6, 4))}
    >>> expert = {'query': jnp.ones((6, 2, 3)), 'mlp': jnp.ones((6, 4))}
    >>> transform = folded(merging.tsv(), {'query': (1, 2)})
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> merged['query'].shape, round(float(merged['query'].mean()), 3)
    ((6, 2, 3), 1.0)
  """
  names = {pattern: pattern for pattern in axes}
  label_of = patterns.labeller('folded', names)

  def flat(spec):
    groups = axes.get(label_of(spec.path))
    if groups is None:
      return spec
    if sum(groups) != len(spec.shape):
      raise ValueError(
        f'folded: leaf {spec.path!r} has shape {spec.shape}, expected '
        f'{sum(groups)} axes for {groups}'
      )
    ends = np.cumsum([0, *groups])
    shape = tuple(
      math.prod(spec.shape[start:end])
      for start, end in itertools.pairwise(ends)
    )
    return spec._replace(shape=shape)

  def init(specs, models):
    for pattern in axes:
      patterns.check_found('folded', pattern, [spec.path for spec in specs])
    return inner.init(tuple(map(flat, specs)), models)

  observers = tuple(
    each._replace(observe=transform.bind(_observe_folded, each.observe))
    for each in inner.observers
  )
  return inner._replace(
    init=init,
    observers=observers,
    update=transform.bind(_update_folded, inner.update),
    **transform.WHOLE,
    route=lambda spec: (flat(spec).shape, inner.route(flat(spec))),
  )


def _fold(leaf, extra):
  shape, route = leaf.route
  before = leaf.base.shape

  def reshape(value):
    return value.reshape(shape) if value.shape == before else value

  extra = {
    name: values if values is None else tuple(map(reshape, values))
    for name, values in extra.items()
  }
  deltas = tuple(map(reshape, leaf.deltas))
  return leaf._replace(
    base=reshape(leaf.base), deltas=deltas, route=route
  ), extra


def _update_folded(update, leaf, state, **extra):
  flat, extra = _fold(leaf, extra)
  merged = update(flat, state, **extra)
  shape = leaf.base.shape
  deltas = tuple(delta.reshape(shape) for delta in merged.deltas)
  return leaf._replace(base=merged.base.reshape(shape), deltas=deltas)


def _observe_folded(observe, leaf, state, **extra):
  flat, extra = _fold(leaf, extra)
  return observe(flat, state, **extra)


class _Stacked(NamedTuple):
  """State of `unstacked`: where the layers of each leaf begin, and inside."""

  first: np.ndarray  # i32[leaves]
  inner: transform.State


def unstacked(
  inner: transform.MergeTransform, leaves: Callable[[str], bool] | str
) -> transform.MergeTransform:
  """Takes leaves that stack the layers of a model apart, and merges each layer.

  Models whose layers run in a `jax.lax.scan` keep them in one leaf with a
  leading axis. To the inner transform, `blocks/kernel` of shape `[12, in, out]`
  is then `blocks/kernel/0` to `blocks/kernel/11`, each of shape `[in, out]`.

  Args:
    inner: The merge of the layers and of all other leaves.
    leaves: Which leaves stack layers: a regular expression to find in the path,
      or `path -> bool`.

  Returns:
    The transform. Its `init` raises `ValueError` if no leaf is selected, or one
    without axes is.

  Examples:
    >>> import merging
    >>> base = {'blocks': {'kernel': jnp.zeros((12, 2, 3))}}
    >>> expert = {'blocks': {'kernel': jnp.ones((12, 2, 3))}}
    >>> transform = unstacked(merging.on_matrices(merging.mean()), '^blocks/')
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> merged['blocks']['kernel'].shape
    (12, 2, 3)
  """
  selects = patterns.predicate('unstacked', leaves)

  def parts(spec):
    if not selects(spec.path):
      return [spec]
    if not spec.shape:
      raise ValueError(
        f'unstacked: leaf {spec.path!r} is a scalar, expected layers along a '
        'first axis'
      )
    return [
      spec._replace(path=f'{spec.path}/{i}', shape=spec.shape[1:])
      for i in range(spec.shape[0])
    ]

  def init(specs, models):
    if not any(selects(spec.path) for spec in specs):
      paths = [spec.path for spec in specs]
      raise patterns.no_match('unstacked', leaves, paths)
    layers = [parts(spec) for spec in specs]
    ends = np.cumsum([len(each) for each in layers])
    first = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    flat = tuple(spec for each in layers for spec in each)
    return _Stacked(first, inner.init(flat, models))

  def route(spec):
    stacked = selects(spec.path)
    routes = {inner.route(each) for each in parts(spec)}
    if len(routes) > 1:
      raise ValueError(
        f'unstacked: the layers of {spec.path!r} would run different programs; '
        'do not let a pattern tell them apart'
      )
    return stacked, routes.pop() if routes else None

  observers = tuple(
    transform.Observer(
      observe=transform.bind(_observe_stack, each.observe),
      finish=transform.bind(_finish_stack, each.finish),
    )
    for each in inner.observers
  )
  return inner._replace(
    init=init,
    observers=observers,
    update=transform.bind(_update_stack, inner.update),
    route=route,
    **transform.WHOLE,
  )


def _layers(leaf, state, extra):
  """The layers of a leaf along a leading axis: places, and all its arrays."""
  places = jnp.arange(leaf.base.shape[0], dtype=jnp.int32)
  first = jnp.asarray(state.first)[leaf.index]
  return first + places, leaf.base, leaf.deltas, extra


def _whole(leaf, state):
  """A leaf that is not stacked, as the inner transform knows it."""
  first = jnp.asarray(state.first)[leaf.index]
  return leaf._replace(index=first, route=leaf.route[1])


def _update_stack(update, leaf, state, **extra):
  stacked, route = leaf.route
  if not stacked:
    merged = update(_whole(leaf, state), state.inner, **extra)
    return leaf._replace(base=merged.base, deltas=merged.deltas)

  def layer(arrays):
    place, base, deltas, data = arrays
    one = transform.Leaf(base, deltas, place, route)
    merged = update(one, state.inner, **data)
    return merged.base, merged.deltas

  base, deltas = jax.lax.map(layer, _layers(leaf, state, extra))
  return leaf._replace(base=base, deltas=deltas)


def _observe_stack(observe, leaf, state, **extra):
  stacked, route = leaf.route
  if not stacked:
    return observe(_whole(leaf, state), state.inner, **extra)

  def layer(arrays):
    place, base, deltas, data = arrays
    one = transform.Leaf(base, deltas, place, route)
    return observe(one, state.inner, **data)

  # Added up as it goes: a statistic may be larger than the layer.
  layers = _layers(leaf, state, extra)
  shapes = jax.eval_shape(layer, jax.tree.map(lambda x: x[0], layers))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total, arrays):
    return jax.tree.map(jnp.add, total, layer(arrays)), None

  return jax.lax.scan(add, zero, layers)[0]


def _finish_stack(finish, statistic, state):
  return state._replace(inner=finish(statistic, state.inner))
