"""Which layers of a function lose most in another arithmetic."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numerics import emulation
from numerics import interpreter
from numerics import policies
from numerics import programs
from numerics import reports
from numerics import rounding

Metric = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Scope:
  """What is lost where the operations of one scope alone are under a policy.

  Attributes:
    name: The names around the operations: modules, `jax.named_scope`s,
      compiled functions.
    operations: How many of them the policy is for.
    error: What the metric says of the result.
  """

  name: str
  operations: int
  error: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
  """Which scopes of a function lose most under a policy.

  Attributes:
    scopes: The most sensitive first.
    retained: The error with the `k` most sensitive scopes in ordinary
      arithmetic and all others under the policy, f64[scopes + 1]. The first is
      that of the whole policy, the last 0.
    under: The policy.
  """

  scopes: Sequence[Scope]
  retained: np.ndarray
  under: policies.Policy

  def policy(
    self, count: int, precision: policies.PrecisionLike | None = None
  ) -> policies.Policy:
    """The policy, with another precision for the most sensitive scopes.

    Args:
      count: How many of them.
      precision: For what the policy is for in these; None: ordinary arithmetic.

    Returns:
      The policy with one override more, or itself if the count is 0.

    Raises:
      ValueError: If there are not so many.
    """
    if not 0 <= count <= len(self.scopes):
      raise ValueError(
        f'Sensitivity: count must be from 0 to {len(self.scopes)}, as there are'
        f' so many scopes; got {count}.'
      )
    if not count:
      return self.under
    names = '|'.join(re.escape(each.name) for each in self.scopes[:count])
    override = policies.Override(precision, scope=f'^({names})$')
    return self.under | policies.Policy(overrides=(override,))

  def __str__(self) -> str:
    """The scopes as a table."""
    return reports.lines(
      ['alone', 'all below', 'operations', 'scope'],
      [
        (each.error, float(rest), each.operations, each.name)
        for each, rest in zip(self.scopes, self.retained[1:], strict=True)
      ],
    )


def relative_error(exact: Any, found: Any) -> jax.Array:
  """The root of `Σ |found − exact|² / Σ |exact|²`, over all floats."""
  pairs = [
    (x.astype(jnp.float32), y.astype(jnp.float32))
    for x, y in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True)
    if programs.is_inexact(x)
  ]
  error = sum(jnp.sum((y - x) ** 2) for x, y in pairs)
  size = sum(jnp.sum(x**2) for x, _ in pairs)
  return jnp.sqrt(error / jnp.maximum(size, np.finfo(np.float32).tiny))


def sensitivity(
  function: Callable[..., Any],
  policy: policies.Policy | policies.PrecisionLike,
  *,
  metric: Metric = relative_error,
  mode: rounding.Mode | None = None,
) -> Callable[..., Sensitivity]:
  """Says which layers of a function should not be under a policy.

  Operations that the policy is for are grouped by scope, the names around them.
  The function runs with each scope alone under the policy; then with all of
  them, and without the most sensitive one, two, and so on. It is compiled once.

  Args:
    function: Any function that JAX can trace.
    policy: As for `emulate`.
    metric: `(exact result, result) -> number`, of which more is worse.
    mode: As for `emulate`.

  Returns:
    A function of the same arguments that returns a `Sensitivity`; if a mode is
    stochastic, of `rounding_key` too. It is for looking at, not for `jit`.

  Raises:
    ValueError: On a call, if the policy is for no operation.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> def f(x):
    ...   with jax.named_scope('inner'):
    ...     x = jnp.exp(3 * x)
    ...   with jax.named_scope('outer'):
    ...     return x + 1
    >>> x = jnp.ones(3)
    >>> found = numerics.sensitivity(f, numerics.float8_e4m3fn)(x)
    >>> print(found)
    alone     all below  operations  scope
    0.05148   0.004057   1           outer
    0.004057  0          2           inner
    >>> careful = numerics.emulate(f, found.policy(1, numerics.bfloat16))
    >>> float(careful(x)[0]), float(f(x)[0])
    (21.0, 21.0855...)

  References:
    Zhang et al., FlexQ: Efficient Post-training INT6 Quantization for LLM
      Serving via Algorithm-System Co-Design, 2025, arXiv:2508.04405, which
      keeps the inputs of sensitive layers in 8 bits.
  """
  policy = policies.Policy(mode=mode) | policies.as_policy(
    'sensitivity', policy
  )

  def measured(
    *args: Any, rounding_key: interpreter.Key = None, **kwargs: Any
  ) -> Sensitivity:
    key = interpreter.checked_key(rounding_key)
    emulation.check_key('sensitivity', key, policy.draws)
    traced = programs.trace_call(function, args, kwargs)
    equations = list(programs.walk(traced.program))
    policy.check('sensitivity', equations)
    counts: dict[str, int] = {}
    for each in equations:
      if emulation.computes(each) and policy.precision(each) is not None:
        counts[each.scope] = counts.get(each.scope, 0) + 1
    if not counts:
      raise ValueError(
        'sensitivity: the policy is for no operation of the function.'
      )
    places = {name: place for place, name in enumerate(counts)}

    @jax.jit
    def errors(consts, inputs, masks):
      filled = traced._replace(consts=consts, inputs=inputs)

      def run(mask):
        rule = _Mixed(emulation.Arithmetic(policy), places, mask)
        meaning = interpreter.Interpretation(rule)
        return interpreter.interpret(filled, meaning, key)[0]

      exact = run(jnp.zeros(len(places), bool))
      return jax.lax.map(lambda mask: metric(exact, run(mask)), masks)

    def measure(masks: np.ndarray) -> np.ndarray:
      found = errors(list(traced.consts), list(traced.inputs), masks)
      return np.asarray(found, np.float64)

    alone = measure(np.eye(len(places), dtype=bool))
    # Whatever is not finite is the worst.
    order = np.argsort(-np.nan_to_num(alone, nan=np.inf), kind='stable')
    rank = np.argsort(order)
    retained = measure(rank >= np.arange(len(order))[:, None])
    names = list(places)
    scopes = [Scope(names[i], counts[names[i]], float(alone[i])) for i in order]
    return Sensitivity(scopes, np.append(retained, 0.0), policy)

  return measured


@dataclasses.dataclass(frozen=True)
class _Mixed:
  """The rule: does the operations of some scopes under the policy.

  Attributes:
    arithmetic: That of the policy.
    places: Of scopes in the mask.
    mask: Which of them are under it.
  """

  arithmetic: emulation.Arithmetic
  places: dict[str, int]
  mask: jax.Array

  def __call__(
    self, step: interpreter.Step, inputs: Sequence[Any]
  ) -> Sequence[Any]:
    runs = self.arithmetic(step, inputs)
    place = self.places.get(step.scope)
    if place is None or not emulation.computes(step):
      return runs
    step.note(None)  # What comes out may be in no format.
    return [
      jnp.where(self.mask[place], run, plain)
      for run, plain in zip(runs, step.bind(*inputs), strict=True)
    ]
