"""What there is to know of experts before they are merged, on one page."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import patterns
from merging import tree

Blocks = Callable[[str], str] | Mapping[str, str]

# Task vectors whose difference is below this share of their length are equal.
_SAME = 1e-3
# Cosine above which experts are nearer to one another than to the base by more
# than half, which fine-tuning of one base on different data does not do.
_SHARED = 0.9


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """The findings of `diagnose`; `str()` of it is a summary.

  Matrices are `f64[experts, experts]`, and what is by block has an axis of
  blocks before it. A cosine with a task vector that is zero is 0.

  Attributes:
    experts: Their names, sorted.
    blocks: Names of the blocks, in the order of the leaves.
    relative_norms: Length of each task vector over that of the base,
      `f64[experts]`; infinite where only the base is zero.
    block_norms: The same within each block, `f64[blocks, experts]`.
    cosines: Between task vectors.
    block_cosines: The same within each block.
    sign_conflicts: Of the entries that both experts changed, the share that
      they moved in opposite directions.
    block_sign_conflicts: The same within each block.
    unchanged: Share of entries that equal the base's, `f64[experts]`.
    effective_ranks: By the path of each matrix, the effective rank of each
      expert's change, and last of the mean change, `f64[experts + 1]`.
    largest_ranks: By the path of each matrix, its smaller side.
    skipped: Paths of the matrices too large to decompose.
    warnings: What is likely to be wrong, in sentences.
  """

  experts: tuple[str, ...]
  blocks: tuple[str, ...]
  relative_norms: np.ndarray
  block_norms: np.ndarray
  cosines: np.ndarray
  block_cosines: np.ndarray
  sign_conflicts: np.ndarray
  block_sign_conflicts: np.ndarray
  unchanged: np.ndarray
  effective_ranks: Mapping[str, np.ndarray]
  largest_ranks: Mapping[str, int]
  skipped: tuple[str, ...]
  warnings: tuple[str, ...]

  def __str__(self) -> str:
    """Warnings, and tables of the whole model."""
    return '\n\n'.join([self._notes(), *self._overview()])

  def to_markdown(self) -> str:
    """Returns all of it as a page of Markdown."""
    sections = ['# Before merging', self._notes(), *self._overview()]
    norms = zip(self.blocks, *self.block_norms.T, strict=True)
    sections += [
      '## Task vector over base, by block',
      _table(['block', *self.experts], norms),
    ]
    if len(self.experts) > 1:
      pairs = list(itertools.combinations(range(len(self.experts)), 2))
      names = [f'{self.experts[i]}, {self.experts[j]}' for i, j in pairs]
      for title, values in (
        ('Cosine', self.block_cosines),
        ('Sign conflicts', self.block_sign_conflicts),
      ):
        rows = [
          [block, *(matrix[i, j] for i, j in pairs)]
          for block, matrix in zip(self.blocks, values, strict=True)
        ]
        sections += [
          f'## {title}, by block',
          _table(['block', *names], rows),
        ]
    if self.effective_ranks:
      ranks = [
        [path, str(self.largest_ranks[path]), *found]
        for path, found in self.effective_ranks.items()
      ]
      sections += [
        '## Effective rank of changes',
        _table(['matrix', 'at most', *self.experts, 'mean change'], ranks),
      ]
    return '\n\n'.join(sections) + '\n'

  def _notes(self) -> str:
    notes = [f'- **Warning**: {each}' for each in self.warnings]
    if not notes:
      notes = ['- No warnings.']
    if self.skipped:
      notes.append(
        f'- Effective ranks of {len(self.skipped)} matrices were not computed, '
        f'for they are large (raise `max_side`): '
        f'{patterns.listing(self.skipped)}'
      )
    return '\n'.join(notes)

  def _overview(self) -> list[str]:
    columns: dict[str, Any] = {
      'expert': self.experts,
      'task vector / base': self.relative_norms,
      'entries unchanged': self.unchanged,
    }
    if self.effective_ranks:
      shares = [
        found[:-1] / self.largest_ranks[path]
        for path, found in self.effective_ranks.items()
      ]
      columns['effective rank / largest, mean of matrices'] = np.mean(shares, 0)
    rows = zip(*columns.values(), strict=True)
    sections = ['## Experts', _table(list(columns), rows)]
    if len(self.experts) > 1:
      for title, matrix in (
        ('Cosine of task vectors', self.cosines),
        ('Share of sign conflicts', self.sign_conflicts),
      ):
        rows = zip(self.experts, *matrix.T, strict=True)
        sections += [f'## {title}', _table(['', *self.experts], rows)]
    return sections


def diagnose(
  base: Any,
  experts: Mapping[str, Any],
  *,
  blocks: Blocks | None = None,
  max_side: int = 512,
  far: float = 0.5,
  outlier: float = 5.0,
) -> Diagnosis:
  """Looks at experts before they are merged, and warns of what looks wrong.

  Works leaf by leaf: on the device lies no more than one leaf of all models,
  once for the models and twice for their differences. Sums over leaves are in
  float64. It reads values, and so does not run inside `jax.jit`.

  Warnings, and why their thresholds are where they are:

  * A task vector is longer than `far` of its base, in all or in a block. Two
    models of equal length with nothing in common are `sqrt(2)` of it apart, and
    no unrelated pair is nearer than 1; fine-tuning moves by a few per cent, or
    some tens where a small model learns much. A half is between, also if up to
    seven eighths of the squared length (norms, a frozen embedding) is common.
    It says that base and expert are unrelated, or that a part was replaced.
  * All cosines are above 0.9: the experts are more than twice as near to one
    another as to the base, so the base is one that none of them came from.
  * A task vector is `outlier` times as long as the others are in the median. At
    5, and at right angles, it makes up 25/26 of the squared length of its sum
    with another.
  * Two experts are equal, within 0.1 % of their change: they count twice.
  * A task vector is zero: it takes part in any mean.

  Args:
    base: Parameters that all experts were fine-tuned from.
    experts: Fine-tuned parameters by the name of the expert.
    blocks: `path -> block`, or a mapping from regular expressions to blocks of
      which the first one found in the path wins. By default the path up to the
      first part with a digit (`'layers/3'`, `'Dense_0'`), and where there is
      none, all but its last part.
    max_side: Matrices whose smaller side is longer are not decomposed but
      listed in `skipped`. A matrix costs a singular value decomposition for
      each expert and one for the mean: at 512 x 2048 some tenths of a second
      each on a CPU, growing with the square of the smaller side. 0 skips all.
      Kernels of more than two axes are matrices of all but the last.
    far: Longest task vector, relative to the base, that is not warned of.
    outlier: Longest one relative to the median of the others.

  Returns:
    The findings.

  Raises:
    ValueError: What `merging.merge` would raise; a leaf has no block.
    TypeError: The same; or values are traced.

  Examples:
    >>> base = {'w': jnp.ones((4, 4)), 'b': jnp.zeros(4)}
    >>> experts = {
    ...   'code': {**base, 'w': base['w'].at[0].add(0.1)},
    ...   'prose': {**base, 'w': base['w'].at[1].add(0.1)},
    ... }
    >>> found = diagnose(base, experts)
    >>> found.cosines.tolist(), found.unchanged.tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [0.8, 0.8])
    >>> found.effective_ranks['w'].round(3).tolist()
    [1.0, 1.0, 1.0]
    >>> diagnose(base, {'math': base}).warnings
    ("'math' equals the base: it dilutes a mean and adds nothing",)

  References:
    Olivier Roy, Martin Vetterli. "The effective rank: A measure of effective
    dimensionality". EUSIPCO 2007.
  """
  names, rows = _checked(base, experts)
  label_of = patterns.labeller('diagnose', blocks or _block_of)
  labels = [label_of(path) for path in rows]
  for path, label in zip(rows, labels, strict=True):
    if not label:
      raise ValueError(
        f'diagnose: leaf {path!r} has no block; a last pattern '
        "'.' takes all that is left"
      )
  block_names = tuple(dict.fromkeys(labels))
  statistics: dict[str, list[Statistics]] = {name: [] for name in block_names}
  ranks, largest, skipped = {}, {}, []
  for (path, row), label in zip(rows.items(), labels, strict=True):
    shape = np.shape(row[0])
    side = min(int(np.prod(shape[:-1])), shape[-1]) if shape else 0
    matrix = len(shape) > 1 and 0 < side <= max_side
    if len(shape) > 1 and side > max_side:
      skipped.append(path)
    found = jax.device_get(_observe(matrix, tuple(map(jnp.asarray, row))))
    statistics[label].append(Statistics(*found[:-1], size=np.size(row[0])))
    if matrix:
      ranks[path], largest[path] = np.asarray(found[-1], np.float64), side

  by_block = [functools.reduce(_plus, statistics[name]) for name in block_names]
  whole = functools.reduce(_plus, by_block)
  norms = relative_norms_of(whole)
  block_norms = np.stack([relative_norms_of(each) for each in by_block])
  cosines = cosines_of(whole)
  return Diagnosis(
    experts=names,
    blocks=block_names,
    relative_norms=norms,
    block_norms=block_norms,
    cosines=cosines,
    block_cosines=np.stack([cosines_of(each) for each in by_block]),
    sign_conflicts=conflicts_of(whole),
    block_sign_conflicts=np.stack([conflicts_of(each) for each in by_block]),
    unchanged=1 - np.diagonal(whole.both) / whole.size,
    effective_ranks=ranks,
    largest_ranks=largest,
    skipped=tuple(skipped),
    warnings=tuple(
      warnings_of(names, block_names, whole, norms, block_norms, far, outlier)
    ),
  )


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Sums over the entries of a leaf, of a block, or of a model.

  Whoever reads models piece by piece adds such sums up and asks the functions
  below what they mean.

  Attributes:
    base: Squared length of the base, `f64[]`.
    gram: Inner products of task vectors, `f64[experts, experts]`.
    both: Entries that both of two experts changed, of the same shape.
    net: Those changed in one direction less those changed in opposite ones.
    size: Number of entries.
  """

  base: np.ndarray
  gram: np.ndarray
  both: np.ndarray
  net: np.ndarray
  size: int


