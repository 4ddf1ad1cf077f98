"""Files are whole: the old one or the new one."""

import os
import stat

import pytest

from experiments.runtime import files


def test_writes_text_and_bytes_and_makes_folders(tmp_path):
  path = files.write(tmp_path / 'a' / 'b.txt', 'é\n')
  assert path.read_bytes() == 'é\n'.encode()
  files.write(path, b'\x00')
  assert path.read_bytes() == b'\x00'
  assert [entry.name for entry in path.parent.iterdir()] == ['b.txt']


def test_others_may_read_what_the_umask_allows(tmp_path):
  before = os.umask(0o022)
  try:
    path = files.write(tmp_path / 'a.txt', '')
  finally:
    os.umask(before)
  assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
  path = files.write(tmp_path / 'a.txt', 'old')

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='disk full'):
    files.write(path, 'new')
  assert path.read_text() == 'old'
  assert [entry.name for entry in tmp_path.iterdir()] == ['a.txt']
