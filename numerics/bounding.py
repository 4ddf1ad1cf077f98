"""Bounds that hold whatever rounding does, by interval arithmetic."""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numerics import interpreter
from numerics import programs

_TINY = np.float32(2.0**-126)
_MAX = np.finfo(np.float32).max
_SPACING = np.float32(2.0**-23)
# Bounds on errors in units in the last place: of correctly rounded operations,
# and of XLA's functions, which are within a few; a test samples them.
_ROUNDED = 1
_FUNCTION = 16


class Interval(NamedTuple):
  """All numbers from `low` to `high`.

  Attributes:
    low: The lower ends.
    high: The upper ends. They are infinite where nothing is known.
  """

  low: Any
  high: Any


def interval(function: Callable[..., Any]) -> Callable[..., Any]:
  """Computes bounds of a function of real numbers.

  For every choice of numbers within the arguments, what the function would be
  without any rounding lies within the result; so do its float32 results. Ends
  are computed in float32 and moved outward by a bound on their own error: half
  a unit in the last place for `+ − × ÷ √`, 16 units for other functions, and
  what sums of any order can be off by (Rump's midpoints and radii for products
  of matrices). Denormals count as anything from zero to their size.

  Bounds are pessimistic where a number appears twice: `x - x` is not 0.

  Args:
    function: Any function that JAX can trace, of operations that are known
      here. Integers are exact; a comparison of overlapping intervals decides
      nothing and is refused, unless it is a selection's condition: then either
      value is possible.

  Returns:
    A function that takes arrays, or `Interval`s of them, and returns
    `Interval`s. It can be compiled.

  Raises:
    NotImplementedError: On a call, for an operation that is not known here.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> third = numerics.interval(lambda x: x / 3)(jnp.float32(1))
    >>> float(third.low) < 1 / 3 < float(third.high)
    True
    >>> wide = numerics.interval(jnp.square)(
    ...   numerics.Interval(jnp.float32(-1), jnp.float32(2))
    ... )
    >>> float(wide.low) <= 0, round(float(wide.high), 3)
    (True, 4.0)

  References:
    Moore, Interval Analysis, 1966.
    Rump, Fast and Parallel Interval Arithmetic, 1999,
      doi:10.1023/A:1022374804152.
  """

  def bounded(*args: Any, **kwargs: Any) -> Any:
    leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=_is_interval)
    values = [
      _lift(leaf) if _is_interval(leaf) else _lift(jnp.asarray(leaf))
      for leaf in leaves
    ]
    arrays = [each.low if _is_interval(each) else each for each in values]
    args, kwargs = jax.tree.unflatten(tree, arrays)
    traced = programs.trace_call(function, args, kwargs)
    frame = interpreter.Frame(
      interpreter.Interpretation(_bound, lift=_lift, lower=_decision)
    )
    outputs = frame.run(traced.program, values)
    return jax.tree.unflatten(traced.structure, outputs)

  return bounded


def _is_interval(x: Any) -> bool:
  return isinstance(x, Interval)


def _lift(x: Any) -> Any:
  """An interval of a floating array, or of what the user says it is."""
  if not _is_interval(x):
    if not programs.is_inexact(x):
      return x
    x = Interval(x, x)
  low, high = (jnp.asarray(each) for each in x)
  if low.dtype != jnp.float32 or high.dtype != jnp.float32:
    raise TypeError(
      f'interval: numbers must be float32, got {low.dtype} and {high.dtype}.'
    )
  unknown = jnp.isnan(low) | jnp.isnan(high)
  low = jnp.where(unknown, -np.inf, low)
  high = jnp.where(unknown, np.inf, high)
  # The backend may take denormals for zeros.
  return Interval(
    jnp.where(_is_denormal(low), jnp.where(_is_negative(low), -_TINY, 0), low),
    jnp.where(
      _is_denormal(high), jnp.where(_is_negative(high), 0, _TINY), high
    ),
  )


def _is_denormal(x: jax.Array) -> jax.Array:
  magnitude = _bits(x) & np.int32(0x7FFFFFFF)
  return (magnitude > 0) & (magnitude < np.int32(0x00800000))


def _is_negative(x: jax.Array) -> jax.Array:
  return _bits(x) < 0


