"""Block formats: neighbours in a narrow format that share a scale."""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from numerics import fixed_point
from numerics import formats
from numerics import grouping
from numerics import number_format
from numerics import rounding

Rule = typing.Literal['floor', 'ceil', 'rceil', 'even', 'midmax', 'nearest']
RULES: tuple[str, ...] = typing.get_args(Rule)

_LARGEST = np.finfo(np.float32).max
_FRACTION = 2**23 - 1


@dataclasses.dataclass(frozen=True)
class BlockFormat:
  """Blocks of numbers in a narrow format, times a scale for each block.

  Blocks lie along one axis, and the last of a row may be shorter; none goes on
  in the next row. A number `x` of a block with the largest magnitude `amax`
  becomes

      scale · round(x / scale),   the element format saturating.

  Where the scale is a power of two, of eight bits (E8M0), its exponent is
  `floor(log2 amax) − emax`, with the `emax` of the element format, so that the
  largest magnitude is in the last binade of the format; or one more, as the
  rule says: with `M` the largest value of the format,

  * `'floor'`: never. This is what OCP recommends; the largest numbers of a
    block saturate if they are beyond `M` times the scale.
  * `'ceil'`: if `amax` is not a power of two.
  * `'rceil'`: if it is beyond `M` times the scale, so that nothing saturates
    and no range is wasted: `ceil(log2(amax / M))`.
  * `'even'`: if rounding its significand to the precision of the format does.
  * `'midmax'`: if it is nearer to the next power of two than to `M` times the
    scale, which makes its own error the least.

  Where it is in a format of its own, it is `amax / M`, rounded to nearest
  (`'nearest'`), and there may be a float32 scale for all blocks besides, which
  maps the largest of them to the largest scale.

  A block of zeros stays one. A block with an infinity or a NaN becomes NaN,
  since no scale can store it. Float32 denormals count as zero, and nothing
  becomes larger than float32 is.

  Attributes:
    element: The format of an element.
    size: How many of them share a scale; None: all along the axis, or of the
      array; of an operand of a product always of the array.
    scale: The format of scales; None for powers of two from 2**-127 to 2**127.
    rule: As above.
    tensor_scale: Whether there is a scale for all blocks besides, from 2**-116
      on. Of a function that is mapped and then emulated, they are those of the
      whole batch.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If fields contradict each other.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([957.0, 100.0, 3.0, -0.5])
    >>> numerics.fake_quantize(x, numerics.mxfp8_e4m3, axis=-1).tolist()
    [896.0, 96.0, 3.0, -0.5]
    >>> import dataclasses
    >>> careful = dataclasses.replace(numerics.mxfp8_e4m3, rule='rceil')
    >>> numerics.fake_quantize(x, careful, axis=-1).tolist()
    [960.0, 96.0, 3.0, -0.5]
    >>> numerics.mxfp4_e2m1.bits_per_value, numerics.nvfp4.bits_per_value
    (4.25, 4.5)

  References:
    Rouhani et al., Microscaling Data Formats for Deep Learning, 2023,
      arXiv:2310.10537.
    Open Compute Project, OCP Microscaling Formats (MX) Specification 1.0, 2023.
    NVIDIA, Pretraining Large Language Models with NVFP4, 2025,
      arXiv:2509.25149.
    Das et al., Mixed Precision Training of Convolutional Neural Networks using
      Integer Operations, 2018, arXiv:1802.00930 (dynamic fixed point).
  """

  element: number_format.NumberFormat
  size: int | None = 32
  scale: formats.Format | None = None
  rule: Rule = 'floor'
  tensor_scale: bool = False

  def __post_init__(self) -> None:
    rounding.checked_format('BlockFormat: element', self.element)
    if self.element.overflow != 'saturate':
      saturating = dataclasses.replace(
        typing.cast('formats.Format', self.element), overflow='saturate'
      )
      object.__setattr__(self, 'element', saturating)
    if self.element.significant_bits > 16:
      raise ValueError(
        f'BlockFormat: element {self.element.name} has more than 16 significant'
        ' bits; take a narrower one.'
      )
    if self.size is not None:
      number_format.check_int('BlockFormat', 'size', self.size, 1, 2**31 - 1)
    if not isinstance(self.scale, formats.Format | None):
      raise TypeError(
        'BlockFormat: scale must be a numerics.Format, or None for powers of'
        f' two; got {self.scale!r}.'
      )
    number_format.check_choice('BlockFormat', 'rule', self.rule, RULES)
    number_format.check_bool('BlockFormat', 'tensor_scale', self.tensor_scale)
    if (self.scale is None) == (self.rule == 'nearest'):
      raise ValueError(
        f'BlockFormat: rule={self.rule!r} is for'
        f' {"scales in a format" if self.scale is None else "powers of two"};'
        " pass rule='nearest' with scale=…, and another without."
      )
    if self.tensor_scale and self.scale is None:
      raise ValueError(
        'BlockFormat: tensor_scale=True is for blocks with a scale in a format;'
        ' pass scale=….'
      )

  @property
  def name(self) -> str:
    """The preset's name, or one built of its parts."""
    plain = self if self.scale else dataclasses.replace(self, rule='floor')
    name = _PRESET_NAMES.get(plain)
    if name is None:
      scale = self.scale.name if self.scale else 'e8m0'
      scale += '_tensor' if self.tensor_scale else ''
      name = f'block{self.size or ""}_{self.element.name}_{scale}'
    return name if self.rule in ('floor', 'nearest') else f'{name}_{self.rule}'

  @property
  def bits(self) -> int:
    """Width of an element."""
    return self.element.bits

  @property
  def bits_per_value(self) -> float:
    """Width of an element and its share of the scale of its block."""
    scale = self.scale.bits if self.scale else 8
    return self.element.bits + (scale / self.size if self.size else 0)

  @property
  def uniform(self) -> bool:
    """Whether elements are integers or fixed-point numbers."""
    return self.element.uniform

  @property
  def significant_bits(self) -> int:
    """Significant bits of a value; 24 if a scale is no power of two."""
    return self.element.significant_bits if self.scale is None else 24


