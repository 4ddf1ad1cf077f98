"""Wider models: more channels and heads in their hidden spaces."""

from collections.abc import Mapping
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import draws
from merging import patterns
from merging import tree
from merging.symmetry import spec as spec_lib

Side = Literal['copy', 'split', 'zero', 'random']
SIDES = ('copy', 'split', 'zero', 'random')


class Widening(NamedTuple):
  """How a hidden space grows.

  Attributes:
    vector: What writes the space: new units `'copy'` their sources, are
      `'zero'` or `'random'`; or a matrix `f32[old units, new units]`, where
      units are counted through all heads.
    dual: What reads it. `'split'` divides a copy by the number of copies.
    sources: The unit each new unit comes from, `i64[new units]`; the first
      copy of a unit is the old one. By default heads and channels of the old
      model are repeated in turn.
  """

  vector: Side | jax.Array
  dual: Side | jax.Array
  sources: np.ndarray | None = None


def direct(sources: np.ndarray | None = None) -> Widening:
  """Copies units and shares what reads them among the copies (G_direct).

  The function is kept: of units that elementwise nonlinearities part, of values
  and whole heads, and of a residual stream with a norm if all units have as
  many copies. Copies get equal gradients up to what `sources` or noise breaks.

  Args:
    sources: See `Widening`.

  Returns:
    The way to grow.

  Examples:
    >>> direct().vector, direct().dual
    ('copy', 'split')

  References:
    Cheng Chen, Yichun Yin, Lifeng Shang, Xin Jiang, Yujia Qin, Fengyu Wang, Zhi
    Wang, Xiao Chen, Zhiyuan Liu, Qun Liu. "bert2BERT: Towards Reusable
    Pretrained Language Models". ACL 2022. arXiv:2110.07143.
    Tianqi Chen, Ian Goodfellow, Jonathon Shlens. "Net2Net: Accelerating
    Learning via Knowledge Transfer". ICLR 2016. arXiv:1511.05641.
  """
  return Widening('copy', 'split', sources)


def zeroed() -> Widening:
  """Copies units that nobody reads yet (G_zero); keeps the function.

  Examples:
    >>> zeroed().vector, zeroed().dual
    ('copy', 'zero')

  References:
    Wenyu Du, Tongxu Luo, Zihan Qiu, Zeyu Huang, Yikang Shen, Reynold Cheng,
    Yike Guo, Jie Fu. "Stacking Your Transformers: A Closer Look at Model Growth
    for Efficient LLM Pre-Training". NeurIPS 2024. arXiv:2405.15319.
  """
  return Widening('copy', 'zero')


def randomised(*, masked: bool = True) -> Widening:
  """Draws new units, normal with the deviation of their leaf (G_random).

  Args:
    masked: Whether nobody reads them yet, which keeps the function, rather than
      by random weights too.

  Returns:
    The way to grow.

  Examples:
    >>> randomised(masked=False).vector, randomised(masked=False).dual
    ('random', 'random')

  References:
    Wenyu Du, Tongxu Luo, Zihan Qiu, Zeyu Huang, Yikang Shen, Reynold Cheng,
    Yike Guo, Jie Fu. "Stacking Your Transformers: A Closer Look at Model Growth
    for Efficient LLM Pre-Training". NeurIPS 2024. arXiv:2405.15319.
  """
  return Widening('random', 'zero' if masked else 'random')


def learned(vector: jax.Array, dual: jax.Array | None = None) -> Widening:
  """Maps units by matrices that gradient descent finds (G_learn, LiGO).

  The grown model is a differentiable function of them. The paper shares one
  matrix, `learned(b)`; the function is kept if `vector @ dual.T` is the
  identity.

  Args:
    vector: For what writes the space, `f32[old units, new units]`.
    dual: For what reads it; the same by default.

  Returns:
    The way to grow.

  Examples:
    >>> learned(jnp.ones((1, 2))).dual.shape
    (1, 2)

  References:
    Peihao Wang, Rameswar Panda, Lucas Torroba Hennigen, Philip Greengard,
    Leonid Karlinsky, Rogerio Feris, David Daniel Cox, Zhangyang Wang, Yoon Kim.
    "Learning to Grow Pretrained Models for Efficient Transformer Training".
    ICLR 2023. arXiv:2303.00980.
  """
  return Widening(vector, vector if dual is None else dual)


