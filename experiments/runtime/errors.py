"""The one error that a person at the command line can cause and repair."""

from collections.abc import Iterable
import difflib


class UsageError(ValueError):
  r"""A request that cannot be carried out, said in one line with its remedy.

  `cli.run` prints the message without a traceback and exits with status 2.

  Examples:
    >>> raise UsageError('two\n  lines')
    Traceback (most recent call last):
    ...
    experiments.runtime.errors.UsageError: two lines
  """

  def __init__(self, message: str):
    super().__init__(' '.join(message.split()))


def suggest(name: str, options: Iterable[str]) -> str:
  """Says what exists instead of `name`: the nearest option, or all of them.

  Args:
    name: What was asked for.
    options: What exists.

  Returns:
    A clause to put after `; `.

  Examples:
    >>> suggest('dare-ties', ['dare_ties', 'slerp'])
    "did you mean 'dare_ties'?"
    >>> suggest('zip', ['slerp', 'average'])
    'choose from average, slerp'
  """
  options = sorted(options)
  close = difflib.get_close_matches(name, options, n=1)
  if close:
    return f'did you mean {close[0]!r}?'
  if not options:
    return 'there is nothing to choose from'
  return f'choose from {", ".join(options)}'