def _plus(a, b):
  return Statistics(
    *(
      np.asarray(getattr(a, field.name), np.float64) + getattr(b, field.name)
      for field in dataclasses.fields(a)
    )
  )


@functools.partial(jax.jit, static_argnums=0)
def _observe(matrix, row):
  """Sums over one leaf, and effective ranks if it is a matrix.

  Args:
    matrix: Whether to decompose it.
    row: The leaf in the base and in each expert.

  Returns:
    The fields of `Statistics` but the size, and `f32[experts + 1]` or `None`.
  """
  base, *experts = (x.astype(jnp.float32) for x in row)
  deltas = jnp.stack([(x - base).ravel() for x in experts])
  signs = jnp.sign(deltas).astype(jnp.int8)
  moved = jnp.abs(signs)

  def count(a):
    """Exact products of signs, summed up."""
    return jnp.matmul(a, a.T, preferred_element_type=jnp.int32)

  both, net = count(moved), count(signs)
  gram = jnp.matmul(deltas, deltas.T, precision=jax.lax.Precision.HIGHEST)
  ranks = None
  if matrix:
    shape = (-1, base.shape[-1])
    each = jax.lax.map(lambda x: _effective_rank(x.reshape(shape)), deltas)
    mean = _effective_rank(jnp.mean(deltas, axis=0).reshape(shape))
    ranks = jnp.append(each, mean)
  return jnp.sum(base**2), gram, both, net, ranks


