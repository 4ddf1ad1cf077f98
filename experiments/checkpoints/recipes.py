"""Reading a recipe: one of mergekit, or one that names transforms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import Literal

from experiments.checkpoints import native
from third_party import problems
from third_party import strict_yaml
from third_party.mergekit import names
from third_party.mergekit import recipe as mergekit_recipe

_MAX_RECIPE = 1 << 20  # Bytes.

RecipeFile = Literal['merge_recipe.yml', 'mergekit_config.yml']


def read(file: Path) -> tuple[Any, RecipeFile]:
  """Reads a recipe of either kind.

  Args:
    file: The YAML.

  Returns:
    The recipe, and what to call its text beside the model.

  Raises:
    problems.ProblemError: With all that is wrong with it.
  """
  return parse(contents(file), file.name, {})


def contents(file: Path) -> bytes:
  """Returns the text of a recipe, if it can be one.

  Args:
    file: The YAML.

  Raises:
    problems.ProblemError: It cannot be read, or is too large.
  """
  where = (str(file),)
  try:
    with file.open('rb') as stream:
      data = stream.read(_MAX_RECIPE + 1)
  except OSError as error:
    reason = error.strerror or str(error)
    raise problems.refuse(
      problems.Kind.CONFIG, where, f'cannot be read: {reason}'
    ) from error
  if len(data) > _MAX_RECIPE:
    raise problems.refuse(
      problems.Kind.CONFIG, where, 'is larger than 1 MB', 'is it a recipe?'
    )
  return data


def parse(
  data: bytes, name: str, same: Mapping[names.ModelRef, names.ModelRef]
) -> tuple[Any, RecipeFile]:
  """Reads the text of a recipe of either kind.

  Args:
    data: The text.
    name: Of the file, for messages.
    same: By model, the one that it is another name of.

  Returns:
    The recipe, and what to call its text beside the model.

  Raises:
    problems.ProblemError: With all that is wrong with it.
  """
  root = strict_yaml.load(data, file=name)
  keys = root.value if isinstance(root.value, dict) else {}
  if 'merge' in keys and 'merge_method' not in keys:
    return native.parse(data, name, same), 'merge_recipe.yml'
  return mergekit_recipe.parse(data, name, same), 'mergekit_config.yml'
