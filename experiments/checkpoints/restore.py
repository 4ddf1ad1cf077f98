"""Experts out of a bundle, as sources of their weights."""

from collections.abc import Iterator
from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from experiments.checkpoints import bundles
from experiments.checkpoints import changes
from experiments.checkpoints import codecs
from merging import patterns
from merging import streams
from third_party import problems
from third_party.huggingface import json_files
from third_party.huggingface import safetensors


def is_bundle(path: str | os.PathLike[str]) -> bool:
  """Whether a file says that it is a bundle, of whatever version.

  Examples:
    >>> is_bundle('/dev/null')
    False
  """
  try:
    header = safetensors.read_header(path)
  except problems.ProblemError:
    return False
  return header.metadata.get('format') == bundles.FORMAT


class Bundle:
  """A bundle that was opened: its header is read and checked, no more.

  Attributes:
    name: For problems.
    kind: How changes are stored.
    codec: The same with its settings.
    experts: Names of the experts, sorted.
    leaves: By path, the shape and dtype of the base and a checksum of its
      first entries.
    size: Bytes of the file.
  """

  def __init__(self, path: str | os.PathLike[str], *, name: str = ''):
    """Opens a bundle.

    Args:
      path: The file.
      name: For problems; by default the path.

    Raises:
      problems.ProblemError: It is no bundle, or a damaged one.
    """
    self.name = name or os.fspath(path)
    if os.path.isdir(path):
      raise problems.refuse(
        problems.Kind.INPUT,
        (self.name,),
        'expected a bundle, which is a file, and this is a directory',
        'name the file that `extract` wrote',
      )
    self._file = safetensors.File(path, where=(self.name,))
    self.size = self._file.header.size
    metadata = self._file.header.metadata
    kind, version = metadata.get('format'), metadata.get('version')
    if kind != bundles.FORMAT or version != bundles.VERSION:
      raise self._refuse(
        f'expected a bundle ({bundles.FORMAT}, version {bundles.VERSION}), got '
        f'format {kind!r}, version {version!r}'
      )
    text = metadata.get('bundle', '').encode()
    said = json_files.parse(text, (self.name,), 'the description of the bundle')
    self.kind = _field(self, said, 'kind', str)
    try:
      self.codec = codecs.make(
        self.kind, **_field(self, said, 'settings', dict)
      )
    except (ValueError, TypeError) as error:
      raise self._refuse(str(error)) from error
    experts = _field(self, said, 'experts', list)
    if not experts or not all(isinstance(each, str) for each in experts):
      raise self._refuse('expected names of experts')
    self.experts = tuple(experts)
    self.leaves = _field(self, said, 'leaves', dict)
    faults = list(self._faults())
    if faults:
      raise problems.ProblemError(faults)

  def _refuse(self, what: str) -> problems.ProblemError:
    remedy = 'compress the experts again'
    return problems.refuse(problems.Kind.INPUT, (self.name,), what, remedy)

  def parts(self, leaf: str) -> codecs.Parts:
    """Returns where to read the parts of a leaf; none if nothing changed."""
    tensors = self._file.header.tensors
    names = {
      part: f'{part}/{leaf}'
      for part in self.codec.parts
      if f'{part}/{leaf}' in tensors
    }

    def fetch(part, start, count):
      out = np.empty(count, tensors[names[part]].dtype)
      self._file.read(names[part], start, out)
      return out

    shapes = {part: tensors[name].shape for part, name in names.items()}
    return codecs.Parts(shapes, fetch)

  def _faults(self) -> Iterator[problems.Problem]:
    known = set()
    tensors = self._file.header.tensors
    for leaf, said in self.leaves.items():
      what = None
      parts = self.parts(leaf)
      known |= {f'{part}/{leaf}' for part in parts.shapes}
      shape = said.get('shape') if isinstance(said, dict) else None
      if not isinstance(shape, list) or not all(
        type(size) is int and size >= 0 for size in shape
      ):
        what = 'its shape is not described'
      elif parts.shapes and not self.codec.fits(
        parts.shapes, len(self.experts), tuple(shape)
      ):
        what = f'parts {parts.shapes} are not those of a leaf {shape}'
      elif any(
        str(tensors[f'{part}/{leaf}'].dtype) not in codecs.TYPES[part]
        for part in parts.shapes
      ):
        what = 'its parts are of other types than they should be'
      if what:
        kind = problems.Kind.INPUT
        yield problems.Problem(kind, (self.name, safetensors.shown(leaf)), what)
    for tensor in tensors:
      if tensor not in known:
        where = (self.name, safetensors.shown(tensor))
        what = 'is a part of no leaf that the bundle describes'
        yield problems.Problem(problems.Kind.INPUT, where, what)

  def check_base(self, base: streams.Source, base_name: str = 'base') -> None:
    """Checks that a base is the one that the experts were compressed with.

    Names, shapes, types and the first entries of each leaf are compared.

    Args:
      base: The base.
      base_name: Of it, for problems.

    Raises:
      problems.ProblemError: With all leaves that differ.
    """
    faults = []
    for leaf in {**self.leaves, **base.specs}:
      spec, said = base.specs.get(leaf), self.leaves.get(leaf)
      what = None
      if spec is None or said is None:
        what = 'is missing' if spec is None else 'is not known to the bundle'
      elif (list(spec.shape), str(np.dtype(spec.dtype))) != (
        said['shape'],
        said.get('dtype'),
      ):
        what = (
          f'is {np.dtype(spec.dtype)}{list(spec.shape)}, the bundle is of '
          f'{said.get("dtype")}{said["shape"]}'
        )
      elif bundles.probe(base, spec) != said.get('probe'):
        what = 'has other values than the base of the bundle'
      if what:
        kind = problems.Kind.INCOMPATIBLE
        remedy = 'use the base that the experts were compressed with'
        faults.append(problems.Problem(kind, (base_name, leaf), what, remedy))
    if faults:
      raise problems.ProblemError(faults)


