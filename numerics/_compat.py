"""The parts of JAX that differ between versions, in one place.

Tested with JAX 0.10.2 and 0.12.0.1. From 0.11 on a closed program is a
`Jaxpr` with constants, and `scan` describes its arguments by flat trees.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import inspect
import os
from typing import Any

import jax
from jax.extend import core
from jax.extend import source_info_util
import jax.numpy as jnp
import numpy as np

Literal = core.Literal
Var = core.Var

# Files that are never the user's.
_INNER = (os.path.dirname(jax.__file__), os.path.dirname(__file__))
_RANDOM = inspect.unwrap(jax.random.normal).__code__.co_filename


def opened(program: Any) -> tuple[Any, Sequence[Any]]:
  """Returns the equations of a program, and the values of its constants."""
  jaxpr = getattr(program, 'jaxpr', program)  # Before 0.11, a closed one.
  return jaxpr, getattr(program, 'consts', ())


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
  """Returns how many arguments of a `scan` are constants, and carried."""
  if 'num_consts' in params:  # Before 0.11.
    return params['num_consts'], params['num_carry']
  consts, carry, _ = params['ft_in'].unpack()
  return len(consts), len(carry)


def bind(equation: Any, inputs: Sequence[Any], **changes: Any) -> list[Any]:
  """Does what an equation says, to other inputs."""
  params = equation.primitive.get_bind_params(equation.params)
  outputs = equation.primitive.bind(*inputs, **{**params, **changes})
  return list(outputs) if equation.primitive.multiple_results else [outputs]


@contextlib.contextmanager
def context(equation: Any) -> Iterator[None]:
  """Gives what is traced the place in the user's code, and the settings."""
  info = equation.source_info
  stack = source_info_util.current_name_stack() + info.name_stack
  with (
    source_info_util.user_context(info.traceback, name_stack=stack),
    equation.ctx.manager,
  ):
    yield


def scope(equation: Any) -> str:
  """Returns the `jax.named_scope`s around an equation, joined by slashes."""
  return str(equation.source_info.name_stack)


def source(equation: Any) -> str | None:
  """Returns the line that made an equation, as `file:line (function)`.

  That is the innermost frame outside installed packages; failing that, outside
  JAX and this package.
  """
  traceback = equation.source_info.traceback
  frames = [] if traceback is None else traceback.frames
  others = [each for each in frames if not each.file_name.startswith(_INNER)]
  own = [each for each in others if not _is_installed(each.file_name)]
  for frame in own or others:
    return f'{frame.file_name}:{frame.line_num} ({frame.function_name})'
  return None


def is_draw(equation: Any) -> bool:
  """Whether a compiled function is a private one of `jax.random`."""
  traceback = equation.source_info.traceback
  return str(equation.params.get('name')).startswith('_') and any(
    frame.file_name == _RANDOM
    for frame in (traceback.frames if traceback else ())
  )


@functools.cache
def _is_installed(name: str) -> bool:
  return 'site-packages' in name or name.startswith(
    (os.path.dirname(os.__file__), '<frozen')
  )


def like(x: jax.Array, aval: Any) -> jax.Array:
  """Returns `x` with the weak type of another array of its dtype."""
  if jax.typeof(x).weak_type == aval.weak_type:
    return x
  return core.primitives.convert_element_type_p.bind(
    x, new_dtype=x.dtype, weak_type=bool(aval.weak_type), sharding=None
  )


def varying_axes(x: Any) -> frozenset[str]:
  """Returns the axes of `shard_map` along which an array is known to vary."""
  return frozenset(jax.typeof(x).manual_axis_type.varying)


def vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
  """Returns `x` marked as varying along axes of `shard_map`."""
  axes = axes - varying_axes(x)
  return jax.lax.pcast(x, tuple(sorted(axes)), to='varying') if axes else x


def is_key(x: Any) -> bool:
  """Whether a value is a typed PRNG key."""
  return jnp.issubdtype(getattr(x, 'dtype', np.float32), jax.dtypes.prng_key)


def has_float64() -> bool:
  """Whether arrays may be of 64 bits here."""
  return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
