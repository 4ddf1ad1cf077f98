"""What a function computes: its equations, as JAX traces them."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from numerics import _compat

# The scope of draws of `jax.random`, which says so by private names.
DRAW = 'jax.random'

# Functions that are just called; the last name is that of JAX 0.12.
CALLS = ('call', 'core_call', 'closed_call', 'core_closed_call', 'eval_jaxpr')

# Equations that run programs, with the names of the parameters that hold them;
# `cond` has a tuple of them.
_CALLS: dict[str, tuple[str, ...]] = {
  'while': ('cond_jaxpr', 'body_jaxpr'),
  **dict.fromkeys(
    ['jit', 'pjit', 'remat', 'remat2', 'checkpoint', 'shard_map', 'scan'],
    ('jaxpr',),
  ),
  'custom_jvp_call': ('call_jaxpr',),
  'custom_vjp_call': ('call_jaxpr',),
  **dict.fromkeys(CALLS, ('call_jaxpr',)),
}


class Traced(NamedTuple):
  """A function traced for arguments of certain types.

  Attributes:
    program: What it computes, from the arrays among its arguments.
    consts: Arrays that it holds, or closes over.
    inputs: The arrays among its arguments.
    structure: Makes its result of the outputs of the program.
  """

  program: Any
  consts: Sequence[Any]
  inputs: Sequence[Any]
  structure: Any


class Equation:
  """One operation of a program, in terms that outlive versions of JAX.

  Attributes:
    primitive: Name of the operation, such as `'dot_general'`.
    params: Its static parameters, as JAX has them.
    inputs: Types of its operands: `shape`, `dtype`, `weak_type`.
    outputs: Types of its results.
    path: Which equation of the whole program it is, such as `'3.0.12'`.
    scope: Names around it: `jax.named_scope`, among them the modules of Flax,
      and nested functions that are compiled, as `jit(name)`.
    index: Its place in its own program.
    outer: The equation that runs its program, if any.
    times: How often it runs. Turns of a `while` are not known and count as one,
      and every branch of a `cond` counts as taken.
  """

  def __init__(
    self,
    raw: Any,
    index: int,
    path: str,
    scope: str,
    outer: 'Equation | None' = None,
  ) -> None:
    self.raw = raw
    self.primitive: str = raw.primitive.name
    self.params: dict[str, Any] = raw.params
    self.inputs = tuple(atom.aval for atom in raw.invars)
    self.outputs = tuple(var.aval for var in raw.outvars)
    self.index = index
    self.outer = outer
    self.times = 1 if outer is None else outer.times * outer.turns
    self.path = f'{path}{index}'
    self.scope = '/'.join(filter(None, [scope, _compat.scope(raw)]))

  @property
  def source(self) -> str:
    """The user's line that made it, as `file:line (function)`.

    Functions that JAX has compiled before do not know who calls them. It is the
    line of the call then.
    """
    line = _compat.source(self.raw)
    if line is None and self.outer is not None:
      return self.outer.source
    return line or 'an unknown line'

  @property
  def turns(self) -> int:
    """How often it runs its program."""
    return self.params['length'] if self.primitive == 'scan' else 1

  @property
  def floating(self) -> bool:
    """Whether a result has a floating or complex dtype."""
    return any(map(is_inexact, self.outputs))

  def bind(self, *inputs: Any, **changes: Any) -> list[Any]:
    """Does the operation in ordinary arithmetic.

    Args:
      *inputs: The operands.
      **changes: Parameters to replace.

    Returns:
      The results.
    """
    return _compat.bind(self.raw, inputs, **changes)

  def programs(self) -> list[tuple[str, str, Any]]:
    """The programs it runs: a path and a scope for each, and the program."""
    name = self.params.get('name')
    scope = self.scope
    if self.primitive in ('jit', 'pjit'):
      draw = DRAW if _compat.is_draw(self.raw) else ''
      scope = '/'.join(filter(None, [scope, draw, f'jit({name})']))
    if self.primitive == 'cond':
      found = self.params['branches']
    else:
      found = [self.params[name] for name in _CALLS.get(self.primitive, ())]
    return [
      (f'{self.path}.{label}.' if len(found) > 1 else f'{self.path}.', scope, p)
      for label, p in enumerate(found)
    ]


def is_inexact(value: Any) -> bool:
  """Whether an array or a type has a floating or complex dtype."""
  return jax.dtypes.issubdtype(value.dtype, np.inexact)


# What is an array where a function is called outside of `jit`.
NUMBERS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def trace(
  function: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  dynamic: type | tuple[type, ...] = jax.Array,
) -> Traced:
  """Traces a function.

  Args:
    function: Any that JAX can trace.
    args: Its arguments, which are trees.
    kwargs: Its keyword arguments, likewise.
    dynamic: Which leaves of them are arrays. The others are static.

  Returns:
    Its program.
  """
  leaves, tree = jax.tree.flatten((args, kwargs))
  places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, dynamic)]

  def of_arrays(*arrays):
    filled = list(leaves)
    for place, array in zip(places, arrays, strict=True):
      filled[place] = array
    args, kwargs = jax.tree.unflatten(tree, filled)
    return function(*args, **kwargs)

  inputs = [leaves[place] for place in places]
  program, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*inputs)
  _, consts = _compat.opened(program)
  return Traced(program, consts, inputs, jax.tree.structure(shape))


def trace_call(
  function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Traced:
  """Traces a function for a call outside of `jit`: numbers are arrays too."""
  return trace(function, args, kwargs, NUMBERS)


def live(program: Any) -> Sequence[tuple[int, Any]]:
  """Returns the equations that matter to a result, with their places."""
  jaxpr, _ = _compat.opened(program)
  wanted = {v for v in jaxpr.outvars if isinstance(v, _compat.Var)}
  found = []
  for index, raw in reversed(list(enumerate(jaxpr.eqns))):
    if raw.effects or not wanted.isdisjoint(raw.outvars):
      found.append((index, raw))
      wanted.update(v for v in raw.invars if isinstance(v, _compat.Var))
  return found[::-1]


def walk(
  program: Any,
  path: str = '',
  scope: str = '',
  outer: Equation | None = None,
) -> Iterator[Equation]:
  """Yields the equations of a program and of all within it, in order.

  Those that only run other programs are not among them.

  Args:
    program: The program.
    path: Where it is in the whole.
    scope: The names around it.
    outer: What runs it.

  Yields:
    Equations.
  """
  for index, raw in live(program):
    equation = Equation(raw, index, path, scope, outer)
    inner = equation.programs()
    for inner_path, inner_scope, inner_program in inner:
      yield from walk(inner_program, inner_path, inner_scope, equation)
    if not inner:
      yield equation
