"""Rounding of float32 arrays to any format, in integer arithmetic."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from numerics import formats
from numerics import noise
from numerics import number_format

Mode = typing.Literal[
  'nearest_even',
  'nearest_away',
  'nearest_zero',
  'toward_zero',
  'up',
  'down',
  'to_odd',
  'stochastic',
  'stochastic_equal',
]
MODES: tuple[str, ...] = typing.get_args(Mode)
STOCHASTIC_MODES = ('stochastic', 'stochastic_equal')

# Fields of a float32, as a bit pattern.
_SIGN = np.uint32(0x80000000)
_HIDDEN = np.uint32(0x00800000)
_FRACTION = np.uint32(0x007FFFFF)
_INF = np.uint32(0x7F800000)
_NAN = np.uint32(0x7FC00000)
_ZERO = np.uint32(0)
_ONE = np.uint32(1)

# The 16-bit dtypes that are accepted besides float32, as formats.
_NARROW_DTYPES = {
  jnp.dtype(jnp.bfloat16): formats.bfloat16,
  jnp.dtype(jnp.float16): formats.float16,
}


def round_to(
  x: jax.typing.ArrayLike,
  fmt: number_format.NumberFormat,
  *,
  mode: Mode = 'nearest_even',
  key: jax.Array | None = None,
) -> jax.Array:
  """Rounds every element to a value of a format.

  The result is exact for every input: float32 denormals, subnormals of the
  format, ties, and the carry into overflow included. All arithmetic is on bit
  patterns, so that no backend's flushing of denormals or choice of excess
  precision can change it; `jit`, `vmap`, `scan` and eager execution agree bit
  for bit.

  Let `lo <= |x| <= hi` be the neighbours of `|x|` in the format, continued
  beyond its largest value as if the exponent were unbounded. `|x|` goes to

  * `'nearest_even'`: the nearer; on a tie the one with the even code.
  * `'nearest_away'`, `'nearest_zero'`: the nearer; on a tie `hi`, `lo`.
  * `'toward_zero'`: `lo`.
  * `'up'`, `'down'`: the one toward +inf, toward −inf.
  * `'to_odd'`: the one with the odd code (`hi` if neither has, next to zero in
    formats without subnormals). Rounding to nearest afterwards, to a format of
    at least two bits less, is then as good as rounding once.
  * `'stochastic'`: `hi` with probability `(|x| - lo) / (hi - lo)`, which makes
    the expectation `|x|`. The probability is exact in multiples of 2**-31, to
    which smaller ones are rounded down.
  * `'stochastic_equal'`: either, with probability 1/2.

  Values of the format are kept in every mode. What is then beyond the largest
  value becomes what `fmt.overflow` says; `'toward_zero'`, `'to_odd'` (as in
  Arm's FCVTXN, RISC-V's vfncvt.rod and SoftFloat) and the directed mode that
  points to zero end at the largest value instead. Infinities stay in formats
  that have them, unless `fmt.overflow` is `'saturate'`; in other formats they
  overflow in every mode. A NaN stays NaN, quiet and without payload, even in
  formats that lack it: the carrier keeps the mistake visible. −0 keeps its
  sign where the format has −0. What wraps does so after rounding in any mode.

  Without subnormals, zero and `fmt.min_normal` are neighbours like any other
  two (this is not a flush to zero, which would break directed rounding).

  The derivative is the straight-through estimator: the identity everywhere,
  beyond the largest value too, for forward and reverse mode and any order.

  Args:
    x: float32, bfloat16 or float16 of any shape; widened exactly. Wider floats
      and integers are refused, because narrowing them to float32 first would
      round twice.
    fmt: The format to round to, a `Format` or a `FixedPoint`.
    mode: The direction of rounding, as above.
    key: A PRNG key, for the stochastic modes and only for them. Under `vmap`
      an unbatched key gives every member the same draws.

  Returns:
    Values of `fmt`, of the shape of `x`. The dtype is that of `x` where it
    holds every value of `fmt`, otherwise float32.

  Raises:
    TypeError: If `x` has another dtype, or `fmt` or `key` another type.
    ValueError: If `mode` is unknown, or if `key` is missing or superfluous.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([0.3, 17.0, -460.0, 1000.0])
    >>> numerics.round_to(x, numerics.float8_e4m3fn).tolist()
    [0.3125, 16.0, -448.0, nan]
    >>> numerics.round_to(
    ...   x, numerics.float8_e4m3fn, mode='toward_zero'
    ... ).tolist()
    [0.28125, 16.0, -448.0, 448.0]
    >>> key = jax.random.key(0)
    >>> noisy = round_to(
    ...   jnp.full(1000, 0.3),
    ...   formats.float4_e2m1fn,
    ...   mode='stochastic',
    ...   key=key,
    ... )
    >>> sorted(set(noisy.tolist())), round(float(noisy.mean()), 2)
    ([0.0, 0.5], 0.3)
    >>> float(
    ...   jax.grad(lambda x: numerics.round_to(x, numerics.float16) ** 2)(
    ...     3.0001
    ...   )
    ... )
    6.0

  References:
    Higham and Pranesh, Simulating Low Precision Floating-Point Arithmetic,
      2019, doi:10.1137/19M1251308.
    Boldo and Melquiond, Emulation of a FMA and Correctly Rounded Sums: Proved
      Algorithms Using Rounding to Odd, 2008, doi:10.1109/TC.2007.70819.
    Croci et al., Stochastic Rounding: Implementation, Error Analysis and
      Applications, 2022, doi:10.1098/rsos.211631.
    Bengio, Léonard and Courville, Estimating or Propagating Gradients Through
      Stochastic Neurons for Conditional Computation, 2013, arXiv:1308.3432.
  """
  x = checked_array('round_to', x)
  checked_format('round_to', fmt)
  if mode not in MODES:
    raise ValueError(
      f'round_to: mode must be one of {", ".join(MODES)}; got {mode!r}.'
    )
  if mode in STOCHASTIC_MODES:
    key = _checked_key(mode, key)
  elif key is not None:
    raise ValueError(
      f'round_to: mode={mode!r} draws nothing; drop key, or pass mode='
      "'stochastic'."
    )
  return _round_to(x, key, fmt, mode)


def ulp(x: jax.typing.ArrayLike, fmt: number_format.NumberFormat) -> jax.Array:
  """The spacing of a format's values at each element.

  The unit in the last place, by which errors of rounding are measured: with
  `E = floor(log2 |x|)` clipped to `[fmt.emin, fmt.emax]`,

      ulp(x) = 2**(E - fmt.mantissa_bits).

  At a power of two it is the spacing above. Rounding to nearest errs by at most
  half of it up to `fmt.max`. Formats without subnormals have the spacing
  `fmt.min_normal` below it, and fixed-point ones `fmt.step` everywhere.

  Args:
    x: float32, bfloat16 or float16 of any shape.
    fmt: The format.

  Returns:
    float32 of the shape of `x`; NaN where `x` is not finite.

  Raises:
    TypeError: If `x` has another dtype, or `fmt` another type.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> numerics.ulp(
    ...   jnp.array([0.0, 1.0, 1.9, 2.0]), numerics.float8_e4m3fn
    ... ).tolist()
    [0.001953125, 0.125, 0.125, 0.25]

  References:
    Goldberg, What Every Computer Scientist Should Know About Floating-Point
      Arithmetic, 1991, doi:10.1145/103162.103163.
  """
  return _ulp(checked_array('ulp', x), checked_format('ulp', fmt))


@jax.custom_jvp
def straight_through(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns `y`, with the derivative of `x`."""
  del x
  return y


