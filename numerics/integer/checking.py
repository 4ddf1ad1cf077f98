"""Whether a function is integers only, by its program."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from numerics import _compat
from numerics import programs


def check_integer_only(
  function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Mapping[str, int]:
  """Proves that a function computes with integers only.

  It is traced, not run, and every operation that matters to its result is
  looked at: in loops, branches, compiled functions, kernels and reductions. No
  operand and no result may be floating or complex, nor may an argument, a
  constant or what is returned.

  Args:
    function: Any that JAX can trace.
    *args: Its arguments, arrays or `jax.ShapeDtypeStruct`.
    **kwargs: Its keyword arguments.

  Returns:
    How often each primitive is in the program.

  Raises:
    TypeError: If there is a floating number, with the first operation that has
      one and its line.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.arange(5)
    >>> dict(numerics.integer.check_integer_only(lambda x: (x * x) >> 1, x))
    {'mul': 1, 'shift_right_arithmetic': 1}
    >>> numerics.integer.check_integer_only(jnp.sqrt, x)
    Traceback (most recent call last):
    ...
    TypeError: check_integer_only: convert_element_type at ... gives float32[5].

  References:
    Li and Gu, I-ViT: Integer-only Quantization for Efficient Vision Transformer
      Inference, 2023, arXiv:2207.01405.
  """
  kinds = (*programs.NUMBERS, jax.ShapeDtypeStruct)
  program = programs.trace(function, args, kwargs, kinds).program
  jaxpr, _ = _compat.opened(program)
  for word, atoms in (
    ('an argument', jaxpr.invars),
    ('a constant', jaxpr.constvars),
  ):
    floating = _floating(atom.aval for atom in atoms)
    if floating:
      raise TypeError(f'check_integer_only: {word} is {floating}.')
  found: dict[str, int] = {}
  for equation in _all(program):
    for word, values in (
      ('takes', equation.inputs),
      ('gives', equation.outputs),
    ):
      floating = _floating(values)
      if floating:
        raise TypeError(
          f'check_integer_only: {equation.primitive} at {equation.source}'
          f' {word} {floating}.'
        )
    found[equation.primitive] = found.get(equation.primitive, 0) + 1
  floating = _floating(atom.aval for atom in jaxpr.outvars)
  if floating:  # A number that nothing computes.
    raise TypeError(f'check_integer_only: a result is {floating}.')
  return found


def _floating(values: Iterable[Any]) -> str | None:
  """Describes the first of some types that is no integer."""
  for value in values:
    if hasattr(value, 'dtype') and programs.is_inexact(value):
      return value.str_short()
  return None


def _all(program: Any) -> Iterator[programs.Equation]:
  """Every operation, those of programs among parameters too."""
  for equation in programs.walk(program):
    yield equation
    for value in equation.params.values():
      for inner in _programs(value):
        yield from _all(inner)


def _programs(value: Any) -> Iterator[Any]:
  if isinstance(value, tuple | list):
    for each in value:
      yield from _programs(each)
  elif hasattr(getattr(value, 'jaxpr', value), 'eqns'):
    yield value


def as_int32(function: str, x: jax.typing.ArrayLike) -> jax.Array:
  """Returns an array of integers in int32, which holds them.

  Raises:
    TypeError: If it is none.
  """
  dtype = jnp.result_type(x)
  if not jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.uint32:
    raise TypeError(
      f'{function}: expected integers that int32 holds, got {dtype}.'
    )
  return jnp.asarray(x).astype(jnp.int32)
