"""Agreeing on a sign before changes are combined."""

from typing import Literal

import jax.numpy as jnp

from merging import patterns
from merging import references
from merging import select
from merging import transform


@references.cited
def elect_sign(
  *, zero: Literal['majority', 'positive', 'keep'] = 'majority'
) -> transform.MergeTransform:
  """Zeroes the deltas whose sign is not that of the sum over experts.

  Opposite changes of one entry cancel; TIES lets the heavier side have it.

      elected = sign(sum_t delta_t)
      delta_t = delta_t if sign(delta_t) == elected else 0

  Args:
    zero: What is elected where the sum is exactly zero, which after trimming is
      common. `'majority'`: the sign that most entries of the whole model elect
      (the paper); if there are as many of both, nothing is elected (the
      authors' code then keeps the negative ones). `'positive'`: plus
      (mergekit). `'keep'`: the zero stays zero, and nothing is elected.

  Returns:
    The transform.

  Raises:
    ValueError: `zero` is unknown.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([1.0, -2.0])},
    ...   'code': {'w': jnp.array([-3.0, -1.0])},
    ... }
    >>> transform = merging.chain(merging.elect_sign(), merging.total())
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [-3.0, -3.0]

  References:
    Prateek Yadav, Derek Tam, Leshem Choshen, Colin Raffel, Mohit Bansal.
    "TIES-Merging: Resolving Interference When Merging Models". NeurIPS 2023.
    arXiv:2306.01708.
  """
  options = ('majority', 'positive', 'keep')
  patterns.check_option('elect_sign', 'zero', zero, options)
  if zero == 'majority':
    vote = transform.Observer(_observe_signs, _finish_signs)
    return transform.MergeTransform(
      lambda *_: None, (vote,), _elect, entrywise=transform.always
    )
  on_zero = 1 if zero == 'positive' else 0
  return transform.MergeTransform(
    lambda *_: on_zero, (), _elect, entrywise=transform.always
  )


def _signs(deltas):
  return jnp.sign(transform.add_deltas(deltas))


def _observe_signs(leaf, state, **extra):
  signs = _signs(leaf.deltas)
  return _number(signs > 0), _number(signs < 0)


def _number(mask):
  return select.count(jnp.sum(mask, dtype=jnp.uint32))


def _finish_signs(statistic, state):
  positive, negative = map(select.carry, statistic)
  more = select.less(negative, positive).astype(jnp.int32)
  return more - select.less(positive, negative).astype(jnp.int32)


def _elect(leaf, on_zero, **extra):
  signs = _signs(leaf.deltas)
  elected = jnp.where(signs == 0, jnp.asarray(on_zero, signs.dtype), signs)
  zero = jnp.zeros_like(elected)
  return leaf._replace(
    deltas=tuple(
      jnp.where((jnp.sign(x) == elected) & (x != 0), x, zero)
      for x in leaf.deltas
    )
  )