def fake_quantize(
  x: jax.Array,
  fmt: BlockFormat,
  axes: tuple[int, ...] | None,
  mode: rounding.Mode,
  key: jax.Array | None,
  mask: bool = False,
) -> jax.Array:
  """What storage in a block format preserves of an array.

  Args:
    x: float32, bfloat16 or float16.
    fmt: The format.
    axes: Those along which blocks lie, as if they were one, from 0 on; None:
      all.
    mode: The direction of rounding.
    key: For stochastic modes.
    mask: Whether the derivative is 0 where an element saturates.

  Returns:
    float32 of the shape of `x`.
  """
  if axes is not None and len(axes) == 1:
    return _fake_quantize(x, key, fmt, axes[0], mode, mask)
  axes = tuple(range(x.ndim)) if axes is None else axes
  kept = [axis for axis in range(x.ndim) if axis not in axes]
  order = (*kept, *axes)
  moved = x.transpose(order)
  flat = moved.reshape(*moved.shape[: len(kept)], -1)
  found = _fake_quantize(flat, key, fmt, len(kept), mode, mask)
  return found.reshape(moved.shape).transpose(np.argsort(order))


@functools.partial(jax.jit, static_argnames=('fmt', 'axis', 'mode', 'mask'))
def _fake_quantize(
  x: jax.Array,
  key: jax.Array | None,
  fmt: BlockFormat,
  axis: int,
  mode: rounding.Mode,
  mask: bool,
) -> jax.Array:
  length = x.shape[axis]
  wide = jax.lax.stop_gradient(x.astype(jnp.float32))
  split = grouping.split(wide, axis, fmt.size or max(1, length))
  amax = jnp.max(jnp.abs(split), axis + 1, keepdims=True, initial=0.0)
  shared = _scaled_by_powers if fmt.scale is None else _scaled_by_numbers
  scaled, restore = shared(split, amax, fmt)
  stored = rounding.round_to(scaled, fmt.element, mode=mode, key=key)
  values = jnp.clip(restore(stored), -_LARGEST, _LARGEST)
  values = jnp.where(amax < np.inf, values, np.nan)
  if mask:
    element = fmt.element
    half = 2.0 ** (element.emax - element.significant_bits)
    low, high = np.float32(element.min - half), np.float32(element.max + half)
    inside = grouping.join((scaled >= low) & (scaled <= high), axis, length)
    x = jnp.where(inside, x, jax.lax.stop_gradient(x))
  return rounding.straight_through(x, grouping.join(values, axis, length))


Restore = typing.Callable[[jax.Array], jax.Array]


def _scaled_by_powers(
  x: jax.Array, amax: jax.Array, fmt: BlockFormat
) -> tuple[jax.Array, Restore]:
  """Elements to be rounded, and what makes values of them."""
  exponent = shared_exponent(amax, fmt)
  return (
    times_power(x, -exponent),
    lambda stored: times_power(stored, exponent),
  )


def shared_exponent(amax: jax.Array, fmt: BlockFormat) -> jax.Array:
  """The exponents of scales that are powers of two.

  Args:
    amax: float32, the largest magnitudes of blocks.
    fmt: The format.

  Returns:
    int32, from −127 to 127.
  """
  exponent = rounded_log2(amax, _threshold(fmt.element, fmt.rule))
  return jnp.clip(exponent - np.int32(fmt.element.emax), -127, 127)


