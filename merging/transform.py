"""The algebra of merging: functions of one leaf that compose as in optax."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns

Models = tuple[str, ...]
State = Any
Statistic = Any


class LeafSpec(NamedTuple):
  """What is known of a leaf before any value is read.

  Attributes:
    path: Name of the leaf, such as `'blocks/0/qkv/kernel'`.
    shape: Shape of the leaf.
    dtype: Type of the leaf in the base model.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype


Specs = tuple[LeafSpec, ...]


class Leaf(NamedTuple):
  """One parameter of the base model and how each expert changed it.

  A leaf has no name: what a transform needs to know of a path, it turns into
  data in `init` (a number per leaf, read with `index`) or declares as `route`.
  So leaves of equal shape run one compiled program, however many there are.

  The deltas are a tuple and not one stacked array, for then XLA fuses a whole
  merge into one pass over the inputs, without temporaries; stacked, the update
  of TIES took a hundred times as long on CPU. Stack them where a method needs
  it, as `jnp.stack(leaf.deltas)`.

  Attributes:
    base: Base value, `f32[*shape]`.
    deltas: Expert minus base, one `f32[*shape]` for each expert, sorted by
      name. A combining transform leaves one.
    index: Place of the leaf in the `specs` that `init` saw, `i32[]`.
    route: What `MergeTransform.route` says of the leaf's path; static.
  """

  base: jax.Array
  deltas: tuple[jax.Array, ...]
  index: jax.Array | np.ndarray | int
  route: Hashable = None


class Observer(NamedTuple):
  """A statistic of the whole model, gathered in one sweep over its leaves.

  Statistics add up (`jax.tree.map(jnp.add, a, b)`), so that leaves may be swept
  in any order, on any device, from any disk.

  Attributes:
    observe: `(leaf, state, **extra) -> statistic`; `None` if the leaf adds
      nothing.
    finish: `(sum of statistics, state) -> state`; closes the sweep.
  """

  observe: Callable[..., Statistic]
  finish: Callable[[Statistic, State], State]


def _no_route(path: str) -> None:
  """Every leaf runs the same program."""


class MergeTransform(NamedTuple):
  """A merge, or a step of one: pure functions of a leaf and a state.

  The state holds the hyper-parameters (which may be tracers) and what the
  observers found. `update` and `observe` take them from there rather than from
  a closure: two calls of a factory then share one compiled program, and a loop
  over coefficients compiles once.

  Attributes:
    init: `(specs, models) -> state`, with the specs sorted by path and the
      names of the experts sorted. Looks at names and shapes only.
    observers: Sweeps to make before `update`, in this order.
    update: `(leaf, state, **extra) -> leaf`. Like `observe`, it takes whatever
      data there is and ignores what it does not need.
    route: `path -> hashable`, that in a path which changes the *program* run on
      its leaf (a label, a flag). What changes only a number belongs in the
      state. Leaves of equal route and shape share one compiled program.
    extra: Names of the data it needs from `merge(..., name=...)`: for the leaf
      at hand, a tuple with one array for each expert, or `None`.
    sources: Factories whose docstrings hold the references to cite.
  """

  init: Callable[[Specs, Models], State]
  observers: tuple[Observer, ...]
  update: Callable[..., Leaf]
  route: Callable[[str], Hashable] = _no_route
  extra: tuple[str, ...] = ()
  sources: tuple[Callable[..., 'MergeTransform'], ...] = ()


