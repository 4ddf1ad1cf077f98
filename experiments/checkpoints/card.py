"""What a merged model says of itself: README.md, its recipe, and a report.

Names come from recipes and directories that anybody may have written. In the
front matter they are JSON strings, in Markdown code, in fences longer than any
in them: none can add a field, a link or a heading.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
import re
from typing import Any
from typing import Literal

from experiments.checkpoints import findings as findings_lib
from experiments.checkpoints import text
from experiments.runtime import files
from merging import references as references_lib
from merging import transform as transform_lib

README = 'README.md'
REPORT = 'merge_report.json'
RECIPES = ('merge_recipe.yml', 'mergekit_config.yml')

# What Markdown reads, in a line or at its start, links without brackets too.
_MARKS = re.compile(r'[\\`*_\[\]<>#|&~@]|^[-+]|:(?=//)|(?<=www)\.')
_HUB_ID = re.compile(r'[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}', re.A)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedModel:
  """One of the models that were merged.

  Attributes:
    name: As the recipe calls it.
    role: Whether it is the base.
    hub_id: Its name on the Hugging Face Hub, or nothing; see `hub_id`.
    files: By name of a file what tells it from others, see `hashes.described`.
    size: Bytes of its tensors.
    tensors: How many it has.
  """

  name: str
  role: Literal['base', 'expert']
  hub_id: str = ''
  files: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  size: int = 0
  tensors: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeResult:
  """All that there is to say of a merge when it is done.

  Attributes:
    name: Of the merged model.
    recipe: The text of the recipe, as it was read.
    recipe_file: What to call it beside the model, of `RECIPES`.
    method: Name of the method.
    models: What was merged, the base first.
    description: A sentence on the method; may be empty.
    references: Papers of the method; see `references_in`.
    seed: What randomness was drawn from, if any was.
    dtype: Of the written tensors.
    versions: By package, the versions that computed it.
    timings: By stage, seconds.
    bytes_read: Of all models.
    bytes_written: Of tensors.
    peak_memory: Bytes, of the process at its largest; 0 if not known.
    verification: What was checked of the output; `None` if nothing was.
    library: What loads it.
    notes: What a person should know, a line each.
  """

  name: str
  recipe: str
  recipe_file: str = RECIPES[0]
  method: str
  models: Sequence[MergedModel]
  description: str = ''
  references: Sequence[references_lib.Reference] = ()
  seed: int | None = None
  dtype: str = ''
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
  bytes_read: int = 0
  bytes_written: int = 0
  peak_memory: int = 0
  verification: findings_lib.Findings | None = None
  library: str = 'transformers'
  notes: Sequence[str] = ()

  def __post_init__(self):
    if self.recipe_file not in RECIPES:
      raise ValueError(
        f'recipe_file should be one of {RECIPES}, got {self.recipe_file!r}'
      )


def references_in(
  transform: transform_lib.MergeTransform,
) -> tuple[references_lib.Reference, ...]:
  """Returns the papers of all that a transform is made of.

  Examples:
    >>> import merging
    >>> [each.year for each in references_in(merging.ties())]
    [2023]
  """
  found = {
    each.key: each
    for source in transform.sources
    for each in references_lib.references_of(source)
  }
  return tuple(found.values())


def hub_id(name: str) -> str:
  """Returns a name if it can be one of the Hugging Face Hub, else nothing.

  The Hub refuses a card whose `base_model` is none, such as a path; and a path
  says more of a machine than a card should. A directory that is there is one.

  Examples:
    >>> hub_id('meta-llama/Llama-3.1-8B'), hub_id('/data/llama'), hub_id('math')
    ('meta-llama/Llama-3.1-8B', '', '')
  """
  plausible = _HUB_ID.fullmatch(name) and '..' not in name and '--' not in name
  return name if plausible and not Path(name).exists() else ''


def card(result: MergeResult) -> str:
  """Returns a model card: front matter that the Hub reads, and Markdown.

  Args:
    result: Of a merge.

  Returns:
    The text of `README.md`.
  """
  sections = [
    _front_matter(result),
    f'# {text.code(result.name)}',
    'A merge of '
    f'{text.plural(sum(m.role == "expert" for m in result.models), "model")}.',
    '## Merge Method',
    f'The method is {text.code(result.method)}.',
    _plain(result.description),
    text.bullets(map(_cite, result.references)),
    '## Models Merged',
    _models(result.models),
    '## Configuration',
    text.fence(result.recipe, 'yaml'),
    '## Reproduction',
    _reproduction(result),
    text.bullets(map(_plain, result.notes)),
    '## Verification',
    _verification(result.verification),
  ]
  return '\n\n'.join(each for each in sections if each) + '\n'


def report(result: MergeResult) -> dict[str, Any]:
  """Returns all of a result as JSON can say it."""
  content = {
    field.name: getattr(result, field.name)
    for field in dataclasses.fields(result)
  }
  content['models'] = [dataclasses.asdict(each) for each in result.models]
  content['references'] = [each._asdict() for each in result.references]
  content['timings'] = dict(result.timings)
  content['versions'] = dict(result.versions)
  content['notes'] = list(result.notes)
  if result.verification is not None:
    content['verification'] = result.verification.to_dict()
  return content


def write(directory: str | os.PathLike[str], result: MergeResult) -> list[Path]:
  """Writes the card, the recipe and `merge_report.json` beside a model.

  Args:
    directory: Of the model.
    result: What to say of it.

  Returns:
    The paths written.
  """
  directory = Path(directory)
  content = json.dumps(report(result), indent=2, allow_nan=False)
  recipe = result.recipe.encode('utf-8', 'backslashreplace')
  return [
    files.write(directory / result.recipe_file, recipe),
    files.write(directory / REPORT, content + '\n'),
    files.write(directory / README, card(result)),
  ]


def _front_matter(result: MergeResult) -> str:
  """YAML between dashes; JSON strings are strings of YAML."""
  bases = dict.fromkeys(each.hub_id for each in result.models if each.hub_id)
  lines = ['---']
  if bases:
    lines += ['base_model:', *(f'- {json.dumps(each)}' for each in bases)]
    lines.append('base_model_relation: merge')
  lines += [f'library_name: {json.dumps(result.library)}']
  lines += ['tags:', '- merge', '- arithmerge', '---']
  return '\n'.join(lines)


def _cite(reference: references_lib.Reference) -> str:
  link = f'https://arxiv.org/abs/{reference.arxiv}'
  venue = f'{reference.venue} ' if reference.venue else ''
  line = _plain(
    f'{", ".join(reference.authors)}. "{reference.title}". {venue}'
    f'{reference.year}.'
  )
  return (
    f'{line} [arXiv:{reference.arxiv}]({link})' if reference.arxiv else line
  )


# What there may be of a file, and what it says.
_SUMS = {
  'sha256': 'of whole files, read for this card',
  'hub_sha256': 'of whole files, as the Hub gave them',
  'header_sha256': 'of headers, which say what tensors there are',
}


def _models(models: Sequence[MergedModel]) -> str:
  rows = [['model', 'role', 'tensors', 'size', 'files', 'SHA-256']]
  used = set()
  for each in models:
    sums = []
    for file in each.files.values():
      kind = next((kind for kind in _SUMS if kind in file), None)
      if kind is not None:
        sums.append(str(file[kind])[:12])
        used.add(kind)
    rows.append(
      [
        text.code(each.name),
        each.role,
        f'{each.tensors:,}' if each.tensors else '',
        text.size_of(each.size) if each.size else '',
        str(len(each.files) or ''),
        ' '.join(map(text.code, sums[:2])) + (' …' if sums[2:] else ''),
      ]
    )
  told = [said for kind, said in _SUMS.items() if kind in used]
  return '\n\n'.join(
    [text.table(rows), *([f'SHA-256: {"; ".join(told)}.'] if told else [])]
  )


def _reproduction(result: MergeResult) -> str:
  seed = '' if result.seed is None else f' --seed={result.seed}'
  command = f'python -m experiments.merge {result.recipe_file} OUT{seed}'
  facts = {
    'seed': 'none was needed' if result.seed is None else str(result.seed),
    'dtype': result.dtype,
    'read': text.size_of(result.bytes_read) if result.bytes_read else '',
    'written': text.size_of(result.bytes_written)
    if result.bytes_written
    else '',
    'peak memory': text.size_of(result.peak_memory)
    if result.peak_memory
    else '',
    **{stage: f'{seconds:.3g} s' for stage, seconds in result.timings.items()},
    **result.versions,
  }
  rows = [[text.code(k), text.code(v)] for k, v in facts.items() if v]
  return '\n\n'.join(
    [
      text.fence(command, 'sh'),
      f'The files that were read are named in full in `{REPORT}`.',
      text.table([['what', 'value'], *rows]),
    ]
  )


def _verification(found: findings_lib.Findings | None) -> str:
  if found is None:
    return 'Nothing was verified.'
  head, *rows = found.rows()
  cells = [[_plain(a), b, text.code(c) if c else ''] for a, b, c in rows]
  lines = [
    f'{title}: {text.code(str(each))}'
    for title, several in (
      ('error', found.problems),
      ('warning', found.warnings),
    )
    for each in several
  ]
  return '\n\n'.join(
    part for part in (text.table([head, *cells]), text.bullets(lines)) if part
  )


def _plain(line: str) -> str:
  """Returns Markdown that shows a line as it is, and links nothing."""
  return _MARKS.sub(lambda match: f'&#{ord(match[0])};', text.clean(line))
