"""Patterns of unknown origin, matched with the names of modules as PEFT does.

A regular expression can take longer than anybody lives. Names, which most
patterns are, are matched here; all others in a process that is ended when its
time is over.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import json
import re
import subprocess
import sys

from third_party import problems
from third_party.peft import config as config_lib

SECONDS = 10.0  # For all patterns of an adapter together; they take 0.05.
_MAX_LENGTH = 20_000

_PROGRAM = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
patterns, names = json.load(sys.stdin)
found = []
for pattern in patterns:
  try:
    rule = re.compile(pattern)
    found.append([bool(rule.match(name)) for name in names])
  except Exception as error:
    found.append(type(error).__name__ + ': ' + str(error)[:200])
json.dump(found, sys.stdout)
"""


def match(
  rules: Sequence[str],
  names: Sequence[str],
  where: Iterable[str],
  *,
  seconds: float = SECONDS,
) -> list[list[bool]]:
  """Says which names the regular expressions match, from their beginning.

  Args:
    rules: Regular expressions.
    names: Names of modules.
    where: What a problem names.
    seconds: How long it may take.

  Returns:
    For each rule, whether it matches each name.

  Raises:
    problems.ProblemError: A rule is too long, no regular expression, or takes
      too long.

  Examples:
    >>> match(['a.*', 'b'], ['ab', 'bc'], ())
    [[True, False], [False, True]]
  """
  where = tuple(where)
  too_long = [rule for rule in rules if len(rule) > _MAX_LENGTH]
  if too_long:
    raise problems.refuse(
      problems.Kind.INPUT,
      where,
      f'a pattern has {len(too_long[0])} characters, expected {_MAX_LENGTH} at '
      f'most: {too_long[0][:40]}...',
    )
  try:
    answer = subprocess.run(
      [sys.executable, '-I', '-S', '-W', 'ignore', '-c', _PROGRAM],
      input=json.dumps([list(rules), list(names)]),
      capture_output=True,
      text=True,
      encoding='utf-8',
      timeout=seconds,
      check=False,
    )
  except subprocess.TimeoutExpired as error:
    raise problems.refuse(
      problems.Kind.INPUT,
      where,
      f'the patterns took more than {seconds:g} s to match: {_listing(rules)}',
      'write names instead',
    ) from error
  if answer.returncode:
    raise problems.refuse(
      problems.Kind.INPUT,
      where,
      f'the patterns could not be matched: {_listing(rules)}',
      'write names instead',
    )
  found = json.loads(answer.stdout)
  wrong = [
    problems.Problem(
      problems.Kind.INPUT,
      where,
      f'{_listing([rule])} is not a regular expression: {each}',
    )
    for rule, each in zip(rules, found, strict=True)
    if isinstance(each, str)
  ]
  if wrong:
    raise problems.ProblemError(wrong)
  return found


def first_of(
  rules: Sequence[str], names: Sequence[str], where: Iterable[str]
) -> dict[str, str]:
  r"""Returns the first pattern of each name, as in `rank_pattern`.

  PEFT matches `(.*\.)?(pattern)$`: a name, or what follows a dot in it.

  Args:
    rules: Keys of `rank_pattern` or `alpha_pattern`.
    names: Names of modules.
    where: What a problem names.

  Returns:
    The pattern by name; names without one are left out.

  Raises:
    problems.ProblemError: See `match`.

  Examples:
    >>> first_of(['q_proj', 'k.*'], ['a.q_proj', 'a.k_proj', 'xq_proj'], ())
    {'a.q_proj': 'q_proj', 'a.k_proj': 'k.*'}
  """
  wrapped = {rule: rf'(.*\.)?({rule})$' for rule in rules}
  odd = [rule for rule in rules if not config_lib.is_literal(rule)]
  hits = {
    rule: {name for name, hit in zip(names, row, strict=True) if hit}
    for rule, row in zip(
      odd,
      match([wrapped[rule] for rule in odd], names, where) if odd else [],
      strict=True,
    )
  }
  literal = {
    rule: re.compile(wrapped[rule]) for rule in rules if rule not in hits
  }
  found = {}
  for name in names:
    for rule in rules:
      if name in hits[rule] if rule in hits else literal[rule].match(name):
        found[name] = rule
        break
  return found


def targeted(
  config: config_lib.Config, names: Sequence[str], where: Iterable[str]
) -> set[str]:
  """Returns which modules the config says are adapted, as PEFT finds them.

  Args:
    config: Of the adapter.
    names: Names of modules.
    where: What a problem names.

  Returns:
    Those of `names` that are.

  Raises:
    problems.ProblemError: See `match`.
  """
  where = tuple(where)
  chosen = _named(config.targets or (), names, where)
  chosen -= _named(config.excluded, names, where)
  chosen = {
    name
    for name in chosen
    if not any(f'.{end}.' in f'.{name}.' for end in config.saved)
  }
  if config.layers is None or isinstance(config.targets, str):
    return chosen
  # The first number: experts of a layer have numbers too.
  stacks = '|'.join(map(re.escape, config.layers_patterns))
  start = rf'(?:^|.*?\.)(?:{stacks})' if stacks else r'.*?\.[^.]*'
  number = re.compile(rf'{start}\.(\d+)\.')
  layer_of = {name: number.match(name) for name in chosen}
  return {
    name
    for name, found in layer_of.items()
    if found is not None and int(found[1]) in config.layers
  }


def _named(
  chosen: str | tuple[str, ...], names: Sequence[str], where: tuple[str, ...]
) -> set[str]:
  if isinstance(chosen, str):
    row = match([rf'(?:{chosen})\Z'], names, where)[0] if chosen else []
    return {name for name, hit in zip(names, row, strict=False) if hit}
  exact = set(chosen)
  ends = tuple(f'.{each}' for each in chosen)
  return {name for name in names if name in exact or name.endswith(ends)}


def _listing(rules: Sequence[str]) -> str:
  shown = [f'{rule[:60]!r}' for rule in rules[:3]]
  return ', '.join(shown) + (' ...' if len(rules) > 3 else '')
