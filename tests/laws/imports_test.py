"""The rule of the house: who may import whom, and what an import costs."""

import ast
from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys

import pytest

_ROOT = Path(__file__).parents[2]
_LIBRARIES = ('merging', 'arithmetic', 'numerics')
_ROOMS = (*_LIBRARIES, 'experiments', 'third_party')

# What each room may import beside itself and the standard library.
_ALLOWED = {
  'merging': {'jax', 'numpy', 'optax'},
  'arithmetic': {'jax', 'numpy', 'flax', 'optax'},
  'numerics': {'jax', 'numpy'},
}
_PEERS = Path('third_party/peers')
_ORBAX = Path('experiments/runtime/checkpoints.py')


def _modules(room: str) -> list[Path]:
  paths = sorted((_ROOT / room).rglob('*.py'))
  return [path.relative_to(_ROOT) for path in paths]


def _imports(source: str, path: Path) -> Iterator[str]:
  """Yields the absolute name of everything imported, wherever in the file."""
  package = path.parent.parts
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      start = package[: len(package) - node.level + 1] if node.level else ()
      module = '.'.join((*start, *filter(None, [node.module])))
      yield from (f'{module}.{alias.name}' for alias in node.names)


def _all_imports(room: str) -> list[tuple[Path, str]]:
  return [
    (path, name)
    for path in _modules(room)
    for name in _imports((_ROOT / path).read_text(encoding='utf-8'), path)
  ]


def _top(name: str) -> str:
  return name.partition('.')[0]


def test_every_form_of_import_is_seen():
  source = '\n'.join(
    [
      'import a.b, c as d',
      'from e.f import g',
      'def h():',
      '  from . import i',
      '  from ..j import k',
    ]
  )
  assert set(_imports(source, Path('room/part/module.py'))) == {
    'a.b',
    'c',
    'e.f.g',
    'room.part.i',
    'room.j.k',
  }


@pytest.mark.parametrize('room', _ROOMS)
def test_rooms_keep_to_themselves(room):
  assert room == 'third_party' or _modules(room)
  may = {
    'experiments': set(_ROOMS),
    'third_party': {'third_party', 'merging'},
  }.get(room, {room})
  wrong = [
    f'{path} imports {name}'
    for path, name in _all_imports(room)
    if _top(name) in set(_ROOMS) - may
  ]
  assert wrong == []


@pytest.mark.parametrize('room', _LIBRARIES)
def test_libraries_need_little(room):
  known = set(sys.stdlib_module_names) | _ALLOWED[room] | {room}
  wrong = [
    f'{path} imports {name}'
    for path, name in _all_imports(room)
    if _top(name) not in known
  ]
  assert wrong == []


@pytest.mark.parametrize('room', _ROOMS)
def test_nobody_imports_what_is_banned(room):
  wrong = [
    f'{path} imports {name}'
    for path, name in _all_imports(room)
    # Those files run in the environment of the tool they call.
    if (_top(name) in {'torch', 'tensorflow'} and path.parent != _PEERS)
    or 'pjit' in name.split('.')
    or name.startswith(('jax._src', 'jax.experimental.shard_map'))
  ]
  assert wrong == []


def test_one_file_knows_orbax():
  users = {
    path
    for room in _ROOMS
    for path, name in _all_imports(room)
    if _top(name) == 'orbax'
  }
  assert users == {_ORBAX}


_MEASURE = """
import sys, time
times = [time.perf_counter()]
for names in {steps}:
  for name in names:
    __import__(name)
  times.append(time.perf_counter())
print(times[1] - times[0], times[3] - times[2])
print(*sorted({{name.partition('.')[0] for name in sys.modules}}))
"""


def _measure(room: str) -> tuple[float, float, set[str]]:
  """Imports in a fresh interpreter.

  Returns:
    Seconds for JAX, seconds for the room once what it needs is there, and the
    packages that came along.
  """
  steps = (['jax'], sorted({'flax', 'optax'} & _ALLOWED[room]), [room])
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', _MEASURE.format(steps=steps)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  seconds, names = done.stdout.splitlines()
  limit, own = map(float, seconds.split())
  return limit, own, set(names.split())


@pytest.mark.parametrize('room', _LIBRARIES)
def test_an_import_brings_nobody_along_and_costs_little_beside_jax(room):
  limit, own, loaded = _measure(room)
  others = {*_ROOMS, 'torch', 'tensorflow', 'orbax', 'matplotlib'} - {room}
  assert not loaded & others
  # A busy machine slows both imports, though not always in the same moment.
  for _ in range(3):
    if own < 0.5 * limit:
      return
    limit, own, _ = _measure(room)
  pytest.fail(f'{room} takes {own:.2f} s beside {limit:.2f} s for JAX')
