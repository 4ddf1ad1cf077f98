"""Products, matrices and attention in an arithmetic, against exact ones."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import NamedTuple
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from experiments.configs import lmul as configs
import numerics

GROUPS: Mapping[str, str] = {
  'bits': 'L-Mul, adding bit patterns',
  'value': 'L-Mul, the formula of the paper',
  'formats': 'Exact products of rounded numbers',
  'scaled': 'The same, with a scale for the tensor',
}

# What is drawn and multiplied, and what it is called.
MEASURES: Mapping[str, str] = {
  'uniform': 'uniform mantissas',
  'normal': 'normal numbers',
  'matrices': 'a product of matrices',
  'attention': 'attention',
}


class Row(NamedTuple):
  """An arithmetic of products.

  Attributes:
    group: A key of `GROUPS`.
    name: What it is called there.
    precision: For `numerics.emulate`.
    bits: Mantissa bits that are kept, the hidden one not counted.
    theory: The mean error of a product of uniform mantissas in closed form, in
      units of the last binade; None if there is none.
  """

  group: str
  name: str
  precision: numerics.Precision
  bits: int
  theory: float | None = None

  @property
  def key(self) -> str:
    """What it is recorded as."""
    return f'{self.group}/{self.name}'

  @property
  def elementwise(self) -> bool:
    """Whether it multiplies single numbers, not tensors with a scale."""
    return not isinstance(self.precision.inputs, numerics.BlockFormat)


_FORMATS = {
  'bfloat16': numerics.bfloat16,
  'float8_e4m3fn': numerics.float8_e4m3fn,
  'float8_e5m2': numerics.float8_e5m2,
}


def rows(config: configs.Config) -> list[Row]:
  """The rows of a run, in the order of the table."""
  found = []
  for variant in ('bits', 'value'):
    for m in config.mantissa_bits:
      lmul = numerics.LMul(m, variant)
      how = numerics.Precision(multiply=lmul)
      found.append(Row(variant, str(m), how, m, lmul.expected_error))
  for name, fmt in _FORMATS.items():
    cast = dataclasses.replace(fmt, overflow='saturate')
    how = numerics.Precision(inputs=cast)
    found.append(Row('formats', name, how, fmt.mantissa_bits))
  wide = numerics.Format(8, 23)
  for name, fmt in _FORMATS.items():
    if fmt.bits == 8:
      scaled = numerics.BlockFormat(fmt, None, wide, 'nearest')
      how = numerics.Precision(inputs=scaled)
      found.append(Row('scaled', name, how, fmt.mantissa_bits))
  return found


class Errors(NamedTuple):
  """How wrong an arithmetic is, of every seed.

  Attributes:
    matrices: Error of a product of matrices of normal numbers, in the Frobenius
      norm, relative to the exact one, `f64[seeds]`.
    attention: Likewise of `softmax(Q Kᵀ / √d) V`, whose softmax is in float32.
    uniform: Mean relative error of products of numbers in [1, 2); None if
      single numbers are not multiplied.
    largest: The largest of these.
    mean: The mean error of these, with its sign, not relative.
    normal: Mean relative error of products of normal numbers.
  """

  matrices: np.ndarray
  attention: np.ndarray
  uniform: np.ndarray | None = None
  largest: np.ndarray | None = None
  mean: np.ndarray | None = None
  normal: np.ndarray | None = None

  @classmethod
  def read(cls, record: Mapping[str, Any]) -> Self:
    """Reads a line of `metrics.jsonl`."""
    return cls(
      **{
        name.removeprefix('test/'): np.asarray(value)
        for name, value in record.items()
        if name.startswith('test/')
      }
    )


def measure(config: configs.Config, row: Row) -> dict[str, np.ndarray]:
  """Multiplies, all seeds one after the other.

  Args:
    config: What is drawn, the same for every row.
    row: The arithmetic.

  Returns:
    The fields of `Errors` that there are.
  """
  policy = numerics.Policy(matmul=row.precision)
  multiply = numerics.emulate(jnp.multiply, row.precision)
  matmul = numerics.emulate(jnp.matmul, policy)
  attend = numerics.emulate(attention, policy)
  seeds = []
  root = jax.random.key(config.seed)
  for seed in range(config.seeds):
    key = jax.random.fold_in(root, seed)
    keys = jax.random.split(key, 4)
    found = {}
    if row.elementwise:
      found |= _of_numbers(config, multiply, keys)
    a, b = jax.random.normal(keys[2], (2, config.size, config.size))
    found['matrices'] = _distance(matmul(a, b), _wide(a) @ _wide(b))
    shape = (3, config.length, config.features)
    operands = tuple(jax.random.normal(keys[3], shape))
    exact = _exact_attention(*map(_wide, operands))
    found['attention'] = _distance(attend(*operands), exact)
    seeds.append(found)
  return {name: np.array([each[name] for each in seeds]) for name in seeds[0]}


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Attention of one head: f32[length, features] of three such."""
  scores = query @ key.T * np.float32(query.shape[-1] ** -0.5)
  return jax.nn.softmax(scores, axis=-1) @ value


def _of_numbers(
  config: configs.Config, multiply: Callable[..., jax.Array], keys: jax.Array
) -> dict[str, float]:
  """Errors of products of single numbers."""
  shape = (2, config.products)
  x, y = jax.random.uniform(keys[0], shape, minval=1.0, maxval=2.0)
  exact = _wide(x) * _wide(y)
  error = _wide(multiply(x, y)) - exact
  u, v = jax.random.normal(keys[1], shape)
  normal = _wide(u) * _wide(v)
  # A normal number may be zero in float32, and has no relative error then.
  some = normal != 0
  relative = np.abs(_wide(multiply(u, v)) - normal)[some] / np.abs(normal[some])
  return {
    'uniform': float(np.mean(np.abs(error) / exact)),
    'largest': float(np.max(np.abs(error) / exact)),
    'mean': float(np.mean(error)),
    'normal': float(np.mean(relative)),
  }


def _exact_attention(
  query: np.ndarray, key: np.ndarray, value: np.ndarray
) -> np.ndarray:
  """The same in float64."""
  scores = query @ key.T * query.shape[-1] ** -0.5
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True) @ value


def _wide(x: jax.Array) -> np.ndarray:
  return np.asarray(x, np.float64)


def _distance(found: jax.Array, exact: np.ndarray) -> float:
  """The error in the Frobenius norm, relative to what is exact."""
  return float(np.linalg.norm(_wide(found) - exact) / np.linalg.norm(exact))
