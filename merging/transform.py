"""The algebra of merging: functions of one leaf that compose as in optax."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import selections

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
    route: What `MergeTransform.route` says of the leaf; static.
    start: If this is a piece of a leaf, the place of its first entry, `u32[]`.
  """

  base: jax.Array
  deltas: tuple[jax.Array, ...]
  index: jax.Array | np.ndarray | int
  route: Hashable = None
  start: jax.Array | np.ndarray | int = 0


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


def no_selection(spec: LeafSpec) -> None:
  """All is done in `update`, `MergeTransform.selection` by default."""


def _no_route(spec: LeafSpec) -> None:
  """Every leaf runs the same program."""


def never(spec: LeafSpec) -> bool:
  """Leaves have to be whole, `MergeTransform.entrywise` by default."""
  return False


def always(spec: LeafSpec) -> bool:
  """Every leaf may come in pieces, for `MergeTransform.entrywise`."""
  return True


# For `_replace` of a transform around another that needs whole leaves.
WHOLE: dict[str, Any] = {
  'entrywise': never,
  'rowwise': never,
  'selection': no_selection,
}


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
    route: `spec -> hashable`, that in a leaf's path or shape which changes the
      *program* run on it (a label, a flag). What changes only a number belongs
      in the state. Leaves of equal route and shape share one compiled program.
    extra: Names of the data it needs from `merge(..., name=...)`: for the leaf
      at hand, a tuple with one array for each expert, or `None`.
    entrywise: `spec -> bool`, whether the leaf may come in pieces: each entry
      of the result depends on the same entry of the models and on the state
      alone, and statistics of the pieces add up exactly. A model larger than
      memory is then merged in little memory, whatever its largest leaf.
    rowwise: `spec -> bool`, whether a matrix may come in pieces of whole rows:
      each row of the result depends on the same row of the models alone.
    selection: `spec -> Selection | None`: what can be found out of the leaf
      before it comes in pieces, and be given to `update` as `selected` (see
      `merging.selections`). The result is the same without, but for the
      rounding of sums.
    sources: Factories whose docstrings hold the references to cite.
  """

  init: Callable[[Specs, Models], State]
  observers: tuple[Observer, ...]
  update: Callable[..., Leaf]
  route: Callable[[LeafSpec], Hashable] = _no_route
  extra: tuple[str, ...] = ()
  entrywise: Callable[[LeafSpec], bool] = never
  rowwise: Callable[[LeafSpec], bool] = never
  selection: Callable[[LeafSpec], selections.Selection | None] = no_selection
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
  function: Callable[..., Leaf],
  *parameters: Any,
  extra: tuple[str, ...] = (),
  entrywise: bool = False,
) -> MergeTransform:
  """A transform that needs to know one leaf only.

  Args:
    function: `(leaf, *parameters, **extra) -> leaf`. Defined once, at the top
      level of a module, it is compiled once for all values of the parameters.
    *parameters: Hyper-parameters: numbers, arrays, tracers, trees of them.
    extra: Names of the per-leaf data from `merge(..., name=...)` to pass on.
    entrywise: Whether entries do not depend on one another.

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
    entrywise=always if entrywise else never,
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
  return stateless(_same, entrywise=True)


def _same(leaf: Leaf) -> Leaf:
  return leaf


def map_deltas(
  function: Callable[..., jax.Array],
  *parameters: Any,
  entrywise: bool = False,
) -> MergeTransform:
  """A transform of each expert's delta by itself.

  Such as storing it in 8 bits:
  `chain(map_deltas(to_int8_and_back), task_arithmetic(0.3))`.

  Args:
    function: `(delta, *parameters) -> delta`, `f32[*shape]` to `f32[*shape]`.
      See `stateless` on where to define it.
    *parameters: Hyper-parameters, which may be tracers.
    entrywise: Whether entries do not depend on one another.

  Returns:
    The transform.

  Examples:
    >>> leaf = Leaf(jnp.zeros(2), (jnp.array([1.0, -5.0]),), index=0)
    >>> transform = map_deltas(jnp.clip, -2.0, 2.0)
    >>> transform.update(leaf, transform.init((), ())).deltas
    (Array([ 1., -2.], dtype=float32),)
  """
  return stateless(
    bind(_map_deltas, function), *parameters, entrywise=entrywise
  )


def _map_deltas(function, leaf, *parameters):
  deltas = tuple(function(delta, *parameters) for delta in leaf.deltas)
  return leaf._replace(deltas=deltas)


def combine_deltas(
  function: Callable[..., jax.Array],
  *parameters: Any,
  entrywise: bool = False,
) -> MergeTransform:
  """A transform of the deltas of all experts into one.

  Args:
    function: `(deltas, *parameters) -> delta`, from a tuple of `f32[*shape]` to
      `f32[*shape]`. See `stateless` on where to define it.
    *parameters: Hyper-parameters, which may be tracers.
    entrywise: Whether entries do not depend on one another.

  Returns:
    The transform.

  Examples:
    >>> leaf = Leaf(jnp.zeros(1), (jnp.ones(1), jnp.full(1, 3.0)), index=0)
    >>> transform = combine_deltas(lambda deltas: jnp.maximum(*deltas))
    >>> transform.update(leaf, ()).deltas
    (Array([3.], dtype=float32),)
  """
  return stateless(
    bind(_combine_deltas, function), *parameters, entrywise=entrywise
  )


