"""What of a model may be re-parametrised: its hidden spaces, as data.

A hidden space is a set of channels that no one sees from outside: the units of
a perceptron, the channels along which queries meet keys, those that carry
values to the output projection, a residual stream. Some leaves write to it and
some read from it, each along one of its axes. Changing the basis in which they
do leaves the function as it was, if what lies between them allows it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any
from typing import get_args
from typing import Literal
from typing import NamedTuple

import numpy as np

from merging import patterns
from merging import tree

Group = Literal[
  'permutation',
  'scaling',
  'orthogonal',
  'invertible',
  'rotary',
  'rotary_halves',
]
GROUPS: tuple[str, ...] = get_args(Group)
Positions = Literal['none', 'rotary', 'rotary_halves']
Layout = Literal['in_out', 'out_in']

_QUERY_KEY_NORM = re.compile(r'(^|[/_.])(q|k|query|key)_?(layer_?)?(norm|ln)\b')


class Carrier(NamedTuple):
  """An axis of a leaf along which a space is written or read.

  Channel `c` of head `h` has `copies` places on the axis, such as one for each
  query head of a group that shares its keys. Copy `r` is at

      start + strides[0] h + strides[1] r + strides[2] c.

  Attributes:
    path: Name of the leaf.
    axis: The axis; never negative.
    dual: What reads a space is dual to what writes it: a change of basis that
      multiplies the one by `M` multiplies the other by the transposed inverse
      of `M`. Keys are dual to queries.
    start: Where the space begins on the axis; not 0 in packed leaves.
    copies: How often the axis has each channel.
    strides: Steps between heads, copies and channels; `None` if there are no
      gaps, `(copies * size, size, 1)`.
  """

  path: str
  axis: int
  dual: bool = False
  start: int = 0
  copies: int = 1
  strides: tuple[int, int, int] | None = None


class Space(NamedTuple):
  """A hidden space, what carries it and which changes of basis it admits.

  Attributes:
    group: What keeps the function. `'permutation'` of channels is all that a
      nonlinearity such as GELU allows; ReLU also `'scaling'` by positive
      numbers. Where nothing lies between, as between values and the output
      projection, any `'invertible'` matrix does; where a norm without gain
      does, an `'orthogonal'` one. `'rotary'` are the matrices that commute with
      rotary positions: a rotation and a scaling of each pair of channels
      `(2k, 2k + 1)`; of pairs `(k, k + size / 2)` for `'rotary_halves'`.
    size: Channels of one head.
    carriers: Where it is.
    heads: How many heads have a basis each; their order is kept.
    scores: Whether writers meet readers one head at a time in attention scores,
      divided by the square root of `size`. Growth needs to know.
  """

  group: Group
  size: int
  carriers: tuple[Carrier, ...]
  heads: int = 1
  scores: bool = False


Spec = Mapping[str, Space]


def positions(space: Space, carrier: Carrier) -> np.ndarray:
  """Returns where the channels are on the axis, `i64[heads, copies, size]`.

  Examples:
    >>> space = Space('invertible', 2, (), heads=2)
    >>> positions(space, Carrier('packed', 1, start=4)).tolist()
    [[[4, 5]], [[6, 7]]]
  """
  steps = carrier.strides
  if steps is None:
    steps = (carrier.copies * space.size, space.size, 1)
  shape = (space.heads, carrier.copies, space.size)
  return carrier.start + np.tensordot(steps, np.indices(shape), 1)


def check(params: tree.Tree, spec: Spec) -> None:
  """Checks that a spec fits a model.

  Args:
    params: The model; shapes are enough, as of `jax.eval_shape`.
    spec: Its spaces by name.

  Raises:
    ValueError: A leaf or an axis is missing, is no float, or too short; two
      carriers of one space overlap; or a group is unknown or asks for an even
      size.

  Examples:
    >>> space = Space(
    ...   'scaling', 4, (Carrier('up', 1), Carrier('down', 0, True))
    ... )
    >>> model = {'up': np.ones((2, 4)), 'down': np.ones((3, 2))}
    >>> check(model, {'hidden': space})
    Traceback (most recent call last):
    ...
    ValueError: symmetry: 'hidden' at 'down': axis 0 of shape (3, 2) is too
    short for 4 channels that end at 4
  """
  flat = tree.flatten(params)
  for name, space in spec.items():
    patterns.check_option('symmetry', f'group of {name!r}', space.group, GROUPS)
    if space.group.startswith('rotary') and space.size % 2:
      raise ValueError(
        f'symmetry: {name!r} is {space.group} with {space.size} channels a '
        'head; rotary positions turn pairs, so their number is even'
      )
    taken: dict[tuple[str, int], np.ndarray] = {}
    for carrier in space.carriers:
      _check_carrier(flat, name, space, carrier, taken)


def _check_carrier(flat, name, space, carrier, taken):
  where = f'symmetry: {name!r} at {carrier.path!r}'
  leaf = _leaf(flat, where, carrier.path)
  shape = np.shape(leaf)
  if not tree.is_float(leaf):
    raise ValueError(f'{where}: {leaf.dtype}, expected floating-point numbers')
  if not 0 <= carrier.axis < len(shape):
    raise ValueError(f'{where}: no axis {carrier.axis} in shape {shape}')
  places = positions(space, carrier).ravel()
  if (
    places.size
    and not 0 <= places.min() <= places.max() < (shape[carrier.axis])
  ):
    raise ValueError(
      f'{where}: axis {carrier.axis} of shape {shape} is too short for '
      f'{places.size} channels that end at {places.max() + 1}'
    )
  before = taken.get((carrier.path, carrier.axis), np.empty(0, np.int64))
  places = np.concatenate([before, places])
  if len(np.unique(places)) < len(places):
    raise ValueError(
      f'{where}: two channels have one place on axis {carrier.axis}; check '
      'start, copies and strides'
    )
  taken[carrier.path, carrier.axis] = places


def _leaf(flat, where, path):
  if path not in flat:
    raise ValueError(
      f'{where}: no such leaf; the leaves are {patterns.listing(flat)}'
      f'{patterns.suggest(path, flat)}'
    )
  return flat[path]


def perceptron(
  params: tree.Tree,
  writers: Sequence[str],
  readers: Sequence[str],
  *,
  group: Group = 'permutation',
  layout: Layout = 'in_out',
) -> Space:
  """The hidden units between dense layers.

  Args:
    params: The model, or its shapes.
    writers: Names of the layers before the nonlinearity, such as `['up']`, or
      `['gate', 'up']`, which are permuted together.
    readers: Names of the layers after it, such as `['down']`.
    group: `'permutation'`, or what more the nonlinearity admits.
    layout: `'in_out'` if kernels are (in, out), as in Flax, or `'out_in'`.

  Returns:
    The space. A layer has its matrix in `kernel` or `weight` and may have a
    `bias`; a name may also be that of the matrix itself.

  Raises:
    ValueError: A layer is missing, has other leaves, or another width.

  Examples:
    >>> model = {
    ...   'up': {'kernel': np.ones((2, 8)), 'bias': np.ones(8)},
    ...   'down': {'kernel': np.ones((8, 2)), 'bias': np.ones(2)},
    ... }
    >>> space = perceptron(model, ['up'], ['down'])
    >>> space.size, [(each.path, each.axis) for each in space.carriers]
    (8, [('up/kernel', 1), ('up/bias', 0), ('down/kernel', 0)])
  """
  patterns.check_option(
    'symmetry.perceptron', 'layout', layout, get_args(Layout)
  )
  flat = tree.flatten(params)
  carriers = []
  for name in writers:
    carriers += _writing(flat, name, layout)
  for name in readers:
    carriers.append(_reading(flat, name, layout))
  sizes = [flat[each.path].shape[each.axis] for each in carriers]
  if len(set(sizes)) != 1:
    found = [f'{e.path} has {n}' for e, n in zip(carriers, sizes, strict=True)]
    raise ValueError(
      f'symmetry: one space has one width, but {", ".join(found)}'
    )
  return _checked(params, 'hidden', Space(group, sizes[0], tuple(carriers)))


def attention(
  params: tree.Tree,
  *,
  heads: int,
  output: str,
  packed: str | None = None,
  query: str | None = None,
  key: str | None = None,
  value: str | None = None,
  key_value_heads: int | None = None,
  positions: Positions = 'none',
  query_key_norm: bool = False,
  layout: Layout = 'in_out',
) -> dict[str, Space]:
  """The two spaces within attention: of queries and keys, and of values.

  Args:
    params: The model, or its shapes.
    heads: Query heads.
    output: Name of the layer after attention.
    packed: Name of the layer that makes queries, then keys, then values, each
      head by head; or else
    query: the name of the layer for queries,
    key: for keys,
    value: and for values.
    key_value_heads: Heads of keys and values, shared by groups of query heads;
      as many as query heads by default.
    positions: `'rotary'` turns neighbouring channels of queries and keys,
      `'rotary_halves'` those half a head apart, as Llama does.
    query_key_norm: Whether queries and keys are normed before they meet. Then
      their space is left out: a norm with gain admits no matrix.
    layout: `'in_out'` if kernels are (in, out), as in Flax, or `'out_in'`.

  Returns:
    Spaces `'query_key'` and `'value_output'`, one basis for each key head: the
    query heads of a group share it.

  Raises:
    ValueError: Layers are missing, heads do not divide widths or one another,
      or there are norms of queries and keys that were not declared.

  Examples:
    >>> model = {
    ...   'qkv': {'kernel': np.ones((8, 16)), 'bias': np.ones(16)},
    ...   'out': {'kernel': np.ones((8, 8))},
    ... }
    >>> spaces = attention(
    ...   model, heads=4, key_value_heads=2, packed='qkv', output='out'
    ... )
    >>> spaces['query_key'].heads, spaces['query_key'].size
    (2, 2)
  """
  flat = tree.flatten(params)
  patterns.check_option(
    'symmetry.attention', 'positions', positions, get_args(Positions)
  )
  patterns.check_option(
    'symmetry.attention', 'layout', layout, get_args(Layout)
  )
  norms = [path for path in flat if _QUERY_KEY_NORM.search(path)]
  if norms and not query_key_norm:
    raise ValueError(
      f'symmetry: {patterns.listing(norms)} seem to norm queries and keys, '
      'which no change of their basis survives; say query_key_norm=True to '
      'leave them as they are'
    )
  groups = heads if key_value_heads is None else key_value_heads
  if groups < 1 or heads % groups:
    raise ValueError(
      f'symmetry: {heads} query heads cannot share {groups} heads of keys and '
      'values; key_value_heads divides heads'
    )
  reading = _reading(flat, output, layout)
  width = flat[reading.path].shape[reading.axis]
  if width % heads:
    raise ValueError(
      f'symmetry: {reading.path!r} reads {width} channels, which {heads} heads '
      'cannot share'
    )
  size = width // heads
  ends = np.cumsum([0, width, groups * size, groups * size])
  names = (packed,) * 3 if packed is not None else (query, key, value)
  writing = []
  for place, name in enumerate(names):
    if name is None or (packed is not None and (query or key or value)):
      raise ValueError(
        'symmetry: name either the packed layer or the three layers for query, '
        f'key and value; got packed={packed!r}, query={query!r}, key={key!r}, '
        f'value={value!r}'
      )
    start, wanted = ends[place], ends[place + 1] - ends[place]
    if packed is None:
      start = 0
    else:
      wanted = ends[-1]
    carriers = _writing(flat, name, layout, int(start))
    for each in carriers:
      found = flat[each.path].shape[each.axis]
      if found != wanted:
        raise ValueError(
          f'symmetry: {each.path!r} makes {found} channels, expected {wanted} '
          f'for {heads} query heads and {groups} key heads of {size} channels'
        )
    writing.append(carriers)
  queries, keys, values = writing
  copies = heads // groups
  queries = [each._replace(copies=copies) for each in queries]
  keys = [each._replace(dual=True) for each in keys]
  reading = reading._replace(copies=copies)
  group: Group = 'invertible' if positions == 'none' else positions
  spaces = {
    'query_key': Space(group, size, (*queries, *keys), groups, scores=True),
    'value_output': Space('invertible', size, (*values, reading), groups),
  }
  if query_key_norm:
    del spaces['query_key']
  return {name: _checked(params, name, space) for name, space in spaces.items()}


def decoder(
  params: tree.Tree,
  *,
  blocks: str,
  perceptron: Mapping[str, Any],
  attention: Mapping[str, Any],
) -> dict[str, Space]:
  r"""The hidden spaces of a stack of like blocks.

  Args:
    params: The model, or its shapes.
    blocks: Regular expression for the name of a block, from the start of a
      path, such as `r'blocks_\d+'`.
    perceptron: Arguments of `perceptron`, with names within a block; empty for
      none.
    attention: Arguments of `attention`, likewise.

  Returns:
    Spaces named `'<block>/hidden'`, `'<block>/query_key'` and
    `'<block>/value_output'`.

  Raises:
    ValueError: No leaf is in such a block, or a block lacks a layer.

  Examples:
    >>> block = {'up': np.ones((2, 8)), 'down': np.ones((8, 2))}
    >>> spec = decoder(
    ...   {'blocks': [block, block]},
    ...   blocks=r'blocks/\d+',
    ...   perceptron={'writers': ['up'], 'readers': ['down']},
    ...   attention={},
    ... )
    >>> list(spec)
    ['blocks/0/hidden', 'blocks/1/hidden']
  """
  rule = patterns.compile_pattern('symmetry.decoder', rf'({blocks})/(.+)')
  within: dict[str, dict[str, Any]] = {}
  for path, leaf in tree.flatten(params).items():
    found = rule.fullmatch(path)
    if found:
      rest = path[found.end(1) + 1 :]
      within.setdefault(found.group(1), {})[rest] = leaf
  if not within:
    raise patterns.no_match('symmetry.decoder', blocks, tree.paths(params))
  spec = {}
  for block, leaves in within.items():
    spaces = {}
    if perceptron:
      spaces['hidden'] = _perceptron(leaves, **perceptron)
    if attention:
      spaces |= _attention(leaves, **attention)
    for name, space in spaces.items():
      carriers = tuple(
        each._replace(path=f'{block}/{each.path}') for each in space.carriers
      )
      spec[f'{block}/{name}'] = space._replace(carriers=carriers)
  return spec


_perceptron, _attention = perceptron, attention  # Arguments take the names.


def _checked(params, name, space):
  check(params, {name: space})
  return space


def _writing(flat, name, layout, start=0):
  """Carriers of what a dense layer makes: an axis of its matrix, its bias."""
  matrix, bias = _dense(flat, name)
  carriers = [Carrier(matrix, 1 if layout == 'in_out' else 0, start=start)]
  if bias is not None:
    carriers.append(Carrier(bias, 0, start=start))
  return carriers


def _reading(flat, name, layout):
  """Carrier of what a dense layer reads."""
  return Carrier(
    _dense(flat, name)[0], 0 if layout == 'in_out' else 1, dual=True
  )


def _dense(flat, name):
  """Names of the matrix and of the bias of a dense layer."""
  if name in flat:
    return name, None
  inside = [path for path in flat if path.startswith(f'{name}/')]
  matrix = next(
    (p for p in inside if p in (f'{name}/kernel', f'{name}/weight')), None
  )
  if matrix is None or flat[matrix].ndim != 2:
    raise ValueError(
      f'symmetry: {name!r} is no dense layer with a two-dimensional kernel or '
      f'weight; it has {patterns.listing(inside) or "no leaves"}'
      f'{patterns.suggest(name, [p.rpartition("/")[0] for p in flat])}'
    )
  others = [path for path in inside if path not in (matrix, f'{name}/bias')]
  if others:
    raise ValueError(
      f'symmetry: {name!r} has {patterns.listing(others)} besides its matrix '
      'and bias; write the Space by hand, saying how they are carried'
    )
  return matrix, f'{name}/bias' if f'{name}/bias' in flat else None
