"""How much two task vectors disturb each other.

xi(a, b) = sum_t E_{x of task t} [f(x; theta_0 + a_t tau_t) answers
otherwise than f(x; theta_0 + a tau_1 + b tau_2)]
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import layouts
from experiments.arithmerge import suite as suite_lib
from merging import tangent

ALPHAS = np.linspace(-2.0, 2.0, 9)
_PROBLEMS = 96  # Of each task: enough to see a pattern, not to rank.


def measure(
  suite: suite_lib.Suite,
  base: Any,
  experts: Mapping[str, Any],
  problems: layouts.Batch,
  *,
  linear: bool,
) -> np.ndarray:
  """Measures the error on a grid of coefficients of two experts.

  Args:
    suite: Problems and decoder.
    base: What the experts began with.
    experts: The experts of the first two tasks, by name.
    problems: Of all tasks, [tasks, problems].
    linear: Whether the decoder is linearised at the base.

  Returns:
    f32[a, a], the first axis for the expert whose name comes first.
  """
  inputs = {
    task.name: jax.tree.map(lambda x, i=i: x[i, :_PROBLEMS], problems)
    for i, task in enumerate(suite.tasks)
    if task.name in experts
  }
  error = tangent.disentanglement_error(
    functools.partial(_answers, suite),
    base,
    experts,
    inputs,
    ALPHAS,
    distance=_answer_differs,
    linear=linear,
    batch_size=_PROBLEMS,
  )
  return np.asarray(error)


def _answers(
  suite: suite_lib.Suite, params: Any, batch: layouts.Batch
) -> tuple[jax.Array, jax.Array]:
  """Logits, and where they are of answers."""
  answer = batch.answer[:, 1:].astype(jnp.int32)
  return suite.logits(params, batch.tokens), answer


def _answer_differs(
  one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Whether any token of the answer does: f32[problems]."""
  (a, answer), (b, _) = one, other
  differs = jnp.argmax(a, axis=-1) != jnp.argmax(b, axis=-1)
  return jnp.any(differs & (answer > 0), axis=-1).astype(jnp.float32)
