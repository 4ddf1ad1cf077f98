"""Sending leaves to different transforms by their names."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Literal
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import transform


class _Groups(NamedTuple):
  """State of a partition: the place of each leaf in its group, their states."""

  position: np.ndarray  # i32[leaves]
  states: tuple[transform.State, ...]


def partition(
  transforms: Mapping[str, transform.MergeTransform],
  labels: Callable[[str], str] | Mapping[str, str],
) -> transform.MergeTransform:
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
  grouped = by_label('partition', transforms, lambda spec: label_of(spec.path))

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


Otherwise = Literal['base', 'mean', 'sum', 'pass'] | transform.MergeTransform


def masked(
  inner: transform.MergeTransform,
  mask: Callable[[str], bool] | str,
  otherwise: Otherwise = 'base',
) -> transform.MergeTransform:
  """Applies a transform to the leaves that a mask selects.

  Args:
    inner: What happens to the selected leaves.
    mask: `path -> bool`, or a regular expression to find in the path.
    otherwise: What happens to the others: they stay at the `'base'`, move by
      the `'mean'` or the `'sum'` of the deltas, `'pass'` to the next transform
      unchanged, or go to another transform.

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
  selects = patterns.predicate('masked', mask)
  grouped = by_label(
    'masked',
    {'selected': inner, 'other': policy('masked', otherwise)},
    lambda spec: 'selected' if selects(spec.path) else 'other',
  )

  def init(specs, models):
    paths = [spec.path for spec in specs]
    if not any(map(selects, paths)):
      raise patterns.no_match('masked', mask, paths)
    return grouped.init(specs, models)

  return grouped._replace(init=init)


def policy(caller: str, otherwise: Otherwise) -> transform.MergeTransform:
  """Returns the transform for leaves that a method does not speak of.

  Args:
    caller: Name for error messages.
    otherwise: See `masked`.

  Returns:
    The transform.

  Raises:
    ValueError: `otherwise` is unknown.

  Examples:
    >>> leaf = transform.Leaf(jnp.zeros(1), (jnp.ones(1), jnp.ones(1)), index=0)
    >>> policy('masked', 'sum').update(leaf, ()).deltas
    (Array([2.], dtype=float32),)
  """
  if isinstance(otherwise, transform.MergeTransform):
    return otherwise
  policies = {
    'base': transform.combine_deltas(_no_change, entrywise=True),
    'mean': transform.combine_deltas(transform.average_deltas, entrywise=True),
    'sum': transform.combine_deltas(transform.add_deltas, entrywise=True),
    'pass': transform.identity(),
  }
  patterns.check_option(caller, 'otherwise', otherwise, policies)
  return policies[otherwise]


def _no_change(deltas):
  return jnp.zeros_like(deltas[0])


def by_label(
  caller: str,
  transforms: Mapping[str, transform.MergeTransform],
  label_of: Callable[[transform.LeafSpec], str],
) -> transform.MergeTransform:
  """Gives each leaf to the transform that its label names.

  Args:
    caller: Name for error messages.
    transforms: The transform for each label; one may have no leaf.
    label_of: From what is known of a leaf to its label.

  Returns:
    The transform. Its `init` raises `ValueError` if a leaf has no transform.
  """
  names = tuple(transforms)
  inner = tuple(transforms.values())

  def init(specs, models):
    groups = {name: [] for name in names}
    for i, spec in enumerate(specs):
      label = label_of(spec)
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

  def route(spec):
    group = names.index(label_of(spec))
    return group, inner[group].route(spec)

  def own(spec):
    return inner[names.index(label_of(spec))]

  def selection(spec):
    return transform.selection_within(own(spec).selection(spec), _look)

  observers = tuple(
    transform.Observer(
      observe=transform.bind(_observe_group, group, observer.observe),
      finish=transform.bind(_finish_group, group, observer.finish),
    )
    for group, each in enumerate(inner)
    for observer in each.observers
  )
  return transform.MergeTransform(
    init=init,
    observers=observers,
    update=transform.bind(_update_group, tuple(each.update for each in inner)),
    route=route,
    extra=transform.union(each.extra for each in inner),
    entrywise=lambda spec: own(spec).entrywise(spec),
    rowwise=lambda spec: own(spec).rowwise(spec),
    selection=selection,
    sources=transform.union(each.sources for each in inner),
  )


def _in_group(leaf, state):
  group, route = leaf.route
  index = jnp.asarray(state.position)[leaf.index]
  return group, leaf._replace(index=index, route=route)


def _update_group(updates, leaf, state, **extra):
  group, inner = _in_group(leaf, state)
  out = updates[group](inner, state.states[group], **extra)
  return out._replace(index=leaf.index, route=leaf.route)


def _look(function, leaf, state, *arguments):
  group, inner = _in_group(leaf, state)
  return function(inner, state.states[group], *arguments)


def _observe_group(observed, observe, leaf, state, **extra):
  group, inner = _in_group(leaf, state)
  if group != observed:
    return None
  return observe(inner, state.states[group], **extra)


def _finish_group(group, finish, statistic, state):
  if statistic is None:  # The group has no leaves, and no state to close.
    return state
  states = transform.finish_at(group, finish, statistic, state.states)
  return state._replace(states=states)
