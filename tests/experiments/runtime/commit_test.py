"""A directory appears whole, where it may, and one run at a time."""

import contextlib
import errno
import json
import os
from pathlib import Path
import socket
import stat
import subprocess
import sys
import threading

import pytest

from experiments.runtime import commit as commit_lib
from experiments.runtime import exchange
from experiments.runtime import journal
from experiments.runtime import lock
from third_party import problems


class _StopError(Exception):
  """Stands for whatever ends a run."""


def _commit(target, version=1, **options):
  options.setdefault('notify', [].append)
  return commit_lib.Commit(target, fingerprint={'version': version}, **options)


def _fill(folder, text='new'):
  (folder / 'model.safetensors').write_text(text)
  (folder / 'config.json').write_text('{}')


def _publish(target, text='new', **options):
  with _commit(target, **options) as commit:
    _fill(commit.partial, text)
    commit.publish()


def _stop(target, names, **options):
  """A run that ends after it has finished some files."""
  with contextlib.suppress(_StopError), _commit(target, **options) as commit:
    for name in names:
      (commit.partial / name).write_text(name)
      commit.record(name, {'size': len(name)})
    (commit.partial / 'unfinished').write_text('')
    raise _StopError


def _text(target):
  return (target / 'model.safetensors').read_text()


def _refusal(target, kind=problems.Kind.CONFIG, **options):
  """The message of a run that must not start, and changes nothing."""
  parent = target.parent
  before = sorted(os.listdir(parent)) if parent.is_dir() else None
  with (
    pytest.raises(problems.ProblemError) as error,
    _commit(target, **options),
  ):
    pass
  assert error.value.status == kind
  after = sorted(os.listdir(parent)) if parent.is_dir() else None
  assert after == before
  return str(error.value)


@pytest.fixture
def model(tmp_path):
  folder = tmp_path / 'model'
  folder.mkdir()
  _fill(folder, 'old')
  return folder


# --- Where a model may go.


@pytest.mark.parametrize(
  'name', ['merged', 'with a space', 'ünï/çødé 模型', "quo'te\n$(x)", '-rf']
)
def test_names_of_any_kind(tmp_path, name):
  target = tmp_path / name
  target.parent.mkdir(exist_ok=True)
  _publish(target)
  assert _text(target) == 'new'
  assert os.listdir(target.parent) == [target.name]


def test_nothing_is_at_the_target_before_the_end(tmp_path):
  with _commit(tmp_path / 'out') as commit:
    _fill(commit.partial)
    assert not commit.target.exists()
    commit.publish()
  assert _text(tmp_path / 'out') == 'new'


def test_without_publication_nothing_stays(tmp_path):
  with contextlib.suppress(_StopError), _commit(tmp_path / 'out') as commit:
    _fill(commit.partial)
    raise _StopError
  assert os.listdir(tmp_path) == []


def test_others_may_read_what_the_umask_allows(tmp_path):
  before = os.umask(0o022)
  try:
    _publish(tmp_path / 'out')
  finally:
    os.umask(before)
  assert stat.S_IMODE((tmp_path / 'out').stat().st_mode) == 0o755


def test_an_empty_directory_is_taken(tmp_path):
  (tmp_path / 'out').mkdir()
  _publish(tmp_path / 'out')
  assert _text(tmp_path / 'out') == 'new'


def test_an_old_model_is_replaced_only_when_asked(model):
  message = _refusal(model)
  assert message.endswith(
    'exists; replace it with --overwrite, or write to another place'
  )
  assert _text(model) == 'old'
  (model / 'stale.json').write_text('')
  _publish(model, overwrite=True)
  assert _text(model) == 'new'
  assert not (model / 'stale.json').exists()
  assert os.listdir(model.parent) == ['model']


