"""Orbax checkpoints as models that are read in pieces.

Orbax itself loads whole arrays. Its files are TensorStore's: an array per leaf
in a key-value store, and JSON that says what the tree is. Here arrays are read
through TensorStore, so that a checkpoint may be larger than memory.
"""

import ast
from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
import re
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorstore

from experiments.runtime import orbax_layout
from merging import streams
from merging import transform
from third_party import problems

_ARRAYS = ('jax.Array', 'np.ndarray', 'scalar')
_EMPTY = ('None', 'Dict', 'List', 'Tuple', 'NamedTuple')
_LARGEST_JSON = 256 * 2**20
_MARKER = 'complete'  # A leaf that `checkpoints` adds to its trees.


class OrbaxSource:
  """An Orbax checkpoint of a tree, as a source.

  It may be what `ocp.PyTreeCheckpointer` or `ocp.StandardCheckpointer` wrote, a
  step of a checkpoint manager, or what `checkpoints.Checkpoints` wrote. Opening
  it reads the tree and the shape of every leaf, and no values. Leaves are named
  by their keys, joined by a slash.

  Nothing is ever deleted or repaired.

  Attributes:
    directory: Where the tree lies, which is below what was opened if that has
      one item.
    specs: Of the arrays, by path, in the order of the tree.
    keys: The keys of each leaf.
    others: What the tree has besides arrays (strings, random keys), by path.
    problems: What is not as it should be, though it can be read.
    chunk_bytes: Size of the largest piece that files hold as one, which for
      Orbax is the whole leaf, or its part on a device. Reading a part of it
      takes that much memory, which is kept for the next part.

  Examples:
    >>> import tempfile
    >>> from orbax import checkpoint as ocp
    >>> tree = {'layer': {'w': np.arange(6.0, dtype=np.float32)}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   with ocp.StandardCheckpointer() as checkpointer:
    ...     checkpointer.save(f'{folder}/model', tree)
    ...   source = OrbaxSource(f'{folder}/model')
    ...   out = np.empty(2, np.float32)
    ...   source.read('layer/w', 3, out)
    >>> list(source.specs), out.tolist()
    (['layer/w'], [3.0, 4.0])
  """

  def __init__(self, directory: str | os.PathLike[str], *, name: str = ''):
    """Opens a checkpoint.

    Args:
      directory: The checkpoint, a step of it, or the directory of an item.
      name: What to call the model in errors; the directory by default.

    Raises:
      ProblemError: It is not a finished, readable checkpoint of one tree; all
        leaves that are missing or damaged are named.
    """
    self._name = name or str(directory)
    top = Path(directory)
    self.directory = _find(top, self._name)
    self.problems = _uncommitted(top, self._name)
    written = _read_json(self.directory / orbax_layout.TREE, self._name)
    try:
      leaves = _leaves(written['tree_metadata'])
      driver = 'zarr3' if written.get('use_zarr3') else 'zarr'
      whole = bool(written.get('store_array_data_equal_to_fill_value'))
      store: Any = {'driver': 'file', 'path': f'{self.directory.absolute()}/'}
      if (self.directory / 'manifest.ocdbt').exists():
        store = {'driver': 'ocdbt', 'base': store}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise problems.refuse(
        problems.Kind.INPUT,
        (self._name, orbax_layout.TREE),
        f'does not describe a tree as Orbax does ({error!r})',
        'fetch the checkpoint again',
      ) from error
    if _is_ours(self.directory, self._name):
      leaves = _without_marker(leaves)
    self.others = {
      orbax_layout.path_of(leaf.keys): leaf.kind
      for leaf in leaves
      if leaf.kind not in (*_ARRAYS, *_EMPTY)
    }
    arrays = [leaf for leaf in leaves if leaf.kind in _ARRAYS]
    orbax_layout.refuse_twins(
      [orbax_layout.path_of(leaf.keys) for leaf in arrays], self._name
    )
    self.keys = {orbax_layout.path_of(leaf.keys): leaf.keys for leaf in arrays}

    def spec(leaf: '_Leaf') -> dict[str, Any]:
      # A lost piece is an error and not zeros, unless zeros are not stored.
      return {
        'driver': driver,
        'kvstore': {**store, 'path': f'{store.get("path", "")}{leaf.stored}/'},
        'fill_missing_data_reads': not whole,
      }

    specs = {orbax_layout.path_of(leaf.keys): spec(leaf) for leaf in arrays}
    stores = self._open(specs, cached=0)
    self.chunk_bytes = max(
      (_chunk_bytes(store) for store in stores.values()), default=0
    )
    # Pieces of a leaf are asked for one after the other: without a cache each
    # would decode all of the leaf. What is larger than the cache is not kept,
    # and an entry takes a little more than its values.
    self._stores = self._open(specs, cached=self.chunk_bytes * 9 // 8 + 2**16)
    self.specs: streams.Specs = {
      path: transform.LeafSpec(path, store.shape, store.dtype.numpy_dtype)
      for path, store in self._stores.items()
    }

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with entries of a leaf, in the order of a C array.

    Args:
      path: Name of the leaf.
      start: First entry.
      out: `[size]`, of the dtype of the leaf.

    Raises:
      ProblemError: The files are damaged or were changed.
    """
    store = self._stores[path]
    done = 0
    for box in orbax_layout.boxes(store.shape, start, start + out.size):
      try:
        values = store[box].read().result()
      except (ValueError, OSError, RuntimeError) as error:
        raise problems.ProblemError(
          [_unreadable(self._name, path, error)]
        ) from error
      out[done : done + values.size] = values.reshape(-1)
      done += values.size

  def _open(
    self, specs: Mapping[str, Any], cached: int
  ) -> dict[str, tensorstore.TensorStore]:
    """Opens arrays, all at once, and names all that cannot be."""
    context = tensorstore.Context({'cache_pool': {'total_bytes_limit': cached}})
    opening = {
      path: tensorstore.open(
        spec,
        read=True,
        open=True,
        context=context,
        recheck_cached_data=False,
        recheck_cached_metadata='open',
      )
      for path, spec in specs.items()
    }
    stores, wrong = {}, []
    for path, future in opening.items():
      try:
        stores[path] = future.result()
      except (ValueError, OSError, RuntimeError) as error:
        wrong.append(_unreadable(self._name, path, error))
    if wrong:
      raise problems.ProblemError(wrong)
    return stores


class _Leaf(NamedTuple):
  """A leaf of a tree as written: keys, name in the store, kind of value."""

  keys: tuple[orbax_layout.Key, ...]
  stored: str
  kind: str


def _find(top: Path, name: str) -> Path:
  """Finds the one tree of a checkpoint, or says what there is instead."""

  def refuse(what: str, remedy: str) -> problems.ProblemError:
    return problems.refuse(problems.Kind.INPUT, (name,), what, remedy)

  if orbax_layout.UNFINISHED in top.absolute().name:
    raise refuse(
      'is what a save left that did not finish',
      'take a finished checkpoint; if this one is known to be a whole copy,'
      ' give the copy its name without the suffix',
    )
  if not top.is_dir():
    raise refuse('there is no such directory', 'check the name')
  if (top / orbax_layout.TREE).is_file():
    return top
  folders = sorted(each for each in top.iterdir() if each.is_dir())
  items = [each for each in folders if (each / orbax_layout.TREE).is_file()]
  if len(items) == 1 and orbax_layout.UNFINISHED not in items[0].name:
    return items[0]
  if items:
    found = ', '.join(each.name for each in items)
    raise refuse(f'has several items: {found}', 'name one of them')
  steps = [
    each.name
    for each in folders
    if orbax_layout.UNFINISHED not in each.name
    and any(each.glob(f'*/{orbax_layout.TREE}'))
  ]
  if steps:
    raise refuse(f'has steps: {", ".join(steps)}', 'name one of them')
  if any(orbax_layout.UNFINISHED in each.name for each in folders):
    raise refuse('has only a save that did not finish', 'take another one')
  if (top / 'checkpoint').is_file() or any(top.glob('*/checkpoint')):
    raise refuse(
      'holds arrays in one msgpack file, as Flax and old versions of Orbax did',
      'restore it with Orbax and save it again',
    )
  raise refuse(
    f'is no Orbax checkpoint of a tree: there is no {orbax_layout.TREE}',
    'check that all files were copied',
  )


def _uncommitted(top: Path, name: str) -> tuple[problems.Problem, ...]:
  if (top / orbax_layout.COMMITTED).is_file():
    return ()
  what = (
    f'has no {orbax_layout.COMMITTED}: Orbax before 0.12.3 wrote none on local'
    ' disks, but a copy that was cut short lacks it too'
  )
  remedy = 'compare with the original if it is a copy'
  return (problems.Problem(problems.Kind.INPUT, (name,), what, remedy),)


def _read_json(path: Path, name: str) -> Any:
  try:
    if path.stat().st_size > _LARGEST_JSON:
      raise ValueError(f'larger than {_LARGEST_JSON} bytes')
    return json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise problems.refuse(
      problems.Kind.INPUT,
      (name, path.name),
      f'cannot be read as JSON: {orbax_layout.reason(error)}',
      'fetch the checkpoint again',
    ) from error


def _leaves(tree: Mapping[str, Any]) -> list[_Leaf]:
  leaves = []
  for entry in tree.values():
    keys = tuple(
      (str(key['key']), key['key_type'] == 1) for key in entry['key_metadata']
    )
    kind = str(entry['value_metadata']['value_type'])
    stored = orbax_layout.stored_as(keys)
    # Without OCDBT it is a folder, which should not be elsewhere.
    if '..' in stored.split('/') or stored.startswith('/'):
      raise ValueError(f'the leaf {stored!r} leaves the checkpoint')
    leaves.append(_Leaf(keys, stored, kind))
  return leaves


def _is_ours(directory: Path, name: str) -> bool:
  """Whether `checkpoints.Checkpoints` wrote it, whose trees are flat."""
  about = directory.parent / orbax_layout.ABOUT
  if (directory / orbax_layout.ABOUT).is_file() or not about.is_file():
    return False
  custom = (_read_json(about, name) or {}).get('custom_metadata')
  return isinstance(custom, dict) and {'leaves', 'user'} == set(custom)


# What `jax.tree_util.keystr` writes: ['key'], [0], [<flat index 0>], .field.
_PART = re.compile(
  r"""\[(?:<flat\ index\ )?
      ('(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | \d+)
      >?\] | \.(\w+)""",
  re.VERBOSE,
)


def _without_marker(leaves: list[_Leaf]) -> list[_Leaf]:
  """Gives leaves of a flat tree the keys that their names spell."""
  found = []
  for leaf in leaves:
    if leaf.stored == _MARKER:
      continue
    keys = tuple(
      (str(ast.literal_eval(key)), key.isdigit()) if key else (field, False)
      for key, field in _PART.findall(leaf.stored.removeprefix('tree'))
    )
    found.append(leaf._replace(keys=keys))
  return found


def _chunk_bytes(store: tensorstore.TensorStore) -> int:
  """The size of what is decoded at once."""
  chunk = store.chunk_layout.read_chunk.shape or ()
  pairs = zip(chunk, store.shape, strict=True)
  entries = math.prod(min(each or size, size) for each, size in pairs)
  return entries * store.dtype.numpy_dtype.itemsize


def _unreadable(name: str, path: str, error: Exception) -> problems.Problem:
  return problems.Problem(
    problems.Kind.INPUT,
    (name, path),
    f'cannot be read: {orbax_layout.reason(error)}',
    'fetch the checkpoint again',
  )
