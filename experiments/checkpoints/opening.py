"""Finding and opening the models that a recipe names."""

from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runtime import orbax_layout
from merging import patterns
from merging import streams
from third_party import problems
from third_party.huggingface import checkpoint as checkpoint_lib
from third_party.huggingface import hub
from third_party.mergekit import names
from third_party.peft import adapted
from third_party.peft import adapter as adapter_lib


class Model:
  """A model of a recipe: a checkpoint, and an adapter of it if there is one.

  Attributes:
    ref: As the recipe names it.
    name: The same as text.
    checkpoint: The directory of weights.
    files: The adapter's own files, or `None`.
    adapter: By path what the adapter changes, or `None`.
    config: Contents of `config.json`.
    directory: Where the checkpoint lies.
    side_files: Names of what lies beside the weights.
    specs: Of all tensors.
    weights: Paths of the files that hold them, by name, those of the adapter
      too.
    notes: What a person should know.
  """

  def __init__(
    self,
    ref: names.ModelRef,
    checkpoint: Any,
    files: adapter_lib.PeftAdapter | None,
  ):
    """Puts them together.

    Raises:
      problems.ProblemError: The adapter does not fit.
    """
    self.ref = ref
    self.name = str(ref)
    self.checkpoint = checkpoint
    self.config = checkpoint.config
    self.directory = checkpoint.directory
    self.side_files = checkpoint.side_files
    self.files = files
    self.adapter = None
    self.notes = [str(each) for each in checkpoint.problems]
    self.weights = {
      name: Path(self.directory, name) for name in checkpoint.fingerprint()
    }
    source: streams.Source = checkpoint
    if files is not None:
      path = Path(files.directory, adapter_lib.WEIGHTS)
      self.weights[adapter_lib.WEIGHTS] = path
      self.adapter = files.fit(checkpoint.specs, ref.path)
      self.notes += [str(each) for each in self.adapter.notes]
      source = adapted.Adapted(checkpoint, self.adapter)
    self.source = source
    self.specs: streams.Specs = source.specs

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with entries of a tensor."""
    self.source.read(path, start, out)

  def fingerprint(self) -> dict[str, dict[str, Any]]:
    """Returns what tells its files from others, by the names in `weights`."""
    found = self.checkpoint.fingerprint()
    if self.files is None:
      return found
    return {**found, adapter_lib.WEIGHTS: self.files.file.fingerprint()}

  def check_unchanged(self) -> None:
    """Checks that no file of weights has changed since it was opened.

    Raises:
      problems.ProblemError: Names all files that have.
    """
    found = problems.Collector()
    with found:
      self.checkpoint.check_unchanged()
    if self.files is not None:
      with found:
        self.files.file.place.check_unchanged()
    found.check()


def check_places(
  places: Mapping[str, str], refs: Iterable[names.ModelRef]
) -> None:
  """Refuses directories that are given for names which no model has.

  Args:
    places: By name, the directory to use.
    refs: As the recipe names the models.

  Raises:
    problems.ProblemError: With all such names.
  """
  known = {path for ref in refs for path, _ in _parts(ref)}
  found = [
    problems.Problem(
      problems.Kind.CONFIG,
      (f'--model_path {name}',),
      f'no model has it{patterns.suggest(name, known)}',
    )
    for name in places
    if name not in known
  ]
  if found:
    raise problems.ProblemError(found)


def same(
  refs: Iterable[names.ModelRef], *, beside: Path, places: Mapping[str, str]
) -> dict[names.ModelRef, names.ModelRef]:
  """Finds models that are named twice: one directory by two of its paths.

  Args:
    refs: As the recipe names them.
    beside: The folder of the recipe, where relative paths are looked for too.
    places: By name in the recipe, the directory to use.

  Returns:
    By every name but the first, the first. Models that are not there are left
    out.
  """
  firsts: dict[tuple[Path, ...], names.ModelRef] = {}
  found = {}
  for ref in refs:
    with contextlib.suppress(problems.ProblemError):
      where = tuple(find(*part, beside, places) for part in _parts(ref))
      first = firsts.setdefault(where, ref)
      if first != ref:
        found[ref] = first
  return found


def _parts(ref: names.ModelRef) -> list[tuple[str, str | None]]:
  """Name and revision of a model, and of its adapter if it has one."""
  found = [(ref.path, ref.revision)]
  return found if ref.lora is None else [*found, (ref.lora, ref.lora_revision)]


def open_models(
  refs: Iterable[names.ModelRef],
  *,
  beside: Path,
  places: Mapping[str, str],
  strict: bool = False,
) -> dict[names.ModelRef, Model]:
  """Opens all models: reads headers and JSON.

  Args:
    refs: As the recipe names them.
    beside: The folder of the recipe, where relative paths are looked for too.
    places: By name in the recipe, the directory to use.
    strict: Whether what is doubtful is wrong.

  Returns:
    The models; one directory is opened once.

  Raises:
    problems.ProblemError: With all that is wrong with any of them.
  """
  found: list[problems.Problem] = []
  opened: dict[Path, Any] = {}
  models = {}
  for ref in refs:
    parts: list[Any] = []
    for place, (path, revision) in enumerate(_parts(ref)):
      try:
        directory = find(path, revision, beside, places)
        if directory not in opened:
          opened[directory] = (
            adapter_lib.open_adapter(directory, name=path)
            if place
            else open_directory(directory, name=path, strict=strict)
          )
        parts.append(opened[directory])
      except problems.ProblemError as error:
        found += [each for each in error.problems if each not in found]
    if len(parts) == 1 + (ref.lora is not None):
      try:
        models[ref] = Model(ref, parts[0], parts[1] if ref.lora else None)
      except problems.ProblemError as error:
        found += error.problems
  if found:
    raise problems.ProblemError(found)
  return models


def open_directory(
  directory: str | os.PathLike[str], *, name: str = '', strict: bool = False
) -> Any:
  """Opens a model directory, of Hugging Face or of Orbax.

  Args:
    directory: The model.
    name: Of it, for problems; by default the path.
    strict: Whether what is doubtful is wrong.

  Returns:
    A `Checkpoint`, or an `OrbaxModel`, which is used like one.

  Raises:
    problems.ProblemError: With everything that is wrong with it.
  """
  if not orbax_layout.is_checkpoint(Path(directory)):
    return checkpoint_lib.open_checkpoint(directory, name=name, strict=strict)
  # Here, for it loads TensorStore.
  from experiments.checkpoints import orbax

  return orbax.OrbaxModel(directory, name=name, strict=strict)


def find(
  name: str,
  revision: str | None,
  beside: Path,
  places: Mapping[str, str] | None = None,
) -> Path:
  """Returns the directory of a model, without using a network.

  Args:
    name: A path, or a name of the Hugging Face Hub.
    revision: Of the Hub.
    beside: The folder of the recipe.
    places: By name, the directory to use; none where no flag gives them.

  Returns:
    The directory: the one given for it, one that is there under that path, or
    the snapshot in the cache of the Hub.

  Raises:
    problems.ProblemError: There is none.
  """
  placed = places is not None and name in places
  if placed:
    candidates = [Path(places[name])]
  else:
    path = Path(name).expanduser()
    candidates = [path, beside / path]
  for path in candidates:
    if path.is_dir():
      return path.resolve()
  for path in candidates:
    if path.exists():
      raise problems.refuse(
        problems.Kind.INPUT, (name,), 'is a file', 'name its directory'
      )
  snapshot = None if placed else hub.snapshot(name, revision)
  if snapshot is not None:
    return snapshot.resolve()
  looks = not placed and name.count('/') == 1 and name[0] not in './~'
  near = patterns.suggest(Path(name).name, _beside(candidates))
  raise problems.refuse(
    problems.Kind.INPUT,
    (name,),
    'there is no such directory'
    + (', and the cache of the Hugging Face Hub has none' if looks else '')
    + near,
    _remedy(name, looks, near, places is not None),
  )


def _remedy(name: str, looks: bool, near: str, flag: bool) -> str:
  if near:
    return ''
  where = name if looks else 'NAME'
  what = (
    f'download it with `hf download {name}`'
    if looks
    else 'look for a misspelling'
  )
  return f'{what}, or say --model_path {where}=DIR' if flag else what


def _beside(paths: Iterable[Path]) -> list[str]:
  """Names of the directories beside paths that are not there."""
  found = []
  for path in paths:
    with contextlib.suppress(OSError):
      found += [each.name for each in os.scandir(path.parent) if each.is_dir()]
  return found
