"""What a run is about: a paper's claim, its numbers, and what to look for."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

from experiments.laboratory import results as results_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """What a paper says of a row, in its own setting.

  Attributes:
    values: Share of exact answers by the name of the row.
    source: Where the numbers are from, and how the setting differs.
  """

  values: Mapping[str, float]
  source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What a page says beside the numbers.

  Attributes:
    title: A few words.
    lead: What is compared, and why, in a few sentences.
    findings: From results to sentences computed from them.
    reading: How to read the page, in a paragraph.
    published: What the paper says, if numbers are known.
  """

  title: str
  lead: str
  findings: Callable[[results_lib.Results], Sequence[str]]
  reading: str = ''
  published: Published | None = None


def compare(results: results_lib.Results) -> list[str]:
  """Says which variant is best, and how sure that is."""
  rows = results.rows
  means = {row.name: row.exact.mean(axis=1) for row in rows}
  order = sorted(means, key=lambda name: -means[name].mean())
  best = order[0]
  levels = len(results.config.levels)
  over = f'a mean over {levels} levels' if levels > 1 else 'on its level'
  sentences = [
    f'{best} answers {results_lib.percent(means[best])} of the problems'
    f' exactly, {over}.'
  ]
  sentences += [
    f'{best} against {other}:'
    f' {results_lib.difference(means[best], means[other])}.'
    for other in order[1:]
  ]
  return sentences


ANY = Study(
  title='Laboratory',
  lead=(
    'Small transformers learn an exact task from random initial weights. Rows'
    ' differ in what is named; all else is the same, the initial weights and'
    ' the data of a seed among it where shapes allow.'
  ),
  findings=compare,
)
