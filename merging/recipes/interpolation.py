"""Merges that stay near the base or another model: model stock, nearswap."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Literal

import jax

from merging import matrices
from merging import references
from merging import transform
from merging.combine import interpolate
from merging.combine import spherical

Axis = Literal[0, 1] | None
Layout = matrices.Layout | Mapping[str, matrices.Layout]


@references.cited
def model_stock(
  *, clip: bool = True, axis: Axis = None, layout: Layout = 'in_out'
) -> transform.MergeTransform:
  """Moves from the base toward the mean, the farther the more experts agree.

  Runs of one fine-tuning with other seeds lie on a sphere around a centre
  better than any of them. The point nearest to it between the base and their
  mean follows from the angle between their deltas. For `T` experts and each
  leaf,

      theta = theta_0 + r mean_t delta_t,   r = T c / (1 + (T - 1) c)

  with `c` the mean cosine of all pairs of deltas (the paper has two experts and
  one angle for all; mergekit takes this mean too, FusionBench the cosine of the
  mean angle). Where a delta is zero, its cosines count as 0.

  For experts of different tasks, whose deltas are nearly orthogonal, the result
  is nearly the base.

  Args:
    clip: Whether `c` is kept in [0, 1]. Without, as in mergekit, opposed deltas
      move the base backward, without bound as `c` nears `-1 / (T - 1)` (within
      1e-6 of it mergekit keeps the base). mergekit also divides by at least
      1e-6 for the cosine, so that pairs of deltas with a smaller product of
      lengths count as orthogonal; not here.
    axis: `None` for one ratio for each leaf. For matrices in a frame
      `[out, in]`, 1 is one for every output (mergekit's `filter_wise`), 0 one
      for every input; other leaves have one.
    layout: How the model stores its matrices (see `on_matrices`); needed with
      an axis.

  Returns:
    The merge. Its `init` raises `ValueError` if there is one expert only, or an
    axis and no matrix.

  Raises:
    ValueError: `axis` is unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'seed0': {'w': jnp.array([2.0, 0.0])},
    ...   'seed1': {'w': jnp.array([2.0, 2.0])},
    ... }
    >>> merged = merging.merge(model_stock(), {'w': jnp.zeros(2)}, experts)['w']
    >>> [round(x, 4) for x in merged.tolist()]
    [1.6569, 0.8284]

  References:
    Dong-Hwan Jang, Sangdoo Yun, Dongyoon Han. "Model Stock: All we need is just
    a few fine-tuned models". ECCV 2024. arXiv:2403.19522.
  """

  def init(specs, models):
    if len(models) < 2:
      raise ValueError(
        f'model_stock: {models[0]!r} is the only expert, expected two or more '
        'runs of one fine-tuning; task_arithmetic scales one'
      )
    return ()

  def along(axis):
    return spherical.toward_mean(clip, axis, init)

  return along_axis('model_stock', along, axis, layout)


@references.cited
def nearswap(
  t: float | jax.Array, *, toward: str | None = None
) -> transform.MergeTransform:
  """Moves every parameter of one model toward another, by at most `t`.

  Where the two are nearer than `t` the other one is taken whole, and where they
  are far apart the first one is kept almost as it was:

      theta = a + clip(b - a, -t, t)

  mergekit writes it with a weight `min(1, t / max(|a - b|, 1e-6))`, which is
  the same for every `t` of 1e-6 or more.

  Args:
    t: How far a parameter may move, not negative, in units of the parameters.
    toward: Name of the expert `b`; `a` is the other of two. With one expert `a`
      is the base, as in mergekit.

  Returns:
    The merge. Its `init` raises `ValueError` if there are more than two
    experts, or `toward` is missing or unknown.

  Raises:
    ValueError: `t` is negative.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base, expert = {'w': jnp.zeros(3)}, {'w': jnp.array([0.1, -0.5, 0.25])}
    >>> merged = merging.merge(nearswap(0.25), base, {'expert': expert})
    >>> [round(x, 2) for x in merged['w'].tolist()]
    [0.1, -0.25, 0.25]

  References:
    Charles Goddard, Shamane Siriwardhana, Malikeh Ehghaghi, Luke Meyers,
    Vladimir Karpukhin, Brian Benedict, Mark McQuade, Jacob Solawetz. "Arcee's
    MergeKit: A Toolkit for Merging Large Language Models". EMNLP 2024.
    arXiv:2403.13257.
  """
  if not isinstance(t, jax.core.Tracer) and not t >= 0:
    raise ValueError(
      f'nearswap: t is {t}, expected how far a parameter may move, 0 or more'
    )
  return transform.MergeTransform(
    init=lambda specs, models: interpolate.Step(
      interpolate.ends('nearswap', toward, models), t
    ),
    observers=(),
    update=transform.bind(interpolate.step_toward, 'nearswap'),
    entrywise=transform.always,
  )


def along_axis(
  caller: str,
  along: Callable[[int | None], transform.MergeTransform],
  axis: Axis,
  layout: Layout,
) -> transform.MergeTransform:
  """Takes matrices along an axis of their frame, and other leaves whole.

  Args:
    caller: Name for error messages.
    along: The merge for an axis, or for whole leaves if it is `None`.
    axis: Along which of `[out, in]` vectors lie in a matrix.
    layout: How the model stores its matrices (see `on_matrices`).

  Returns:
    The merge.

  Raises:
    ValueError: `axis` is unknown.
  """
  if axis not in (None, 0, 1):
    raise ValueError(
      f'{caller}: axis is {axis!r}, expected None, or 0 or 1 of [out, in]'
    )
  if axis is None:
    return along(None)
  return matrices.on_matrices(along(axis), along(None), layout=layout)
