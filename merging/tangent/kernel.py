"""The neural tangent kernel of a model, and where its eigenfunctions live."""

from collections.abc import Sequence
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import tree
from merging.tangent import linear as linear_lib


def ntk(
  apply: linear_lib.Apply,
  base: linear_lib.Params,
  inputs_a: Any,
  inputs_b: Any = None,
  *,
  outputs: Literal['trace', 'sum'] = 'trace',
  batch_size: int = 16,
) -> jax.Array:
  """Computes the empirical neural tangent kernel.

      K(x, x') = sum_o <grad f_o(x; theta_0), grad f_o(x'; theta_0)>

  Training the model linearised at the base is regression with this kernel.
  Gradients are of `2 batch_size` inputs at a time and never of more than one
  output, so that memory does not grow with the numbers of inputs and outputs.
  Time does: `len(inputs_a) / batch_size * len(inputs_b)` gradients for each
  output. Let `apply` return the outputs that matter only.

  Args:
    apply: `(params, inputs) -> outputs`, arrays whose first axis is that of the
      inputs. One compiled program serves calls with the same function object.
    base: Parameters.
    inputs_a: Pytree of arrays whose first axis is that of the inputs.
    inputs_b: Others; by default the same.
    outputs: `'trace'` adds up the kernels of all outputs. `'sum'` is the kernel
      of the sum of the outputs, as cheap as that of one.
    batch_size: Gradients of each of the two sides to hold.

  Returns:
    `f32[a, b]`.

  Raises:
    ValueError: Inputs are not arrays with one first axis, or `outputs` is
      unknown; or the base has no floating-point leaf.
    TypeError: A leaf of the base is complex.

  Examples:
    >>> def apply(params, x):  # Its gradient is x.
    ...   return x @ params['w']
    >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
    >>> ntk(apply, {'w': jnp.ones((2, 1))}, x)
    Array([[1., 1.],
           [1., 5.]], dtype=float32)

  References:
    Arthur Jacot, Franck Gabriel, Clément Hongler. "Neural Tangent Kernel:
    Convergence and Generalization in Neural Networks". NeurIPS 2018.
    arXiv:1806.07572.
  """
  patterns.check_option('ntk', 'outputs', outputs, ('trace', 'sum'))
  if inputs_b is None:
    inputs_b = inputs_a
  linear_lib.num_inputs('ntk', 'inputs_a', inputs_a)
  linear_lib.num_inputs('ntk', 'inputs_b', inputs_b)
  return _kernel(apply, outputs, batch_size, base, inputs_a, inputs_b)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _kernel(apply, outputs, batch_size, base, inputs_a, inputs_b):
  run, floats = linear_lib.of_floats('ntk', apply, base)

  def flat_outputs(floats, x):
    batch = jax.tree.map(lambda each: each[None], x)
    out = run(floats, args=(batch,), kwargs={})
    real = [each for each in jax.tree.leaves(out) if tree.is_float(each)]
    return jnp.concatenate([each.astype(jnp.float32).ravel() for each in real])

  first = jax.tree.map(lambda each: each[0], inputs_a)
  [size] = jax.eval_shape(flat_outputs, floats, first).shape

  def gradient(x, number):
    def readout(floats):
      out = flat_outputs(floats, x)
      return jnp.sum(out) if outputs == 'sum' else out[number]

    return jax.grad(readout)(floats)

  def product(a, b):
    """Written as products of vectors, which batches turn into matrices."""
    parts = [
      jnp.dot(
        x.astype(jnp.float32).ravel(),
        y.astype(jnp.float32).ravel(),
        precision=jax.lax.Precision.HIGHEST,
      )
      for x, y in zip(a, b, strict=True)
    ]
    return sum(parts, jnp.float32(0))

  def add(kernel, number):
    def row(x):
      left = gradient(x, number)
      entry = lambda y: product(left, gradient(y, number))  # noqa: E731
      return jax.lax.map(entry, inputs_b, batch_size=batch_size)

    rows = jax.lax.map(row, inputs_a, batch_size=batch_size)
    return kernel + rows, None

  counts = [len(jax.tree.leaves(each)[0]) for each in (inputs_a, inputs_b)]
  numbers = jnp.arange(1 if outputs == 'sum' else size)
  return jax.lax.scan(add, jnp.zeros(counts, jnp.float32), numbers)[0]


class Localization(NamedTuple):
  """Where the eigenfunctions that represent each task live.

  Attributes:
    local_energy: For each task and each input, the sum of the squares of the
      eigenfunctions of the task, relative to its mean over the task's own
      inputs, `f32[tasks, inputs]`.
    by_task: Its means over the inputs of each task, `f32[tasks, tasks]`: 1 on
      the diagonal, and 0 elsewhere if eigenfunctions are localised.
  """

  local_energy: jax.Array
  by_task: jax.Array