def restore(
  base: streams.Source, bundle: Bundle, expert: str, *, base_name: str = 'base'
) -> 'Restored':
  """Returns an expert of a bundle, to within what was not kept of it.

  Args:
    base: The base that it was compressed with.
    bundle: The bundle.
    expert: Name of the expert.
    base_name: Of the base, for problems.

  Returns:
    Its weights, of the dtypes of the base.

  Raises:
    problems.ProblemError: There is no such expert, or it is another base.

  Examples:
    >>> import tempfile
    >>> base = streams.InMemory({'w': np.zeros(8, np.float32)})
    >>> expert = streams.InMemory({'w': np.arange(8, dtype=np.float32)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   _ = bundles.extract_task_vector(
    ...     base, {'math': expert}, f'{folder}/b', kind='tall'
    ...   )
    ...   source = restore(base, Bundle(f'{folder}/b'), 'math')
    ...   changes.read(source, 'w').tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
  """
  if expert not in bundle.experts:
    raise problems.refuse(
      problems.Kind.CONFIG,
      (bundle.name,),
      f'has no expert {expert!r}, it has {patterns.listing(bundle.experts)}'
      f'{patterns.suggest(expert, bundle.experts)}',
    )
  bundle.check_base(base, base_name)
  return Restored(base, bundle, expert)


class Restored:
  """The source that `restore` returns. Pieces need no more than themselves.

  Attributes:
    specs: Those of the base.
  """

  def __init__(self, base: streams.Source, bundle: Bundle, expert: str):
    """Takes a base and a bundle that fit each other."""
    self.specs: streams.Specs = base.specs
    self._base = base
    self._codec = bundle.codec
    self._index = bundle.experts.index(expert)
    self._parts = {leaf: bundle.parts(leaf) for leaf in self.specs}

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with the entries `[start, start + out.size)` of a leaf.

    Base and change are added in float32 and rounded once.
    """
    self._base.read(path, start, out)
    parts = self._parts[path]
    if not parts.shapes or not out.size:
      return
    shape = tuple(self.specs[path].shape)
    change = self._codec.decode(
      parts, self._index, shape, start, start + out.size
    )
    wide = out if out.dtype.itemsize > 4 else changes.widened(out)
    out[...] = (wide + change).astype(out.dtype)


def _field(bundle: Bundle, said: Mapping[str, Any], field: str, kind: type):
  value = said.get(field)
  if not isinstance(value, kind):
    raise bundle._refuse(f'its description has no {field}')
  return value