def widen(
  params: tree.Tree,
  spec: spec_lib.Spec,
  large: tree.Tree,
  large_spec: spec_lib.Spec,
  how: Widening | Mapping[str, Widening],
  *,
  key: jax.Array | None = None,
) -> tree.Tree:
  """Grows hidden spaces to the sizes they have in a larger model.

  A space is written along some axes and read along others. With matrices `V`
  and `D` from old to new units, the former become `w V` and the latter `w D`;
  the function is kept where `V D' = 1`. In a space of attention scores, heads
  are independent: `'split'` counts copies within a head, and what writes it is
  multiplied by `sqrt(new size / old size)`, which the model divides by. Such a
  head under rotary positions cannot get more channels, only company.

  Args:
    params: The small model.
    spec: All of its spaces that grow, such as the residual stream.
    large: A model of the new shapes, or its shapes, as of `jax.eval_shape`.
    large_spec: Its spaces, with the names of those in `spec`.
    how: How all spaces grow, or each by name.
    key: Random key, if something is random. A leaf's values depend on the key,
      its name and the name of the space.

  Returns:
    The large model, with the dtypes of the small one.

  Raises:
    ValueError: A spec does not fit, the specs differ in more than sizes, a
      space shrinks, an axis grows that no space covers, sources are missing,
      matrices have another shape, or `key` is missing.

  Examples:
    >>> small = {'up': jnp.array([[3.0]]), 'down': jnp.array([[4.0]])}
    >>> large = {'up': jnp.zeros((1, 2)), 'down': jnp.zeros((2, 1))}
    >>> spec, large_spec = (
    ...   {'hidden': spec_lib.perceptron(model, ['up'], ['down'])}
    ...   for model in (small, large)
    ... )
    >>> grown = widen(small, spec, large, large_spec, direct())
    >>> grown['up'].tolist(), grown['down'].tolist()
    ([[3.0, 3.0]], [[2.0], [2.0]])

  References:
    Wenyu Du, Tongxu Luo, Zihan Qiu, Zeyu Huang, Yikang Shen, Reynold Cheng,
    Yike Guo, Jie Fu. "Stacking Your Transformers: A Closer Look at Model Growth
    for Efficient LLM Pre-Training". NeurIPS 2024. arXiv:2405.15319.
  """
  spec_lib.check(params, spec)
  spec_lib.check(large, large_spec)
  hows = _each(spec, how)
  for name, space in spec.items():
    _check_space(name, space, large_spec.get(name), hows[name], key)
  flat, wanted = dict(tree.flatten(params)), tree.flatten(large)
  _check_cover(flat, wanted, spec, large_spec)
  axes: dict[tuple[str, int], list[tuple[str, int]]] = {}
  for name, space in spec.items():
    for place, carrier in enumerate(space.carriers):
      axes.setdefault((carrier.path, carrier.axis), []).append((name, place))
  for (path, axis), users in axes.items():
    old = jnp.moveaxis(jnp.asarray(flat[path]), axis, -1)
    new = jnp.zeros((*old.shape[:-1], wanted[path].shape[axis]), old.dtype)
    for name, place in users:
      space, wide = spec[name], large_spec[name]
      carrier = space.carriers[place]
      units = old[..., spec_lib.positions(space, carrier)]
      noise = None
      if key is not None:
        [hashed] = draws.hashes([f'{path}:{axis}:{name}:{place}'])
        noise = jax.random.fold_in(key, hashed)
      grown = _grow(
        space, wide, hows[name], carrier.dual, units.astype(jnp.float32), noise
      )
      places = spec_lib.positions(wide, wide.carriers[place])
      new = new.at[..., places].set(grown.astype(new.dtype))
    flat[path] = jnp.moveaxis(new, -1, axis)
  return tree.unflatten(flat, like=params)


def _grow(space, wide, how, dual, units, key):
  """Grows units `f32[..., heads, copies, size]` of one carrier."""
  way = how.dual if dual else how.vector
  # Copies are apart from heads and channels: [..., copies, heads * size].
  units = jnp.swapaxes(units, -3, -2)
  units = units.reshape(*units.shape[:-2], space.heads * space.size)
  if isinstance(way, str):
    sources = _sources(space, wide, how)
    grown = units[..., sources]
    first = _along(_first(sources), grown)
    if way == 'split':
      grown = grown / _along(_copies(space, wide, sources), grown)
    elif way == 'zero':
      grown = jnp.where(first, grown, 0)
    elif way == 'random':
      noise = jnp.std(units) * jax.random.normal(key, grown.shape)
      grown = jnp.where(first, grown, noise)
  else:
    grown = jnp.einsum(
      '...u,uv->...v', units, jnp.asarray(way, jnp.float32), precision='highest'
    )
  if space.scores and not dual:
    grown = grown * (wide.size / space.size) ** 0.5
  grown = grown.reshape(*grown.shape[:-1], wide.heads, wide.size)
  return jnp.swapaxes(grown, -3, -2)


