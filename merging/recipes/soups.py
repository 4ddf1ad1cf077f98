"""Averages of parameters: soups of models, or of checkpoints of one."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import references
from merging import transform
from merging.combine import interpolate
from merging.combine import mean as means
from merging.deltas import scale as scaling


@references.cited
def average() -> transform.MergeTransform:
  """Averages the parameters of all experts (a uniform soup).

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 3 * jnp.ones(2)}}
    >>> merging.merge(average(), {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [2.0, 2.0]

  References:
    Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre, Rebecca Roelofs,
    Raphael Gontijo-Lopes, Ari S. Morcos, Hongseok Namkoong, Ali Farhadi, Yair
    Carmon, Simon Kornblith, Ludwig Schmidt. "Model soups: averaging weights of
    multiple fine-tuned models improves accuracy without increasing inference
    time". ICML 2022. arXiv:2203.05482.
  """
  return means.mean()


@references.cited
def weighted_average(
  weights: Mapping[str, float | jax.Array] | Sequence[float] | jax.Array,
) -> transform.MergeTransform:
  """Averages the parameters of experts with weights, normalised to add to 1.

      theta = sum_t w_t theta_t / sum_t w_t

  Args:
    weights: Weights by the name of the expert, or `f32[models]` in the order of
      the sorted names.

  Returns:
    The merge.

  Raises:
    ValueError: The weights add up to zero.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 3 * jnp.ones(2)}}
    >>> transform = weighted_average({'math': 3, 'code': 1})
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [1.5, 1.5]

  References:
    Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre, Rebecca Roelofs,
    Raphael Gontijo-Lopes, Ari S. Morcos, Hongseok Namkoong, Ali Farhadi, Yair
    Carmon, Simon Kornblith, Ludwig Schmidt. "Model soups: averaging weights of
    multiple fine-tuned models improves accuracy without increasing inference
    time". ICML 2022. arXiv:2203.05482.
  """
  values = weights.values() if isinstance(weights, Mapping) else weights
  mass, size = sum(values), sum(map(abs, values))
  if not isinstance(mass, jax.core.Tracer) and abs(mass) <= 1e-6 * size:
    raise ValueError(
      f'weighted_average: the weights {weights} add up to 0; use '
      'task_arithmetic for coefficients that are not to be normalised'
    )
  return transform.chain(
    scaling.weigh(weights), means.total(), scaling.scale(1 / mass)
  )


def linear(
  weights: Mapping[str, float | jax.Array] | Sequence[float] | jax.Array,
  *,
  normalize: bool = True,
) -> transform.MergeTransform:
  """Adds parameters of experts with weights, as mergekit's method of this name.

      theta = sum_t w_t theta_t, divided by sum_t w_t if told to normalise

  The base has no part in it but that deltas are taken from it: without
  normalisation this is not `task_arithmetic`, and weights that add up to less
  than 1 shrink the whole model.

  Args:
    weights: Weights by the name of the expert, or `f32[models]` in the order of
      the sorted names.
    normalize: Whether to divide by the sum of the weights; then it is
      `weighted_average`.

  Returns:
    The merge.

  Raises:
    ValueError: Weights to normalise add up to zero.

  Examples:
    >>> import merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 3 * jnp.ones(2)}}
    >>> transform = linear({'math': 0.5, 'code': 0.25}, normalize=False)
    >>> merging.merge(transform, {'w': jnp.ones(2)}, experts)['w'].tolist()
    [1.25, 1.25]
  """
  if normalize:
    return weighted_average(weights)
  values = weights.values() if isinstance(weights, Mapping) else weights
  return transform.chain(
    scaling.weigh(weights), means.total(), interpolate.scale_base(sum(values))
  )


def passthrough(scale: float | jax.Array = 1.0) -> transform.MergeTransform:
  """Takes the parameters of the only expert, times a factor.

      theta = scale theta_1

  Args:
    scale: The factor.

  Returns:
    The merge. Its `init` raises `ValueError` if there are several experts.

  Examples:
    >>> import merging
    >>> experts = {'math': {'w': 3 * jnp.ones(2)}}
    >>> merging.merge(passthrough(), {'w': jnp.ones(2)}, experts)['w'].tolist()
    [3.0, 3.0]
  """
  scaled = transform.chain(
    means.total(), scaling.scale(scale), interpolate.scale_base(scale)
  )

  def init(specs, models):
    if len(models) > 1:
      raise ValueError(
        f'passthrough: got the experts {patterns.listing(models)}, expected '
        'one; linear takes more'
      )
    return scaled.init(specs, models)

  return scaled._replace(init=init)


@references.cited
def metrics_weighted_average(
  metrics: Mapping[str, float | jax.Array],
  penalty: float | jax.Array = 1.0,
  *,
  better: Literal['lower', 'higher'] = 'lower',
  form: Literal['power', 'softmax'] = 'power',
) -> transform.MergeTransform:
  """Averages checkpoints with weights from their losses or steps (MWA).

  One penalty `p` says how much a better metric `s_t` counts; with 0 all count
  equally. The sign is that of what is `better`:

      power:    w_t proportional to s_t^(-p) or s_t^p
      softmax:  w_t proportional to exp(-p s_t) or exp(p s_t)

  The abstract of the paper speaks of a formula with a penalty factor for the
  training loss and for the training step, lower losses and later steps counting
  more. We could not read the formula itself, so neither form is claimed to be
  the authors': `'power'` is the simplest that fits both metrics, and
  `'softmax'` of losses is that of LM-Cocktail, whose code divides by a
  temperature of 5 (a penalty of 0.2).

  Args:
    metrics: Metrics by the name of the checkpoint, positive for `'power'`.
    penalty: How much they count.
    better: Whether `'lower'` metrics are better, as losses, or `'higher'`, as
      steps and accuracies.
    form: See above.

  Returns:
    The merge, a `weighted_average`.

  Raises:
    ValueError: A metric is not finite, or not positive where a power is taken;
      there is none; an option is unknown.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'step100': {'w': jnp.array([0.0])},
    ...   'step300': {'w': jnp.array([4.0])},
    ... }
    >>> transform = metrics_weighted_average(
    ...   {'step100': 100, 'step300': 300}, better='higher'
    ... )
    >>> merged = merging.merge(transform, {'w': jnp.zeros(1)}, experts)['w']
    >>> round(float(merged[0]), 5)
    3.0

  References:
    Shi Jie Yu, Sehyun Choi. "Parameter-Efficient Checkpoint Merging via
    Metrics-Weighted Averaging". 2025. arXiv:2504.18580.
    Shitao Xiao, Zheng Liu, Peitian Zhang, Xingrun Xing. "LM-Cocktail: Resilient
    Tuning of Language Models via Model Merging". 2023. arXiv:2311.13534.
  """
  caller = 'metrics_weighted_average'
  patterns.check_option(caller, 'better', better, ('lower', 'higher'))
  patterns.check_option(caller, 'form', form, ('power', 'softmax'))
  if not metrics:
    raise ValueError(f'{caller}: there are no metrics')
  for name, value in metrics.items():
    if isinstance(value, jax.core.Tracer):
      continue
    if not np.isfinite(value) or (form == 'power' and value <= 0):
      raise ValueError(
        f'{caller}: the metric of {name!r} is {value}, expected a '
        f'{"positive" if form == "power" else "finite"} number'
        + ("; form='softmax' takes any" if form == 'power' else '')
      )
  with jax.ensure_compile_time_eval():  # The same numbers inside a jit.
    values = jnp.stack([jnp.asarray(x, float) for x in metrics.values()])
    if form == 'power':
      values = jnp.log(values)
    sign = 1 if better == 'higher' else -1
    weights = tuple(jax.nn.softmax(sign * penalty * values))
  return weighted_average(dict(zip(metrics, weights, strict=True)))
