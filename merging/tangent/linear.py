"""Models made linear in their parameters."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import itertools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import tree

Apply = Callable[..., Any]
Params = Any


def linearize(apply: Apply, base: Params) -> Apply:
  """Makes a model linear in its parameters, around those of the base.

      f_lin(x; theta) = f(x; theta_0) + J(x; theta_0) (theta - theta_0)

  Trained through this function, parameters move in the tangent space of the
  base, and their task vectors interfere less. Parameters that were trained
  through `apply` can be evaluated with it too ("post hoc"). Merging is ordinary
  `merging.merge`; the merged parameters are evaluated with this function.

  A value costs about two forward passes, a gradient 1.4 to 1.7 times that of
  `apply`. To evaluate many parameters on the same inputs, see `linearize_at`.

  Args:
    apply: The model (see `merging.tangent`).
    base: Parameters to linearise at. Their values become constants of a
      program that closes over them; within `jax.jit` let them be an argument:
      `jax.jit(lambda base, params, x: linearize(apply, base)(params, x))`.

  Returns:
    `(params, *args, **kwargs) -> outputs`, like `apply`. Integer leaves of
    `params` and integer outputs are those of the base. The tangent of a leaf is
    taken in the wider of the two dtypes and rounded to the dtype of the base's
    leaf, in which the model computes; for small changes of a bfloat16 model
    cast the base to float32 first.

  Raises:
    ValueError: The base has no floating-point leaf; or, of the result, the
      parameters differ in structure from the base.
    TypeError: A leaf of the base is complex.

  Examples:
    >>> def square(params, x):
    ...   return params['w'] ** 2 * x
    >>> linear = linearize(square, {'w': jnp.float32(3)})
    >>> float(linear({'w': jnp.float32(4)}, jnp.float32(1)))
    15.0

  References:
    Guillermo Ortiz-Jimenez, Alessandro Favero, Pascal Frossard. "Task
    Arithmetic in the Tangent Space: Improved Editing of Pre-Trained Models".
    NeurIPS 2023. arXiv:2305.12827.
  """
  run, floats = of_floats('linearize', apply, base)

  def apply_linear(params: Params, *args: Any, **kwargs: Any) -> Any:
    change = change_of('linearize', params, base)
    at_inputs = functools.partial(run, args=args, kwargs=kwargs)
    return add_slopes(*jax.jvp(at_inputs, (floats,), (change,)))

  return apply_linear


def linearize_at(
  apply: Apply, base: Params, *args: Any, **kwargs: Any
) -> Callable[[Params], Any]:
  """Makes a model linear in its parameters, for given inputs.

  `linearize(apply, base)(params, *args)` as a function of the parameters only:
  the pass through the base is made once, here, and each evaluation costs one
  tangent. Outside `jax.jit` that pass runs operation by operation.

  Args:
    apply: The model (see `merging.tangent`).
    base: Parameters to linearise at.
    *args: Inputs.
    **kwargs: Further inputs.

  Returns:
    `params -> outputs`, linear but for a constant; `jax.vmap` of it takes
    stacked parameters.

  Raises:
    ValueError: As `linearize`.
    TypeError: As `linearize`.

  Examples:
    >>> def square(params, x):
    ...   return params['w'] ** 2 * x
    >>> at = linearize_at(square, {'w': jnp.float32(3)}, jnp.float32(1))
    >>> jax.vmap(at)({'w': jnp.arange(3.0, 6.0)}).tolist()
    [9.0, 15.0, 21.0]
  """
  run, floats = of_floats('linearize_at', apply, base)
  at_inputs = functools.partial(run, args=args, kwargs=kwargs)
  outputs, slope = jax.linearize(at_inputs, floats)

  def at(params: Params) -> Any:
    return add_slopes(outputs, slope(change_of('linearize_at', params, base)))

  return at


class Responses(NamedTuple):
  """How a linearised model answers to each task vector, on given inputs.

  Attributes:
    base: Outputs of the base.
    changes: What each task vector adds to them, with a leading axis of experts,
      sorted by name.
  """

  base: Any
  changes: Any

  def at(self, coefficients: jax.Array) -> Any:
    """Returns the outputs of `base + sum_t coefficients[t] tau_t`.

    Args:
      coefficients: `f32[experts]`.

    Returns:
      Outputs, like `base`.
    """

    def mix(out, changes):
      if not tree.is_float(out):
        return out
      change = jnp.tensordot(
        jnp.asarray(coefficients, jnp.float32),
        changes.astype(jnp.float32),
        axes=1,
        precision=jax.lax.Precision.HIGHEST,
      )
      return (out.astype(jnp.float32) + change).astype(out.dtype)

    return jax.tree.map(mix, self.base, self.changes)


def responses(
  apply: Apply,
  base: Params,
  experts: Mapping[str, Params],
  *args: Any,
  **kwargs: Any,
) -> Responses:
  """Evaluates a linearised model for all coefficients of its task vectors.

      f_lin(x; theta_0 + sum_t a_t tau_t) = f(x; theta_0) + sum_t a_t J tau_t

  A search over coefficients of task arithmetic so costs one tangent for each
  expert, however many coefficients are tried. Use it within `jax.jit`.

  Args:
    apply: The model (see `merging.tangent`).
    base: Parameters to linearise at.
    experts: Fine-tuned parameters by the name of the expert.
    *args: Inputs.
    **kwargs: Further inputs.

  Returns:
    The responses; `responses.at(coefficients)` are outputs.

  Raises:
    ValueError: As `linearize`, or there are no experts.
    TypeError: As `linearize`, or `experts` is not a mapping.

  Examples:
    >>> def square(params, x):
    ...   return params['w'] ** 2 * x
    >>> base, experts = {'w': jnp.float32(3)}, {'math': {'w': jnp.float32(4)}}
    >>> answers = responses(square, base, experts, jnp.float32(1))
    >>> [float(answers.at(jnp.array([a]))) for a in (0.0, 0.5, 1.0)]
    [9.0, 12.0, 15.0]
  """
  names = checks.check_experts('responses', experts)
  changes = [change_of('responses', experts[name], base) for name in names]
  run, floats = of_floats('responses', apply, base)
  at_inputs = functools.partial(run, args=args, kwargs=kwargs)
  outputs, slope = jax.linearize(at_inputs, floats)

  def respond(change):
    def real(out, moved):
      return moved if tree.is_float(out) else jnp.zeros_like(out)

    return jax.tree.map(real, outputs, slope(change))

  return Responses(outputs, jax.lax.map(respond, tree.stack(changes)))


def of_floats(
  caller: str, apply: Apply, base: Params
) -> tuple[Callable[..., Any], list[jax.Array]]:
  """Returns a model as a function of its floating leaves, and their values."""
  flat = tree.flatten(base)
  for path, leaf in flat.items():
    if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
      raise TypeError(
        f'{caller}: base at {path!r} is {jnp.result_type(leaf)}; keep real and '
        'imaginary parts as two leaves'
      )
  paths = [path for path, leaf in flat.items() if tree.is_float(leaf)]
  if not paths:
    raise ValueError(f'{caller}: base has no floating-point leaf')

  def run(floats, *, args, kwargs):
    leaves = {**flat, **dict(zip(paths, floats, strict=True))}
    return apply(tree.unflatten(leaves, like=base), *args, **kwargs)

  return run, [jnp.asarray(flat[path]) for path in paths]


def change_of(
  caller: str,
  params: Params,
  base: Params,
  dtype: jax.typing.DTypeLike | None = None,
) -> list[jax.Array]:
  """Returns what changed of each floating leaf of the base.

  Args:
    caller: For errors.
    params: Changed parameters.
    base: The base.
    dtype: Of the result; by default that of the leaf of the base.
  """
  try:
    tree.check_same_structure(base, params, names=('base', 'params'))
  except ValueError as error:
    error.add_note(f'in {caller}')
    raise
  moved = tree.flatten(params)
  changes = []
  for path, leaf in tree.flatten(base).items():
    if not tree.is_float(leaf):
      continue
    x, y = jnp.asarray(moved[path]), jnp.asarray(leaf)
    wide = max(x.dtype, y.dtype, key=lambda each: each.itemsize)
    changes.append((x.astype(wide) - y.astype(wide)).astype(dtype or y.dtype))
  return changes


def add_slopes(outputs: Any, slopes: Any) -> Any:
  """Adds tangents; outputs that are not floating have none."""

  def plus(out, slope):
    return out + slope if tree.is_float(out) else out

  return jax.tree.map(plus, outputs, slopes)


def num_inputs(caller: str, name: str, inputs: Any) -> int:
  """Returns the length of the first axis of all arrays, checked."""
  sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
  if len(sizes) != 1 or not all(itertools.chain(*sizes)) or () in sizes:
    raise ValueError(
      f'{caller}: {name} are arrays of lengths {sorted(sizes)}, expected one '
      'length, that is not zero, for all'
    )
  [[count]] = sizes
  return count
