"""Interpreting a function: a rule says what becomes of every operation."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from numerics import _compat
from numerics import control_flow
from numerics import noise
from numerics import programs

Value = Any
Record = Any
Rule = Callable[['Step', Sequence[Value]], Any]
Key = jax.Array | None


def _same(x: Any) -> Any:
  return x


@dataclasses.dataclass(frozen=True)
class Interpretation:
  """What a program means: how its values look, and what its operations do.

  Control flow is the same for all; see `control_flow`.

  Attributes:
    rule: `(step, inputs) -> outputs`, for an operation that runs no program of
      its own. With `empty`, `-> (outputs, record)`.
    lift: Makes a value of an array that no operation made: an argument, a
      constant, a literal. A value may be any tree of arrays of one shape.
    lower: Returns an array that stands for a value, to decide branches with.
    empty: `equation -> record`, the record of an operation that did not run. A
      record is what a rule finds out besides its outputs: a tree of arrays. One
      is kept for every operation of the program; where it runs many times, they
      are combined.
    combine: `(record, record) -> record`, associative, with `empty` neutral.
    arrays: Whether values are arrays of the types that the program says. Then
      the interpreted function can be differentiated like the original: where it
      has rules of its own (`jax.custom_jvp`, `jax.custom_vjp`), by those.
    retyped: Whether these arrays have dtypes that the rule chooses. What
      depends on tangents is interpreted then, too.
  """

  rule: Rule
  lift: Callable[[Any], Value] = _same
  lower: Callable[[Value], Any] = _same
  empty: Callable[[programs.Equation], Record] | None = None
  combine: Callable[[Record, Record], Record] = lambda a, b: a
  arrays: bool = False
  retyped: bool = False


class Step(programs.Equation):
  """An equation while it is interpreted."""

  def __init__(self, raw: Any, index: int, frame: 'Frame') -> None:
    super().__init__(raw, index, frame.path, frame.scope, frame.outer)
    self.frame = frame

  def new_key(self) -> jax.Array:
    """Returns a random key that nobody has had, nor has in another turn."""
    if self.frame.key is None:
      raise ValueError(
        f'{self.primitive} at {self.source} draws random numbers; pass'
        ' rounding_key=jax.random.key(seed), a fresh one for every call, to the'
        ' transformed function.'
      )
    return noise.derive(self.frame.key, next(self.frame.draws))

  def inner_key(self) -> Key:
    """Returns a key for a program that it runs; None if there is none."""
    if self.frame.key is None:
      return None
    return jax.random.fold_in(self.frame.key, next(self.frame.draws))

  @property
  def notes(self) -> tuple[Any, ...]:
    """What rules have noted of the inputs, or None; see `note`."""
    return tuple(
      self.frame.notes.get(v) if isinstance(v, _compat.Var) else None
      for v in self.raw.invars
    )

  def note(self, what: Any) -> None:
    """Keeps something static about the outputs, for the steps that use them."""
    self.frame.notes.update(dict.fromkeys(self.raw.outvars, what))


class Frame:
  """One program while it is interpreted.

  Attributes:
    interpretation: What its operations do.
    key: Of this program in this turn; None if nobody gave one.
    draws: Counts the keys made of it.
    path: Where the program is in the whole.
    scope: The names around it.
    outer: The step that runs it.
    notes: What rules have noted of its variables.
    records: What rules have found out, by the path of the equation.
  """

  def __init__(
    self,
    interpretation: Interpretation,
    key: Key = None,
    path: str = '',
    scope: str = '',
    outer: 'Step | None' = None,
  ) -> None:
    self.interpretation = interpretation
    self.key = key
    self.draws = itertools.count()
    self.path = path
    self.scope = scope
    self.outer = outer
    self.notes: dict[Any, Any] = {}
    self.records: dict[str, Record] = {}

  def child(self, step: Step, key: Key, path: str, scope: str) -> 'Frame':
    """A frame for a program that a step runs."""
    return Frame(self.interpretation, key, path, scope, step)

  def empty(self, program: Any, path: str, scope: str) -> dict[str, Record]:
    """The records of a program that did not run."""
    empty = self.interpretation.empty
    if empty is None:
      return {}
    walked = programs.walk(program, path, scope)
    return {equation.path: empty(equation) for equation in walked}

  def run(
    self,
    program: Any,
    inputs: Sequence[Value],
    *,
    consts: Sequence[Any] | None = None,
    notes: Iterable[Any] = (),
    tangents: int = 0,
  ) -> list[Value]:
    """Interprets a program.

    Args:
      program: The program.
      inputs: Values of its arguments.
      consts: Arrays in the place of its constants.
      notes: What is known of them.
      tangents: How many of the last inputs are tangents. What depends on them
        is linear and computed in ordinary arithmetic.

    Returns:
      Values of its results.
    """
    jaxpr, own = _compat.opened(program)
    consts = own if consts is None else consts
    lift = self.interpretation.lift
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    values.update(zip(jaxpr.constvars, map(lift, consts), strict=True))
    if self.interpretation.retyped:
      tangents = 0
    linear = set(jaxpr.invars[len(inputs) - tangents :])
    self.notes.update(zip(jaxpr.invars, notes, strict=False))

    def read(atom: Any) -> Value:
      is_var = isinstance(atom, _compat.Var)
      return values[atom] if is_var else lift(atom.val)

    for index, raw in programs.live(program):
      operands = [read(atom) for atom in raw.invars]
      variables = [v for v in raw.invars if isinstance(v, _compat.Var)]
      with _compat.context(raw):
        if not linear.isdisjoint(variables):
          outputs = _compat.bind(raw, operands)
          linear.update(raw.outvars)
        else:
          step = Step(raw, index, self)
          control = control_flow.RULES.get(step.primitive, Frame._operate)
          outputs = control(self, step, operands)
      values.update(zip(raw.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _operate(self, step: Step, operands: list[Value]) -> list[Value]:
    """Interprets an operation that runs no program of its own."""
    found = self.interpretation.rule(step, operands)
    if self.interpretation.empty is not None:
      found, self.records[step.path] = found
    outputs = list(found)
    if len(outputs) != len(step.outputs):
      raise ValueError(
        f'transform: the rule returned {len(outputs)} outputs for'
        f' {step.primitive} at {step.source}, which has {len(step.outputs)}.'
      )
    if not self.interpretation.arrays or self.interpretation.retyped:
      return outputs
    for place, (output, wanted) in enumerate(
      zip(outputs, step.outputs, strict=True)
    ):
      if not hasattr(wanted, 'shape'):  # A token, or the like.
        continue
      found = jax.typeof(output)
      if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise TypeError(
          f'transform: the rule returned {found.str_short()} for'
          f' {step.primitive} at {step.source}, which gives'
          f' {wanted.str_short()}; keep shapes and dtypes.'
        )
      outputs[place] = _compat.like(output, wanted)
    return outputs


def interpret(
  traced: programs.Traced,
  interpretation: Interpretation,
  key: Key = None,
  notes: Iterable[Any] = (),
) -> tuple[Any, dict[str, Record]]:
  """Interprets a traced function.

  Args:
    traced: The function.
    interpretation: What its operations do.
    key: For rules that draw random numbers.
    notes: What is known of its inputs; see `Step.notes`.

  Returns:
    Its result, with a value in the place of every array, and the records of
    its operations by path.
  """
  frame = Frame(interpretation, key)
  values = map(interpretation.lift, traced.inputs)
  outputs = frame.run(
    traced.program, list(values), consts=traced.consts, notes=notes
  )
  return jax.tree.unflatten(traced.structure, outputs), frame.records


def transform(
  function: Callable[..., Any],
  rule: Rule,
  *,
  static_argnums: int | Sequence[int] = (),
  static_argnames: str | Sequence[str] = (),
) -> Callable[..., Any]:
  """Runs a function with every operation as a rule does it.

  The rule sees the operations of the function and of whatever it calls, inside
  loops, branches, compiled functions, `jax.checkpoint` and `jax.shard_map`; it
  does not see these themselves, which stay as they are. The result takes the
  arguments of the function and composes with `jit`, `vmap`, `grad`, `scan`,
  `shard_map` and with itself. With the rule `lambda step, inputs:
  step.bind(*inputs)` it is the function compiled.

  Derivatives are those of the operations that the rule does, but for functions
  with rules of their own (`jax.custom_jvp`, `jax.custom_vjp`): of these, the
  author's derivative is kept. What it computes for the forward pass (outputs,
  residuals) is interpreted too; what depends on tangents or cotangents is not.
  To see the operations of a derivative, transform `jax.grad(function)`.

  Args:
    function: Any function of trees of arrays that `jax.jit` takes.
    rule: `(step, inputs) -> outputs`. `step` describes the operation:
      `primitive` (its name), `params`, `inputs` and `outputs` (types), `scope`,
      `source` (the line of code); `step.bind(*inputs)` does it, and
      `step.new_key()` is a random key for it alone. Outputs have the shapes
      and dtypes that `step.outputs` say.
    static_argnums: Arguments that are not arrays, as for `jax.jit`.
    static_argnames: Keyword arguments that are not arrays.

  Returns:
    A function compiled as by `jax.jit`, of the same arguments and a keyword
    more, `rounding_key`, for rules that draw. An iteration of a loop
    draws anew. Under `vmap`, members share their draws unless the key is mapped
    too; devices of a `shard_map` share theirs.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> def double_sines(step, inputs):
    ...   outputs = step.bind(*inputs)
    ...   return (
    ...     [2 * x for x in outputs] if step.primitive == 'sin' else outputs
    ...   )
    >>> f = numerics.transform(lambda x: jnp.sin(x) + x, double_sines)
    >>> float(f(0.5)) == 2 * float(jnp.sin(0.5)) + 0.5
    True
  """
  if not callable(function) or not callable(rule):
    raise TypeError(
      'transform: expected a function and a rule, got'
      f' {type(function).__name__} and {type(rule).__name__}.'
    )
  return jax.jit(
    _Transformed(function, rule),
    static_argnums=static_argnums,
    static_argnames=static_argnames,
  )


@dataclasses.dataclass(frozen=True)
class _Transformed:
  """A function under a rule."""

  function: Callable[..., Any]
  rule: Rule

  def __post_init__(self) -> None:
    wrap(self, self.function)

  def __call__(self, *args: Any, rounding_key: Key = None, **kwargs: Any):
    traced = programs.trace(self.function, args, kwargs)
    key = checked_key(rounding_key)
    return interpret(traced, Interpretation(self.rule, arrays=True), key)[0]


def wrap(instance: Any, function: Callable[..., Any]) -> None:
  """Gives a callable the name and the signature of a function."""
  for name in ('__name__', '__doc__'):
    object.__setattr__(instance, name, getattr(function, name, None))
  object.__setattr__(instance, '__wrapped__', function)


def checked_key(key: Any) -> Key:
  """Returns a typed key, made of an old one if need be."""
  if key is None or _compat.is_key(key):
    return key
  if getattr(key, 'dtype', None) == np.uint32:
    return jax.random.wrap_key_data(key)
  raise TypeError(
    'rounding_key must be a PRNG key such as jax.random.key(seed), got'
    f' {key!r} of type {type(key).__name__}.'
  )
