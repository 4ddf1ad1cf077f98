"""What is known of files from how the clients of the Hub keep them."""

import os

import pytest

from third_party.huggingface import hub

SUM = 'ab' * 32


@pytest.fixture
def cached(tmp_path, monkeypatch):
  """A snapshot of one file in a cache."""
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
  folder = tmp_path / 'models--org--model'
  snapshot = folder / 'snapshots' / 'c0ffee'
  for each in (snapshot, folder / 'blobs', folder / 'refs'):
    each.mkdir(parents=True)
  (folder / 'refs' / 'main').write_text('c0ffee\n')
  (folder / 'blobs' / SUM).write_bytes(b'weights')
  (folder / 'blobs' / ('cd' * 20)).write_bytes(b'{}')
  (snapshot / 'model.safetensors').symlink_to(folder / 'blobs' / SUM)
  (snapshot / 'config.json').symlink_to(folder / 'blobs' / ('cd' * 20))
  return snapshot


def test_snapshots(cached):
  assert hub.snapshot('org/model', None) == cached
  assert hub.snapshot('org/model', 'main') == cached
  assert hub.snapshot('org/model', 'c0ffee') == cached
  for name, revision in [
    ('org/other', None),
    ('org/model', 'v2'),
    ('org/model', '../snapshots/c0ffee'),
    ('../model', None),
    ('model', None),
  ]:
    assert hub.snapshot(name, revision) is None


def test_a_sum_is_the_name_of_a_blob(cached):
  assert hub.sha256(cached / 'model.safetensors') == SUM
  assert hub.sha256(cached / 'config.json') is None  # A sum of git's.


@pytest.fixture
def downloaded(tmp_path):
  """A file in a directory of its own, and the note of the client."""
  path = tmp_path / 'model.safetensors'
  path.write_bytes(b'weights')
  os.utime(path, (1000, 1000))
  notes = tmp_path / '.cache' / 'huggingface' / 'download'
  notes.mkdir(parents=True)
  return path, notes / f'{path.name}.metadata'


@pytest.mark.parametrize(
  ('note', 'expected'),
  [
    (f'c0ffee\n{SUM}\n1000.25\n', SUM),
    (f'c0ffee\n{SUM}\n998.5\n', None),  # Changed after the download.
    (f'c0ffee\n{"cd" * 20}\n1000.25\n', None),
    (f'c0ffee\n{SUM}\nyesterday\n', None),
    (SUM, None),
    ('', None),
  ],
)
def test_a_sum_is_in_the_note_of_a_download(downloaded, note, expected):
  path, place = downloaded
  assert hub.sha256(path) is None
  place.write_text(note)
  assert hub.sha256(path) == expected
