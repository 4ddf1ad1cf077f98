"""What was measured: accuracies of all rows, and the normalised score."""

from collections.abc import Mapping
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Result:
  """Accuracies of one method; tasks are those of its block.

  Attributes:
    test: With coefficients chosen on validation, f64[seeds, tasks].
    default: With the default setting, f64[seeds, tasks], if it has one.
    validation: Normalised, f64[seeds, settings]; no setting if none was tried.
    chosen: The chosen setting for each seed.
  """

  test: np.ndarray
  default: np.ndarray | None
  validation: np.ndarray
  chosen: tuple[Mapping[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Block:
  """Rows that merge the same experts.

  Attributes:
    title: Heading in the table.
    tasks: What is scored.
    experts: Each expert on its own task, f64[seeds, tasks].
    results: By the name of the method.
    others: Rows that are not merges, f64[seeds, tasks].
  """

  title: str
  tasks: tuple[str, ...]
  experts: np.ndarray
  results: Mapping[str, Result]
  others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def normalized(self, accuracy: np.ndarray) -> np.ndarray:
    """Accuracy over the expert's, averaged over tasks: f64[seeds]."""
    return normalized(accuracy, self.experts)

  @property
  def best(self) -> str:
    """The method whose settings have the best score on validation."""
    tried = {k: x.validation for k, x in self.results.items()}
    tops = {k: x.max(axis=1).mean() for k, x in tried.items() if x.size}
    return max(tops, key=tops.__getitem__)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Accuracies of all rows.

  Attributes:
    yardsticks: By row, f64[seeds, tasks].
    blocks: By `method.KINDS`, and `'tangent'`; the first is `'merge'`.
    stored: By storage: the best method's, from task vectors in few bits.
    validation_base: The base's normalised score on validation, f64[seeds].
    cosines: f64[seeds, tasks, tasks], between task vectors.
    norms: f64[seeds, tasks], of task vectors relative to the base's.
    disentanglement: By stage of training, the error of the first two experts
      of the first seed on a grid of coefficients, f64[a, a].
  """

  yardsticks: Mapping[str, np.ndarray]
  blocks: Mapping[str, Block]
  stored: Mapping[str, np.ndarray]
  validation_base: np.ndarray
  cosines: np.ndarray
  norms: np.ndarray
  disentanglement: Mapping[str, np.ndarray]

  @property
  def merges(self) -> Block:
    """The block of merges of all experts."""
    return self.blocks['merge']


def normalized(accuracy: np.ndarray, experts: np.ndarray) -> np.ndarray:
  """Mean over tasks of accuracy divided by the single expert's.

  Args:
    accuracy: [..., tasks].
    experts: [..., tasks], the experts' accuracies on the same problems.

  Returns:
    [...]. A task that its expert cannot do at all counts for nothing.

  Examples:
    >>> normalized(np.array([[0.2, 0.9]]), np.array([[0.8, 0.9]]))
    array([0.625])
  """
  able = experts > 0
  ratio = np.where(able, accuracy / np.where(able, experts, 1.0), 0.0)
  return ratio.sum(axis=-1) / np.maximum(able.sum(axis=-1), 1)
