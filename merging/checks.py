"""What is wrong with the inputs of a merge, all of it, before it begins."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import programs
from merging import transform as transform_lib
from merging import tree

Flat = Mapping[str, Any]  # Leaves by path.


def within(value: Any, *, least: float = -np.inf, most: float = np.inf) -> bool:
  """Tells whether a number is in a range; one that is traced may be.

  Examples:
    >>> within(0.2, least=0, most=1), within(jnp.float32(jnp.nan), least=0)
    (True, False)
  """
  if isinstance(value, jax.core.Tracer):
    return True
  return least <= float(np.asarray(value)) <= most


def check_transform(caller: str, transform: Any) -> None:
  """Raises `TypeError` unless given a transform, not what makes one."""
  if isinstance(transform, transform_lib.MergeTransform):
    return
  hint = ''
  if callable(transform):
    name = getattr(transform, '__name__', 'it')
    hint = f': it makes one, call it, as in {name}()'
  raise TypeError(
    f'{caller}: expected a transform, got {type(transform).__name__} '
    f'{transform!r}{hint}'
  )


def check_experts(caller: str, experts: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the sorted names of the experts; `caller` is for messages.

  Raises:
    TypeError: `experts` is not a mapping from strings.
    ValueError: It is empty.
  """
  if not isinstance(experts, Mapping):
    raise TypeError(
      f'{caller}: experts is a {type(experts).__name__}, expected a mapping '
      "from names to parameters, such as {'math': params}"
    )
  if not experts:
    raise ValueError(f'{caller}: there are no experts')
  for name in experts:
    if not isinstance(name, str):
      raise TypeError(
        f'{caller}: an expert is named {name!r}, expected a string'
      )
  return tuple(sorted(experts))


def check_types(
  caller: str, names: Sequence[str], trees: Sequence[Flat]
) -> None:
  """Checks that every leaf is an array that JAX can hold as it is.

  Args:
    caller: Who was called, for messages.
    names: Names of the models.
    trees: Their leaves by path.

  Raises:
    TypeError: Lists the leaves that are not.
  """
  problems = []
  for name, leaves in zip(names, trees, strict=True):
    for path, leaf in leaves.items():
      problem = _type_problem(leaf)
      if problem:
        problems.append(f'{name!r} at {path!r}: {problem}')
  if problems:
    listed = '\n'.join(problems)
    raise TypeError(f'{caller}: leaves of a wrong type:\n{listed}')


def _type_problem(leaf):
  try:
    dtype = jnp.result_type(leaf)
  except TypeError:
    return f'a {type(leaf).__name__}, expected an array'
  given = getattr(leaf, 'dtype', dtype)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    return f'{given}; merge real and imaginary parts as two leaves'
  if tree.is_float(leaf) and given != dtype:
    return f'{given} would be read as {dtype}; cast it, or set jax_enable_x64'
  return None


def check_values(
  caller: str, names: Sequence[str], trees: Sequence[Flat]
) -> None:
  """Checks that floats are finite and other leaves equal those of the base.

  Traced values are not looked at; those that a traced function closes over are.

  Args:
    caller: Who was called, for messages.
    names: Names of the models, the base first.
    trees: Their leaves by path.

  Raises:
    ValueError: Lists the leaves that are not.
  """
  base = trees[0]
  verdicts = {}  # All are collected, then fetched from the device at once.
  with jax.ensure_compile_time_eval():
    for path, reference in base.items():
      row = [leaves[path] for leaves in trees]
      known = [not isinstance(value, jax.core.Tracer) for value in row]
      values = tuple(itertools.compress(row, known))
      if tree.is_float(reference):
        verdict = programs.all_finite(values) if values else ()
      elif known[0]:
        verdict = [_equal(value, reference) for value in values]
      else:
        known = verdict = ()
      verdicts[path] = (list(itertools.compress(names, known)), verdict)
  problems = [
    f'{name!r} at {path!r}: {_value_problem(base[path])}'
    for path, (models, verdict) in jax.device_get(verdicts).items()
    for name, good in zip(models, verdict, strict=True)
    if not good
  ]
  if problems:
    listed = '\n'.join(problems)
    raise ValueError(f'{caller}: unusable values:\n{listed}')


def _equal(a, b):
  if isinstance(a, jax.Array) or isinstance(b, jax.Array):
    return programs.equal(a, b)
  return np.array_equal(a, b)


def _value_problem(leaf):
  if tree.is_float(leaf):
    return 'holds a NaN or an infinity'
  return (
    f'differs from the base; {jnp.result_type(leaf)} leaves are not merged and '
    'have to agree'
  )


def check_extra(
  caller: str,
  wanted: Sequence[str],
  extra: Mapping[str, Mapping[str, Any]],
  models: Sequence[str],
  paths: Sequence[str],
) -> dict[str, list[Flat]]:
  """Checks the data that a transform takes besides the parameters.

  Args:
    caller: Who was called, for messages.
    wanted: Names of the data that the transform takes.
    extra: Data by name: trees by the name of the expert.
    models: Sorted names of the experts.
    paths: Names of the leaves of the base.

  Returns:
    For each name and expert, in order, the leaves by path.

  Raises:
    TypeError: Data are not wanted, wanted data are missing or no mapping.
    ValueError: Experts or leaves are missing or unknown.
  """
  for name in extra:
    if name not in wanted:
      raise TypeError(
        f'{caller}: the transform takes no {name!r}; it takes '
        f'[{patterns.listing(wanted)}]{patterns.suggest(name, wanted)}'
      )
  columns: dict[str, list[Flat]] = {}
  for name in wanted:
    if not isinstance(extra.get(name), Mapping):
      raise TypeError(
        f'{caller}: the transform takes {name!r}: pass {name}= a mapping from '
        'the names of the experts to trees'
      )
    if set(extra[name]) != set(models):
      raise ValueError(
        f'{caller}: {name} is for {patterns.listing(sorted(extra[name]))}, '
        f'expected the experts {patterns.listing(models)}'
      )
    flat: list[Flat] = [tree.flatten(extra[name][model]) for model in models]
    for model, leaves in zip(models, flat, strict=True):
      for path in leaves:
        if path not in paths:
          raise ValueError(
            f'{caller}: {name} of {model!r} has a leaf {path!r} that base has '
            f'not{patterns.suggest(path, paths)}'
          )
      if set(leaves) != set(flat[0]):
        odd = sorted(set(leaves) ^ set(flat[0]))
        raise ValueError(
          f'{caller}: {name} of {model!r} and of {models[0]!r} have not the '
          f'same leaves: only one has {patterns.listing(odd)}'
        )
    columns[name] = flat
  return columns
