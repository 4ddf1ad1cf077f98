"""Training for integers: products of matrices see what will be stored."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numerics import fixed_point
from numerics import interpreter
from numerics import programs
from numerics import quantizing
from numerics import rounding
from numerics import scaling

_PRODUCTS = ('dot_general', 'conv_general_dilated')
# What leaves a weight a weight.
_MOVES = frozenset(
  (
    *('broadcast_in_dim', 'concatenate', 'convert_element_type', 'copy'),
    *('copy_p', 'dynamic_slice', 'expand_dims', 'optimization_barrier'),
    *('reshape', 'rev', 'sharding_constraint', 'slice', 'squeeze', 'transpose'),
  )
)
_WEIGHT = 'weight'

# From names of operands to the least and the largest number.
Extremes = dict[str, tuple[jax.Array, jax.Array]]


class ActivationRanges(NamedTuple):
  """What activations were so far, the state of `quantization_aware`.

  Attributes:
    step: i32[], how often they were updated.
    extremes: The ends of the range of each operand of a product that is no
      weight, f32[] each, by the names around it and its place in the program.
  """

  step: jax.Array
  extremes: Extremes


class QuantizationAware(NamedTuple):
  """A function that trains for integers, made by `quantization_aware`.

  Attributes:
    init: `(params, *args, **kwargs) -> ranges`, at the beginning.
    apply: `(ranges, params, *args, update=True, **kwargs) -> (result, ranges)`.
      Without `update`, ranges stay as they are: to validate, and to freeze.
  """

  init: Callable[..., ActivationRanges]
  apply: Callable[..., tuple[Any, ActivationRanges]]


@dataclasses.dataclass(frozen=True)
class _Settings:
  function: Callable[..., Any]
  weights: fixed_point.FixedPoint
  activations: fixed_point.FixedPoint
  decay: float
  delay: int


def quantization_aware(
  apply: Callable[..., Any],
  *,
  weights: fixed_point.FixedPoint = fixed_point.int8,
  activations: fixed_point.FixedPoint = fixed_point.uint8,
  decay: float = 0.99,
  delay: int = 1,
) -> QuantizationAware:
  """Trains a function for running in integers, by fake quantisation.

  Operands of products of matrices and convolutions become what their storage in
  integers preserves, so that training makes up for it. Everything else,
  derivatives and sums included, stays in the dtypes of the function.

  * Weights are symmetric, with a scale for each output channel: that of their
    largest magnitude along the axes that are added up. A weight is an operand
    that is a leaf of the first argument, moved at most (reshaped, transposed,
    cast); it may come through loops over layers.
  * Activations, which all other operands are, are affine, with one scale and
    zero point for the tensor, so that 0 is exact: those of a moving average of
    the least and the largest number,

        range ← decay · range + (1 − decay) · [min(x), max(x)],

    which begins with the first. A step sees the average of the steps before
    it, from step `delay` on; until then activations stay as they are.

  The derivative of rounding is 1 in the range and 0 beyond (straight-through).
  Functions with a derivative of their own (`jax.custom_vjp`) run as they are.

  The whitepaper recommends these granularities, the moving average and the
  delay; the decay is chosen here. It also folds batch normalisation into
  weights, which is the model's to do, and biases stay in float32, where it has
  32 bits.

  Args:
    apply: `(params, *args, **kwargs) -> result`, such as `Module.apply`.
    weights: Integers for weights.
    activations: Integers for activations.
    decay: Of the moving average, from 0 to 1.
    delay: Steps before activations are quantised, at least one.

  Returns:
    The functions `init` and `apply`, to be called where the original was.

  Raises:
    TypeError: If `apply` is no function, or a format none of integers.
    ValueError: If a setting is out of range; on a call, if the ranges are those
      of another program.

  Examples:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> model = nn.Dense(3)
    >>> x = jax.random.normal(jax.random.key(0), (8, 5))
    >>> params = model.init(jax.random.key(1), x)
    >>> aware = numerics.quantization_aware(model.apply)
    >>> ranges = aware.init(params, x)
    >>> list(ranges.extremes)
    ['Dense/dot_general 0.0']
    >>> @jax.jit
    ... def step(ranges, params, x):
    ...   def loss(params):
    ...     y, after = aware.apply(ranges, params, x)
    ...     return (y**2).mean(), after
    ...
    ...   gradient, after = jax.grad(loss, has_aux=True)(params)
    ...   return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), after
    >>> params, ranges = step(ranges, params, x)
    >>> low, high = ranges.extremes['Dense/dot_general 0.0']
    >>> int(ranges.step), bool(low == x.min()), bool(high == x.max())
    (1, True, True)

  References:
    Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient
      Inference: A Whitepaper, 2018, arXiv:1806.08342.
    Jacob et al., Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference, 2017, arXiv:1712.05877.
  """
  if not callable(apply):
    raise TypeError(
      f'quantization_aware: expected a function, got {type(apply).__name__}.'
    )
  for fmt in (weights, activations):
    scaling.checked_integers('quantization_aware', fmt)
  if not weights.signed:
    raise ValueError(
      f'quantization_aware: weights are symmetric, but {weights.name} has no'
      ' negative numbers; take numerics.int8 or the like.'
    )
  if not 0 <= decay < 1:
    raise ValueError(
      f'quantization_aware: decay must be in [0, 1), got {decay}.'
    )
  if not isinstance(delay, int) or delay < 1:
    raise ValueError(
      'quantization_aware: delay must be an int, at least 1, since a step sees'
      f' the ranges of those before it; got {delay!r}.'
    )
  settings = _Settings(apply, weights, activations, decay, delay)

  def init(*args: Any, **kwargs: Any) -> ActivationRanges:
    names: list[str] = []
    jax.eval_shape(lambda: names.extend(_run(settings, None, args, kwargs)[1]))
    zero = jnp.zeros((), jnp.float32)
    return ActivationRanges(
      jnp.zeros((), jnp.int32), dict.fromkeys(names, (zero, zero))
    )

  def aware(
    ranges: ActivationRanges, *args: Any, update: bool = True, **kwargs: Any
  ) -> tuple[Any, ActivationRanges]:
    result, found = _run(settings, ranges, args, kwargs)
    if set(found) != set(ranges.extremes):
      raise _another_program(set(found) ^ set(ranges.extremes))
    return result, _updated(ranges, found, decay) if update else ranges

  return QuantizationAware(init, aware)


def _run(
  settings: _Settings,
  ranges: ActivationRanges | None,
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
) -> tuple[Any, Extremes]:
  """The result, and the extremes of all activations."""
  dynamic = (jax.Array, np.ndarray)
  traced = programs.trace(settings.function, args, kwargs, dynamic)
  weights = [isinstance(x, dynamic) for x in jax.tree.leaves(args[:1])]
  rule = _Rule(settings, ranges)
  meaning = interpreter.Interpretation(
    rule, empty=_empty, combine=_combine, arrays=True
  )
  result, records = interpreter.interpret(
    traced, meaning, notes=[_WEIGHT] * sum(weights)
  )
  found = {
    name: extremes
    for record in records.values()
    for name, extremes in record.items()
    if name in rule.activations
  }
  return result, found


def _name(equation: programs.Equation, place: int) -> str:
  """What an operand of a product is called."""
  scope = f'{equation.scope}/' if equation.scope else ''
  return f'{scope}{equation.primitive} {equation.path}.{place}'


def _empty(equation: programs.Equation) -> Extremes:
  """The extremes of the operands of a product that did not run."""
  if equation.primitive not in _PRODUCTS or not equation.floating:
    return {}
  nothing = jnp.float32(np.inf), jnp.float32(-np.inf)
  return {_name(equation, place): nothing for place in range(2)}


def _combine(a: Extremes, b: Extremes) -> Extremes:
  return {
    name: (jnp.minimum(low, b[name][0]), jnp.maximum(high, b[name][1]))
    for name, (low, high) in a.items()
  }


class _Rule:
  """Rounds operands of products, and says what activations were.

  Attributes:
    activations: Names of the operands that it has seen.
  """

  def __init__(
    self, settings: _Settings, ranges: ActivationRanges | None
  ) -> None:
    self.settings = settings
    self.ranges = ranges
    self.activations: set[str] = set()

  def __call__(
    self, step: interpreter.Step, inputs: Sequence[Any]
  ) -> tuple[Any, Extremes]:
    record = _empty(step)
    if not record or _has_own_derivative(step):
      floats = [
        note
        for note, x in zip(step.notes, inputs, strict=True)
        if programs.is_inexact(x)
      ]
      if step.primitive in _MOVES and set(floats) == {_WEIGHT}:
        step.note(_WEIGHT)
      return step.bind(*inputs), record
    operands = []
    for place, (x, note) in enumerate(zip(inputs, step.notes, strict=True)):
      wide = rounding.checked_array(f'quantization_aware: {step.source}', x)
      if note == _WEIGHT:
        rounded = quantizing.fake_quantize(
          wide, self.settings.weights, axis=_summed(step, place)
        )
      else:
        name = _name(step, place)
        self.activations.add(name)
        fixed = jax.lax.stop_gradient(wide).astype(jnp.float32)
        record[name] = (
          jnp.min(fixed, initial=np.inf),
          jnp.max(fixed, initial=-np.inf),
        )
        rounded = self._activation(wide, name)
      operands.append(rounded.astype(wide.dtype))
    return step.bind(*operands), record

  def _activation(self, x: jax.Array, name: str) -> jax.Array:
    """What storage in the range so far preserves, once there is one."""
    if self.ranges is None:
      return x
    if name not in self.ranges.extremes:
      raise _another_program({name})
    low, high = self.ranges.extremes[name]
    fmt = self.settings.activations
    scale, zero = scaling.affine_scale(low, high, fmt)
    rounded = quantizing.fake_quantize(
      x, fmt, symmetric=False, scale=scale, zero_point=zero
    )
    begun = self.ranges.step >= self.settings.delay
    return jnp.where(begun, rounded, x.astype(jnp.float32))


def _has_own_derivative(step: programs.Equation) -> bool:
  """Whether it is in a function with a derivative of its author's."""
  outer = step.outer
  while outer is not None:
    if outer.primitive.startswith('custom_'):
      return True
    outer = outer.outer
  return False


def _summed(step: programs.Equation, place: int) -> tuple[int, ...]:
  """The axes of an operand that a product adds up."""
  numbers = step.params['dimension_numbers']
  if step.primitive == 'dot_general':
    return tuple(numbers[0][place])
  return tuple((numbers.lhs_spec, numbers.rhs_spec)[place][1:])


def _updated(
  ranges: ActivationRanges, found: Extremes, decay: float
) -> ActivationRanges:
  """The moving average, one step on."""

  def average(old: jax.Array, new: jax.Array) -> jax.Array:
    mixed = np.float32(decay) * old + np.float32(1 - decay) * new
    return jnp.where(ranges.step == 0, new, mixed)

  return ActivationRanges(
    ranges.step + 1, jax.tree.map(average, ranges.extremes, found)
  )


def _another_program(names: set[str]) -> ValueError:
  return ValueError(
    'quantization_aware: the ranges are those of another program, without'
    f' {", ".join(sorted(names))}; init them with the arguments that the'
    ' function has in training.'
  )
