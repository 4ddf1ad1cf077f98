"""BibTeX for the methods in use, read from their docstrings."""

from collections.abc import Callable
import functools
import inspect
import re
from typing import Any
from typing import NamedTuple
from typing import ParamSpec

from merging import transform as transform_lib

P = ParamSpec('P')

_REFERENCE = re.compile(
  r'(?P<authors>[^"]+?)\.\s+"(?P<title>[^"]+)"\.\s+'
  r'(?:(?P<venue>[^".]+?)\s+)?(?P<year>\d{4})\.'
  r'(?:\s+arXiv:(?P<arxiv>\d{4}\.\d{4,5})\.)?\s*'
)


class Reference(NamedTuple):
  """A paper, as the `References` section of a docstring names it.

  Attributes:
    authors: Full names.
    title: Title.
    venue: Where it appeared, or `None`.
    year: Year of publication.
    arxiv: Identifier on arXiv, or `None`.
  """

  authors: tuple[str, ...]
  title: str
  venue: str | None
  year: int
  arxiv: str | None

  @property
  def key(self) -> str:
    """BibTeX key: first author, year, first word of the title."""
    surname = self.authors[0].split()[-1]
    word = re.split(r'\W+', self.title)[0]
    return re.sub(r'\W', '', f'{surname}{self.year}{word}').lower()

  def bibtex(self) -> str:
    """Returns the BibTeX entry."""
    fields = {
      'title': f'{{{self.title}}}',
      'author': ' and '.join(self.authors),
    }
    if self.venue:
      fields['booktitle'] = self.venue
    fields['year'] = str(self.year)
    if self.arxiv:
      fields |= {'eprint': self.arxiv, 'archivePrefix': 'arXiv'}
    lines = (f'  {name} = {{{value}}}' for name, value in fields.items())
    kind = 'inproceedings' if self.venue else 'misc'
    return f'@{kind}{{{self.key},\n' + ',\n'.join(lines) + '\n}'


def cited(
  factory: Callable[P, transform_lib.MergeTransform],
) -> Callable[P, transform_lib.MergeTransform]:
  """Decorates a factory whose docstring has a `References` section.

  The transforms it makes, and all that is composed from them, then know what to
  cite.
  """

  @functools.wraps(factory)
  def wrapper(
    *args: P.args, **kwargs: P.kwargs
  ) -> transform_lib.MergeTransform:
    made = factory(*args, **kwargs)
    sources = dict.fromkeys((wrapper, *made.sources))
    return made._replace(sources=tuple(sources))

  return wrapper


def references_of(source: Callable[..., Any]) -> tuple[Reference, ...]:
  """Reads the `References` section of a docstring.

  Args:
    source: Its docstring ends with a `References` section, of entries such as
      `First Author, Second Author. "Title". Venue 2024. arXiv:2401.01234.`

  Returns:
    The references, none if there is no such section.

  Raises:
    ValueError: The section is not a sequence of such entries.

  Examples:
    >>> import merging
    >>> [each.key for each in references_of(merging.task_arithmetic)]
    ['ilharco2023editing']
  """
  text = inspect.getdoc(source) or ''
  _, found, section = text.partition('\nReferences:\n')
  section = ' '.join(section.split())
  parsed = []
  position = 0
  while found and position < len(section):
    match = _REFERENCE.match(section, position)
    if match is None:
      raise ValueError(
        f"{source.__qualname__}: expected a reference of the form 'Authors. "
        f'"Title". Venue year. arXiv:id.\', got {section[position:]!r}'
      )
    position = match.end()
    parsed.append(
      Reference(
        authors=tuple(re.split(r',\s*', match['authors'])),
        title=match['title'],
        venue=match['venue'],
        year=int(match['year']),
        arxiv=match['arxiv'],
      )
    )
  return tuple(parsed)


def citations(transform: transform_lib.MergeTransform) -> str:
  """Returns BibTeX for all that a transform is made of.

  Args:
    transform: Any transform, however composed.

  Returns:
    One entry per paper, empty if none is to be cited.

  Examples:
    >>> import jax, merging
    >>> merge = merging.dare(0.9, merging.ties(), key=jax.random.key(0))
    >>> print(merging.citations(merge))
    @inproceedings{yu2024language,
      title = {{Language Models are Super Mario: ...}},
      author = {Le Yu and Bowen Yu and Haiyang Yu and Fei Huang and Yongbin Li},
      booktitle = {ICML},
      year = {2024},
      eprint = {2311.03099},
      archivePrefix = {arXiv}
    }
    <BLANKLINE>
    @inproceedings{yadav2023ties,
    ...
    }
  """
  found = {
    each.key: each
    for source in transform.sources
    for each in references_of(source)
  }
  return '\n\n'.join(each.bibtex() for each in found.values())
