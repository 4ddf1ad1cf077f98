"""Which operation of a function is computed in which arithmetic."""

from collections.abc import Iterable
import dataclasses
import difflib
import re

from numerics import blocks
from numerics import number_format
from numerics import primitives
from numerics import products
from numerics import programs
from numerics import rounding
from numerics import sums
from numerics.multiply import multiplier

InputFormat = number_format.NumberFormat | blocks.BlockFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
  """How an operation is computed.

      result = round(operation(round(operand), …), output)

  The operation itself is that of float32, whose error is one rounding to
  float32 for `+ − × ÷ √`, and a few units in its last place for others. Where
  `inputs` and `output` have at most 11 significant bits (float16 and narrower),
  the former cannot be told from one exact rounding to nearest. Of fixed-point
  numbers, results are exact that have at most 24 significant bits; those with
  more lose the last ones before they are rounded or wrap.

  Attributes:
    inputs: The format of the operands; a tuple has one for each. None leaves
      them as they are. In products of matrices, a `BlockFormat` too, whose
      blocks lie along the axis that is added up (of convolutions, features).
    output: The format of the result. None leaves it in float32, or whatever
      the dtype is.
    accumulator: How terms are added in products of matrices, convolutions,
      `reduce_sum` and `cumsum` (always sequential). None: in float32, in the
      order the compiler takes. `output` then rounds the sum once more.
    multiply: What takes the place of multiplication, in `mul`, `square`,
      products of matrices and convolutions; None: multiplication. Its results
      are added in float32 in sequence, if there is no accumulator. The
      derivative is that of exact products.
    product: What takes the place of whole products of matrices and
      convolutions, and of their derivatives; it says itself how terms are
      multiplied and added, so that neither `multiply` nor `accumulator` goes
      with it. It is for those operations alone: `Policy(matmul=…)`.
    mode: The direction of every rounding of it; None: the policy's.

  Examples:
    >>> import numerics
    >>> numerics.Precision(  # As an FP8 matrix unit has it.
    ...   inputs=numerics.float8_e4m3fn, output=numerics.bfloat16
    ... ).output.name
    'bfloat16'
  """

  inputs: InputFormat | tuple[InputFormat | None, ...] | None = None
  output: number_format.NumberFormat | None = None
  accumulator: sums.Accumulator | None = None
  multiply: multiplier.Multiplier | None = None
  product: products.Product | None = None
  mode: rounding.Mode | None = None

  def __post_init__(self) -> None:
    for field in ('inputs', 'output'):
      value = getattr(self, field)
      several = isinstance(value, tuple) and field == 'inputs'
      for each in value if several else (value,):
        blocked = isinstance(each, blocks.BlockFormat) and field == 'inputs'
        if each is not None and not blocked:
          rounding.checked_format(f'Precision: {field}', each)
    if not isinstance(self.accumulator, sums.Accumulator | None):
      raise TypeError(
        'Precision: accumulator must be a numerics.Accumulator, got'
        f' {self.accumulator!r}; a format f is numerics.Accumulator(f).'
      )
    if not isinstance(self.multiply, multiplier.Multiplier | None):
      raise TypeError(
        'Precision: multiply must be a numerics.Multiplier such as'
        f' numerics.LMul(mantissa_bits=4), got {self.multiply!r}.'
      )
    if not isinstance(self.product, products.Product | None):
      raise TypeError(
        'Precision: product must be a numerics.Product such as'
        f' numerics.Quartet(), got {self.product!r}.'
      )
    for field in ('multiply', 'accumulator'):
      if self.product is not None and getattr(self, field) is not None:
        raise ValueError(
          f'Precision: {field} does not go with product, which multiplies and'
          ' adds by itself; drop one of them.'
        )
    _check_mode('Precision', self.mode)


PrecisionLike = number_format.NumberFormat | blocks.BlockFormat | Precision