@dataclasses.dataclass(frozen=True)
class Bound:
  """A function with its first arguments bound; equal if its parts are equal.

  Compiled programs are found by comparing functions. `functools.partial` and
  closures equal nothing but themselves, this equals its like.
  """

  function: Callable[..., Any]
  arguments: tuple[Hashable, ...]

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the function with the bound arguments first."""
    return self.function(*self.arguments, *args, **kwargs)


def bind(function: Callable[..., Any], *arguments: Hashable) -> Bound:
  """Returns `function` with static first arguments, comparable by content.

  Examples:
    >>> bind(max, 2) == bind(max, 2), bind(max, 2)(1)
    (True, 2)
  """
  return Bound(function, arguments)


def stateless(
  function: Callable[..., Leaf], *parameters: Any, extra: tuple[str, ...] = ()
) -> MergeTransform:
  """A transform that needs to know one leaf only.

  Args:
    function: `(leaf, *parameters, **extra) -> leaf`. Defined once, at the top
      level of a module, it is compiled once for all values of the parameters.
    *parameters: Hyper-parameters: numbers, arrays, tracers, trees of them.
    extra: Names of the per-leaf data from `merge(..., name=...)` to pass on.

  Returns:
    The transform.

  Examples:
    >>> def toward(leaf, t):
    ...   return leaf._replace(base=leaf.base + t * leaf.deltas[0])
    >>> leaf = Leaf(jnp.zeros(2), (jnp.ones(2), jnp.ones(2)), index=0)
    >>> transform = stateless(toward, 0.5)
    >>> transform.update(leaf, transform.init((), ())).base.tolist()
    [0.5, 0.5]
  """
  return MergeTransform(
    init=lambda specs, models: parameters,
    observers=(),
    update=bind(_update_stateless, function, extra),
    extra=extra,
  )


def _update_stateless(function, names, leaf, state, **extra):
  return function(leaf, *state, **{name: extra[name] for name in names})


def identity() -> MergeTransform:
  """Changes nothing.

  Examples:
    >>> leaf = Leaf(jnp.zeros(2), (jnp.ones(2),), index=0)
    >>> identity().update(leaf, ()) is leaf
    True
  """
  return stateless(_same)


def _same(leaf: Leaf) -> Leaf:
  return leaf


def map_deltas(
  function: Callable[..., jax.Array], *parameters: Any
) -> MergeTransform:
  """A transform of each expert's delta by itself.

  Such as storing it in 8 bits:
  `chain(map_deltas(to_int8_and_back), task_arithmetic(0.3))`.

  Args:
    function: `(delta, *parameters) -> delta`, `f32[*shape]` to `f32[*shape]`.
      See `stateless` on where to define it.
    *parameters: Hyper-parameters, which may be tracers.

  Returns:
    The transform.

  Examples:
    >>> leaf = Leaf(jnp.zeros(2), (jnp.array([1.0, -5.0]),), index=0)
    >>> transform = map_deltas(jnp.clip, -2.0, 2.0)
    >>> transform.update(leaf, transform.init((), ())).deltas
    (Array([ 1., -2.], dtype=float32),)
  """
  return stateless(bind(_map_deltas, function), *parameters)


def _map_deltas(function, leaf, *parameters):
  deltas = tuple(function(delta, *parameters) for delta in leaf.deltas)
  return leaf._replace(deltas=deltas)


def combine_deltas(
  function: Callable[..., jax.Array], *parameters: Any
) -> MergeTransform:
  """A transform of the deltas of all experts into one.

  Args:
    function: `(deltas, *parameters) -> delta`, from a tuple of `f32[*shape]` to
      `f32[*shape]`. See `stateless` on where to define it.
    *parameters: Hyper-parameters, which may be tracers.

  Returns:
    The transform.

  Examples:
    >>> leaf = Leaf(jnp.zeros(1), (jnp.ones(1), jnp.full(1, 3.0)), index=0)
    >>> transform = combine_deltas(lambda deltas: jnp.maximum(*deltas))
    >>> transform.update(leaf, ()).deltas
    (Array([3.], dtype=float32),)
  """
  return stateless(bind(_combine_deltas, function), *parameters)


def _combine_deltas(function, leaf, *parameters):
  return leaf._replace(deltas=(function(leaf.deltas, *parameters),))


def chain(*transforms: MergeTransform) -> MergeTransform:
  """Applies transforms one after another.

  The observers of a transform see leaves as the transforms before it leave
  them. The state is the tuple of the states.

  Args:
    *transforms: The transforms, first to last.

  Returns:
    The composition.

  Examples:
    >>> import merging
    >>> transform = merging.chain(merging.trim(0.2), merging.mean())
    >>> base = {'w': jnp.zeros(5)}
    >>> expert = {'w': jnp.array([1.0, -5.0, 2.0, 3.0, 4.0])}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [0.0, -5.0, 0.0, 0.0, 4.0]
  """
  updates = tuple(each.update for each in transforms)
  observers = tuple(
    Observer(
      observe=bind(_observe_chain, updates[:place], observer.observe),
      finish=bind(_finish_at, place, observer.finish),
    )
    for place, each in enumerate(transforms)
    for observer in each.observers
  )
  return MergeTransform(
    init=lambda specs, models: tuple(
      each.init(specs, models) for each in transforms
    ),
    observers=observers,
    update=bind(_update_chain, updates),
    route=lambda path: tuple(each.route(path) for each in transforms),
    extra=_union(each.extra for each in transforms),
    sources=_union(each.sources for each in transforms),
  )


def _update_chain(updates, leaf, state, **extra):
  routes = leaf.route
  for update, route, inner in zip(updates, routes, state, strict=False):
    leaf = update(leaf._replace(route=route), inner, **extra)
  return leaf._replace(route=routes)


def _observe_chain(before, observe, leaf, state, **extra):
  place = len(before)
  leaf = _update_chain(before, leaf, state, **extra)
  leaf = leaf._replace(route=leaf.route[place])
  return observe(leaf, state[place], **extra)


def _finish_at(place, finish, statistic, states):
  inner = finish(statistic, states[place])
  return (*states[:place], inner, *states[place + 1 :])


def _union(groups):
  return tuple(dict.fromkeys(item for group in groups for item in group))


class _Groups(NamedTuple):
  """State of a partition: where a leaf is in its group, and their states."""

  position: np.ndarray  # i32[leaves]
  states: tuple[State, ...]


def partition(
  transforms: Mapping[str, MergeTransform],
  labels: Callable[[str], str] | Mapping[str, str],
) -> MergeTransform:
  r"""Gives each leaf to the transform that its label names.

  A statistic of a whole model becomes one of the group: `trim(0.2)` in two
  groups keeps a fifth of each.

  Args:
    transforms: The transform for each label.
    labels: `path -> label`, or a mapping from regular expressions to labels;
      the first one found in the path wins.

  Returns:
    The transform. Its `init` raises `ValueError` if a leaf has no transform, or
    a pattern or a label has no leaf.

  Examples:
    >>> import merging
    >>> transform = merging.partition(
    ...   {'matrix': merging.ties(0.2), 'other': merging.average()},
    ...   {r'kernel$': 'matrix', r'.': 'other'},
    ... )
  """
  label_of = patterns.labeller('partition', labels)
  grouped = _partition('partition', transforms, label_of)

  def init(specs, models):
    paths = [spec.path for spec in specs]
    if isinstance(labels, Mapping):
      patterns.check_cover('partition', labels, paths)
    state = grouped.init(specs, models)
    unused = set(transforms) - set(map(label_of, paths))
    if unused:
      raise ValueError(
        f'partition: no leaf is labelled {patterns.listing(sorted(unused))}; '
        f'the leaves are {patterns.listing(paths)}'
      )
    return state

  return grouped._replace(init=init)


def masked(
  inner: MergeTransform,
  mask: Callable[[str], bool] | str,
  otherwise: Literal['base', 'mean', 'pass'] = 'base',
) -> MergeTransform:
  """Applies a transform to the leaves that a mask selects.

  Args:
    inner: What happens to the selected leaves.
    mask: `path -> bool`, or a regular expression to find in the path.
    otherwise: What happens to the others: they stay at the `'base'`, move by
      the `'mean'` of the deltas, or `'pass'` to the next transform unchanged.

  Returns:
    The transform. Its `init` raises `ValueError` if the mask selects nothing.

  Examples:
    >>> import merging
    >>> base = {'w': jnp.zeros(2), 'b': jnp.zeros(2)}
    >>> expert = {'w': jnp.ones(2), 'b': jnp.ones(2)}
    >>> transform = merging.masked(merging.average(), 'w')
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> merged['w'].tolist(), merged['b'].tolist()
    ([1.0, 1.0], [0.0, 0.0])
  """
  policies = {
    'base': combine_deltas(_no_change),
    'mean': combine_deltas(average_deltas),
    'pass': identity(),
  }
  patterns.check_option('masked', 'otherwise', otherwise, policies)
  selects = patterns.predicate('masked', mask)
  grouped = _partition(
    'masked',
    {'selected': inner, 'other': policies[otherwise]},
    lambda path: 'selected' if selects(path) else 'other',
  )

  def init(specs, models):
    paths = [spec.path for spec in specs]
    if not any(map(selects, paths)):
      raise patterns.no_match('masked', mask, paths)
    return grouped.init(specs, models)

  return grouped._replace(init=init)


def _no_change(deltas):
  return jnp.zeros_like(deltas[0])


def add_deltas(deltas: Sequence[jax.Array]) -> jax.Array:
  """Returns the sum over experts, in their order."""
  return functools.reduce(jnp.add, deltas)


def average_deltas(deltas: Sequence[jax.Array]) -> jax.Array:
  """Returns the mean over experts."""
  return add_deltas(deltas) / len(deltas)


def _partition(caller, transforms, label_of):
  names = tuple(transforms)
  inner = tuple(transforms.values())

  def init(specs, models):
    groups = {name: [] for name in names}
    for i, spec in enumerate(specs):
      label = label_of(spec.path)
      if label not in groups:
        raise ValueError(
          f'{caller}: leaf {spec.path!r} is labelled {label!r}, expected one '
          f'of {patterns.listing(names)}{patterns.suggest(label, names)}'
        )
      groups[label].append(i)
    position = np.zeros(len(specs), np.int32)
    for members in groups.values():
      position[members] = np.arange(len(members))
    states = tuple(
      each.init(tuple(specs[i] for i in members), models) if members else ()
      for each, members in zip(inner, groups.values(), strict=True)
    )
    return _Groups(position, states)

  def route(path):
    group = names.index(label_of(path))
    return group, inner[group].route(path)

  observers = tuple(
    Observer(
      observe=bind(_observe_group, group, observer.observe),
      finish=bind(_finish_group, group, observer.finish),
    )
    for group, each in enumerate(inner)
    for observer in each.observers
  )
  return MergeTransform(
    init=init,
    observers=observers,
    update=bind(_update_group, tuple(each.update for each in inner)),
    route=route,
    extra=_union(each.extra for each in inner),
    sources=_union(each.sources for each in inner),
  )


def _in_group(leaf, state):
  group, route = leaf.route
  index = jnp.asarray(state.position)[leaf.index]
  return group, leaf._replace(index=index, route=route)


def _update_group(updates, leaf, state, **extra):
  group, inner = _in_group(leaf, state)
  out = updates[group](inner, state.states[group], **extra)
  return out._replace(index=leaf.index, route=leaf.route)


def _observe_group(observed, observe, leaf, state, **extra):
  group, inner = _in_group(leaf, state)
  if group != observed:
    return None
  return observe(inner, state.states[group], **extra)


def _finish_group(group, finish, statistic, state):
  states = _finish_at(group, finish, statistic, state.states)
  return state._replace(states=states)
