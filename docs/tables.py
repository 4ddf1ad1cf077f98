"""The tables of the pages, made from the code and the results of a run.

    python -m docs.tables          # rewrites what lies between the markers
    python -m docs.tables --check  # fails if that would change anything

What a method is for, what it needs and what it costs is written here; sources,
defaults, oracles, rows and scores are read from docstrings, signatures, tests,
`METHODS` and the results of the frozen benchmark.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import csv
import functools
import inspect
from pathlib import Path
import sys
from typing import Any
from typing import NamedTuple

from experiments.arithmerge import methods
import merging
from merging import references
from tests.merging import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / 'docs' / 'arithmerge-all.csv'


class Entry(NamedTuple):
  """What the code cannot say of a method.

  Attributes:
    name: Within `merging`, such as `'ties'` or `'dynamic.tall.compress'`.
    use: When to take it.
    needs: Besides base and experts.
    cost: For `T` experts, beyond reading every parameter once.
    no_row: Why it is no row of the benchmark, if it is none.
    tests: Where its oracle is, if not in the table of methods.
  """

  name: str
  use: str
  needs: str = ''
  cost: str = 'elementwise'
  no_row: str = ''
  tests: str = ''


FAMILIES: Mapping[str, tuple[Entry, ...]] = {
  'Averages and interpolation': (
    Entry('average', 'runs of one task; the first thing to try'),
    Entry(
      'weighted_average',
      'some experts matter more',
      'weights',
      no_row='weights are given by hand; see greedy soup',
    ),
    Entry(
      'linear',
      'weights that do not add to one; as mergekit',
      'weights',
      no_row='`weighted_average`, or its sum',
    ),
    Entry(
      'metrics_weighted_average',
      'checkpoints of one run',
      'a score of each',
    ),
    Entry(
      'search.greedy_soup',
      'many runs of one task, some of them bad',
      'held-out scores, T evaluations',
      tests='greedy_soup_test.py',
    ),
    Entry('slerp', 'two models far apart', 't', cost='2 sweeps of a leaf'),
    Entry('nuslerp', 'the same for task vectors, or by row', 'weights'),
    Entry('multislerp', 'more than two models far apart'),
    Entry('karcher', 'the exact mean on the sphere', cost='10 iterations'),
    Entry('model_stock', 'a few runs of one task, no validation data'),
    Entry('nearswap', 'add a little of one model to another', 't'),
    Entry(
      'passthrough',
      'one model as it is, or scaled',
      tests='soups_test.py',
      no_row='merges nothing',
    ),
  ),
  'Task vectors, entry by entry': (
    Entry('task_arithmetic', 'the baseline for different tasks', 'a scale'),
    Entry('negate', 'forget what an expert learned', no_row='forgets'),
    Entry(
      'analogy',
      'a domain without labels',
      'three related experts',
      no_row='no such experts here',
    ),
    Entry(
      'reasoning_vector',
      'carry a training step over to another model',
      'roles by name',
      no_row='an analogy',
    ),
    Entry('metagpt', 'nothing to tune on', cost='1 sweep'),
    Entry('ties', 'signs clash', 'a scale', cost='3 sweeps'),
    Entry('dare', 'before another merge, to thin out', 'a key'),
    Entry('dare_ties', 'as DARE and TIES', 'a key, a scale', cost='3 sweeps'),
    Entry(
      'della',
      'as DARE, keeping large changes',
      'a key, a scale',
      'sort of each row',
    ),
    Entry(
      'breadcrumbs',
      'outliers spoil the sum',
      'a scale',
      'selection in each leaf',
    ),
    Entry('pcb', 'experts of unequal strength', 'a scale', 'several sweeps'),
    Entry('sce', 'chat models of one base'),
    Entry('ram', 'sparse changes, as of reinforcement learning'),
    Entry('ramplus', 'the same, own changes amplified'),
    Entry('widen', 'a base trained on much further', cost='norms of columns'),
    Entry(
      'arcee_fusion',
      'take over only what stands out, from one expert',
      cost='quantiles of a leaf',
    ),
    Entry(
      'robust_signature',
      'patch shallow layers for robustness',
      'robust experts',
      no_row='no robust experts here',
    ),
  ),
  'Masks and layers': (
    Entry('consensus', 'many tasks: keep what at least two need', 'a scale'),
    Entry('lines', 'around any merge of deep models', 'a scale', '1 sweep'),
    Entry(
      'layer_swap',
      'one expert for the ends, one for the middle',
      'roles by name',
    ),
  ),
  'Subspaces': (
    Entry('tsv', 'different tasks, large matrices', cost='T + 2 SVDs a matrix'),
    Entry(
      'r_tsvm',
      'the same with your own weights and ranks',
      'two rules',
      'T + 2 SVDs a matrix',
      no_row='a frame: its rules are not published',
    ),
    Entry(
      'iso_c',
      'different tasks; the cheapest of these',
      'a scale',
      '1 SVD a matrix',
    ),
    Entry('iso_cts', 'many different tasks', 'a scale', 'T + 3 SVDs a matrix'),
    Entry(
      'knots',
      'low-rank experts, around any merge',
      cost='1 SVD of T times the width',
    ),
    Entry(
      'opcm',
      'experts arrive one after another',
      'an order',
      '2 (T - 1) SVDs a matrix',
    ),
  ),
  'Optimisation without data': (
    Entry('wudi', 'different tasks', cost='300 products a matrix'),
    Entry(
      'swudi',
      'the same in closed form',
      'a strength',
      '1 eigendecomposition a matrix',
    ),
    Entry(
      'aswudi',
      'the same with nothing to tune',
      cost='1 eigendecomposition a matrix',
    ),
    Entry(
      'optmerge',
      'multimodal or low-rank experts',
      cost='T SVDs and 300 products a matrix',
    ),
    Entry(
      'doge',
      'different tasks, shared directions kept',
      'a scale',
      'T + 1 SVDs and 400 products a matrix',
    ),
  ),
  'One model for each task, restored': (
    Entry(
      'dynamic.tall.compress',
      'the task is known; a bit per parameter and expert',
      tests='restore_test.py',
    ),
    Entry(
      'dynamic.tsv.compress',
      'the same in low rank',
      cost='T SVDs a matrix',
      tests='subspaces_test.py',
    ),
    Entry(
      'dynamic.twin.compress',
      'the same, to be mixed by a router',
      cost='T SVDs a matrix',
      tests='restore_test.py',
    ),
  ),
  'Protection': (
    Entry(
      'symmetry.merge_lock',
      'publish an expert that cannot be merged',
      'a key',
      tests='symmetry/',
    ),
    Entry(
      'symmetry.rearrange_and_scale',
      'the same by permutation and scaling',
      'a key',
      'an assignment a layer',
      tests='symmetry/',
    ),
  ),
}


def entries() -> list[Entry]:
  """All methods, in order."""
  return [entry for family in FAMILIES.values() for entry in family]


def function(entry: Entry) -> Any:
  """The function that an entry is about."""
  return functools.reduce(getattr, entry.name.split('.'), merging)


def source(entry: Entry) -> str:
  """The paper, as a link, or nothing.

  Of a composition whose docstring names none, that of its first piece.
  """
  made = [
    case.make() for case in table.MERGES if case.name in oracles(entry)[:1]
  ]
  sources = [function(entry), *(x for each in made for x in each.sources)]
  found = [x for each in sources for x in references.references_of(each)]
  if not found:
    return ''
  first = found[0]
  surname = first.authors[0].split()[-1]
  text = f'{surname}{" et al." if len(first.authors) > 1 else ""} {first.year}'
  if first.arxiv:
    return f'[{text}](https://arxiv.org/abs/{first.arxiv})'
  return text


def defaults(entry: Entry) -> str:
  """The settings that are numbers, as in the signature."""
  parameters = inspect.signature(function(entry)).parameters.values()
  return ', '.join(
    f'{each.name} {each.default:g}'
    for each in parameters
    if isinstance(each.default, (int, float))
    and not isinstance(each.default, bool)
  )


def oracles(entry: Entry) -> list[str]:
  """Rows of the table of methods that compare it with literal NumPy."""
  names = sorted((each.name for each in entries()), key=len, reverse=True)

  def about(row: str) -> str:
    return next((name for name in names if row.startswith(name)), '')

  return [case.name for case in table.MERGES if about(case.name) == entry.name]


def rows(entry: Entry) -> list[methods.Method]:
  """Rows of the benchmark that are about it."""
  wanted = {entry.name}
  if entry.name == 'search.greedy_soup':
    wanted = {'weighted_average'}
  elif entry.name == 'weighted_average':
    return []
  return [each for each in methods.METHODS if each.recipe in wanted]


@functools.cache
def results() -> list[dict[str, str]]:
  """Lines of the results of the preset `all`."""
  return list(csv.DictReader(RESULTS.read_text().splitlines()))


def scores(row: str) -> str:
  """Normalised accuracy, and that without validation, of a row."""
  found = [
    x for x in results() if x['row'] == row and 'tangent' not in x['group']
  ]
  if not found:
    return ''
  cells = [found[0][f'{name} mean'] for name in ('normalized', 'default')]
  return ' / '.join(f'{100 * float(x):.1f}' if x else '–' for x in cells)


def methods_table() -> str:
  """Of `docs/merging.md`."""
  head = ('method', 'when', 'needs', 'cost', 'defaults', 'source', 'score')
  lines = []
  for title, family in FAMILIES.items():
    lines += [f'### {title}', '', *_head(head)]
    for entry in family:
      found = [scores(each.name) for each in rows(entry)]
      score = '; '.join(filter(None, found))
      cells = (
        f'`{entry.name}`',
        entry.use,
        entry.needs,
        entry.cost,
        defaults(entry),
        source(entry),
        score or entry.no_row,
      )
      lines.append(_row(cells))
    lines.append('')
  return '\n'.join(lines).rstrip()


def workspace_table() -> str:
  """Of `WORKSPACE.md`."""
  lines = _head(('method', 'defined in', 'oracle', 'row of ArithMerge'))
  for entry in entries():
    module = inspect.getmodule(function(entry))
    assert module is not None
    path = module.__name__.removeprefix('merging.').replace('.', '/')
    oracle = ', '.join(oracles(entry)) or f'tests/merging/{entry.tests}'
    benchmark = ', '.join(each.name for each in rows(entry))
    lines.append(
      _row((f'`{entry.name}`', path, oracle, benchmark or entry.no_row))
    )
  return '\n'.join(lines)


_SHOWN = (
  'base',
  'average',
  'task arithmetic',
  'TIES',
  'DARE-TIES',
  'Consensus',
  'OPCM',
  'DOGE',
  'Iso-C',
  'TSV-M',
  'ASWUDI',
  'ensemble of experts',
  'joint training',
  'experts',
)


def results_table() -> str:
  """Of `README.md`: some rows of the benchmark."""
  lines = [
    _row(
      (
        'model',
        'normalised accuracy, %',
        'without validation, %',
        'exact answers, %',
      )
    ),
    _row((':--', '--:', '--:', '--:')),
  ]
  for name in _SHOWN:
    line = next(x for x in results() if x['row'] == name)

    def cell(column: str, line: Mapping[str, str] = line) -> str:
      mean, std = line[f'{column} mean'], line[f'{column} std']
      return f'{100 * float(mean):.1f} ± {100 * float(std):.1f}' if mean else ''

    cells = (cell('normalized'), cell('default'), cell('mean'))
    lines.append(_row((name, *cells)))
  return '\n'.join(lines)


def _head(cells: Iterable[str]) -> list[str]:
  cells = list(cells)
  return [_row(cells), _row([':--'] * len(cells))]


def _row(cells: Iterable[str]) -> str:
  return f'| {" | ".join(cells)} |'


def rewritten(text: str, name: str, content: str) -> str:
  """Returns a page with what lies between its markers replaced.

  Raises:
    ValueError: The page has no such markers.
  """
  begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
  before, found, rest = text.partition(begin)
  _, closed, after = rest.partition(end)
  if not (found and closed):
    raise ValueError(f'expected {begin} and {end}')
  return f'{before}{begin}\n\n{content}\n\n{end}{after}'


PAGES = {
  'docs/merging.md': ('methods', methods_table),
  'WORKSPACE.md': ('methods', workspace_table),
  'README.md': ('results', results_table),
}


def main(arguments: list[str]) -> int:
  """Rewrites the pages, or says which are out of step."""
  stale = []
  for page, (name, make) in PAGES.items():
    text = (ROOT / page).read_text()
    new = rewritten(text, name, make())
    if new != text:
      stale.append(page)
      if '--check' not in arguments:
        (ROOT / page).write_text(new)
  if stale and '--check' in arguments:
    print(f'out of step with the code, run make docs: {", ".join(stale)}')
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