def rounded_log2(x: jax.Array, last: int) -> jax.Array:
  """The logarithm of a positive float32, as an integer.

  Args:
    x: float32; of denormals and 0 it is some number below −126.
    last: The last fraction, as a pattern of 23 bits, that is rounded down.

  Returns:
    int32.
  """
  pattern = jax.lax.bitcast_convert_type(x, jnp.int32)
  # A fraction beyond the last carries into the exponent.
  return ((pattern + np.int32(_FRACTION - last)) >> 23) - np.int32(127)


def times_power(x: jax.Array, exponent: jax.Array) -> jax.Array:
  """Multiplies by two to an exponent, from −127 to 127."""
  # Twice by half of it: powers of two beyond float32's normal ones are flushed.
  first = exponent >> 1
  return (x * _power(first)) * _power(exponent - first)


def fraction(value: float) -> int:
  """The fraction of a float32, as a pattern of 23 bits."""
  return int(np.float32(value).view(np.int32)) & _FRACTION


def _threshold(element: number_format.NumberFormat, rule: str) -> int:
  """The last fraction of `amax`, as a pattern, that keeps the exponent."""
  ends = 2.0 ** (element.emax + 1)
  return {
    'floor': _FRACTION,
    'ceil': 0,
    'rceil': fraction(element.max),
    'even': _FRACTION - 2 ** (23 - element.significant_bits),
    'midmax': fraction((element.max + ends) / 2),
  }[rule]


def _power(exponent: jax.Array) -> jax.Array:
  """Two to an exponent, of a normal float32."""
  return jax.lax.bitcast_convert_type(
    (exponent + np.int32(127)) << 23, jnp.float32
  )


def _scaled_by_numbers(
  x: jax.Array, amax: jax.Array, fmt: BlockFormat
) -> tuple[jax.Array, Restore]:
  """Elements to be rounded, and what makes values of them."""
  assert fmt.scale is not None
  wanted = amax * np.float32(1 / fmt.element.max)
  if fmt.tensor_scale:
    finite = jnp.where(wanted < np.inf, wanted, 0)  # One block spoils no other.
    whole = jnp.max(finite, initial=0.0) * np.float32(1 / fmt.scale.max)
    whole = jnp.maximum(whole, np.float32(2.0**-116))
    wanted = wanted * (1 / whole)
  else:
    whole = jnp.float32(1)
  wanted = jnp.clip(wanted, 0, np.float32(fmt.scale.max))
  scale = rounding.round_to(wanted, fmt.scale)
  total = scale * whole
  inverse = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
  return x * inverse, lambda stored: (stored * scale) * whole


def checked_matmul_axes(
  where: str,
  fmt: BlockFormat,
  primitive: str,
  params: dict[str, typing.Any],
  place: int,
) -> tuple[int, ...]:
  """The axes that a product of an operand adds up, along which blocks lie.

  Raises:
    ValueError: If the operation is no product of matrices, or a ragged one.
  """
  if primitive == 'dot_general':
    return tuple(params['dimension_numbers'][0][place])
  if primitive == 'conv_general_dilated':
    numbers = params['dimension_numbers']
    return ((numbers.lhs_spec, numbers.rhs_spec)[place][1],)
  raise ValueError(
    f'emulate: blocks of {fmt.name} lie along the axis that a product of'
    f' matrices adds up, but {primitive} at {where} is none; say'
    ' Policy(matmul=…), or name another format for it.'
  )


def size_in_bits(fmt: typing.Any, count: int) -> int:
  """What numbers in a format of either kind take, scales included."""
  per_value = fmt.bits_per_value if isinstance(fmt, BlockFormat) else fmt.bits
  return math.ceil(per_value * count)


# The formats of OCP, with the scale that it recommends.
mxfp8_e5m2 = BlockFormat(formats.float8_e5m2)
mxfp8_e4m3 = BlockFormat(formats.float8_e4m3fn)
mxfp6_e3m2 = BlockFormat(formats.float6_e3m2fn)
mxfp6_e2m3 = BlockFormat(formats.float6_e2m3fn)
mxfp4_e2m1 = BlockFormat(formats.float4_e2m1fn)
mxint8 = BlockFormat(fixed_point.FixedPoint(8, 6))

# A scale in FP8 for 16 elements, and one in float32 for the tensor.
nvfp4 = BlockFormat(
  formats.float4_e2m1fn, 16, formats.float8_e4m3fn, 'nearest', True
)

# Dynamic fixed point: an exponent for the tensor.
dfp16 = BlockFormat(fixed_point.int16, None)

_PRESET_NAMES = {
  value: name
  for name, value in list(globals().items())
  if isinstance(value, BlockFormat)
}
