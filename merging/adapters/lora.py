"""Low-rank adapters: LoRA, with rsLoRA's scale, DoRA and LayRA."""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp

from merging import draws
from merging import patterns
from merging.adapters import leaves as leaves_lib

Tree = Any
Layout = leaves_lib.Layout


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('a', 'b', 'magnitude'),
  meta_fields=('scale', 'layout'),
)
@dataclasses.dataclass(frozen=True)
class Lora:
  """The adapter of one leaf: its arrays are what is trained.

      change = scale · a @ b

  and, with a magnitude (DoRA), for the column of each output

      v = base + scale · a @ b,   change = magnitude · v / |v| - base

  Factors are kept in the frame `x @ a @ b` however the model stores its leaf.
  PEFT's `lora_A.weight` is the transpose of `a`, its `lora_B.weight` that of
  `b`.

  Attributes:
    a: `[..., in, rank]`; the leading axis, if any, stacks layers.
    b: `[..., rank, out]`.
    magnitude: Of DoRA, `[..., out]`, or `None`.
    scale: Such as `alpha / rank`; static, so that no optimiser trains it.
    layout: Of the leaf: `'in_out'` (Flax) or `'out_in'` (PyTorch); static.
  """

  a: jax.Array
  b: jax.Array
  magnitude: jax.Array | None = None
  scale: float = 1.0
  layout: Layout = 'in_out'

  @property
  def rank(self) -> int:
    """Number of columns of `a`."""
    return self.a.shape[-1]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the leaf that it adapts.

    Raises:
      ValueError: The factors do not fit each other.
    """
    stack, fan_in = self.a.shape[:-2], self.a.shape[-2]
    fan_out = self.b.shape[-1]
    if self.b.shape != (*stack, self.rank, fan_out):
      raise ValueError(
        f'a {self.a.shape} and b {self.b.shape} do not multiply, expected '
        '[..., in, rank] and [..., rank, out]'
      )
    if self.magnitude is not None and self.magnitude.shape != (*stack, fan_out):
      raise ValueError(
        f'magnitude {self.magnitude.shape}, expected {(*stack, fan_out)}'
      )
    if self.layout == 'in_out':
      return (*stack, fan_in, fan_out)
    return (*stack, fan_out, fan_in)

  def delta(self, base: jax.Array) -> jax.Array:
    """Returns the change of the leaf.

    As DoRA's authors propose (section 4.3) and PEFT does, the norm takes no
    part in the gradient. Where it is zero, the adapted column is zero.

    Args:
      base: The leaf, `[*self.shape]`.

    Returns:
      The change, `f32[*self.shape]`.

    Examples:
      >>> lora = Lora(a=jnp.ones((2, 1)), b=jnp.ones((1, 3)), scale=0.5)
      >>> lora.delta(jnp.zeros((2, 3))).tolist()
      [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    base = leaves_lib.widened(base)
    a, b = (jnp.asarray(each, base.dtype) for each in (self.a, self.b))
    change = self.scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    if self.layout == 'out_in':
      change = jnp.swapaxes(change, -1, -2)
    if self.magnitude is None:
      return change
    direction = base + change
    inputs = -2 if self.layout == 'in_out' else -1
    norm = jax.lax.stop_gradient(_norm(direction, inputs))
    magnitude = jnp.asarray(self.magnitude, base.dtype)
    magnitude = jnp.expand_dims(magnitude, inputs)
    return magnitude / jnp.where(norm > 0, norm, 1) * direction - base


def _norm(matrix, axis):
  return jnp.sqrt(jnp.sum(jnp.square(matrix), axis, keepdims=True))


def init_lora(
  key: jax.Array,
  base: Tree,
  *,
  rank: int = 8,
  alpha: float = 8.0,
  leaves: leaves_lib.Selector = '',
  layers: tuple[int, int] | None = None,
  block: str = leaves_lib.BLOCK,
  stacked: leaves_lib.Selector | None = None,
  layout: Layout | Mapping[str, Layout] = 'in_out',
  scaling: Literal['lora', 'rslora'] = 'lora',
  rank_pattern: Mapping[str, int] | None = None,
  alpha_pattern: Mapping[str, float] | None = None,
  dora: bool = False,
) -> dict[str, Lora]:
  """Returns an adapter that changes nothing yet, to be trained.

  For each chosen matrix, `b` is zero and `a` uniform within `±1 / sqrt(in)`, as
  in PEFT and in the authors' code (the paper says Gaussian). With `scale =
  alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA,

      params = base + scale · a @ b

  DoRA adds a trained magnitude for each output, which begins as the norm of the
  weights into it. `layers=(first, last)` is LayRA: adapters in the initial and
  final blocks only. How many blocks and which rank its authors take is not
  known to us, so there is no default.

  The adapter is a plain dictionary; those of two calls, with different options
  for different leaves, are united as `{**a, **b}`.

  Args:
    key: Random key; each leaf folds in a hash of its path.
    base: Parameters.
    rank: Of the factors.
    alpha: Numerator of the scale.
    leaves: Which matrices to adapt: a regular expression to find in the path,
      or `path -> bool`. By default all with two axes, also embeddings.
    layers: `(first, last)`: only in the first and the last so many blocks.
    block: Regular expression with a group for the number of a block in a path;
      the default finds `blocks/0`, `layers_0`, `TransformerBlock_0`, `h/0`.
    stacked: Which leaves stack the matrices of all layers, `[layers, ...]`, as
      `jax.lax.scan` wants them; each layer has its own factors.
    layout: How the model stores matrices: `'in_out'` (Flax) or `'out_in'`
      (PyTorch), or one of the two by the first regular expression found in the
      path. GPT-2's `Conv1D` in PyTorch and all embeddings are `'in_out'`.
    scaling: Divides alpha by the rank (`'lora'`) or its root (`'rslora'`).
    rank_pattern: Other ranks, by the first regular expression found in a path.
    alpha_pattern: Other alphas, likewise.
    dora: Whether to train magnitudes.

  Returns:
    The adapters by the path of their leaf, in float32.

  Raises:
    ValueError: Nothing is selected, a pattern matches nothing, a selected leaf
      is no matrix, a rank is not positive, or an option is unknown.

  Examples:
    >>> base = {'blocks': [{'kernel': jnp.ones((4, 3))} for _ in range(4)]}
    >>> adapter = init_lora(jax.random.key(0), base, rank=2, layers=(1, 1))
    >>> {path: (each.a.shape, each.b.shape) for path, each in adapter.items()}
    {'blocks/0/kernel': ((4, 2), (2, 3)), 'blocks/3/kernel': ((4, 2), (2, 3))}

  References:
    Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li,
    Shean Wang, Lu Wang, Weizhu Chen. "LoRA: Low-Rank Adaptation of Large
    Language Models". ICLR 2022. arXiv:2106.09685.
    Damjan Kalajdzievski. "A Rank Stabilization Scaling Factor for Fine-Tuning
    with LoRA". 2023. arXiv:2312.03732.
    Shih-Yang Liu, Chien-Yi Wang, Hongxu Yin, Pavlo Molchanov, Yu-Chiang Frank
    Wang, Kwang-Ting Cheng, Min-Hung Chen. "DoRA: Weight-Decomposed Low-Rank
    Adaptation". ICML 2024. arXiv:2402.09353.
    Abraham Toluwase Owodunni, Sachin Kumar. "Continually Adding New Languages
    to Multilingual Language Models". 2025. arXiv:2509.11414.
  """
  patterns.check_option('init_lora', 'scaling', scaling, ('lora', 'rslora'))
  chosen = leaves_lib.choose(
    'init_lora',
    base,
    leaves,
    layers=layers,
    block=block,
    stacked=stacked,
    layout=layout,
  )
  paths = list(chosen)
  ranks = _by_pattern('rank_pattern', rank, rank_pattern, paths)
  alphas = _by_pattern('alpha_pattern', alpha, alpha_pattern, paths)
  hashes = dict(zip(paths, draws.hashes(paths), strict=True))
  adapter = {}
  for path, matrix in chosen.items():
    r = check_rank('init_lora', ranks[path], f'the rank for leaf {path!r}')
    adapter[path] = Lora(
      a=uniform(jax.random.fold_in(key, hashes[path]), matrix, r),
      b=jnp.zeros((*matrix.leaf.shape[:-2], r, matrix.fan_out), jnp.float32),
      magnitude=_magnitude(matrix) if dora else None,
      scale=float(alphas[path]) / (r if scaling == 'lora' else math.sqrt(r)),
      layout=matrix.layout,
    )
  return adapter


def uniform(key: jax.Array, matrix: leaves_lib.Matrix, rank: int) -> jax.Array:
  """Returns LoRA's initial `a`, uniform within `±1 / sqrt(in)`."""
  shape = (*matrix.leaf.shape[:-2], matrix.fan_in, rank)
  bound = 1 / math.sqrt(matrix.fan_in)
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def check_rank(caller: str, rank: int, name: str = 'rank') -> int:
  """Returns the rank, or raises `ValueError` if it is no positive integer."""
  if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
    raise ValueError(
      f'{caller}: {name} is {rank!r}, expected a positive integer'
    )
  return rank


def _magnitude(matrix):
  axis = -2 if matrix.layout == 'in_out' else -1
  norm = _norm(leaves_lib.widened(matrix.leaf), axis)
  return jnp.squeeze(norm, axis).astype(jnp.float32)


def _by_pattern(name, default, by_pattern, paths):
  rules = {
    patterns.compile_pattern(f'init_lora: {name}', pattern): value
    for pattern, value in (by_pattern or {}).items()
  }
  for rule in rules:
    if not any(rule.search(path) for path in paths):
      raise patterns.no_match(f'init_lora: {name}', rule.pattern, paths)
  return {
    path: next(
      (value for rule, value in rules.items() if rule.search(path)), default
    )
    for path in paths
  }