def _effective_rank(matrix):
  """Exponential of the entropy of the singular values as shares; 0 of zero."""
  values = jnp.linalg.svd(matrix, compute_uv=False)
  total = jnp.sum(values)
  shares = values / jnp.where(total > 0, total, 1)
  logs = jnp.log(jnp.where(shares > 0, shares, 1))
  return jnp.where(total > 0, jnp.exp(-jnp.sum(shares * logs)), 0)


def _checked(base, experts):
  """Names of the experts, and the floating leaves of all models by path."""
  names = checks.check_experts('diagnose', experts)
  models = ('base', *names)
  trees = [base, *(experts[name] for name in names)]
  flat = [tree.flatten(each) for each in trees]
  checks.check_types('diagnose', models, flat)
  tree.check_same_structure(*trees, names=models)
  for model, leaves in zip(models, flat, strict=True):
    for path, leaf in leaves.items():
      if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
          f'diagnose: {model!r} at {path!r} is traced; call it outside jax.jit'
        )
  checks.check_values('diagnose', models, flat)
  rows = {
    path: [leaves[path] for leaves in flat]
    for path, leaf in flat[0].items()
    if tree.is_float(leaf) and np.size(leaf)
  }
  if not rows:
    raise ValueError('diagnose: base has no floating-point leaf')
  return names, rows


def _block_of(path: str) -> str:
  """The path up to the first part with a digit, or all but its last part."""
  parts = path.split('/')
  for place, part in enumerate(parts):
    if re.search(r'\d', part):
      return '/'.join(parts[: place + 1])
  return '/'.join(parts[:-1]) or path


def relative_norms_of(sums: Statistics) -> np.ndarray:
  """Returns the lengths of task vectors over that of the base.

  Args:
    sums: Of what is asked for.

  Returns:
    `f64[experts]`; infinite where only the base is zero.

  Examples:
    >>> two = np.full((1, 1), 2.0)
    >>> relative_norms_of(Statistics(np.float64(8), two, two, two, 2)).tolist()
    [0.5]
  """
  lengths = np.sqrt(np.diagonal(sums.gram))
  base = np.sqrt(sums.base)
  if base > 0:
    return lengths / base
  return np.where(lengths > 0, np.inf, 0.0)