def eigenfunction_localization(
  kernel: jax.Array | np.ndarray,
  tasks: np.ndarray | Sequence[int],
  *,
  fit: Literal['pooled', 'own'] = 'pooled',
  trace: float = 0.99,
) -> Localization:
  """Measures how far eigenfunctions of a kernel keep to the inputs of a task.

      E_t(x) = sum_r w_tr phi_r(x)^2,   K phi_r = lambda_r phi_r

  A linear model is weight-disentangled if each task is represented by
  eigenfunctions that vanish on the inputs of all others. The paper compares
  E_t on the inputs of a task and on a control; it does not say in one formula
  which eigenfunctions represent a task, and has no code for it. Here they are,
  of the leading ones that carry most of the trace:

  * `'pooled'`: those of the kernel of all inputs, each weighted by how much of
    it lies on the task, `w_tr = sum_{x of t} phi_r(x)^2`, which is how much a
    function that is arbitrary on the task and zero elsewhere uses it. Where
    eigenvalues of several tasks coincide their eigenfunctions are arbitrary
    mixtures.
  * `'own'`: those of the kernel of the task's inputs, all with weight 1,
    extended to others as `phi_r(x) = sum_i K(x, x_i) phi_r(x_i) / lambda_r`.
    Whatever is learned from these inputs is a sum of them.

  Args:
    kernel: Symmetric kernel of the inputs of all tasks, such as of `ntk`,
      `f32[inputs, inputs]`; best with as many of each task.
    tasks: The task of each input, from 0, `i32[inputs]`.
    fit: Which eigenfunctions represent a task.
    trace: Share of the trace that the leading eigenfunctions carry at least;
      in the rest float32 leaves nothing but noise.

  Returns:
    The energies.

  Raises:
    ValueError: The shapes do not fit, a task has no inputs, `fit` is unknown or
      `trace` is not a share.

  Examples:
    >>> kernel = jnp.diag(jnp.array([4.0, 3.0, 2.0, 1.0]))
    >>> eigenfunction_localization(kernel, [0, 0, 1, 1], trace=1.0).by_task
    Array([[1., 0.],
           [0., 1.]], dtype=float32)

  References:
    Guillermo Ortiz-Jimenez, Alessandro Favero, Pascal Frossard. "Task
    Arithmetic in the Tangent Space: Improved Editing of Pre-Trained Models".
    NeurIPS 2023. arXiv:2305.12827.
  """
  caller = 'eigenfunction_localization'
  patterns.check_option(caller, 'fit', fit, ('pooled', 'own'))
  if not 0 < trace <= 1:
    raise ValueError(f'{caller}: trace is {trace}, expected a share in (0, 1]')
  matrix = jnp.asarray(kernel, jnp.float32)
  labels = np.asarray(tasks)
  if labels.ndim != 1 or matrix.shape != (labels.size, labels.size):
    raise ValueError(
      f'{caller}: the kernel has shape {matrix.shape} and tasks have shape '
      f'{labels.shape}, expected (n, n) and (n,)'
    )
  count = int(labels.max(initial=-1)) + 1
  members = [np.flatnonzero(labels == task) for task in range(count)]
  empty = [task for task in range(count) if not members[task].size]
  if not count or empty or labels.min() < 0:
    raise ValueError(
      f'{caller}: tasks are {sorted(set(labels.tolist()))}, expected all of '
      f'0, ..., {max(count - 1, 0)}'
    )
  energies = []
  if fit == 'pooled':
    _, functions, leads = _eigenfunctions(matrix, trace)
    squares = functions**2
    for rows in members:
      weights = jnp.where(leads, jnp.sum(squares[rows], axis=0), 0.0)
      energies.append(_matmul(squares, weights))
  else:
    for rows in members:
      values, functions, leads = _eigenfunctions(matrix[rows][:, rows], trace)
      extended = _matmul(matrix[:, rows], functions)
      scale = jnp.where(leads, 1 / jnp.where(leads, values, 1), 0.0)
      energies.append(jnp.sum((extended * scale[None]) ** 2, axis=1))
  energy = jnp.stack(energies)
  home = jnp.stack(
    [jnp.mean(energy[t, rows]) for t, rows in enumerate(members)]
  )
  present = home > 0
  energy /= jnp.where(present, home, 1)[:, None]
  means = [jnp.mean(energy[:, rows], axis=1) for rows in members]
  return Localization(energy, jnp.stack(means, axis=1))


def _eigenfunctions(kernel, trace):
  """Eigenvalues in descending order, eigenvectors, and which of them lead."""
  values, vectors = jnp.linalg.eigh(kernel)
  values, vectors = jnp.maximum(values[::-1], 0), vectors[:, ::-1]
  total = jnp.sum(values)
  before = jnp.cumsum(values) - values
  rounding = values[0] * len(values) * jnp.finfo(values.dtype).eps
  return values, vectors, (before < trace * total) & (values > rounding)


def _matmul(a, b):
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
