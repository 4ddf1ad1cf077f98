"""Runs an absl binary so that a person is told in one line what is wrong.

absl prints several lines and exits with status 1 for a bad flag and for
`--help`. Here a bad flag, a bad value and a `UsageError` are one line on
stderr and status 2; `--help` is status 0; Ctrl-C and SIGTERM are one line and
the conventional 130 and 143.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import functools
import os
from pathlib import Path
import signal
import sys
import threading
import types
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging

from experiments.runtime import errors
from third_party import problems

Main = Callable[[Sequence[str]], None]


def run(
  main: Main,
  *,
  arguments: Sequence[str] | None = (),
  when_stopped: str = 'the same command continues the run',
  elsewhere: Mapping[str, str] = types.MappingProxyType({}),
) -> NoReturn:
  """Parses the flags, calls `main`, and exits.

  A stop does not wait for the computation in progress, which may be minutes
  of compiled code: it is a kill that says so. Everything in this package that
  writes files is safe to kill.

  Args:
    main: Called with the program's name and the positional arguments.
    arguments: Names of the positional arguments, see `match`; `None` leaves
      them to `main`.
    when_stopped: What a person should know after Ctrl-C or SIGTERM.
    elsewhere: By flag that others have, what to say here.

  Raises:
    SystemExit: Always. 0 after success and `--help`, 2 for what the person
      can repair, the status of a `ProblemError`; other errors keep their
      traceback and status 1.
  """
  _stop_at_once(when_stopped)

  def guarded(argv: Sequence[str]) -> None:
    try:
      if arguments is not None:
        match(argv[1:], arguments)
      main(argv)
    except errors.UsageError as error:
      _refuse(str(error))
    except problems.ProblemError as error:
      for each in error.problems:
        print(f'error: {_one_line(str(each))}', file=sys.stderr)
      sys.exit(error.status)
    except BrokenPipeError:
      _stop_writing()

  parse = functools.partial(_parse, elsewhere=elsewhere)
  app.run(guarded, flags_parser=parse)
  raise AssertionError('app.run does not return')


def _parse(argv: Sequence[str], *, elsewhere: Mapping[str, str]) -> list[str]:
  """Parses flags; one line and status 2 for whatever is wrong with them."""
  asks_for_help = {'help', 'helpfull', 'helpshort', 'helpxml'}
  try:
    rest = flags.FLAGS(argv)
    if flags.FLAGS['verbosity'].using_default_value:
      # Before absl takes INFO for the default: libraries are talkative.
      flags.FLAGS.verbosity = logging.WARNING
    return rest
  except flags.UnrecognizedFlagError as error:
    ours = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(argv[0])}
    options = sorted({f'--{name}' for name in ours} | {'--help'})
    name = error.flagname
    typed = f'--{name}' if len(name) > 1 else f'-{name}'
    hint = elsewhere.get(name) or errors.suggest(typed, options)
    _refuse(f'unknown flag {typed}; {hint}')
  except flags.Error as error:
    missing = [
      f'--{flag.name} is required'
      for flag in flags.FLAGS.get_key_flags_for_module(argv[0])
      if f'Flag --{flag.name} must have a value' in str(error)
    ]
    _refuse(', '.join(missing) or str(error))
  except BrokenPipeError:
    _stop_writing()
  except SystemExit as exit_:
    # absl ends `--help` with status 1, as if asking were an error.
    asked = {argument.lstrip('-').split('=')[0] for argument in argv[1:]}
    sys.exit(0 if asked & asks_for_help else exit_.code)


def match(given: Sequence[str], names: Sequence[str]) -> list[str | list[str]]:
  """Gives positional arguments to their names.

  Args:
    given: The arguments.
    names: All required; one of them may end with three dots, for one argument
      or more.

  Returns:
    An argument for each name, a list of them for the one with dots.

  Raises:
    UsageError: Some are missing, or there are too many.

  Examples:
    >>> match(['a', 'b', 'c', 'd'], ['BASE', 'EXPERT...', 'OUT'])
    ['a', ['b', 'c'], 'd']
  """
  several = [name.endswith('...') for name in names]
  if len(given) > len(names) and not any(several):
    stray = given[len(names)]
    hint = f' (a repeated flag is said each time: --set {stray})'
    raise errors.UsageError(
      f'unexpected argument {stray!r}{hint if "=" in stray else ""}'
    )
  if len(given) < len(names):
    missing = names[len(given)].removesuffix('...')
    raise errors.UsageError(f'missing {missing}; expected {" ".join(names)}')
  if not any(several):
    return list(given)
  place, behind = several.index(True), len(names) - several.index(True) - 1
  end = len(given) - behind
  return [*given[:place], list(given[place:end]), *given[end:]]


def _stop_writing() -> NoReturn:
  """Ends without a word: the reader, such as `head`, has seen enough."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(141)


def _refuse(message: str) -> NoReturn:
  print(f'{_program()}: {_one_line(message)}', file=sys.stderr)
  sys.exit(2)


def _one_line(message: str) -> str:
  """Names in files may hold anything, also what moves a terminal's cursor."""
  words = ' '.join(message.split())
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def _program() -> str:
  return Path(sys.argv[0]).stem


def _stop_at_once(remedy: str) -> None:
  """Ends the process on SIGINT or SIGTERM, even inside compiled code.

  Python runs its handlers only between bytecodes, so not before XLA returns.
  The byte that the interpreter writes to the wake-up descriptor reaches a
  thread of ours at once. The handler does the same, since an event loop may
  hold the descriptor for a while.
  """
  first = threading.Lock()

  def stop(number: int, _: object = None) -> None:
    if not first.acquire(blocking=False):
      return
    name = 'interrupted' if number == signal.SIGINT else 'terminated'
    # A progress line may be open on a terminal: clear it first.
    clear = '\r\x1b[K' if sys.stderr.isatty() else ''
    with contextlib.suppress(OSError):
      os.write(2, f'{clear}{_program()}: {name}; {remedy}\n'.encode())
    os._exit(128 + number)

  def wait() -> None:
    while True:
      number = os.read(reader, 1)[0]
      if number in (signal.SIGINT, signal.SIGTERM):
        stop(number)

  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(target=wait, name='stop-at-once', daemon=True).start()
