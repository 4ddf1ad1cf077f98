"""What a row of the table is: a way to merge, and what is searched for it."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import itertools
from typing import Any
from typing import Literal

import merging

Setting = Mapping[str, float]
Models = Mapping[str, Any]

# The groups of rows, in the order of the table.
KINDS = {
  'merge': 'merges',
  'restore': 'one model for each task, restored from a smaller bundle',
  'pair': 'merges of the first two experts, scored on their tasks',
  'protect': 'merges of experts that were made unmergeable',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A merge, and the settings among which validation chooses.

  Attributes:
    name: The row's name.
    recipe: The function of `merging` that the row is about, such as `'ties'`.
    build: From a key and a setting's values, by keyword, to a transform. The
      values are arrays: one program serves all settings. For `'protect'` it
      also takes `spec`, the symmetries of the decoder.
    settings: What is tried on validation problems. The value called `scale` is
      the scaling coefficient that the figure of coefficients shows.
    default: One of the settings, for use without validation: the authors' where
      they name one. `None` if the method is nothing without validation.
    kind: Whether all experts are merged (`'merge'`, `'protect'`), or the first
      two under the names `'first'` and `'second'`, or each task is answered by
      a model of its own (`'restore'`).
    tangent: Whether it is also a row for experts trained in the tangent space.
    by_scores: Whether `build` also takes `scores`: the accuracy of each expert
      on validation problems of its own task, by name.
    search: Instead of `settings`, from the normalised scores of single experts
      on validation problems of all tasks to an ask/tell search for settings.
    run: What is done with the models; by default `merging.merge`. Takes what
      `build` returns, the base and the experts, and returns merged parameters,
      or for `'restore'` parameters by the name of the expert.
  """

  name: str
  recipe: str
  build: Callable[..., Any]
  settings: tuple[Setting, ...] = ({},)
  default: Setting | None = dataclasses.field(default_factory=dict)
  kind: Literal['merge', 'restore', 'pair', 'protect'] = 'merge'
  tangent: bool = False
  by_scores: bool = False
  search: Callable[[Setting], merging.search.Search] | None = None
  run: Callable[[Any, Any, Models], Any] = merging.merge


def grid(**values: Iterable[float]) -> tuple[Setting, ...]:
  """All combinations of some values.

  Examples:
    >>> grid(density=(0.1, 0.2), scale=(1.0,))
    ({'density': 0.1, 'scale': 1.0}, {'density': 0.2, 'scale': 1.0})
  """
  combinations = itertools.product(*values.values())
  return tuple(dict(zip(values, each, strict=True)) for each in combinations)
