"""Damaged models: an error of ours, or what is in the bytes."""

import json
import resource
import time

import numpy as np
import pytest
import safetensors as library

from tests.third_party.huggingface import crafted
from third_party import problems
from third_party.huggingface import checkpoint
from third_party.huggingface import safetensors

# Bytes that mean something to JSON, and so go far before they are refused.
_TELLING = b'"{}[],:0123456789-.eE\\ \n\0\xffFIBU'


def _damage(raw, rng):
  """Returns other bytes: some changed, lost, doubled or put between."""
  raw = bytearray(raw)
  # Half of the damage falls where a file says what it holds.
  most = len(raw) if rng.random() < 0.5 else min(len(raw), 200)
  at = int(rng.integers(most))
  size = int(rng.integers(1, 9))
  kind = rng.choice(['bit', 'byte', 'telling', 'cut', 'lose', 'insert', 'swap'])
  if kind == 'bit':
    for place in (at, *rng.integers(most, size=size // 3)):
      raw[place] ^= 1 << int(rng.integers(8))
  elif kind == 'byte':
    raw[at] = int(rng.integers(256))
  elif kind == 'telling':
    raw[at] = int(rng.choice(list(_TELLING)))
  elif kind == 'cut':
    del raw[at:]
  elif kind == 'lose':
    del raw[at : at + size]
  elif kind == 'insert':
    raw[at:at] = rng.choice(list(_TELLING), size).astype(np.uint8).tobytes()
  else:
    other = int(rng.integers(most))
    raw[at], raw[other] = raw[other], raw[at]
  return bytes(raw)


def _library_accepts(path):
  try:
    with library.safe_open(path, 'numpy'):
      return True
  except (library.SafetensorError, OSError):
    return False


def _literal(path):
  """What a file holds, by the letter of the format."""
  raw = path.read_bytes()
  start = 8 + int.from_bytes(raw[:8], 'little')
  header = json.loads(raw[8:start])
  header.pop('__metadata__', None)
  return {
    name: (
      entry['dtype'],
      tuple(entry['shape']),
      raw[start + entry['data_offsets'][0] : start + entry['data_offsets'][1]],
    )
    for name, entry in header.items()
  }


_KINDS = {dtype: kind for kind, dtype in safetensors.DTYPES.items()}


def _ours(directory):
  """What we read: kind, shape and bytes by name, and whether we warn."""
  opened = checkpoint.open_checkpoint(directory, name='math')
  found = {}
  for path, spec in opened.specs.items():
    size = int(np.prod(spec.shape))
    out = np.empty(size, spec.dtype)
    # Two pieces, as the driver does.
    opened.read(path, 0, out[: size // 3])
    opened.read(path, size // 3, out[size // 3 :])
    found[path] = (_KINDS[spec.dtype], spec.shape, out.tobytes())
  opened.close()
  return found, opened.problems


def _check(directory, cases, seed):
  """Damages one file of a model at a time; returns how often each came out."""
  weight_map = crafted.write_sharded(directory, crafted.tensors())
  sound, _ = _ours(directory)
  shards = sorted(directory.glob('*.safetensors'))
  index = directory / 'model.safetensors.index.json'
  files = [*shards, *shards, index, directory / 'config.json']
  rng = np.random.default_rng(seed)
  outcomes = {'refused': 0, 'same': 0, 'other data': 0, 'other header': 0}
  for case in range(cases):
    path = files[case % len(files)]
    before = path.read_bytes()
    path.write_bytes(_damage(before, rng))
    started = time.process_time()
    found, warnings, said = None, (), ()
    try:
      found, warnings = _ours(directory)
    except problems.ProblemError as error:
      said = error.problems
    assert all(str(each).isprintable() for each in (*said, *warnings)), case
    assert time.process_time() - started < 1, case
    if found is None:
      outcomes['refused'] += 1
    elif path not in shards:
      # The index may leave tensors out, which we say.
      assert found == {name: sound[name] for name in found}, case
      assert len(found) == len(sound) or warnings, case
      outcomes['same'] += 1
    else:
      assert _library_accepts(path), case
      literal = _literal(path)
      for name, got in found.items():
        here = weight_map[name] == path.name
        assert got == (literal[name] if here else sound[name]), case
      # By the name, type and shape we know whether the header is the same.
      same_header = {name: got[:2] for name, got in found.items()} == {
        name: got[:2] for name, got in sound.items()
      }
      if found == sound:
        outcomes['same'] += 1
      else:
        outcomes['other data' if same_header else 'other header'] += 1
    path.write_bytes(before)
  return outcomes


@pytest.mark.parametrize(
  ('cases', 'seed'),
  [(400, 0), pytest.param(6_000, 1, marks=pytest.mark.slow)],
)
def test_damage_is_refused_or_is_what_the_bytes_say(cases, seed, tmp_path):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  outcomes = _check(tmp_path / 'model', cases, seed)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert (after - before) * 1024 < 200e6
  print(outcomes)  # Shown by -s, to state the counts.
  assert sum(outcomes.values()) == cases
  assert outcomes['refused'] > cases / 2
  assert outcomes['other data'] > cases / 50  # The reader does read.
  # Such as F16 for I16, of which nothing in the file tells.
  assert outcomes['other header'] < cases / 50