def _combine_deltas(function, leaf, *parameters):
  return leaf._replace(deltas=(function(leaf.deltas, *parameters),))


def from_sums(
  init: Callable[[Specs, Models], State],
  stages: tuple[Callable[..., jax.Array], ...],
  update: Callable[..., Leaf],
) -> MergeTransform:
  """A transform whose update needs, of other entries, nothing but sums.

  Such as norms and inner products. A leaf larger than memory is read once for
  each stage, and once to be merged.

  Args:
    init: See `MergeTransform`.
    stages: `(leaf, state, sums of the stages before) -> sums`, `f32[...]`, over
      the entries of a leaf, or of a piece of one; defined once, as for
      `stateless`.
    update: `(leaf, state, sums of all stages) -> leaf`, entry by entry.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> def squares(leaf, state, sums):
    ...   return jnp.sum(jnp.square(leaf.deltas[0]))
    >>> def normalise(leaf, state, sums):
    ...   return leaf._replace(deltas=(leaf.deltas[0] / jnp.sqrt(sums[0]),))
    >>> transform = from_sums(lambda specs, models: (), (squares,), normalise)
    >>> base, expert = {'w': jnp.zeros(2)}, {'w': jnp.array([3.0, 4.0])}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [0.6000000238418579, 0.800000011920929]
  """
  found = selections.Sums(stages)
  return MergeTransform(
    init=init,
    observers=(),
    update=bind(_update_from_sums, stages, update),
    selection=lambda spec: found,
  )


def _update_from_sums(stages, update, leaf, state, selected=None, **extra):
  if selected is None:
    selected = ()
    for stage in stages:
      selected = (*selected, stage(leaf, state, selected))
  return update(leaf, state, selected)


def add_deltas(deltas: Sequence[jax.Array]) -> jax.Array:
  """Returns the sum over experts, in their order."""
  return functools.reduce(jnp.add, deltas)


def average_deltas(deltas: Sequence[jax.Array]) -> jax.Array:
  """Returns the mean over experts."""
  return add_deltas(deltas) / len(deltas)


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
  for each in transforms:
    if not isinstance(each, MergeTransform):
      raise TypeError(
        f'chain: expected transforms, got {each!r}; call a method to make one, '
        'as in ties()'
      )
  updates = tuple(each.update for each in transforms)
  observers = tuple(
    Observer(
      observe=bind(_observe_chain, updates[:place], observer.observe),
      finish=bind(finish_at, place, observer.finish),
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
    route=lambda spec: tuple(each.route(spec) for each in transforms),
    extra=union(each.extra for each in transforms),
    entrywise=lambda spec: all(each.entrywise(spec) for each in transforms),
    rowwise=lambda spec: all(
      each.rowwise(spec) or each.entrywise(spec) for each in transforms
    ),
    selection=lambda spec: _first_selection(transforms, spec),
    sources=union(each.sources for each in transforms),
  )


def _first_selection(transforms, spec):
  """That of the first, if the others need nothing but entries."""
  if not transforms or any(each.observers for each in transforms):
    return None
  first, *others = transforms
  found = first.selection(spec)
  if found is None or not all(
    each.entrywise(spec) and each.selection(spec) is None for each in others
  ):
    return None
  return selection_within(found, _of_first)


def selection_within(
  found: selections.Selection | None, call: Callable[..., Any]
) -> selections.Selection | None:
  """Returns a selection of the leaf and state that are part of others.

  Args:
    found: The selection of a transform within another.
    call: `(function, leaf, state, *arguments)`, which calls the function, one
      of that selection, as the other transform calls the inner one's `update`.

  Returns:
    The selection of the other.
  """
  return found and found.within(functools.partial(bind, call))


def _of_first(function, leaf, state, *arguments):
  return function(leaf._replace(route=leaf.route[0]), state[0], *arguments)


def _update_chain(updates, leaf, state, **extra):
  routes = leaf.route
  for update, route, inner in zip(updates, routes, state, strict=False):
    leaf = update(leaf._replace(route=route), inner, **extra)
    extra.pop('selected', None)  # It is for the first.
  return leaf._replace(route=routes)


def _observe_chain(before, observe, leaf, state, **extra):
  place = len(before)
  leaf = _update_chain(before, leaf, state, **extra)
  leaf = leaf._replace(route=leaf.route[place])
  return observe(leaf, state[place], **extra)


def finish_at(
  place: int,
  finish: Callable[[Statistic, State], State],
  statistic: Statistic,
  states: tuple[State, ...],
) -> tuple[State, ...]:
  """Closes a sweep of one of several transforms, given all their states."""
  inner = finish(statistic, states[place])
  return (*states[:place], inner, *states[place + 1 :])


def union(groups: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
  """Returns the items of all groups once, in the order of appearance."""
  return tuple(dict.fromkeys(item for group in groups for item in group))