@straight_through.defjvp
def _straight_through_jvp(
  primals: tuple[jax.Array, jax.Array],
  tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  x, y = primals
  return straight_through(x, y), tangents[0].astype(y.dtype)


def checked_array(function: str, x: object) -> jax.Array:
  """Returns `x` as a JAX array, if its dtype widens exactly to float32."""
  dtype = getattr(x, 'dtype', None)
  if dtype != jnp.float32 and dtype not in _NARROW_DTYPES:
    raise TypeError(
      f'{function}: x must be an array of float32, bfloat16 or float16, got'
      f' {type(x).__name__ if dtype is None else dtype}. Narrowing anything'
      ' else to float32 may round twice; where that is fine, pass'
      ' jnp.asarray(x, jnp.float32).'
    )
  return jnp.asarray(x)


def checked_format(function: str, fmt: object) -> number_format.NumberFormat:
  """Returns `fmt`, if it is a format of numbers."""
  if not isinstance(fmt, number_format.NumberFormat):
    blocked = ''
    if hasattr(fmt, 'element'):
      blocked = (
        ' Blocks lie along an axis: numerics.fake_quantize(x, fmt, axis=…).'
      )
    raise TypeError(
      f'{function}: fmt must be a numerics.Format such as'
      ' numerics.float8_e4m3fn, or a numerics.FixedPoint such as'
      f' numerics.int8; got {fmt!r} of type {type(fmt).__name__}.{blocked}'
    )
  return fmt


def _checked_key(mode: str, key: jax.Array | None) -> jax.Array:
  """Returns a scalar typed key."""
  if key is None:
    raise ValueError(
      f'round_to: mode={mode!r} needs key=jax.random.key(seed), a fresh one'
      ' for every call.'
    )
  if not isinstance(key, jax.Array):
    raise TypeError(
      'round_to: key must be a PRNG key such as jax.random.key(seed), got'
      f' {key!r} of type {type(key).__name__}.'
    )
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  if key.shape:
    raise ValueError(
      f'round_to: key must be a single key, got a batch of shape {key.shape};'
      ' use jax.vmap over x and keys.'
    )
  return key


@functools.partial(jax.jit, static_argnames=('fmt', 'mode'))
def _round_to(
  x: jax.Array,
  key: jax.Array | None,
  fmt: number_format.NumberFormat,
  mode: Mode,
) -> jax.Array:
  random = None if key is None else noise.random_bits(key, x.shape)
  rounded = _round_bits(_to_bits(x), fmt, mode, random)
  dtype = x.dtype if _holds(x.dtype, fmt) else jnp.dtype(jnp.float32)
  return straight_through(x, _from_bits(rounded, dtype))


@functools.partial(jax.jit, static_argnames='fmt')
def _ulp(x: jax.Array, fmt: number_format.NumberFormat) -> jax.Array:
  magnitude = _to_bits(x) & ~_SIGN
  if fmt.uniform:
    spacing = jnp.full_like(magnitude, _pattern(fmt.min_positive))
  else:
    spacing = _growing_spacing(magnitude, fmt)
  spacing = jnp.where(magnitude >= _INF, _NAN, spacing)
  return _from_bits(spacing, jnp.dtype(jnp.float32))


def _growing_spacing(
  magnitude: jax.Array, fmt: number_format.NumberFormat
) -> jax.Array:
  """The pattern of the spacing, in a format where it grows with the value."""
  field = jnp.clip(
    (magnitude >> np.uint32(23)).astype(jnp.int32),
    np.int32(fmt.emin + 127),
    np.int32(fmt.emax + 127),
  ) - np.int32(fmt.significant_bits - 1)
  spacing = jnp.where(
    field >= 1,
    field << np.int32(23),
    np.int32(1) << jnp.clip(field + np.int32(22), 0, 22),  # A denormal.
  ).astype(jnp.uint32)
  if fmt.subnormals:
    return spacing
  min_normal = _pattern(fmt.min_positive)
  return jnp.where(magnitude < min_normal, min_normal, spacing)


def _holds(dtype: jnp.dtype, fmt: number_format.NumberFormat) -> bool:
  """Whether every value of the format is one of the dtype."""
  if dtype == jnp.float32:
    return True
  return _NARROW_DTYPES[dtype].contains(fmt)


def _to_bits(x: jax.Array) -> jax.Array:
  """The uint32 pattern of the elements, widened to float32."""
  if x.dtype == jnp.bfloat16:  # By hand, since denormals must survive.
    halves = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return halves.astype(jnp.uint32) << np.uint32(16)
  return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)


