"""Steps that differ from expert to expert, or restore what they took."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from merging import transform


def apart(
  steps: Mapping[str, transform.MergeTransform],
) -> transform.MergeTransform:
  """Changes the delta of each expert by a step of its own.

  Args:
    steps: By name of the expert, a step without observers that leaves one
      delta for each it gets.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> step = apart({'a': merging.scale(2.0), 'b': merging.identity()})
    >>> ones = {'w': jnp.ones(1)}
    >>> merged = merging.merge(
    ...   merging.chain(step, merging.total()),
    ...   {'w': jnp.zeros(1)},
    ...   {'a': ones, 'b': ones},
    ... )
    >>> merged['w'].tolist()
    [3.0]
  """
  for name, step in steps.items():
    if step.observers or step.extra:
      raise ValueError(
        f'apart: the step of {name!r} needs to see more than one leaf'
      )
  ordered = tuple(steps[name] for name in sorted(steps))
  sources = dict.fromkeys(each for step in ordered for each in step.sources)

  def selection(spec):
    """That of all steps, if they differ in numbers only."""
    found, *others = (step.selection(spec) for step in ordered)
    same = found is not None and all(other == found for other in others)
    if not same or not found.by_expert:
      return None
    return transform.selection_within(found, _look)

  return transform.MergeTransform(
    init=lambda specs, models: tuple(
      steps[name].init(specs, (name,)) for name in models
    ),
    observers=(),
    update=transform.bind(_apart, tuple(step.update for step in ordered)),
    route=lambda spec: tuple(step.route(spec) for step in ordered),
    entrywise=lambda spec: all(step.entrywise(spec) for step in ordered),
    rowwise=lambda spec: all(
      step.rowwise(spec) or step.entrywise(spec) for step in ordered
    ),
    selection=selection,
    sources=tuple(sources),
  )


def _apart(updates, leaf, states, selected=None, **extra):
  deltas = []
  for place, (update, delta, state, route) in enumerate(
    zip(updates, leaf.deltas, states, leaf.route, strict=True)
  ):
    if selected is not None:
      extra['selected'] = selected[place : place + 1]
    alone = leaf._replace(deltas=(delta,), route=route)
    deltas += update(alone, state, **extra).deltas
  return leaf._replace(deltas=tuple(deltas))


def _look(function, leaf, states, model, *arguments):
  """Looks at one delta as the step of its expert does."""
  state = jax.tree.map(lambda *each: jnp.stack(each)[model], *states)
  alone = leaf._replace(route=leaf.route[0])
  return function(alone, state, jnp.int32(0), *arguments)


def restoring_sum(
  step: transform.MergeTransform,
) -> transform.MergeTransform:
  """Scales what a step leaves of a delta to the sum of magnitudes it had.

  Args:
    step: A step without observers. Where it leaves, or gets, less than 1e-7 in
      sum, nothing is scaled, as in mergekit.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> step = restoring_sum(merging.trim(0.5, scope='tensor', ties='index'))
    >>> merged = merging.merge(
    ...   merging.chain(step, merging.total()),
    ...   {'w': jnp.zeros(2)},
    ...   {'a': {'w': jnp.array([1.0, 3.0])}},
    ... )
    >>> merged['w'].tolist()
    [0.0, 4.0]
  """
  return step._replace(
    update=transform.bind(_restore, step.update), **transform.WHOLE
  )


def _restore(update, leaf, state, **extra):
  after = update(leaf, state, **extra)
  return after._replace(
    deltas=tuple(
      _factor(before, delta) * delta
      for before, delta in zip(leaf.deltas, after.deltas, strict=True)
    )
  )


def _factor(before, after):
  whole, rest = jnp.sum(jnp.abs(before)), jnp.sum(jnp.abs(after))
  some = (whole >= 1e-7) & (rest >= 1e-7)
  return jnp.where(some, whole / jnp.where(some, rest, 1), 1)