def _along(values, units):
  """Gives an array of units the rank that they have in leaves."""
  return values.reshape((1,) * (units.ndim - 1) + (-1,))


def _sources(space, wide, how):
  if how.sources is not None:
    return np.asarray(how.sources)
  heads = np.arange(wide.heads) % space.heads
  channels = np.arange(wide.size) % space.size
  return (heads[:, None] * space.size + channels).ravel()


def _first(sources):
  """Whether each unit is the first of its source."""
  _, places = np.unique(sources, return_index=True)
  return np.isin(np.arange(len(sources)), places)


def _copies(space, wide, sources):
  """How many units share the source of each, in a head if heads are apart."""
  apart = np.zeros_like(sources)
  if space.scores:
    apart = np.arange(len(sources)) // wide.size
  same = apart * (space.heads * space.size) + sources
  _, which, counts = np.unique(same, return_inverse=True, return_counts=True)
  return counts[which].astype(np.float32)


def _each(spec, how):
  if isinstance(how, Widening):
    return dict.fromkeys(spec, how)
  if set(how) != set(spec):
    raise ValueError(
      f'widen: ways to grow for {patterns.listing(how)}, expected the spaces '
      f'{patterns.listing(spec)}'
    )
  return dict(how)


def _check_space(name, space, wide, how, key):
  where = f'widen: {name!r}'
  if wide is None:
    raise ValueError(f'{where} is not a space of the large model')

  def bare(each):
    carriers = [(c.path, c.axis, c.dual, c.copies) for c in each.carriers]
    return each.group, each.scores, carriers

  if bare(space) != bare(wide):
    raise ValueError(
      f'{where}: group, carriers and their copies are {bare(wide)} in the '
      f'large model, expected {bare(space)}'
    )
  if wide.heads < space.heads or wide.size < space.size:
    raise ValueError(
      f'{where}: {wide.heads} heads of {wide.size} channels, expected at least '
      f'{space.heads} of {space.size}'
    )
  if space.group.startswith('rotary') and wide.size != space.size:
    raise ValueError(
      f'{where}: {space.size} channels a head grow to {wide.size}; a rotary '
      'head turns each pair at the speed of its place, which would change. '
      'Grow the number of heads'
    )
  old, new = space.heads * space.size, wide.heads * wide.size
  for side, way in (('vector', how.vector), ('dual', how.dual)):
    if isinstance(way, str):
      patterns.check_option('widen', f'{side} of {name!r}', way, SIDES)
      if way == 'random' and key is None:
        raise ValueError(f'{where}: {side} is random; pass key=')
    elif np.shape(way) != (old, new):
      raise ValueError(
        f'{where}: {side} is a matrix of shape {np.shape(way)}, expected '
        f'{(old, new)} for old and new units'
      )
  sources = _sources(space, wide, how)
  if sources.shape != (new,) or set(sources.tolist()) != set(range(old)):
    raise ValueError(
      f'{where}: sources of shape {sources.shape} name '
      f'{len(set(sources.tolist()))} units, expected {new} sources that name '
      f'all of 0 to {old - 1}'
    )


def _check_cover(flat, wanted, spec, large_spec):
  """Checks that spaces cover all that grows."""
  if set(flat) != set(wanted):
    raise ValueError(
      'widen: the two models differ in their leaves: '
      f'{patterns.listing(sorted(set(flat) ^ set(wanted)))}'
    )
  for path, leaf in flat.items():
    old, new = np.shape(leaf), np.shape(wanted[path])
    if len(old) != len(new):
      raise ValueError(f'widen: {path!r} has shape {old}, large {new}')
    for axis, lengths in enumerate(zip(old, new, strict=True)):
      for length, each in zip(lengths, (spec, large_spec), strict=True):
        known = [
          spec_lib.positions(space, carrier).ravel()
          for name in spec
          for space in [each[name]]
          for carrier in space.carriers
          if (carrier.path, carrier.axis) == (path, axis)
        ]
        places = np.sort(np.concatenate([np.empty(0, np.int64), *known]))
        grows = bool(known) or lengths[0] != lengths[1]
        if grows and not np.array_equal(places, np.arange(length)):
          raise ValueError(
            f'widen: axis {axis} of {path!r} has {old[axis]} entries, '
            f'{new[axis]} in the large model; the spaces cover '
            f'{len(np.unique(places))} of {length}, and each has to be covered '
            'once'
          )
