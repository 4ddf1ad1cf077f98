"""Looks at checkpoints and turns them into others, in bounded memory.

    python -m experiments.checkpoint doctor DIR
    python -m experiments.checkpoint kinship BASE EXPERT...
    python -m experiments.checkpoint extract BASE EXPERT... OUT --kind=lora
    python -m experiments.checkpoint restore BASE BUNDLE EXPERT OUT
    python -m experiments.checkpoint convert SOURCE OUT

`doctor` says what is wrong with a model; `kinship`, whether experts come from a
base; `extract` stores how experts differ from it, as an adapter for PEFT or a
bundle, out of which `restore` writes an expert; `convert` goes from Hugging
Face to Orbax and back. Models are directories of either kind, or names in the
cache of the Hugging Face Hub; an expert may be said as NAME=DIR. What is
written appears whole or not at all. Exit status: 0 done, 2 arguments or flags,
3 a file is not sound, 4 models do not fit, 5 disk or memory, 6 the output
failed verification.
"""

from collections.abc import Sequence
import json
import sys

from absl import flags

from experiments.runtime import cli
from experiments.runtime import config
from experiments.runtime import errors

# By command, its arguments and flags.
COMMANDS = {
  'doctor': (['DIR'], ['values']),
  'kinship': (['BASE', 'EXPERT...'], ['sample', 'out']),
  'extract': (
    ['BASE', 'EXPERT...', 'OUT'],
    [
      *('kind', 'overwrite', 'rank', 'energy', 'method'),
      *('group', 'threshold', 'share'),
    ],
  ),
  'restore': (
    ['BASE', 'BUNDLE', 'EXPERT', 'OUT'],
    ['max_memory', 'shard_size', 'overwrite'],
  ),
  'convert': (['SOURCE', 'OUT'], ['max_memory', 'shard_size', 'overwrite']),
}


def define_flags() -> None:
  """Defines the flags; other binaries have some of the same names."""
  flags.DEFINE_bool('json', False, 'Print what there is to say as JSON.')
  flags.DEFINE_bool(
    'values', True, 'doctor: read all values, not headers and JSON alone.'
  )
  flags.DEFINE_float(
    'sample', None, 'kinship: share of the entries to read.', 1e-9, 1.0
  )
  flags.DEFINE_string(
    'out', None, 'kinship: directory for a table, JSON, pictures and a page.'
  )
  flags.DEFINE_enum(
    'kind',
    'lora',
    ['lora', '4bit', '8bit', 'tall', 'low_rank'],
    'extract: an adapter for PEFT, or how a bundle stores changes.',
  )
  flags.DEFINE_integer('rank', None, 'lora: most triples to keep; 32.', 1)
  flags.DEFINE_float(
    'energy', None, 'lora: share of the square of a change to keep.', 1e-9, 1.0
  )
  flags.DEFINE_enum(
    'method', None, ['sketch', 'exact'], 'lora: how to decompose; sketch.'
  )
  flags.DEFINE_integer(
    'group', None, '4bit, 8bit: entries that share a scale; 64.', 2
  )
  flags.DEFINE_float(
    'threshold', None, 'tall: the larger, the fewer entries are kept; 0.4.', 0.0
  )
  flags.DEFINE_float(
    'share',
    None,
    'low_rank: of singular values to keep; one over the number of experts.',
    0.0,
    1.0,
  )
  flags.DEFINE_string(
    'max_memory', None, 'Memory the process may take, such as 2GB.'
  )
  flags.DEFINE_string('shard_size', '5GB', 'Most bytes of tensors in a file.')
  flags.DEFINE_bool('overwrite', False, 'Replace what is at OUT.')


def main(argv: Sequence[str]) -> None:
  """Runs one command and prints what it says."""
  if not argv[1:]:
    raise errors.UsageError(f'missing command; {errors.suggest("", COMMANDS)}')
  name = argv[1]
  arguments, own = config.choose('command', name, COMMANDS)
  given = cli.match(argv[2:], arguments)
  for _, others in COMMANDS.values():
    for flag in others:
      if flag not in own and flags.FLAGS[flag].present:
        raise errors.UsageError(f'--{flag} is no flag of {name}')
  options = {flag: flags.FLAGS[flag].value for flag in own}
  # Here, so that --help is quick.
  from experiments.checkpoints import tools

  outcome = getattr(tools, name)(*given, **options)
  if flags.FLAGS['json'].value:
    print(json.dumps(outcome.content, indent=2, allow_nan=False))
  else:
    print(outcome.text)
  sys.exit(outcome.status)


if __name__ == '__main__':
  define_flags()
  cli.run(
    main,
    arguments=None,  # They depend on the command.
    when_stopped='nothing is at the target; the same command starts over',
  )
