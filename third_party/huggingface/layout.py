"""Which files of a directory are the weights, and which belong to them."""

from collections.abc import Iterable
from collections.abc import Mapping
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

from third_party import problems
from third_party.huggingface import descriptors
from third_party.huggingface import headers
from third_party.huggingface import json_files

INDEX_SUFFIX = '.safetensors.index.json'
SUFFIX = '.safetensors'

# Of `model-00002-of-00005.safetensors`: what is the same in all shards.
_SHARD = re.compile(r'(?P<stem>.+)-\d+-of-\d+\.safetensors')
_ADAPTER = ('adapter_config.json', 'adapter_model.safetensors')
_OTHER_WEIGHTS = {
  '.bin': 'a PyTorch pickle',
  '.pt': 'a PyTorch pickle',
  '.pth': 'a PyTorch pickle',
  '.ckpt': 'a PyTorch pickle',
  '.gguf': 'a GGUF file',
  '.h5': 'a TensorFlow file',
  '.msgpack': 'a Flax file',
}
_SIDE_FILE = re.compile(
  r'(tokenizer|special_tokens|added_tokens|vocab|chat_template|generation_conf'
  r'|(pre|image_|video_|feature_)?processor|preprocessor|tekken|spiece'
  r'|sentencepiece|normalizer).*\.(json|txt|model|jinja|bpe)'
  r'|merges\.txt|.*\.(tiktoken|jinja)'
)


class Layout(NamedTuple):
  """The files of a model.

  Attributes:
    index: Name of the index, or `None` for one file.
    weight_map: By tensor the shard that the index names; empty without one.
    total_size: Bytes of all tensors as the index says, if it does.
    shards: By name of a file of weights, its real path.
    ignored: Names of files of weights that are not part of the model.
    faults: Files that the index names but are not there, or not to be read.
  """

  index: str | None
  weight_map: Mapping[str, str]
  total_size: float | None
  shards: Mapping[str, str]
  ignored: tuple[str, ...]
  faults: tuple[problems.Problem, ...] = ()


class Directory:
  """A model's directory, out of which no name leads.

  The cache of Hugging Face holds links from `snapshots` to `blobs`; these lead
  out of a snapshot, but not out of the model's own folder of the cache.
  """

  def __init__(self, path: str | os.PathLike[str], model: str):
    """Looks at the names in a directory.

    Args:
      path: The directory.
      model: Name of the model for problems.

    Raises:
      problems.ProblemError: It is not a directory or cannot be read.
    """
    self.path = pathlib.Path(path)
    self.model = model
    self._real = os.path.realpath(self.path)
    self._blobs = _blobs(pathlib.Path(self._real))
    try:
      self.names = tuple(sorted(os.listdir(self.path)))
    except FileNotFoundError as error:
      raise self.refuse(
        (), f'there is no directory {path}', 'check the path'
      ) from error
    except NotADirectoryError as error:
      raise self.refuse(
        (),
        f'expected a directory, {path} is a file',
        'name the directory that holds it',
      ) from error
    except (OSError, ValueError) as error:
      raise json_files.unreadable(error, (model,)) from error

  def refuse(
    self, where: Iterable[str], what: str, remedy: str = ''
  ) -> problems.ProblemError:
    """The error for a single problem of the model's files."""
    return problems.ProblemError([self.problem(where, what, remedy)])

  def problem(
    self, where: Iterable[str], what: str, remedy: str = ''
  ) -> problems.Problem:
    """A problem of the model's files, whose names may be of any bytes."""
    where = (self.model, *map(headers.shown, where))
    what = ''.join(c if c.isprintable() else repr(c)[1:-1] for c in what)
    return problems.Problem(problems.Kind.INPUT, where, what, remedy)

  def locate(self, name: str) -> str:
    """Returns the real path of a file.

    Args:
      name: Of the file.

    Returns:
      The path, free of links.

    Raises:
      problems.ProblemError: The name leads out of the directory.
    """
    if not _is_plain(name):
      raise self.refuse(
        (),
        f'the file name {name!r} leaves the model directory',
        'expected the plain name of a file in it; do not trust this model',
      )
    real = os.path.realpath(os.path.join(self._real, name))
    inside = os.path.dirname(real) == self._real
    if not inside and os.path.dirname(real) != self._blobs:
      raise self.refuse(
        (name,),
        f'is a link that leaves the model directory, to {real}',
        'copy the file here if you trust the model',
      )
    return real

  def place(self, name: str) -> descriptors.Place:
    """Returns a file of the directory as it is now.

    Args:
      name: Of the file, which is there.

    Returns:
      The file.

    Raises:
      problems.ProblemError: The name leads out of the directory, or the file
        cannot be opened.
    """
    real = self.locate(name)
    where = (self.model, headers.shown(name))
    fd = json_files.open_file(real, where)
    try:
      identity = descriptors.Identity.of(os.fstat(fd))
    finally:
      os.close(fd)
    return descriptors.Place(real, where, identity)

  def load_json(self, name: str) -> dict[str, Any]:
    """Reads a small JSON file.

    Args:
      name: Of the file.

    Returns:
      The object in it, `{}` if there is no such file.

    Raises:
      problems.ProblemError: It is not sound.
    """
    if name not in self.names:
      return {}
    return json_files.load(self.locate(name), (self.model, name))


