"""Running a function in a wider dtype, to see what its own costs."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numerics import _compat
from numerics import interpreter
from numerics import primitives
from numerics import programs

# What these compute is about bits, or a rounding that somebody asked for.
_AS_WRITTEN = frozenset(
  ['bitcast_convert_type', 'nextafter', 'reduce_precision', 'rng_uniform']
)
# Their results are of the kind they are asked for.
_DTYPES = ('dtype', 'new_dtype', 'preferred_element_type')


def promote(
  function: Callable[..., Any],
  dtype: Any = jnp.float32,
  *,
  static_argnums: int | Sequence[int] = (),
  static_argnames: str | Sequence[str] = (),
) -> Callable[..., Any]:
  """Runs a function in a wider dtype.

  Arguments, constants and results of operations that are narrower than `dtype`
  are of `dtype` instead: conversions to narrow dtypes do nothing, and products
  of matrices accumulate, at the highest precision of the device, in `dtype`. So
  a model in bfloat16 has its own reference in float32, and one in float32 in
  float64. It keeps what is wider, integers, and constants as the function has
  rounded them.

  What is about bits stays as it is written, on operands rounded to their own
  dtype: `bitcast_convert_type`, `nextafter`, `reduce_precision`, random draws,
  and operations that are not known here, such as kernels of Pallas. So what
  `emulate` rounds remains rounded.

  Derivatives are in `dtype` too, authors' own among them (`jax.custom_jvp`,
  `jax.custom_vjp`).

  Args:
    function: Any function of trees of arrays that `jax.jit` takes.
    dtype: float32 or float64; the latter within `jax.enable_x64()`.
    static_argnums: Arguments that are not arrays, as for `jax.jit`.
    static_argnames: Keyword arguments that are not arrays.

  Returns:
    A function compiled as by `jax.jit`, of the same arguments, whose floating
    results have at least `dtype`, and complex ones its precision.

  Raises:
    ValueError: If dtype is another; on a call, if it is float64 and JAX is not
      to use it.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> def mean_square(x):
    ...   return jnp.mean(x * x)
    >>> x = jnp.linspace(0, 1, 9, dtype=jnp.bfloat16)
    >>> mean_square(x), numerics.promote(mean_square)(x)
    (Array(0.353516, dtype=bfloat16), Array(0.35416666, dtype=float32))
    >>> with jax.enable_x64():
    ...   print(numerics.promote(lambda x: x / 3, jnp.float64)(jnp.float32(1)))
    0.3333333333333333
  """
  dtype = jnp.dtype(dtype)
  if dtype not in (jnp.float32, jnp.float64):
    raise ValueError(f'promote: dtype must be float32 or float64, got {dtype}.')
  if not callable(function):
    raise TypeError(
      f'promote: expected a function, got {type(function).__name__}.'
    )
  return jax.jit(
    _Promoted(function, dtype),
    static_argnums=static_argnums,
    static_argnames=static_argnames,
  )


@dataclasses.dataclass(frozen=True)
class _Promoted:
  """A function in a dtype."""

  function: Callable[..., Any]
  dtype: np.dtype

  def __post_init__(self) -> None:
    interpreter.wrap(self, self.function)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    if self.dtype == jnp.float64 and not _compat.has_float64():
      raise ValueError(
        'promote: JAX takes float64 for float32; call within `with'
        ' jax.enable_x64():`.'
      )
    traced = programs.trace(self.function, args, kwargs)
    return interpreter.interpret(traced, _meaning(self.dtype))[0]


def _meaning(dtype: np.dtype) -> interpreter.Interpretation:
  rule = _Wider(dtype)
  return interpreter.Interpretation(
    rule, lift=rule.widened, arrays=True, retyped=True
  )


@dataclasses.dataclass(frozen=True)
class _Wider:
  """The rule: does an operation in a dtype."""

  dtype: np.dtype

  def of(self, dtype: Any) -> np.dtype:
    """What takes the place of a dtype."""
    if not jax.dtypes.issubdtype(dtype, np.inexact):
      return dtype
    wide = self.dtype
    if jax.dtypes.issubdtype(dtype, np.complexfloating):
      wide = np.result_type(wide, np.complex64)
    narrow = jnp.finfo(dtype).bits < jnp.finfo(wide).bits
    return wide if narrow else jnp.dtype(dtype)

  def widened(self, x: Any) -> Any:
    """An array in its dtype."""
    if not programs.is_inexact(x):
      return x
    return jax.lax.convert_element_type(x, self.of(x.dtype))

  def __call__(
    self, step: interpreter.Step, inputs: Sequence[Any]
  ) -> list[Any]:
    if step.primitive in _AS_WRITTEN or not _is_known(step.primitive):
      declared = [
        jax.lax.convert_element_type(x, wanted.dtype)
        if programs.is_inexact(wanted)
        else x
        for x, wanted in zip(inputs, step.inputs, strict=True)
      ]
      return [self.widened(x) for x in step.bind(*declared)]
    changes: dict[str, Any] = {
      name: self.of(step.params[name])
      for name in _DTYPES
      if step.params.get(name) is not None
    }
    if primitives.kind(step.primitive) == 'matmul' and step.floating:
      changes['precision'] = (jax.lax.Precision.HIGHEST,) * 2
    if step.params.get('update_jaxpr') is not None:
      changes['update_jaxpr'] = self._update(step.params['update_jaxpr'])
    return step.bind(*inputs, **changes)

  def _update(self, program: Any) -> Any:
    """How a scatter combines two numbers, in the dtype."""
    frame = interpreter.Frame(_meaning(self.dtype))
    number = jnp.zeros((), self.of(program.invars[0].aval.dtype))
    wide = jax.make_jaxpr(lambda *pair: frame.run(program, pair))
    return _compat.opened(wide(number, number))[0]


def _is_known(primitive: str) -> bool:
  return (
    primitives.kind(primitive) is not None
    or primitive in primitives.COMPARISONS
  )
