"""Running a function in another arithmetic, without changing it."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numerics import blocks
from numerics import contractions
from numerics import formats
from numerics import interpreter
from numerics import number_format
from numerics import policies
from numerics import primitives
from numerics import products
from numerics import programs
from numerics import rounding
from numerics import sums
from numerics.multiply import multiplier

FLOAT32 = formats.Format(8, 23)
# The formats that dtypes are.
_FORMATS = {
  jnp.dtype(jnp.float32): FLOAT32,
  **{
    jnp.dtype(getattr(jnp, name)): getattr(formats, name)
    for name in (
      'bfloat16',
      'float16',
      'float8_e3m4',
      'float8_e4m3',
      'float8_e4m3b11fnuz',
      'float8_e4m3fn',
      'float8_e4m3fnuz',
      'float8_e5m2',
      'float8_e5m2fnuz',
      'float4_e2m1fn',
    )
  },
}


def emulate(
  function: Callable[..., Any],
  policy: policies.Policy | policies.PrecisionLike,
  *,
  backward: policies.Policy | policies.PrecisionLike | None = None,
  mode: rounding.Mode | None = None,
  static_argnums: int | Sequence[int] = (),
  static_argnames: str | Sequence[str] = (),
) -> Callable[..., Any]:
  """Runs a function in another arithmetic.

  Every floating operation of it, and of what it calls, is computed as the
  policy says: operands are rounded, then the result (`Precision` is exact about
  it). With a format for a policy that is the format for all operations; sums
  inside of one are in float32 unless an accumulator is given. Literals are
  operands too: with `float8_e4m3fn`, an epsilon of 1e-6 is 0, and a mean over
  1000 elements divides by NaN. What no operation computes, such as an argument
  that is returned, is not rounded. Nothing else changes: see `transform`, also
  for `jax.custom_vjp` and the like.

  Values stay in the dtypes of the function. One in bfloat16 is rounded once per
  operation, which XLA itself does not promise; in a format that its dtype does
  not hold it is refused. Wider formats than the dtype round to the dtype.

  Gradients. Rounding has the derivative of the identity (straight-through).

  * `grad(emulate(f, p))` is the derivative of `f` with the numbers of the
    emulated run, itself computed in float32.
  * `grad(emulate(f, p, backward=q))` computes the derivative under `q` as well:
    every operation of the backward pass is one like any other, and gradients
    that the function receives and returns are rounded where it uses and makes
    them. In it, products of matrices have the cotangent as their first operand.
    This has no forward-mode derivative.
  * `emulate(grad(f), p)` computes both passes under `p`.

  A `product` of a precision has a derivative of its own, which the first takes
  as it is, `backward` rounds once more, and the last, where the products of the
  derivative are products like any other, does not see.

  Args:
    function: Any function of trees of arrays that `jax.jit` takes.
    policy: A format, a precision or a policy.
    backward: Likewise, for derivatives; None: float32.
    mode: The direction of rounding, where policies do not say.
    static_argnums: Arguments that are not arrays, as for `jax.jit`.
    static_argnames: Keyword arguments that are not arrays.

  Returns:
    The function, compiled as by `jax.jit`. If a mode is stochastic it needs a
    keyword more, `rounding_key`: a new one for every call. Every operation,
    element and iteration draws anew. Under `vmap`, members share their draws
    unless the key is mapped too. Devices of a `shard_map` inside the function
    draw alike.

  Raises:
    TypeError: If a policy is none; on the first call, if a dtype is float64 or
      complex, or does not hold a format.
    ValueError: On the first call, if an override matches nothing, or if
      `rounding_key` is missing or superfluous.
    NotImplementedError: On the first call, if it is not known what a primitive
      computes.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> f = lambda x: jnp.tanh(x) * 0.3
    >>> x = jnp.array([0.1, 1.0])
    >>> numerics.emulate(f, numerics.float8_e4m3fn)(x).tolist()
    [0.03125, 0.234375]
    >>> g = numerics.emulate(f, numerics.float8_e4m3fn, mode='stochastic')
    >>> g(x, rounding_key=jax.random.key(0)).shape
    (2,)
    >>> jax.grad(lambda x: numerics.emulate(f, numerics.bfloat16)(x).sum())(
    ...   x
    ... ).dtype
    dtype('float32')

  References:
    Kuzmin et al., FP8 Quantization: The Power of the Exponent, 2022,
      arXiv:2208.09225 (straight-through training in emulated formats).
    Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433
      (a format for each pass).
  """
  if not callable(function):
    raise TypeError(
      f'emulate: expected a function, got {type(function).__name__}.'
    )
  default = policies.Policy(mode=mode)
  forward = default | policies.as_policy('emulate', policy)
  if backward is not None:
    backward = default | policies.as_policy('emulate: backward', backward)
  return jax.jit(
    _Emulated(function, forward, backward),
    static_argnums=static_argnums,
    static_argnames=static_argnames,
  )


class _Emulated:
  """A function under a policy."""

  def __init__(
    self,
    function: Callable[..., Any],
    forward: policies.Policy,
    backward: policies.Policy | None,
  ) -> None:
    self.function = function
    self.forward = forward
    self.backward = backward
    interpreter.wrap(self, function)

  def __call__(
    self,
    *args: Any,
    rounding_key: interpreter.Key = None,
    **kwargs: Any,
  ) -> Any:
    key = interpreter.checked_key(rounding_key)
    traced = programs.trace(self.function, args, kwargs)
    forward, backward = self.forward, self.backward
    forward.check('emulate', programs.walk(traced.program))
    draws = forward.draws or (backward is not None and backward.draws)
    check_key('emulate', key, draws)
    arrays = (traced.consts, traced.inputs)
    if backward is None:
      return _run(traced, arrays, forward, key)

    @jax.custom_vjp
    def call(key, arrays):
      return _run(traced, arrays, forward, key)

    def primal(key, arrays):
      outputs, pullback = jax.vjp(
        lambda arrays: _run(traced, arrays, forward, key), arrays
      )
      return outputs, (key, pullback)

    def pull(saved, cotangents):
      key, pullback = saved
      traced = programs.trace(
        lambda pullback, cotangents: pullback(cotangents),
        (pullback, cotangents),
        {},
      )
      backward.check('emulate: backward', programs.walk(traced.program))
      key = None if key is None else jax.random.fold_in(key, 1)
      arrays = (traced.consts, traced.inputs)
      return None, *_run(traced, arrays, backward, key)

    call.defvjp(primal, pull)
    return call(key, arrays)


def _run(
  traced: programs.Traced,
  arrays: Sequence[Sequence[Any]],
  policy: policies.Policy,
  key: interpreter.Key,
) -> Any:
  """Interprets a function, of other constants and inputs."""
  consts, inputs = arrays
  traced = traced._replace(consts=consts, inputs=inputs)
  meaning = interpreter.Interpretation(Arithmetic(policy), arrays=True)
  return interpreter.interpret(traced, meaning, key)[0]


def check_key(function: str, key: interpreter.Key, draws: bool) -> None:
  """Raises if a key is missing or superfluous."""
  if draws and key is None:
    raise ValueError(
      f'{function}: rounding is stochastic; pass rounding_key='
      'jax.random.key(seed), a fresh one for every call.'
    )
  if key is not None and not draws:
    raise ValueError(
      f'{function}: no rounding is stochastic; drop rounding_key, or pass'
      " mode='stochastic'."
    )


def computes(equation: programs.Equation) -> bool:
  """Whether an operation has a floating result that it did not just move."""
  return equation.floating and primitives.kind(equation.primitive) not in (
    'structural',
    None,
  )


# Said of zeros: in every format.
_EVERY = 'every format'


@dataclasses.dataclass(frozen=True)
class Arithmetic:
  """The rule: rounds operands, computes in float32, rounds the result.

  It notes of what it returns the format that holds it, so that nothing is
  rounded twice.
  """

  policy: policies.Policy

  def __call__(self, step: interpreter.Step, inputs: Sequence[Any]) -> Any:
    """Returns the results of an operation."""
    precision = self.policy.precision(step)
    known = [
      _EVERY if _is_zero(value) else note
      for value, note in zip(inputs, step.notes, strict=True)
      if programs.is_inexact(value)
    ]
    if not computes(step):
      if primitives.kind(step.primitive) == 'structural' and known:
        different = set(known) - {_EVERY}
        if len(different) <= 1:
          step.note(_kept(step, next(iter(different), _EVERY)))
      return step.bind(*inputs)
    if precision is None:
      return step.bind(*inputs)
    return _Rounded(step, precision).outputs(inputs)


def _kept(step: interpreter.Step, known: Any) -> Any:
  """What is known of numbers that were moved.

  −0 may be new, and so may what is opposite to the smallest number.
  """
  if step.primitive in ('bitcast_convert_type', 'rng_uniform', 'random_gamma'):
    return None
  if step.primitive in ('neg', 'abs'):
    if known is None or known == _EVERY:
      return known if step.primitive == 'abs' else None
    symmetric = known.min == -known.max
    kept = symmetric and (known.negative_zero or step.primitive == 'abs')
    return known if kept else None
  return known


def _is_zero(value: Any) -> bool:
  """Whether a literal is zero."""
  return not isinstance(value, jax.Array) and not np.any(value)


class _Rounded:
  """One operation in a precision."""

  def __init__(
    self, step: interpreter.Step, precision: policies.Precision
  ) -> None:
    self.step = step
    self.precision = precision

  def outputs(self, inputs: Sequence[Any]) -> list[Any]:
    step = self.step
    operands = self.operands(inputs)
    target = self.target()
    changes = {
      name: value
      for name, value in (
        ('preferred_element_type', np.dtype(np.float32)),
        ('precision', (jax.lax.Precision.HIGHEST,) * 2),
        ('new_dtype', np.dtype(np.float32)),
      )
      if name in step.params
    }
    how = self.precision
    if how.product is not None:
      results = [self.produced(how.product, operands)]
    else:
      results = step.bind(*operands, **changes)
    if how.accumulator is not None or how.multiply is not None:
      total = self.accumulated(operands)
      if total is not None:
        results = [rounding.straight_through(results[0], total)]
    results = [self.rounded(result, target) for result in results]
    step.note(target)
    return [
      result.astype(wanted.dtype)
      for result, wanted in zip(results, step.outputs, strict=True)
    ]

  def operands(self, inputs: Sequence[Any]) -> list[Any]:
    """The operands, rounded, in float32."""
    wanted = self.precision.inputs
    if not isinstance(wanted, tuple):
      wanted = (wanted,) * len(inputs)
    elif len(wanted) != len(inputs):
      raise ValueError(
        f'emulate: inputs names {len(wanted)} formats, but'
        f' {self.step.primitive} at {self.step.source} has {len(inputs)}'
        ' operands.'
      )
    found = []
    places = zip(inputs, wanted, self.step.notes, strict=True)
    for place, (value, fmt, known) in enumerate(places):
      if not programs.is_inexact(value):
        found.append(value)
        continue
      self.check_dtype(value.dtype)
      wide = jnp.asarray(value, jnp.float32)
      if isinstance(fmt, blocks.BlockFormat):
        found.append(self.in_blocks(wide, fmt, place))
        continue
      kept = _is_zero(value) or _includes(fmt, known)
      found.append(wide if kept else self.rounded(wide, fmt))
    return found

  def in_blocks(
    self, x: jax.Array, fmt: blocks.BlockFormat, place: int
  ) -> jax.Array:
    """An operand rounded to blocks along the axis that is added up."""
    step = self.step
    axes = blocks.checked_matmul_axes(
      str(step.source), fmt, step.primitive, step.params, place
    )
    mode = self.precision.mode or 'nearest_even'
    axes = None if fmt.size is None else axes
    return blocks.fake_quantize(x, fmt, axes, mode, self.key())

  def check_dtype(self, dtype: Any) -> None:
    """Raises if float32 does not carry a dtype."""
    if dtype not in _FORMATS:
      raise TypeError(
        f'emulate: {self.step.primitive} at {self.step.source} computes in'
        f' {dtype}, which float32 does not carry; run the function in float32.'
      )

  def target(self) -> number_format.NumberFormat | None:
    """The format of the result: what is wanted, or the dtype if narrower."""
    fmt = self.precision.output
    for output in self.step.outputs:
      self.check_dtype(output.dtype)
    own = _FORMATS[self.step.outputs[0].dtype]
    if fmt is None or fmt.contains(own):
      return None if own == FLOAT32 else own
    if own.contains(fmt):
      return fmt
    raise TypeError(
      f'emulate: {self.step.primitive} at {self.step.source} gives'
      f' {self.step.outputs[0].dtype}, which does not hold {fmt.name}; run the'
      ' function in float32.'
    )

  def rounded(
    self, x: jax.Array, fmt: number_format.NumberFormat | None
  ) -> jax.Array:
    """Rounds once more, with a key of its own."""
    if fmt is None or fmt == FLOAT32:
      return x
    mode = self.precision.mode or 'nearest_even'
    return rounding.round_to(x, fmt, mode=mode, key=self.key())

  def key(self) -> jax.Array | None:
    """A new key, if anything is drawn."""
    if self.precision.mode not in rounding.STOCHASTIC_MODES:
      return None
    return self.step.new_key()

  def produced(
    self, how: products.Product, operands: Sequence[Any]
  ) -> jax.Array:
    """The result of a product by an algorithm."""
    step = self.step
    lhs, rhs = operands
    matrices = contractions.of(step.primitive, lhs, rhs, step.params)
    length = matrices.lhs.shape[2]
    how.check(f'{step.primitive} at {step.source}', length)
    key = step.new_key() if how.draws else None
    return matrices.restore(how.product(matrices.lhs, matrices.rhs, key))

  def accumulated(self, operands: Sequence[Any]) -> jax.Array | None:
    """The result with other products and additions; None if there are none."""
    step, how = self.step, self.precision.accumulator
    multiply = self.precision.multiply
    mode = self.precision.mode or 'nearest_even'
    operands = [jax.lax.stop_gradient(each) for each in operands]
    if step.primitive in ('dot_general', 'conv_general_dilated'):
      lhs, rhs = operands
      matrices = contractions.of(step.primitive, lhs, rhs, step.params)
      if how is None:
        assert multiply is not None
        product = multiplier.dot(matrices.lhs, matrices.rhs, multiply)
        return matrices.restore(product)
      wanted = self.precision.inputs
      pair = wanted if isinstance(wanted, tuple) else (wanted, wanted)
      exact = all(
        (fmt or _FORMATS[each.dtype]).significant_bits <= 12
        for fmt, each in zip(pair, step.inputs, strict=True)
      )
      product = sums.dot(
        matrices.lhs,
        matrices.rhs,
        how,
        mode,
        self.key(),
        exact or multiply is not None,
        jnp.multiply if multiply is None else multiply.product,
      )
      return matrices.restore(product)
    if step.primitive in ('mul', 'square') and multiply is not None:
      return multiply.product(operands[0], operands[-1])
    if how is None and primitives.kind(step.primitive) != 'matmul':
      return None
    if how is not None and step.primitive == 'reduce_sum':
      [x] = operands
      axes = step.params['axes']
      kept = [axis for axis in range(x.ndim) if axis not in axes]
      terms = x.transpose(*axes, *kept).reshape(
        -1, *(x.shape[axis] for axis in kept)
      )
      if terms.size == 0:
        return None
      return sums.accumulate(
        lambda term: term, terms, len(terms), how, mode, self.key()
      )
    if how is not None and step.primitive == 'cumsum':
      [x] = operands
      axis = step.params['axis']
      terms = jnp.moveaxis(x, axis, 0)
      if step.params['reverse']:
        terms = terms[::-1]
      found = sums.cumulate(terms, how.fmt, mode, self.key())
      if step.params['reverse']:
        found = found[::-1]
      return jnp.moveaxis(found, 0, axis)
    if primitives.kind(step.primitive) == 'elementwise':
      return None
    raise NotImplementedError(
      f'emulate: the additions inside of {step.primitive} at {step.source}'
      ' cannot be told apart; override it with a precision without an'
      ' accumulator and without multiply.'
    )


def _includes(fmt: number_format.NumberFormat | None, known: Any) -> bool:
  """Whether rounding to a format keeps what is known to be in another."""
  if fmt is None or known in (_EVERY, fmt):
    return True
  return (
    isinstance(known, number_format.NumberFormat)
    and fmt.contains(known)
    and fmt.infinities
    and fmt.overflow == 'inf'
    and fmt.negative_zero
  )
