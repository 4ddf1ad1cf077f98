"""The rows of the table: how experts are merged, and what is searched.

A new method is one entry of `METHODS`. Nothing else knows the list.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import itertools

import merging

Setting = Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A merge, and the settings among which validation chooses.

  Attributes:
    name: The row's name.
    build: From a key and a setting's values, by keyword, to a transform. The
      values are traced: one program serves all settings.
    settings: What is tried on validation problems. The value called `scale` is
      the scaling coefficient that the figure of coefficients shows.
    default: One of the settings, for use without validation: the authors' where
      they name one.
  """

  name: str
  build: Callable[..., merging.MergeTransform]
  settings: tuple[Setting, ...] = ({},)
  default: Setting = dataclasses.field(default_factory=dict)


def grid(**values: Iterable[float]) -> tuple[Setting, ...]:
  """All combinations of some values.

  Examples:
    >>> grid(density=(0.1, 0.2), scale=(1.0,))
    ({'density': 0.1, 'scale': 1.0}, {'density': 0.2, 'scale': 1.0})
  """
  combinations = itertools.product(*values.values())
  return tuple(dict(zip(values, each, strict=True)) for each in combinations)


_SUM_SCALES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_MEAN_SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5)


METHODS: tuple[Method, ...] = (
  Method(name='average', build=lambda key: merging.average()),
  Method(
    name='task arithmetic',
    build=lambda key, scale: merging.task_arithmetic(scale),
    settings=grid(scale=_SUM_SCALES),
    default={'scale': 0.4},
  ),
  Method(
    name='TIES',
    build=lambda key, density, scale: merging.ties(density, scale),
    settings=grid(density=(0.1, 0.2, 0.5), scale=_MEAN_SCALES),
    default={'density': 0.2, 'scale': 1.0},
  ),
  Method(
    name='DARE',
    build=lambda key, rate, scale: merging.dare(
      rate, merging.task_arithmetic(scale), key=key
    ),
    settings=grid(rate=(0.3,), scale=_SUM_SCALES),
    default={'rate': 0.3, 'scale': 0.4},
  ),
  Method(
    name='DARE-TIES',
    build=lambda key, rate, density, scale: merging.dare_ties(
      rate, density, scale, key=key
    ),
    settings=grid(rate=(0.3,), density=(0.2, 0.5), scale=_MEAN_SCALES),
    default={'rate': 0.3, 'density': 0.2, 'scale': 1.0},
  ),
)
