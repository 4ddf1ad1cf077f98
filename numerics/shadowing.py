"""Running a function beside its exact self, to see where the error arises."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numerics import emulation
from numerics import interpreter
from numerics import number_format
from numerics import policies
from numerics import programs
from numerics import reports
from numerics import rounding

_TINY = np.float32(2.0**-126)


class _Pair(NamedTuple):
  """A number as it is computed, and as it would be in float32."""

  run: Any
  reference: Any


@dataclasses.dataclass(frozen=True)
class Error:
  """How far the result of an operation is off, over all that it computed.

  With `e = |result - reference|`:

  Attributes:
    operation: Which operation.
    count: How many numbers it computed.
    max_relative: The largest `e / |reference|`, where the reference is not 0.
    mean_relative: The mean of the same.
    max_ulps: The largest `e`, in units in the last place of its format.
    max_local_ulps: The same against the operation done in float32 on operands
      as they are: the error that is its own.
    nonfinite: How many results are infinite or NaN while the reference is not.
  """

  operation: reports.Operation
  count: int
  max_relative: float
  mean_relative: float
  max_ulps: float
  max_local_ulps: float
  nonfinite: int


@dataclasses.dataclass(frozen=True)
class Shadowed:
  """A function in another arithmetic, beside itself in float32.

  Attributes:
    value: What it returns under the policy.
    reference: What it returns in float32.
    errors: Of every floating operation that computes something, in the order of
      the program.
  """

  value: Any
  reference: Any
  errors: Sequence[Error]

  def __str__(self) -> str:
    """The errors as a table, the largest first."""
    rows = sorted(self.errors, key=lambda e: (-e.nonfinite, -e.max_relative))
    return reports.table(
      rows,
      {
        'max rel.': lambda e: e.max_relative,
        'mean rel.': lambda e: e.mean_relative,
        'max ulps': lambda e: e.max_ulps,
        'own ulps': lambda e: e.max_local_ulps,
        'not finite': lambda e: e.nonfinite,
      },
    )


def shadow(
  function: Callable[..., Any],
  policy: policies.Policy | policies.PrecisionLike,
  *,
  mode: rounding.Mode | None = None,
) -> Callable[..., Shadowed]:
  """Reports the error of every operation of a function under a policy.

  The function runs as under `emulate`, and beside it in float32. Branches,
  loops and whatever else is decided by numbers follow the run under the policy.
  Where an operation runs many times, all of them are in one row.

  Args:
    function: Any function that JAX can trace.
    policy: As for `emulate`.
    mode: As for `emulate`.

  Returns:
    A function of the same arguments that returns a `Shadowed`; if a mode is
    stochastic, of `rounding_key` too. It is for looking at, not for `jit`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> def f(x):  # Cancellation: 1 + x is rounded, then 1 is taken away.
    ...   return (1.0 + x) - 1.0
    >>> found = numerics.shadow(f, numerics.bfloat16)(jnp.float32(0.0041))
    >>> [(e.operation.primitive, e.max_local_ulps) for e in found.errors]
    [('add', 0.475...), ('sub', 0.0)]
    >>> float(found.value), round(found.errors[1].max_relative, 2)
    (0.0078125, 0.91)

  References:
    Benz, Hildebrandt and Hack, A Dynamic Program Analysis to Find
      Floating-Point Accuracy Problems, 2012, doi:10.1145/2254064.2254118.
  """
  policy = policies.Policy(mode=mode) | policies.as_policy('shadow', policy)

  def shadowed(
    *args: Any, rounding_key: interpreter.Key = None, **kwargs: Any
  ) -> Shadowed:
    key = interpreter.checked_key(rounding_key)
    emulation.check_key('shadow', key, policy.draws)
    value, records = reports.observe(
      function,
      args,
      kwargs,
      interpreter.Interpretation(
        _Shadow(emulation.Arithmetic(policy), policy),
        lift=_lift,
        lower=_run,
        empty=_empty,
        combine=_combine,
      ),
      key,
      lambda equations: policy.check('shadow', equations),
    )
    errors = [
      Error(
        operation,
        int(record['count']),
        float(record['relative']),
        float(record['total'] / record['count']),
        float(record['ulps']),
        float(record['local']),
        int(record['nonfinite']),
      )
      for operation, record in records
    ]
    return Shadowed(_parts(value, 0), _parts(value, 1), errors)

  return shadowed


def _parts(tree: Any, place: int) -> Any:
  return jax.tree.map(
    lambda x: x[place] if isinstance(x, _Pair) else x,
    tree,
    is_leaf=lambda x: isinstance(x, _Pair),
  )


def _lift(x: Any) -> Any:
  return _Pair(x, x) if programs.is_inexact(x) else x


def _run(value: Any) -> Any:
  return value.run if isinstance(value, _Pair) else value


def _reference(value: Any) -> Any:
  return value.reference if isinstance(value, _Pair) else value


def _empty(equation: programs.Equation) -> dict[str, Any]:
  if not _computes(equation):
    return {'count': np.float32(0)}
  names = ('count', 'relative', 'total', 'ulps', 'local', 'nonfinite')
  return dict.fromkeys(names, np.float32(0))


def _computes(equation: programs.Equation) -> bool:
  return emulation.computes(equation) and len(equation.outputs) == 1


def _combine(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
  return {
    name: a[name] + b[name]
    if name in ('count', 'total', 'nonfinite')
    else jnp.maximum(a[name], b[name])
    for name in a
  }


@dataclasses.dataclass(frozen=True)
class _Shadow:
  """The rule: does an operation under the policy, and in float32."""

  arithmetic: emulation.Arithmetic
  policy: policies.Policy

  def __call__(self, step: interpreter.Step, inputs: Sequence[Any]) -> Any:
    operands = [_run(each) for each in inputs]
    runs = self.arithmetic(step, operands)
    if not step.floating:
      return runs, _empty(step)
    references = step.bind(*map(_reference, inputs))
    outputs = [
      _Pair(run, reference) if programs.is_inexact(run) else run
      for run, reference in zip(runs, references, strict=True)
    ]
    if not _computes(step):
      return outputs, _empty(step)
    precision = self.policy.precision(step)
    fmt = precision.output if precision is not None else None
    [local] = step.bind(*operands)
    return outputs, _errors(runs[0], references[0], local, fmt)


def _errors(
  run: jax.Array,
  reference: jax.Array,
  local: jax.Array,
  fmt: number_format.NumberFormat | None,
) -> dict[str, Any]:
  """Compares one result with the two it should be."""
  run, reference, local = (
    each.astype(jnp.float32) for each in (run, reference, local)
  )
  fmt = fmt or emulation.FLOAT32
  finite = jnp.isfinite(run) & jnp.isfinite(reference)

  def largest(x):
    return jnp.max(x, initial=0.0)

  def ulps(wanted):
    known = finite & jnp.isfinite(wanted)
    # A denormal spacing would be flushed to zero.
    spacing = jnp.maximum(rounding.ulp(wanted, fmt), _TINY)
    error = jnp.abs(run - wanted) / spacing
    return largest(jnp.where(known, error, 0.0))

  sure = finite & (reference != 0)
  relative = jnp.abs(run - reference) / jnp.where(sure, jnp.abs(reference), 1.0)
  relative = jnp.where(sure, relative, 0.0)
  return {
    'count': jnp.float32(run.size),
    'relative': largest(relative),
    'total': jnp.sum(relative),
    'ulps': ulps(reference),
    'local': ulps(local),
    'nonfinite': jnp.sum(
      jnp.isfinite(reference) & ~jnp.isfinite(run), dtype=jnp.float32
    ),
  }