def side_files(names: Iterable[str]) -> tuple[str, ...]:
  """Returns the names of files of the tokenizer, of generation and the like.

  Examples:
    >>> side_files(['config.json', 'tokenizer.json', 'merges.txt', 'a.py'])
    ('tokenizer.json', 'merges.txt')
  """
  return tuple(name for name in names if _SIDE_FILE.fullmatch(name))


def find(directory: Directory) -> Layout:
  """Finds the files of the weights.

  Args:
    directory: Where to look.

  Returns:
    The layout, of which some shards may be missing.

  Raises:
    problems.ProblemError: There are no safetensors, or two checkpoints, or the
      index is not sound.
  """
  indices = [name for name in directory.names if name.endswith(INDEX_SUFFIX)]
  files = [name for name in directory.names if name.endswith(SUFFIX)]
  if len(indices) > 1:
    # Variants lie beside the usual one, such as `model.fp16`'s.
    indices = [name for name in indices if name == 'model' + INDEX_SUFFIX]
    if not indices:
      raise _two(directory, [n for n in directory.names if n.endswith('.json')])
  if not indices:
    name = _single(directory, files)
    others = tuple(each for each in files if each != name)
    return Layout(None, {}, None, {name: directory.locate(name)}, others)
  return _indexed(directory, indices[0], files)


def _indexed(directory: Directory, index: str, files: list[str]) -> Layout:
  content = directory.load_json(index)
  weight_map = content.get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    got = 'none' if weight_map is None else type(weight_map).__name__
    raise directory.refuse(
      (index,),
      f'expected a weight_map of tensors to files, got {got}',
      'fetch it again',
    )
  if not all(isinstance(each, str) for each in weight_map.values()):
    tensor, name = next(
      (key, each)
      for key, each in weight_map.items()
      if not isinstance(each, str)
    )
    raise directory.refuse(
      (index, tensor), f'expected the name of a file, got {name!r}'
    )
  single = index.removesuffix('.index.json')
  named = sorted(set(weight_map.values()))
  if single in files and single not in named:
    raise _two(directory, [single, index])
  found, missing, shards = [], [], {}
  for name in named:
    if _is_plain(name) and name not in directory.names:
      missing.append(name)
      continue
    try:
      shards[name] = directory.locate(name)
    except problems.ProblemError as error:
      found += error.problems
  if missing:
    found.append(
      directory.problem(
        (index,),
        f'{len(missing)} of {len(named)} shards are missing: '
        + ', '.join(missing),
        'fetch them',
      )
    )
  metadata = content.get('metadata')
  total = metadata.get('total_size') if isinstance(metadata, dict) else None
  return Layout(
    index,
    weight_map,
    total if type(total) in (int, float) else None,
    shards,
    tuple(each for each in files if each not in shards),
    tuple(found),
  )


def _single(directory: Directory, files: list[str]) -> str:
  """Returns the name of the only file of weights."""
  stems = {name: _SHARD.fullmatch(name) for name in files}
  shards = {name: match['stem'] for name, match in stems.items() if match}
  whole = [name for name in files if name not in shards]
  usual = 'model' + SUFFIX
  if usual in whole:
    if 'model' in shards.values():
      raise _two(directory, [usual, *shards])
    return usual
  if _ADAPTER[1] in whole or (not files and _ADAPTER[0] in directory.names):
    raise directory.refuse(
      (),
      'expected a model, this is a PEFT adapter',
      'name it as an adapter, with the model it belongs to',
    )
  if shards:
    stem = next(iter(shards.values()))
    raise directory.refuse(
      (),
      f'there are {len(shards)} shards but no {stem}{INDEX_SUFFIX}',
      'the model was not written to the end: fetch or write it again',
    )
  if len(whole) > 1:
    raise _two(directory, whole)
  if whole:
    return whole[0]
  raise _no_weights(directory)


def _two(directory: Directory, names: Iterable[str]) -> problems.ProblemError:
  return directory.refuse(
    (),
    'there are two checkpoints in one directory: ' + ', '.join(names),
    'remove the one that is stale',
  )


def _no_weights(directory: Directory) -> problems.ProblemError:
  for name in directory.names:
    kind = _OTHER_WEIGHTS.get(os.path.splitext(name)[1])
    if kind is not None:
      return directory.refuse(
        (name,),
        f'expected safetensors, this is {kind}, which is not read because '
        'pickles run code'
        if 'pickle' in kind
        else f'expected safetensors, this is {kind}',
        'convert it to safetensors',
      )
  return directory.refuse(
    (),
    f'there are no weights: expected model{SUFFIX}, or shards and '
    f'model{INDEX_SUFFIX}',
    'check the path',
  )


def _is_plain(name: str) -> bool:
  return (
    name == os.path.basename(name)
    and name not in ('', '.', '..')
    and not {'\\', '\0'} & set(name)
  )


def _blobs(real: pathlib.Path) -> str | None:
  """Returns where the cache of Hugging Face keeps the files of a snapshot."""
  for folder in real.parents:
    if folder.name.startswith('models--'):
      inside = real.relative_to(folder).parts
      return str(folder / 'blobs') if inside[0] == 'snapshots' else None
  return None