def _from_bits(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """The values of uint32 patterns of float32 that `dtype` holds."""
  if dtype == jnp.bfloat16:
    halves = (bits >> np.uint32(16)).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(halves, dtype)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)


def _pattern(value: float) -> np.uint32:
  """The float32 pattern of a number that float32 holds."""
  return np.float32(value).view(np.uint32)


def _round_bits(
  bits: jax.Array,
  fmt: number_format.NumberFormat,
  mode: Mode,
  random: jax.Array | None,
) -> jax.Array:
  """Rounds float32 patterns to patterns of values of the format.

  The significand, an integer of 24 bits, is split at the last place of the
  format: `significand = quotient * step + rest`, `step = 2**shift`. Since the
  exponent field lies directly above the fraction, adding `step` to the pattern
  is adding one unit in the last place, and a carry moves to the next binade by
  itself. This holds down to the smallest positive value of the format, whose
  leading bit is its last place; below it the neighbours are that value and
  zero. Where values are evenly spaced, their step is everywhere what it is next
  to zero, down to the last place of float32.
  """
  m = 23 if fmt.uniform else fmt.significant_bits - 1
  sign = bits & _SIGN
  negative = sign != 0
  magnitude = bits & ~_SIGN
  # Float32 denormals have field 0, the exponent of field 1 and no hidden bit.
  field = jnp.maximum(magnitude >> np.uint32(23), _ONE).astype(jnp.int32)
  significand = jnp.minimum(magnitude, magnitude & _FRACTION | _HIDDEN)

  min_normal = _pattern(2.0**fmt.emin)
  smallest = _pattern(fmt.min_positive)
  # The step of a normal number is 2**(23 - m); where values are spaced evenly
  # towards zero it doubles with every binade down.
  lowest = (fmt.last_place if fmt.subnormals else fmt.emin) + 127
  shift = np.int32(23 + lowest) - field
  if fmt.subnormals:
    shift = jnp.maximum(shift, np.int32(23 - m))
  else:
    shift = jnp.where(magnitude < min_normal, shift, np.int32(23 - m))
  rest = significand
  if mode == 'stochastic':  # The other modes need no more than rest < step / 2.
    rest = rest >> jnp.clip(shift - 31, 0, 31).astype(jnp.uint32)
  step = _ONE << jnp.minimum(shift, 31).astype(jnp.uint32)
  rest = rest & (step - _ONE)
  if m:
    odd = (significand & step) != 0
  else:  # The last bit of the code is that of the format's exponent field.
    odd = ((field + np.int32(fmt.emin)) & 1) != 0
    odd = odd & (magnitude >= min_normal)

  lower = magnitude & ~(step - _ONE)
  if lowest > 1:  # Otherwise the smallest value is no larger than 2**-126.
    below = magnitude < smallest
    lower = jnp.where(below, _ZERO, lower)
    step_up = jnp.where(below, smallest, step)
  else:
    step_up = step
  away = _away(mode, rest, step, odd, negative, random)
  rounded = lower + jnp.where(away, step_up, _ZERO)

  if fmt.overflow == 'wrap':
    return jnp.where(
      magnitude < _INF, _wrapped(rounded, sign, fmt), _NAN | sign
    )
  largest: jax.Array | np.uint32 = _pattern(fmt.max)
  if fmt.min != -fmt.max:
    largest = jnp.where(negative, _pattern(abs(fmt.min)), largest)
  rounded = jnp.where(
    rounded > largest,
    _beyond(fmt, mode, magnitude, negative, largest),
    rounded,
  )
  rounded = jnp.where(magnitude > _INF, _NAN, rounded)
  if not fmt.negative_zero:
    sign = jnp.where(rounded == 0, _ZERO, sign)
  return rounded | sign