@dataclasses.dataclass(frozen=True)
class Override:
  """A precision for some operations, whatever else a policy says.

  All patterns have to match. An empty one matches everything.

  Attributes:
    precision: A format is one for operands and results; None is ordinary
      arithmetic.
    scope: A regular expression, searched for in the names around the operation:
      `jax.named_scope`, the modules of Flax (`'Dense_0'`), compiled functions
      (`'jit(softmax)'`), `'transpose'` for a derivative.
    primitive: A regular expression for the whole name of the primitive, or of
      its kind: `'elementwise'`, `'matmul'`, `'reduction'`.
    dtype: A regular expression for the whole name of the result's dtype.

  Examples:
    >>> import numerics
    >>> numerics.Override(numerics.bfloat16, scope='LayerNorm').primitive
    ''
  """

  precision: PrecisionLike | None
  scope: str = dataclasses.field(default='', kw_only=True)
  primitive: str = dataclasses.field(default='', kw_only=True)
  dtype: str = dataclasses.field(default='', kw_only=True)

  def __post_init__(self) -> None:
    _check_precision('Override', 'precision', self.precision)
    for field in ('scope', 'primitive', 'dtype'):
      try:
        re.compile(getattr(self, field))
      except (re.error, TypeError) as error:
        raise ValueError(
          f'Override: {field}={getattr(self, field)!r} is no regular'
          f' expression: {error}.'
        ) from error

  def matches(self, equation: programs.Equation) -> bool:
    """Whether an operation is one that this is for."""
    names = (equation.primitive, primitives.kind(equation.primitive) or '')
    dtypes = [str(output.dtype) for output in equation.outputs]
    return (
      re.search(self.scope, equation.scope) is not None
      and (
        not self.primitive
        or any(re.fullmatch(self.primitive, name) for name in names)
      )
      and (
        not self.dtype
        or any(re.fullmatch(self.dtype, dtype) for dtype in dtypes)
      )
    )


@dataclasses.dataclass(frozen=True)
class Policy:
  """Which operation of a function is computed in which precision.

  The last override that matches decides; else the kind of the operation, else
  `default`; else it is ordinary arithmetic. A format stands for a precision
  with it for operands and results, a block format for one with it for operands.
  Operations that compute nothing (reshapes, gathers, selections, maxima,
  comparisons, integers) are never rounded, and draws of `jax.random` only on
  use, unless an override has `scope='jax.random'`.

  `a | b` is `a` where `b` says nothing, with the overrides of both.

  Attributes:
    default: For all floating arithmetic that nothing else is said of.
    elementwise: For arithmetic element by element.
    matmul: For products of matrices and tensors, and convolutions.
    reduction: For sums, products and cumulative ones; scatters that add.
    overrides: In the order of precedence, the strongest last.
    opaque: Primitives that run in ordinary arithmetic although it is not known
      what they compute: `('pallas_call', 'cholesky')`. They are refused
      otherwise.
    mode: The direction of rounding where a precision does not say; None:
      `'nearest_even'`.

  Examples:
    >>> import numerics
    >>> fp8, wide = numerics.float8_e4m3fn, numerics.bfloat16
    >>> base = numerics.Policy(
    ...   wide, matmul=numerics.Precision(inputs=fp8, output=wide)
    ... )
    >>> careful = base | numerics.Policy(
    ...   overrides=(numerics.Override(None, scope='LayerNorm|softmax'),),
    ...   mode='stochastic',
    ... )
    >>> careful.matmul == base.matmul, careful.mode
    (True, 'stochastic')
  """

  default: PrecisionLike | None = None
  elementwise: PrecisionLike | None = dataclasses.field(
    default=None, kw_only=True
  )
  matmul: PrecisionLike | None = dataclasses.field(default=None, kw_only=True)
  reduction: PrecisionLike | None = dataclasses.field(
    default=None, kw_only=True
  )
  overrides: tuple[Override, ...] = dataclasses.field(default=(), kw_only=True)
  opaque: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
  mode: rounding.Mode | None = dataclasses.field(default=None, kw_only=True)

  def __post_init__(self) -> None:
    for field in ('default', 'elementwise', 'matmul', 'reduction'):
      _check_precision('Policy', field, getattr(self, field))
    for field, kind in (('overrides', Override), ('opaque', str)):
      value = getattr(self, field)
      if not isinstance(value, tuple) or not all(
        isinstance(each, kind) for each in value
      ):
        raise TypeError(
          f'Policy: {field} must be a tuple of {kind.__name__}, got {value!r}.'
        )
    _check_mode('Policy', self.mode)

  def __or__(self, other: 'Policy') -> 'Policy':
    if not isinstance(other, Policy):
      return NotImplemented
    kept = {
      field: getattr(self, field)
      for field in ('default', 'elementwise', 'matmul', 'reduction', 'mode')
      if getattr(other, field) is None
    }
    return dataclasses.replace(
      other,
      overrides=self.overrides + other.overrides,
      opaque=tuple(dict.fromkeys(self.opaque + other.opaque)),
      **kept,
    )

  def precision(self, equation: programs.Equation) -> Precision | None:
    """Returns what is said of an operation; None for ordinary arithmetic."""
    for override in reversed(self.overrides):
      if override.matches(equation):
        return self._filled(override.precision)
    if programs.DRAW in equation.scope:
      return None
    kind = primitives.kind(equation.primitive)
    special = None if kind == 'structural' else getattr(self, kind or '', None)
    return self._filled(self.default if special is None else special)

  @property
  def draws(self) -> bool:
    """Whether some rounding is stochastic."""
    said = (self.default, self.elementwise, self.matmul, self.reduction)
    said += tuple(override.precision for override in self.overrides)
    found = [each for each in map(self._filled, said) if each is not None]
    return any(
      each.mode in rounding.STOCHASTIC_MODES
      or (each.product is not None and each.product.draws)
      for each in found
    )

  def _filled(self, precision: PrecisionLike | None) -> Precision | None:
    if isinstance(precision, blocks.BlockFormat):
      precision = Precision(inputs=precision)
    elif isinstance(precision, number_format.NumberFormat):
      precision = Precision(inputs=precision, output=precision)
    if precision is None or precision.mode is not None:
      return precision
    return dataclasses.replace(precision, mode=self.mode or 'nearest_even')

  def check(
    self, function: str, equations: Iterable[programs.Equation]
  ) -> None:
    """Raises if an override is for nothing, or an operation for nobody.

    Args:
      function: What it is said in the name of.
      equations: All that a function does.

    Raises:
      ValueError: If an override matches no operation, or if a product is for
        an operation that is none.
      NotImplementedError: If it is not known what an operation computes.
    """
    equations = [each for each in equations if each.floating]
    for equation in equations:
      name = equation.primitive
      if primitives.kind(name) or name in self.opaque:
        continue
      raise NotImplementedError(
        f'{function}: it is not known what {name!r} at'
        f' {equation.source} computes. Say opaque=({name!r},) in'
        ' the policy to run it in ordinary arithmetic.'
      )
    for equation in equations:
      precision = self.precision(equation)
      computed = primitives.kind(equation.primitive) not in ('structural', None)
      if precision is None or precision.product is None or not computed:
        continue
      if equation.primitive not in ('dot_general', 'conv_general_dilated'):
        raise ValueError(
          f'{function}: {precision.product} is for products of matrices, but'
          f' {equation.primitive} at {equation.source} is none; say'
          " Policy(matmul=…) or Override(…, primitive='matmul')."
        )
    for override in self.overrides:
      if not any(map(override.matches, equations)):
        raise ValueError(
          f'{function}: {override} matches no floating operation of the'
          f' function.{_suggestion(override, equations)}'
        )


