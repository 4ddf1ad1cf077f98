"""Merging every leaf as a model of its own, with settings of its own."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import transform


class _Program(NamedTuple):
  """What leaves have in common that run one compiled program."""

  observers: tuple[transform.Observer, ...]
  update: Callable[..., transform.Leaf]
  route: object
  state: object  # Structure, shapes and types of the state.


class _Groups(NamedTuple):
  """State: the place of each leaf in its group, and the groups' states."""

  position: np.ndarray  # i32[leaves]
  states: tuple[transform.State, ...]  # Stacked over the leaves of a group.


def each(
  make: Callable[[transform.LeafSpec], transform.MergeTransform],
) -> transform.MergeTransform:
  """Merges every leaf as if it were a model, by a merge made for it.

  A statistic of the whole model, such as the threshold of `trim`, becomes one
  of the leaf, and every hyper-parameter may be another for every leaf, as
  recipes ask for that give layers a gradient of coefficients. Leaves whose
  merges differ in numbers only share a compiled program.

  Args:
    make: `spec -> merge`, called before any value is read.

  Returns:
    The transform. Its `init` raises `ValueError` if a merge needs data besides
    the models.

  Examples:
    >>> import merging
    >>> base = {'first': jnp.zeros(2), 'last': jnp.zeros(2)}
    >>> expert = {'first': jnp.ones(2), 'last': jnp.ones(2)}
    >>> scales = {'first': 0.25, 'last': 0.5}
    >>> transform = merging.each(
    ...   lambda spec: merging.task_arithmetic(scales[spec.path])
    ... )
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> merged['first'].tolist(), merged['last'].tolist()
    ([0.25, 0.25], [0.5, 0.5])
  """
  made = functools.cache(make)
  numbers: dict[_Program, int] = {}  # Of the groups, in order of appearance.
  sources: dict[Callable[..., transform.MergeTransform], None] = {}
  own: dict[transform.LeafSpec, _Program] = {}

  def init(specs, models):
    members: dict[int, list[tuple[int, transform.State]]] = {}
    for place, spec in enumerate(specs):
      merge = made(spec)
      if merge.extra:
        raise ValueError(
          f'each: the merge of leaf {spec.path!r} needs {merge.extra} for each '
          'expert, which a merge of single leaves does not get'
        )
      state = jax.tree.map(_array, merge.init((spec,), models))
      shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(state))
      program = _Program(
        merge.observers,
        merge.update,
        merge.route(spec),
        (jax.tree.structure(state), shapes),
      )
      own[spec] = program
      sources.update(dict.fromkeys(merge.sources))
      number = numbers.setdefault(program, len(numbers))
      members.setdefault(number, []).append((place, state))
    position = np.zeros(len(specs), np.int32)
    states: list[transform.State] = [()] * len(numbers)
    for number, group in members.items():
      position[[place for place, _ in group]] = np.arange(len(group))
      states[number] = jax.tree.map(_stack, *(state for _, state in group))
    return _Groups(position, tuple(states))

  def route(spec):
    return numbers[own[spec]], own[spec]

  def entrywise(spec):
    merge = made(spec)
    return not merge.observers and merge.entrywise(spec)

  def selection(spec):
    merge = made(spec)
    found = None if merge.observers else merge.selection(spec)
    return transform.selection_within(found, _look)

  def rowwise(spec):
    merge = made(spec)
    return not merge.observers and merge.rowwise(spec)

  return transform.MergeTransform(
    init=init,
    observers=(),
    update=_update,
    route=route,
    entrywise=entrywise,
    rowwise=rowwise,
    selection=selection,
  )


def _array(value):
  """A number as an array of the type that it has beside a float32 leaf."""
  if isinstance(value, jax.Array):
    return value
  return np.asarray(value, jnp.result_type(value))


def _stack(*values):
  if all(each is values[0] for each in values):
    return jnp.broadcast_to(values[0], (len(values), *np.shape(values[0])))
  # NumPy's, where it can: a model has thousands of leaves.
  if any(_only_of_jax(each) for each in values):
    return jnp.stack(values)
  return np.stack([np.asarray(each) for each in values])


def _only_of_jax(value):
  """Whether NumPy has no such value: a tracer, or a random key."""
  return isinstance(value, jax.core.Tracer) or jnp.issubdtype(
    value.dtype, jax.dtypes.prng_key
  )


def _inside(leaf, state):
  """The leaf as the only one, and the state of its merge."""
  number, program = leaf.route
  place = jnp.asarray(state.position)[leaf.index]
  own = jax.tree.map(lambda x: x[place], state.states[number])
  return leaf._replace(index=jnp.int32(0), route=program.route), own


def _look(function, leaf, state, *arguments):
  return function(*_inside(leaf, state), *arguments)


def _update(leaf, state, **extra):
  _, program = leaf.route
  inner, own = _inside(leaf, state)
  for observer in program.observers:
    own = observer.finish(observer.observe(inner, own, **extra), own)
  merged = program.update(inner, own, **extra)
  return merged._replace(index=leaf.index, route=leaf.route)