def test_a_link_stays_a_link(tmp_path, model):
  (tmp_path / 'link').symlink_to(model)
  _publish(tmp_path / 'link', overwrite=True)
  assert (tmp_path / 'link').is_symlink()
  assert _text(model) == 'new'


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda path: path.write_text('x'), 'is a file; delete it yourself'),
    (
      lambda path: (path.mkdir(), (path / 'notes.md').write_text('')),
      'is not empty and holds no model',
    ),
    (
      lambda path: (path.mkdir(), _fill(path), (path / 'src').mkdir()),
      "holds 'src', which is no part of a model",
    ),
    (
      lambda path: (path.mkdir(), _fill(path), (path / 'a.py').touch()),
      "holds 'a.py', which is no part of a model",
    ),
    (
      lambda path: (path.mkdir(), _fill(path), (path / 'notes.txt').touch()),
      "holds 'notes.txt', which is no part of a model",
    ),
    (
      lambda path: (path.mkdir(), _fill(path), (path / 'scores.csv').touch()),
      "holds 'scores.csv', which is no part of a model",
    ),
  ],
)
def test_what_is_no_model_is_never_deleted(tmp_path, make, message):
  target = tmp_path / 'out'
  make(target)
  assert message in _refusal(target, overwrite=True)
  assert target.exists()


def test_texts_of_a_tokenizer_are_part_of_a_model(tmp_path):
  target = tmp_path / 'out'
  target.mkdir()
  _fill(target, 'old')
  for name in ('merges.txt', 'vocab.txt', 'LICENSE.txt'):
    (target / name).touch()
  _publish(target, overwrite=True)
  assert _text(target) == 'new'


# What Orbax writes of a tree, by one process and from arrays of JAX.
_TREE = [
  *('_METADATA', '_CHECKPOINT_METADATA', '_sharding', 'commit_success.txt'),
  *('manifest.ocdbt', f'd/{"0a" * 16}', 'array_metadatas/process_0'),
  *('ocdbt.process_0/manifest.ocdbt', f'ocdbt.process_0/d/{"1b" * 16}'),
  *('config.json', 'merge_report.json', 'README.md'),
]