def _suggestion(
  override: Override, equations: Iterable[programs.Equation]
) -> str:
  """Names that there are, those first that look like what was asked for."""
  found = []
  for field in ('scope', 'primitive'):
    pattern = getattr(override, field)
    names = {getattr(equation, field) for equation in equations} - {''}
    if pattern and names:
      near = difflib.get_close_matches(pattern, names, n=8, cutoff=0.0)
      found.append(f' Each {field}: {", ".join(near)}.')
  return ''.join(found)


def _check_precision(owner: str, field: str, value: object) -> None:
  if value is not None and not isinstance(value, PrecisionLike):
    raise TypeError(
      f'{owner}: {field} must be a numerics.Format, FixedPoint, BlockFormat or'
      ' Precision, got'
      f' {value!r} of type {type(value).__name__}.'
    )


def _check_mode(owner: str, mode: object) -> None:
  if mode is not None and mode not in rounding.MODES:
    raise ValueError(
      f'{owner}: mode must be one of {", ".join(rounding.MODES)}; got {mode!r}.'
    )


def as_policy(function: str, value: object) -> Policy:
  """Returns a policy as it is, and a format or a precision for everything."""
  if isinstance(value, Policy):
    return value
  if isinstance(value, PrecisionLike):
    return Policy(value)
  raise TypeError(
    f'{function}: expected a numerics.Policy, Precision or Format, got'
    f' {value!r} of type {type(value).__name__}.'
  )