def _away(
  mode: Mode,
  rest: jax.Array,
  step: jax.Array,
  odd: jax.Array,
  negative: jax.Array,
  random: jax.Array | None,
) -> jax.Array:
  """Whether to go to the neighbour farther from zero."""
  if mode == 'nearest_even':
    return rest + rest + odd.astype(jnp.uint32) > step
  if mode == 'nearest_away':
    return rest + rest >= step
  if mode == 'nearest_zero':
    return rest + rest > step
  if mode == 'toward_zero':
    return jnp.zeros_like(negative)
  if mode == 'up':
    return (rest != 0) & ~negative
  if mode == 'down':
    return (rest != 0) & negative
  if mode == 'to_odd':
    return (rest != 0) & ~odd
  assert random is not None
  if mode == 'stochastic':
    return (random & (step - _ONE)) < rest
  return (rest != 0) & (random >= _SIGN)


def _wrapped(
  rounded: jax.Array, sign: jax.Array, fmt: number_format.NumberFormat
) -> jax.Array:
  """The value that is congruent to a multiple of the step."""
  field = jnp.maximum(rounded >> np.uint32(23), _ONE).astype(jnp.int32)
  significand = jnp.minimum(rounded, rounded & _FRACTION | _HIDDEN)
  # How far its last place is from that of the format; what a shift to the left
  # loses is a multiple of 2**bits, and one to the right loses nothing.
  places = field - np.int32(150 + fmt.last_place)
  code = jnp.where(
    places >= 0,
    significand << jnp.clip(places, 0, 31).astype(jnp.uint32),
    significand >> jnp.clip(-places, 0, 31).astype(jnp.uint32),
  )
  code = jnp.where(sign != 0, _ZERO - code, code)
  unused = np.uint32(32 - fmt.bits)
  code = code << unused
  if fmt.min < 0:
    units = code.astype(jnp.int32) >> unused.astype(np.int32)
  else:
    units = (code >> unused).astype(jnp.int32)
  value = units.astype(jnp.float32) * np.float32(fmt.min_positive)
  return jax.lax.bitcast_convert_type(value, jnp.uint32)


def _beyond(
  fmt: number_format.NumberFormat,
  mode: Mode,
  magnitude: jax.Array,
  negative: jax.Array,
  largest: jax.Array | np.uint32,
) -> jax.Array | np.uint32:
  """What a magnitude beyond the largest value becomes."""
  overflow = {'inf': _INF, 'nan': _NAN, 'saturate': largest}[fmt.overflow]
  if mode in ('toward_zero', 'to_odd'):
    return jnp.where(magnitude < _INF, largest, overflow)
  if mode == 'up':
    return jnp.where((magnitude < _INF) & negative, largest, overflow)
  if mode == 'down':
    return jnp.where((magnitude < _INF) & ~negative, largest, overflow)
  return overflow