def _tree(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_an_old_tree_of_orbax_is_replaced_only_when_asked(tmp_path):
  target = tmp_path / 'out'
  _tree(target, *_TREE)
  assert 'exists; replace it with --overwrite' in _refusal(target)
  _publish(target, overwrite=True)
  assert _text(target) == 'new'
  assert os.listdir(tmp_path) == ['out']


@pytest.mark.parametrize(
  'name',
  [
    'src/a.py',
    'notes.docx',
    'd/notes.txt',
    f'd/{"0a" * 16}.txt',
    'ocdbt.process_0/d/x/y',
    'ocdbt.process_0/config.json',
    'default/_METADATA',
    f'array_metadatas/{"0a" * 16}',
  ],
)
def test_a_tree_of_orbax_with_more_in_it_is_never_deleted(tmp_path, name):
  _tree(tmp_path / 'out', *_TREE, name)
  message = _refusal(tmp_path / 'out', overwrite=True)
  assert 'which is no part of a model' in message
  assert name.startswith(message.split("'")[1])


def test_links_in_a_tree_of_orbax_are_not_followed(tmp_path):
  _tree(tmp_path / 'elsewhere', 'x')
  _tree(tmp_path / 'out', *(name for name in _TREE if name[:2] != 'd/'))
  (tmp_path / 'out' / 'd').symlink_to(tmp_path / 'elsewhere')
  message = _refusal(tmp_path / 'out', overwrite=True)
  assert "holds 'd', which is no part of a model" in message


def test_files_like_those_of_orbax_alone_are_no_tree(tmp_path):
  _tree(tmp_path / 'out', *_TREE[1:])
  assert 'which is no part' in _refusal(tmp_path / 'out', overwrite=True)


def test_inputs_are_never_replaced(tmp_path, model):
  nested = model / 'merged'
  (tmp_path / 'link').symlink_to(model)
  for target, word in (
    (model, 'is an input'),
    (tmp_path / 'link', 'is an input'),
    (nested, 'lies in an input'),
    (tmp_path, 'contains an input'),
  ):
    message = _refusal(target, inputs=[model], overwrite=True)
    assert word in message
  recipe = model / 'recipe.yml'
  recipe.touch()
  assert 'contains an input' in _refusal(model, inputs=[recipe], overwrite=True)
  _publish(tmp_path / 'beside', inputs=[model, recipe, tmp_path / 'missing'])


def test_an_unfinished_run_is_no_input(tmp_path):
  _stop(tmp_path / 'out', ['a'])
  given = tmp_path / '.out.partial' / 'model'
  assert 'contains an input' in _refusal(tmp_path / 'out', inputs=[given])


def test_all_that_is_wrong_is_told_at_once(model):
  found = _commit(model, inputs=[model]).check()
  assert len(found) == 2


def test_parents_that_are_none(tmp_path):
  (tmp_path / 'file').touch()
  missing = tmp_path / 'no' / 'such'
  assert 'such: does not exist; make it first' in _refusal(missing / 'out')
  assert 'is not a directory' in _refusal(tmp_path / 'file' / 'out')
  assert 'mount point' in _refusal(Path('/'), overwrite=True)


def test_names_that_are_too_long_with_what_lies_beside(tmp_path):
  message = _refusal(tmp_path / ('é' * 125))
  assert 'the name has 250 bytes, expected at most 246' in message
  assert 'bytes, expected' in _refusal(tmp_path / ('x' * 300))
  _publish(tmp_path / ('é' * 123))


def test_folders_that_may_not_be_written(tmp_path, monkeypatch):
  # The owner of the machine may write anywhere, so the question is faked.
  monkeypatch.setattr(os, 'access', lambda path, _: path != tmp_path)
  message = _refusal(tmp_path / 'out', kind=problems.Kind.SPACE)
  assert 'there is no permission to write, or it is read-only' in message


@pytest.mark.parametrize(
  ('number', 'message'),
  [(errno.ENOSPC, 'there is no space'), (errno.EROFS, 'read-only')],
)
def test_a_disk_that_refuses_at_the_start(
  tmp_path, monkeypatch, number, message
):
  def refuse(*_, **__):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(os, 'mkdir', refuse)
  assert message in _refusal(tmp_path / 'out', kind=problems.Kind.SPACE)


# --- One at a time.


def test_a_second_run_is_refused_and_told_who(tmp_path):
  with _commit(tmp_path / 'out') as commit:
    message = _refusal(tmp_path / 'out')
    assert f'is being written by process {os.getpid()} on' in message
    assert socket.gethostname() in message
    _fill(commit.partial)
    commit.publish()
  assert _text(tmp_path / 'out') == 'new'


def test_a_second_process_is_refused(tmp_path):
  program = (
    'import sys; from experiments.runtime import commit\n'
    'with commit.Commit(sys.argv[1], fingerprint={}): pass'
  )
  with _commit(tmp_path / 'out'):
    done = subprocess.run(
      [sys.executable, '-c', program, str(tmp_path / 'out')],
      capture_output=True,
      text=True,
      check=False,
    )
  assert done.returncode
  assert f'is being written by process {os.getpid()} on' in done.stderr


def test_a_lock_that_a_kill_has_left_means_nothing(tmp_path):
  (tmp_path / '.out.lock').write_text('{"pid": 1, "host": "gone"}')
  _publish(tmp_path / 'out')
  assert os.listdir(tmp_path) == ['out']


def test_a_lock_is_held_by_one_thread_at_a_time(tmp_path):
  inside, most, entered = 0, 0, 0
  guard = threading.Lock()

  def work():
    nonlocal inside, most, entered
    for _ in range(60):
      try:
        with lock.held(tmp_path / 'lock', 'it'):
          with guard:
            inside += 1
            entered += 1
            most = max(most, inside)
          os.stat(tmp_path)
          with guard:
            inside -= 1
      except problems.ProblemError:
        continue

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == 1
  assert entered > 1
  assert os.listdir(tmp_path) == []


def test_a_lock_is_never_a_link(tmp_path):
  (tmp_path / 'precious').write_text('kept')
  (tmp_path / '.out.lock').symlink_to(tmp_path / 'precious')
  _refusal(tmp_path / 'out', kind=problems.Kind.SPACE)
  assert (tmp_path / 'precious').read_text() == 'kept'


# --- Going on.


def test_finished_files_are_kept_and_given_back(tmp_path):
  target = tmp_path / 'out'
  notices = []
  _stop(target, ['a', 'b'], notify=notices.append)
  assert os.listdir(tmp_path) == ['.out.partial']
  assert notices == [
    f'2 finished files are kept in {tmp_path / ".out.partial"};'
    ' --resume continues'
  ]
  _stop(target, ['c'], resume=True)  # Stopped again, a little farther.
  with _commit(target, resume=True) as commit:
    assert commit.finished == {
      'a': {'size': 1},
      'b': {'size': 1},
      'c': {'size': 1},
    }
    assert sorted(os.listdir(commit.partial)) == ['a', 'b', 'c']
    commit.publish()
  assert sorted(os.listdir(target)) == ['a', 'b', 'c']
  assert os.listdir(tmp_path) == ['out']


def test_nothing_to_continue_is_a_new_run(tmp_path):
  _publish(tmp_path / 'out', resume=True)
  assert _text(tmp_path / 'out') == 'new'


def test_without_resume_a_run_starts_over_and_says_so(tmp_path):
  _stop(tmp_path / 'out', ['a'])
  notices = []
  with _commit(tmp_path / 'out', notify=notices.append) as commit:
    assert commit.finished == {}
    assert os.listdir(commit.partial) == []
  assert len(notices) == 1
  assert notices[0].startswith('starting over: 1 finished files')
  assert '--resume' in notices[0]


def test_another_run_is_not_continued_and_its_difference_told(tmp_path):
  _stop(tmp_path / 'out', ['a'])
  message = _refusal(tmp_path / 'out', version=2, resume=True)
  assert 'version: 1 != 2' in message
  assert 'start over without --resume' in message
  with _commit(tmp_path / 'out', resume=True) as commit:
    assert list(commit.finished) == ['a']


def test_a_torn_journal_costs_its_last_line(tmp_path):
  _stop(tmp_path / 'out', ['a', 'b'])
  path = tmp_path / '.out.partial' / 'journal.jsonl'
  os.truncate(path, path.stat().st_size - 4)
  _stop(tmp_path / 'out', ['c'], resume=True)
  with _commit(tmp_path / 'out', resume=True) as commit:
    assert list(commit.finished) == ['a', 'c']


def test_a_directory_that_is_not_the_recorded_one_keeps_nothing(tmp_path):
  _stop(tmp_path / 'out', ['a'])
  partial = tmp_path / '.out.partial'
  journal.append(partial / 'journal.jsonl', {'publishing': -2})
  with _commit(tmp_path / 'out', resume=True) as commit:
    assert commit.finished == {}
    assert os.listdir(commit.partial) == []


@pytest.mark.parametrize(
  'text',
  [
    '',
    '{',
    '3\n',
    '[]\n{}\n',
    '{"version": 0}\n',
    '\x00\n',
    '{"finished": 1}\n',
  ],
)
def test_a_journal_that_is_none(tmp_path, text):
  _stop(tmp_path / 'out', ['a'])
  path = tmp_path / '.out.partial' / 'journal.jsonl'
  path.write_text(text)
  _publish(tmp_path / 'out')
  assert _text(tmp_path / 'out') == 'new'


def test_folders_of_others_are_not_taken(tmp_path):
  partial = tmp_path / '.out.partial'
  partial.mkdir()
  (partial / 'thesis.tex').write_text('kept')
  assert "holds 'thesis.tex', which no run has made" in _refusal(
    tmp_path / 'out'
  )
  assert (partial / 'thesis.tex').read_text() == 'kept'


def test_a_link_in_the_way_is_not_followed(tmp_path, model):
  (tmp_path / '.out.partial').symlink_to(model)
  assert 'is in the way' in _refusal(tmp_path / 'out')
  assert _text(model) == 'old'


# --- The last step.


def _no_exchange(monkeypatch):
  monkeypatch.setattr(exchange, 'exchange', lambda *_: False)


def test_a_refused_exchange_leaves_the_old_model(model, monkeypatch):
  def refuse(*_):
    raise OSError(errno.EACCES, 'no')

  monkeypatch.setattr(exchange, 'exchange', refuse)
  with pytest.raises(problems.ProblemError, match='no permission'):
    _publish(model, overwrite=True)
  assert _text(model) == 'old'
  assert os.listdir(model.parent) == ['model']


def test_without_exchange_a_refused_rename_is_undone(model, monkeypatch):
  rename, calls = os.rename, []

  def third_fails(a, b):
    # The first tells that something is there, the second moves it away.
    calls.append(a)
    if len(calls) == 3:
      raise OSError(errno.EACCES, 'no')
    return rename(a, b)

  monkeypatch.setattr(exchange, 'exchange', lambda *_: False)
  monkeypatch.setattr(os, 'rename', third_fails)
  with pytest.raises(problems.ProblemError, match='no permission'):
    _publish(model, overwrite=True)
  assert len(calls) == 4
  assert _text(model) == 'old'
  assert os.listdir(model.parent) == ['model']


def test_an_old_model_that_could_not_come_back_is_not_deleted(
  model, monkeypatch
):
  rename, calls = os.rename, []

  def all_fail_later(a, b):
    calls.append(a)
    if len(calls) >= 3:
      raise OSError(errno.EIO, 'broken')
    return rename(a, b)

  with monkeypatch.context() as context:
    context.setattr(exchange, 'exchange', lambda *_: False)
    context.setattr(os, 'rename', all_fail_later)
    with pytest.raises(problems.ProblemError, match='broken'):
      _publish(model, overwrite=True)
  assert not model.exists()
  assert _text(model.parent / '.model.partial' / 'old') == 'old'
  with pytest.raises(problems.ProblemError, match='exists'), _commit(model):
    pass
  assert _text(model) == 'old'


def test_what_appears_at_the_target_meanwhile_is_not_replaced(tmp_path):
  target = tmp_path / 'out'
  with _commit(target) as commit:
    _fill(commit.partial)
    target.mkdir()
    _fill(target, 'another')
    with pytest.raises(problems.ProblemError, match='exists'):
      commit.publish()
  assert _text(target) == 'another'


def test_names_are_exchanged_at_once(tmp_path):
  for name in 'ab':
    (tmp_path / name).mkdir()
    (tmp_path / name / 'text').write_text(name)
  assert exchange.exchange(tmp_path / 'a', tmp_path / 'b')
  assert (tmp_path / 'a' / 'text').read_text() == 'b'
  assert (tmp_path / 'b' / 'text').read_text() == 'a'
  with pytest.raises(FileNotFoundError):
    exchange.exchange(tmp_path / 'a', tmp_path / 'c')


def test_the_journal_is_not_published(tmp_path):
  with _commit(tmp_path / 'out') as commit:
    _fill(commit.partial)
    commit.record('model.safetensors', {})
    commit.publish()
  assert sorted(os.listdir(tmp_path / 'out')) == [
    'config.json',
    'model.safetensors',
  ]


def test_entries_of_threads_are_whole_lines(tmp_path):
  with _commit(tmp_path / 'out') as commit:
    threads = [
      threading.Thread(target=commit.record, args=(f'{n}', {'text': 'é' * n}))
      for n in range(20)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    entries = journal.read(tmp_path / '.out.partial' / 'journal.jsonl')
    raw = (tmp_path / '.out.partial' / 'journal.jsonl').read_text()
  assert {entry['finished'] for entry in entries[1:]} == set(
    map(str, range(20))
  )
  assert all(json.loads(line) for line in raw.splitlines())
