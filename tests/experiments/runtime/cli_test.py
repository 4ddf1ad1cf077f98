"""What a person sees at the command line: one line, and the right status."""

import os
import signal
import subprocess
import sys
import time

import pytest

_BINARY = """
'''Makes a table.'''
import time
from absl import flags
from absl import logging
from experiments.runtime import cli
from experiments.runtime import errors

_PRESET = flags.DEFINE_enum('preset', 'cpu', ['cpu', 'full'], 'Size.')
_STEPS = flags.DEFINE_integer('steps', 1, 'Steps.')
_SET = flags.DEFINE_multi_string('set', [], 'path=value')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory.', required=True)

def main(argv):
  if _WORKDIR.value == 'used':
    raise errors.UsageError('the directory is used\\nby another')
  if _WORKDIR.value == 'bug':
    raise ValueError('a bug')
  if _WORKDIR.value == 'wait':
    print('ready', flush=True)
    BUSY
  logging.info('talk')
  logging.warning('trouble')
  print('done', argv[1:], _SET.value)

if __name__ == '__main__':
  cli.run(main, arguments=ARGUMENTS, elsewhere={'j': 'say --steps'})
"""


@pytest.fixture
def binary(tmp_path):
  def write(arguments='()', busy='time.sleep(60)'):
    path = tmp_path / 'make_table.py'
    text = _BINARY.replace('ARGUMENTS', arguments).replace('BUSY', busy)
    path.write_text(text)
    return [sys.executable, str(path)]

  return write


def _run(command, *arguments):
  return subprocess.run(
    [*command, *arguments],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--stesp=3'], 'unknown flag --stesp; did you mean --steps?'),
    (['-j', '3'], 'unknown flag -j; say --steps'),
    (['--steps=many'], '--steps=many'),
    (['--preset=gpu'], '<cpu|full>'),
    ([], '--workdir is required'),
    (['--workdir=a', 'b=1'], '--set b=1'),
    (['--workdir=a', 'stray'], "unexpected argument 'stray'"),
    (['--workdir'], 'workdir'),
    (['--workdir=used'], 'the directory is used by another'),
  ],
)
def test_what_a_person_can_repair_is_one_line_and_status_2(
  binary, arguments, message
):
  done = _run(binary(), *arguments)
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr.count('\n') == 1
  assert done.stderr.startswith('make_table: ')
  assert message.replace("'", '') in done.stderr.replace("'", '')


def test_a_bug_keeps_its_traceback(binary):
  done = _run(binary(), '--workdir=bug')
  assert done.returncode == 1
  assert 'Traceback' in done.stderr
  assert 'ValueError: a bug' in done.stderr


def test_success_is_status_0_and_passes_repeated_flags(binary):
  done = _run(binary(), '--workdir=a', '--set', 'x=1', '--set=y=2')
  assert done.returncode == 0
  assert 'trouble' in done.stderr
  assert 'talk' not in done.stderr
  assert done.stdout == "done [] ['x=1', 'y=2']\n"


def test_positional_arguments_are_required_by_name(binary):
  command = binary("('RECIPE', 'OUT')")
  done = _run(command, '--workdir=a', 'one')
  assert done.returncode == 2
  assert 'missing OUT; expected RECIPE OUT' in done.stderr
  done = _run(command, '--workdir=a', 'one', 'two')
  assert done.stdout == "done ['one', 'two'] []\n"


@pytest.mark.parametrize('flag', ['--help', '--helpfull'])
def test_help_is_no_error_and_fast(binary, flag):
  started = time.monotonic()
  done = _run(binary(), flag)
  assert time.monotonic() - started < 3
  assert done.returncode == 0
  assert 'Makes a table.' in done.stdout
  assert '--workdir' in done.stdout


def test_cli_does_not_load_jax():
  code = (
    'import sys; from experiments.runtime import cli, config, errors;'
    "print({'jax', 'numpy', 'matplotlib', 'orbax'} & set(sys.modules))"
  )
  assert _run([sys.executable, '-c', code]).stdout == 'set()\n'


@pytest.mark.parametrize(
  ('number', 'word', 'status'),
  [(signal.SIGINT, 'interrupted', 130), (signal.SIGTERM, 'terminated', 143)],
)
@pytest.mark.parametrize(
  'busy',
  [
    'time.sleep(60)',
    # Compiled code that never returns to the interpreter, but frees it.
    'import ctypes; ctypes.CDLL(None).sleep(60)',
  ],
)
def test_a_stop_says_how_to_continue(binary, number, word, status, busy):
  process = subprocess.Popen(
    [*binary(busy=busy), '--workdir=wait'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'ready\n'
  os.kill(process.pid, number)
  _, stderr = process.communicate(timeout=10)
  assert process.returncode == status
  assert stderr == f'make_table: {word}; the same command continues the run\n'