def _bits(x: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(x, jnp.int32)


def _decision(value: Any) -> Any:
  """What decides a branch or a loop, which has to be certain."""
  if _is_interval(value):
    raise NotImplementedError(
      'interval: a branch or a loop is decided by a comparison of real numbers,'
      ' which may go either way; use jnp.where.'
    )
  return value


def _outward(low: Any, high: Any, ulps: int) -> Interval:
  """Moves ends outward by units in the last place, and a denormal or two."""

  def margin(x):
    return jnp.abs(x) * ((ulps + 1) * _SPACING) + 2 * _TINY

  unknown = jnp.isnan(low) | jnp.isnan(high)
  # An end that overflowed is somewhere about the largest number, or beyond.
  low, high = jnp.minimum(low, _MAX), jnp.maximum(high, -_MAX)
  low, high = low - margin(low), high + margin(high)
  return Interval(
    jnp.where(unknown, -np.inf, low), jnp.where(unknown, np.inf, high)
  )


def _corners(operation: Callable[..., Any], x: Interval, y: Interval) -> Any:
  """The ends of what is monotone in each operand."""
  ends = [operation(a, b) for a in x for b in y]
  # 0 · ∞ stands for 0 times a finite number, however large.
  ends = [jnp.where(jnp.isnan(each), 0.0, each) for each in ends]
  low, high = ends[0], ends[0]
  for each in ends[1:]:
    low, high = jnp.minimum(low, each), jnp.maximum(high, each)
  return _outward(low, high, _ROUNDED)


def _add(step, x, y):
  return _outward(x.low + y.low, x.high + y.high, _ROUNDED)


def _subtract(step, x, y):
  return _outward(x.low - y.high, x.high - y.low, _ROUNDED)


def _multiply(step, x, y):
  return _corners(jnp.multiply, x, y)


def _divide(step, x, y):
  quotient = _corners(jnp.divide, x, y)
  crosses = (y.low <= _TINY) & (y.high >= -_TINY)
  return Interval(
    jnp.where(crosses, -np.inf, quotient.low),
    jnp.where(crosses, np.inf, quotient.high),
  )


def _magnitudes(x: Interval) -> Interval:
  crosses = (x.low <= 0) & (x.high >= 0)
  a, b = jnp.abs(x.low), jnp.abs(x.high)
  return Interval(jnp.where(crosses, 0.0, jnp.minimum(a, b)), jnp.maximum(a, b))


def _absolute(step, x):
  return _magnitudes(x)


def _power(step, x):
  exponent = step.params.get('y', 2)
  if exponent < 0:
    one = jnp.ones_like(x.low)
    return _divide(step, Interval(one, one), _raised(x, -exponent))
  return _raised(x, exponent)


def _raised(x: Interval, exponent: int) -> Interval:
  """Powers are as many products; of even ones the magnitude is monotone."""
  ends = _magnitudes(x) if exponent % 2 == 0 else x
  low, high = (jax.lax.integer_pow(end, exponent) for end in ends)
  found = _outward(low, high, 2 * exponent)
  if exponent % 2 == 0:
    return Interval(jnp.maximum(found.low, 0), found.high)
  return found


def _increasing(low: float = -math.inf, high: float = math.inf) -> Any:
  """The rule of an increasing function, given its range."""

  def rule(step, x):
    [first], [second] = step.bind(x.low), step.bind(x.high)
    found = _outward(first, second, _FUNCTION)
    return Interval(jnp.maximum(found.low, low), jnp.minimum(found.high, high))

  return rule


def _decreasing(low: float, high: float) -> Any:
  increasing = _increasing(low, high)
  return lambda step, x: increasing(step, Interval(x.high, x.low))


def _wave(step, x):
  """Of sine and cosine, whose slope is nowhere more than 1."""
  middle = x.low / 2 + x.high / 2
  radius = _outward(0.0, jnp.maximum(x.high - middle, middle - x.low), 4).high
  [value] = step.bind(middle)
  radius = radius + np.float32(2.0**-20)  # Near zeros, errors are absolute.
  found = _outward(value - radius, value + radius, _FUNCTION)
  # The reduction of large arguments is not trusted.
  sure = (jnp.abs(x.low) < 1e4) & (jnp.abs(x.high) < 1e4)
  return Interval(
    jnp.where(sure, jnp.maximum(found.low, -1.0), -1.0),
    jnp.where(sure, jnp.minimum(found.high, 1.0), 1.0),
  )


def _negate(step, x):
  return Interval(-x.high, -x.low)


def _ends(step, *inputs):
  """Does an operation that is monotone in all operands to both ends."""
  ends = zip(
    *(each if _is_interval(each) else (each, each) for each in inputs),
    strict=True,
  )
  [low], [high] = (step.bind(*each) for each in ends)
  return Interval(low, high)


def _sum_error(magnitude: jax.Array, terms: int) -> jax.Array:
  """What a sum is off by, at most, in any order: generously."""
  if terms >= 2**20:
    raise NotImplementedError(
      f'interval: a sum of {terms} terms; 2**20 are the most whose error is'
      ' bounded.'
    )
  return magnitude * (4 * (terms + 2) * _SPACING) + 4 * (terms + 2) * _TINY


def _sum(step, x):
  [low], [high] = step.bind(x.low), step.bind(x.high)
  largest = jnp.maximum(jnp.abs(x.low), jnp.abs(x.high))
  [magnitude] = step.bind(largest)
  axes = step.params.get('axes', (step.params.get('axis'),))
  terms = math.prod(step.inputs[0].shape[axis] for axis in axes)
  error = _sum_error(magnitude, terms)
  return _outward(low - error, high + error, _ROUNDED)


def _dot(step, x, y):
  """Midpoints and radii: m₁m₂ ± (|m₁|r₂ + r₁|m₂| + r₁r₂)."""
  middles, radii = [], []
  for each in (x, y):
    middle = each.low / 2 + each.high / 2
    radius = jnp.maximum(each.high - middle, middle - each.low)
    middles.append(middle)
    radii.append(_outward(0.0, radius, 4).high)

  def product(a, b):
    precision = (jax.lax.Precision.HIGHEST,) * 2
    return step.bind(a, b, precision=precision)[0]

  sizes = [jnp.abs(each) for each in middles]
  (left, _), _ = step.params['dimension_numbers']
  terms = math.prod(step.inputs[0].shape[axis] for axis in left)
  radius = product(sizes[0] + radii[0], radii[1]) + product(radii[0], sizes[1])
  radius = radius + _sum_error(radius, terms)
  middle = product(*middles)
  radius = radius + _sum_error(product(*sizes), terms)
  return _outward(middle - radius, middle + radius, 4)


def _less(step, x, y):
  return Interval(x.high < y.low, ~(x.low >= y.high))


def _less_equal(step, x, y):
  return Interval(x.high <= y.low, ~(x.low > y.high))


def _equal(step, x, y):
  certain = (x.low == x.high) & (y.low == y.high) & (x.low == y.low)
  return Interval(certain, ~((x.high < y.low) | (y.high < x.low)))


def _flipped(rule: Any) -> Any:
  return lambda step, x, y: rule(step, y, x)


def _unequal(step, x, y):
  found = _equal(step, x, y)
  return Interval(~found.high, ~found.low)


def _select(step, which, *cases):
  if not _is_interval(which):
    return _ends(step, which, *cases)
  no, yes = cases
  either = which.low != which.high
  low = jnp.where(which.low, yes.low, no.low)
  high = jnp.where(which.low, yes.high, no.high)
  return Interval(
    jnp.where(either, jnp.minimum(no.low, yes.low), low),
    jnp.where(either, jnp.maximum(no.high, yes.high), high),
  )


# The ends of a comparison are whether it holds for certain, and possibly.
_RULES: dict[str, Any] = {
  **dict.fromkeys(('add', 'add_any'), _add),
  'sub': _subtract,
  'mul': _multiply,
  'div': _divide,
  'neg': _negate,
  'abs': _absolute,
  **dict.fromkeys(('square', 'integer_pow'), _power),
  **{name: _increasing(0.0) for name in ('sqrt', 'exp', 'exp2')},
  **{name: _increasing() for name in ('log', 'log1p', 'cbrt', 'sinh')},
  'expm1': _increasing(-1.0),
  **{name: _increasing(-1.0, 1.0) for name in ('tanh', 'erf')},
  'logistic': _increasing(0.0, 1.0),
  'atan': _increasing(),
  'rsqrt': _decreasing(0.0, math.inf),
  'erfc': _decreasing(0.0, 2.0),
  **dict.fromkeys(('sin', 'cos'), _wave),
  **dict.fromkeys(('reduce_sum', 'cumsum'), _sum),
  'dot_general': _dot,
  'lt': _less,
  'le': _less_equal,
  'gt': _flipped(_less),
  'ge': _flipped(_less_equal),
  'eq': _equal,
  'ne': _unequal,
  'not': lambda step, x: Interval(~x.high, ~x.low),
  'select_n': _select,
  **dict.fromkeys(
    [
      *('and', 'or', 'max', 'min', 'clamp', 'reduce_max', 'reduce_min'),
      *('cummax', 'cummin', 'reduce_and', 'reduce_or', 'floor', 'ceil'),
      *('broadcast_in_dim', 'concatenate', 'copy', 'copy_p', 'dynamic_slice'),
      *('dynamic_update_slice', 'gather', 'pad', 'reshape', 'rev', 'scatter'),
      *('slice', 'squeeze', 'transpose', 'convert_element_type', 'sign'),
      *('stop_gradient', 'name', 'pvary', 'sharding_constraint'),
    ],
    _ends,
  ),
}


def _bound(step: interpreter.Step, inputs: Sequence[Any]) -> Any:
  """The rule: bounds of an operation's results."""
  if not any(map(_is_interval, inputs)):
    outputs = [_lift(x) for x in step.bind(*inputs)]
    if step.primitive == 'convert_element_type' and step.floating:
      outputs = [_outward(x.low, x.high, _ROUNDED) for x in outputs]
    return outputs
  rule = _RULES.get(step.primitive)
  kinds = {output.dtype for output in step.outputs}
  if rule is None or not kinds <= {np.dtype(np.float32), np.dtype(np.bool_)}:
    raise NotImplementedError(
      f'interval: no bounds are known of {step.primitive} at {step.source},'
      f' which gives {step.outputs[0].str_short()}.'
    )
  return [rule(step, *inputs)]