def cosines_of(sums: Statistics) -> np.ndarray:
  """Returns the cosines between task vectors.

  Args:
    sums: Of what is asked for.

  Returns:
    `f64[experts, experts]`; 0 with a task vector that is zero.

  Examples:
    >>> gram = np.array([[4.0, 1.0], [1.0, 1.0]])
    >>> cosines_of(Statistics(np.float64(1), gram, gram, gram, 2)).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
  """
  lengths = np.sqrt(np.diagonal(sums.gram))
  products = np.outer(lengths, lengths)
  cosines = sums.gram / np.where(products > 0, products, 1)
  return np.clip(cosines, -1, 1)


def conflicts_of(sums: Statistics) -> np.ndarray:
  """Returns the shares of entries that two experts moved in opposite ways.

  Args:
    sums: Of what is asked for.

  Returns:
    `f64[experts, experts]`, of the entries that both changed; 0 of none.

  Examples:
    >>> both, net = np.full((2, 2), 4.0), np.array([[4.0, 2.0], [2.0, 4.0]])
    >>> conflicts_of(Statistics(np.float64(1), both, both, net, 4)).tolist()
    [[0.0, 0.25], [0.25, 0.0]]
  """
  return (sums.both - sums.net) / 2 / np.maximum(sums.both, 1)


def warnings_of(
  names: Sequence[str],
  blocks: Sequence[str],
  sums: Statistics,
  norms: np.ndarray,
  block_norms: np.ndarray,
  far: float,
  outlier: float,
) -> Iterator[str]:
  """Says what is likely to be wrong with experts; see `diagnose`.

  Args:
    names: Of the experts.
    blocks: Names of the blocks.
    sums: Of the model.
    norms: What `relative_norms_of` says of it.
    block_norms: The same of each block, `f64[blocks, experts]`.
    far: Longest task vector, relative to the base, that is not warned of.
    outlier: Longest one relative to the median of the others.

  Yields:
    Sentences.

  Examples:
    >>> zero, none = np.zeros((1, 1)), np.zeros(1)
    >>> sums = Statistics(np.float64(1), zero, zero, zero, 2)
    >>> list(warnings_of(['math'], [], sums, none, np.zeros((0, 1)), 0.5, 5.0))
    ["'math' equals the base: it dilutes a mean and adds nothing"]
  """
  lengths = np.sqrt(np.diagonal(sums.gram))
  for i, name in enumerate(names):
    others = np.delete(lengths, i)
    typical = np.median(others) if others.size else 0.0
    replaced = [
      f'{block} ({each[i]:.2g})'
      for block, each in zip(blocks, block_norms, strict=True)
      if far < each[i] < np.inf
    ]
    if lengths[i] == 0:
      yield f'{name!r} equals the base: it dilutes a mean and adds nothing'
    elif norms[i] > far:
      yield (
        f'{name!r} is {norms[i]:.2g} times the length of the base away from it '
        f'(more than {far:g}): was it fine-tuned from this base?'
      )
    elif replaced:
      yield (
        f'{name!r} changed some blocks by more than {far:g} of their length, '
        f'as if they were new: {", ".join(replaced)}'
      )
    if typical > 0 and lengths[i] > outlier * typical:
      yield (
        f'{name!r} moved {lengths[i] / typical:.2g} times as far as the others '
        f'(more than {outlier:g}) and will drown them; scale task vectors, or '
        'give it a smaller weight'
      )
  equal = []
  for i, j in itertools.combinations(range(len(names)), 2):
    apart = sums.gram[i, i] + sums.gram[j, j] - 2 * sums.gram[i, j]
    if lengths[i] > 0 and apart <= (_SAME * lengths[i]) ** 2:
      equal.append((i, j))
      yield f'{names[i]!r} and {names[j]!r} are equal: they count twice'
  pairs = list(itertools.combinations(range(len(names)), 2))
  cosines = cosines_of(sums)
  if (
    pairs
    and len(equal) < len(pairs)
    and min(cosines[pair] for pair in pairs) > _SHARED
  ):
    yield (
      'all experts are nearer to one another than to the base (cosines above '
      f'{_SHARED:g}): they share another base than this one'
    )


def _table(columns: Sequence[str], rows: Any) -> str:
  """A Markdown table; numbers to three digits."""
  cells = [
    [each if isinstance(each, str) else f'{each:.3g}' for each in row]
    for row in rows
  ]
  lines = [list(columns), ['---', *('--:' for _ in columns[1:])], *cells]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
