"""Are these experts of this base? Read once, a piece of one leaf at a time."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import functools
import math
import operator
from typing import Any

import numpy as np

from experiments.checkpoints import scan
from experiments.checkpoints import sums as sums_lib
from experiments.checkpoints import text
from merging import report
from merging import streams
from third_party import problems as problems_lib
from third_party.huggingface import embeddings

_SHOWN = 5  # Outlying tensors, for each expert.


@dataclasses.dataclass(frozen=True)
class Kinship:
  """How experts lie to a base; `str()` of it is a summary.

  Attributes:
    diagnosis: What `merging.report.diagnose` says of models in memory, without
      effective ranks: lengths, cosines and sign conflicts, in all and by block.
    verdicts: For each expert, `'equal'` to the base, `'kin'` or `'foreign'`.
    base_cosines: Cosine of base and expert, `f64[experts]`.
    vocabulary_norms: Length of the change of embeddings and output heads over
      that of the base, `f64[experts]`; NaN where there are none.
    body_norms: The same of all other tensors.
    leaf_norms: The same by tensor.
    skipped: Tensors that were not compared, and why.
    entries: How many entries of a model were compared.
    fraction: Their share of the tensors that could be compared.
    read: Bytes read, of all models.
    far: The relative length beyond which an expert is foreign.
    near: The cosine below which an expert is foreign.
  """

  diagnosis: report.Diagnosis
  verdicts: tuple[str, ...]
  base_cosines: np.ndarray
  vocabulary_norms: np.ndarray
  body_norms: np.ndarray
  leaf_norms: Mapping[str, np.ndarray]
  skipped: Mapping[str, str]
  entries: int
  fraction: float
  read: int
  far: float
  near: float

  @property
  def foreign(self) -> tuple[str, ...]:
    """The experts that were not made from this base, as it seems."""
    return tuple(
      name
      for name, verdict in zip(
        self.diagnosis.experts, self.verdicts, strict=True
      )
      if verdict == 'foreign'
    )

  @property
  def outliers(self) -> tuple[tuple[str, str, float], ...]:
    """Expert, tensor and relative change, of tensors as if they were new.

    Those of an expert that is foreign as a whole are left out.
    """
    found = [
      (name, path, float(norms[i]))
      for i, name in enumerate(self.diagnosis.experts)
      if name not in self.foreign
      for path, norms in self.leaf_norms.items()
      if self.far < norms[i] < math.inf
    ]
    return tuple(sorted(found, key=lambda each: (each[0], -each[2], each[1])))

  @property
  def warnings(self) -> tuple[str, ...]:
    """What is likely to be wrong, in sentences."""
    lines = list(self.diagnosis.warnings)
    for name, verdict, cosine in zip(
      self.diagnosis.experts, self.verdicts, self.base_cosines, strict=True
    ):
      if verdict == 'foreign' and cosine < self.near:
        lines.append(
          f'the cosine of {name!r} and the base is {cosine:.2g}, less than '
          f'{self.near:g}: was it made from this base?'
        )
    if self.skipped:
      path, why = next(iter(self.skipped.items()))
      lines.append(
        f'{text.plural(len(self.skipped), "tensor")} not compared, the first '
        f'{path!r}: {why}'
      )
    return tuple(map(text.clean, lines))

  def __str__(self) -> str:
    """Warnings, the experts, and tensors that stand out."""
    return (
      f'{text.bullets(self.warnings) or "- No warnings."}\n\n{self.table()}'
    )

  @property
  def share(self) -> str:
    """How many of the entries were compared, in words."""
    if self.fraction == 1:
      return 'all'
    return f'{100 * self.fraction:.3g} % of all'

  def table(self) -> str:
    """Returns columns of the experts, and of tensors that stand out."""
    found = self.diagnosis
    numbers = zip(
      found.experts,
      self.verdicts,
      found.relative_norms,
      self.vocabulary_norms,
      self.body_norms,
      self.base_cosines,
      found.unchanged,
      strict=True,
    )
    rows = [
      [name, verdict, *map(_number, rest)] for name, verdict, *rest in numbers
    ]
    heads = ['expert', 'verdict', 'change', 'vocabulary', 'rest']
    parts = [
      text.aligned([[*heads, 'cosine', 'unchanged'], *rows]),
      'change: length of the task vector over that of the base, in all, of\n'
      'embeddings and heads, and of the rest; cosine: of base and expert;\n'
      f'unchanged: share of entries; from {self.share} entries.',
    ]
    for title, matrix in (
      ('cosine of task vectors', found.cosines),
      ('share of sign conflicts', found.sign_conflicts),
    ):
      if len(found.experts) > 1:
        # Names over columns would make them as wide.
        numbers = [str(i + 1) for i in range(len(found.experts))]
        rows = [
          [f'{number} {name}', *(f'{each:.3f}' for each in row)]
          for number, name, row in zip(
            numbers, found.experts, matrix, strict=True
          )
        ]
        parts.append(text.aligned([[title, *numbers], *rows]))
    if self.outliers:
      rows = [
        [name, path, _number(norm)]
        for expert in found.experts
        for name, path, norm in [
          each for each in self.outliers if each[0] == expert
        ][:_SHOWN]
      ]
      parts.append(
        text.aligned([['expert', 'tensor that stands out', 'change'], *rows])
      )
    return '\n\n'.join(parts)

  def to_dict(self) -> dict[str, Any]:
    """Returns all of it as JSON can say it; what is not finite is `None`."""
    found = self.diagnosis
    return {
      'experts': found.experts,
      'verdicts': self.verdicts,
      'warnings': self.warnings,
      'relative_norms': _plain(found.relative_norms),
      'vocabulary_norms': _plain(self.vocabulary_norms),
      'body_norms': _plain(self.body_norms),
      'base_cosines': _plain(self.base_cosines),
      'unchanged': _plain(found.unchanged),
      'cosines': _plain(found.cosines),
      'sign_conflicts': _plain(found.sign_conflicts),
      'blocks': {
        block: {
          'relative_norms': _plain(found.block_norms[i]),
          'cosines': _plain(found.block_cosines[i]),
          'sign_conflicts': _plain(found.block_sign_conflicts[i]),
        }
        for i, block in enumerate(found.blocks)
      },
      'tensors': {path: _plain(each) for path, each in self.leaf_norms.items()},
      'outliers': [list(each) for each in self.outliers],
      'skipped': dict(self.skipped),
      'entries': self.entries,
      'fraction': self.fraction,
      'bytes_read': self.read,
      'far': self.far,
      'near': self.near,
    }


def kinship(
  base: streams.Source,
  experts: Mapping[str, streams.Source],
  *,
  sample: float | None = None,
  far: float = 0.5,
  near: float = 0.9,
  outlier: float = 5.0,
  workers: int = 2,
  progress: scan.Progress | None = None,
) -> Kinship:
  """Compares experts with a base before they are merged.

  The measures and their thresholds are those of `merging.report.diagnose`, on
  models that are not in memory. For models of one length, a change of half the
  length of the base is a cosine of 7/8 to it: `far` and `near` say about the
  same, the cosine also where an expert is a scaled copy. Unrelated models are
  `sqrt(2)` apart, at a cosine near 0 but for what all models have in common
  (norms near 1, a frozen embedding), which is why the vocabulary and the rest
  are judged apart as well: an expert is foreign if all its tensors together, or
  those besides the vocabulary, are too far.

  Only tensors that all models have, in one shape and floating-point, are
  compared; others are listed. Nothing is refused but to compare nothing: this
  is what says why a merge would be.

  Args:
    base: The model that experts are said to come from.
    experts: By name.
    sample: Share of the entries of each tensor to read, in runs of 65,536
      spread over it evenly; all by default. Small tensors are read whole.
    far: Largest change, relative to the base, of an expert that is kin.
    near: Smallest cosine with the base of an expert that is kin.
    outlier: Longest task vector, relative to the median of the others, that is
      not warned of.
    workers: Threads. Each holds some 20 bytes for each of 65,536 entries of
      each model.
    progress: Called with the bytes read so far and in all.

  Returns:
    The findings, which do not depend on `workers`.

  Raises:
    ValueError: There are no experts; `sample` is not in (0, 1].
    ProblemError: No tensor can be compared, or one cannot be read.

  Examples:
    >>> base = {'a': np.ones((2, 2), 'f4'), 'b': np.ones(3, 'f4')}
    >>> tuned = {**base, 'a': base['a'] + np.float32(0.1)}
    >>> other = {'a': -base['a'], 'b': -base['b']}
    >>> models = {'tuned': tuned, 'other': other}
    >>> sources = {name: streams.InMemory(m) for name, m in models.items()}
    >>> found = kinship(streams.InMemory(base), sources)
    >>> found.foreign, found.diagnosis.experts, found.verdicts
    (('other',), ('other', 'tuned'), ('foreign', 'kin'))
  """
  if not experts:
    raise ValueError('kinship: there are no experts')
  if sample is not None and not 0 < sample <= 1:
    raise ValueError(f'kinship: sample should be in (0, 1], got {sample}')
  names = tuple(sorted(experts))
  models = [base, *(experts[name] for name in names)]
  paths, skipped = sums_lib.comparable(('the base', *names), models)
  sums, read = sums_lib.observe(
    models,
    sorted(paths, key=_natural),
    sample=sample,
    workers=workers,
    progress=progress,
  )
  for path in list(sums):
    if not np.isfinite(sums[path].gram).all():
      skipped[path] = 'has values that are not finite, or too large'
      del sums[path]
  if not sums:
    raise problems_lib.refuse(
      problems_lib.Kind.INCOMPATIBLE,
      names,
      'no tensor can be compared with the base'
      + ''.join(f'; {path}: {why}' for path, why in list(skipped.items())[:3]),
    )
  return _conclude(names, base, sums, skipped, read, far, near, outlier)


def _conclude(names, base, sums, skipped, read, far, near, outlier) -> Kinship:
  """Makes findings of sums."""
  blocks: dict[str, list[sums_lib.Sums]] = {}
  for path, each in sums.items():
    blocks.setdefault(_block_of(path), []).append(each)
  by_block = [_total(each) for each in blocks.values()]
  whole = _total(by_block)
  statistics = _statistics(whole)
  block_statistics = [_statistics(each) for each in by_block]
  norms = report.relative_norms_of(statistics)
  block_norms = np.stack(
    [report.relative_norms_of(s) for s in block_statistics]
  )
  diagnosis = report.Diagnosis(
    experts=names,
    blocks=tuple(blocks),
    relative_norms=norms,
    block_norms=block_norms,
    cosines=report.cosines_of(statistics),
    block_cosines=np.stack([report.cosines_of(s) for s in block_statistics]),
    sign_conflicts=report.conflicts_of(statistics),
    block_sign_conflicts=np.stack(
      [report.conflicts_of(s) for s in block_statistics]
    ),
    unchanged=1 - np.diagonal(whole.both) / whole.size,
    effective_ranks={},
    largest_ranks={},
    skipped=(),
    warnings=tuple(
      report.warnings_of(
        names, tuple(blocks), statistics, norms, block_norms, far, outlier
      )
    ),
  )
  part_norms = []
  for wanted in (True, False):
    part = [
      each for path, each in sums.items() if embeddings.is_known(path) is wanted
    ]
    part_norms.append(
      report.relative_norms_of(_statistics(_total(part)))
      if part
      else np.full(len(names), np.nan)
    )
  cosines = _base_cosines(whole.gram)
  lengths = np.diagonal(statistics.gram)
  distant = np.fmax(norms, part_norms[1]) > far
  verdicts = np.where(distant | (cosines < near), 'foreign', 'kin')
  verdicts = np.where(lengths == 0, 'equal', verdicts)
  size = sum(math.prod(base.specs[path].shape) for path in sums)
  return Kinship(
    diagnosis=diagnosis,
    verdicts=tuple(verdicts.tolist()),
    base_cosines=cosines,
    vocabulary_norms=part_norms[0],
    body_norms=part_norms[1],
    leaf_norms={
      path: report.relative_norms_of(_statistics(each))
      for path, each in sums.items()
    },
    skipped=skipped,
    entries=whole.size,
    fraction=whole.size / size,
    read=read,
    far=far,
    near=near,
  )


def _total(several: Iterable[sums_lib.Sums]) -> sums_lib.Sums:
  return functools.reduce(operator.add, several)


def _statistics(sums: sums_lib.Sums) -> report.Statistics:
  """What the formulas for models in memory take."""
  return report.Statistics(
    sums.gram[0, 0], sums.gram[1:, 1:], sums.both, sums.net, sums.size
  )


def _base_cosines(gram: np.ndarray) -> np.ndarray:
  """Cosine of base and expert, where an expert is base plus task vector."""
  base = gram[0, 0]
  products = base + gram[0, 1:]
  squares = base + 2 * gram[0, 1:] + np.diagonal(gram)[1:]
  lengths = np.sqrt(base * np.maximum(squares, 0))
  return np.clip(products / np.where(lengths > 0, lengths, 1), -1, 1)


def _block_of(path: str) -> str:
  """The path up to its first number, or all but its last part."""
  parts = path.split('.')
  for place, part in enumerate(parts):
    if part.isdigit():
      return '.'.join(parts[: place + 1])
  return '.'.join(parts[:-1]) or path


def _natural(path: str) -> list[tuple[bool, int, str]]:
  """Sorts layer 10 behind layer 9, however many digits a name has."""
  parts = path.split('.')
  return [(p.isdecimal(), len(p) if p.isdecimal() else 0, p) for p in parts]


def _number(value: float) -> str:
  return '' if math.isnan(value) else f'{value:.3g}'


def _plain(values: np.ndarray) -> Any:
  """Numbers in lists, `None` for those that JSON has no way to say."""
  if values.ndim > 1:
    return [_plain(row) for row in values]
  return [each if math.isfinite(each) else None for each in values.tolist()]
