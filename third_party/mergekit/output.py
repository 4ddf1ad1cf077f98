"""The config.json of a merged model."""

from collections.abc import Mapping
import copy
from typing import Any
from typing import TYPE_CHECKING

from third_party.mergekit import names
from third_party.mergekit import plan

if TYPE_CHECKING:
  from third_party.mergekit import recipe as recipe_lib


def config(
  recipe: 'recipe_lib.Recipe',
  configs: Mapping[names.ModelRef, Mapping[str, Any]],
) -> dict[str, Any]:
  """Returns the config of the base, or of the first model, with what changes.

  Args:
    recipe: The recipe; its type, if it names one, and its slices change it: the
      number of layers, and lists that have an entry for each layer.
    configs: By model, the contents of `config.json`.

  Returns:
    The contents of `config.json` of the output.

  Examples:
    >>> from third_party.mergekit import recipe as recipe_lib
    >>> recipe = recipe_lib.parse(
    ...   '{merge_method: passthrough, slices: ['
    ...   '{sources: [{model: a, layer_range: [0, 2]}]},'
    ...   '{sources: [{model: a, layer_range: [1, 2]}]}]}'
    ... )
    >>> layers = {'num_hidden_layers': 2, 'layer_types': ['full', 'sliding']}
    >>> config(recipe, {recipe.models[0]: layers})
    {'num_hidden_layers': 3, 'layer_types': ['full', 'sliding', 'sliding']}
  """
  owner = recipe.base or recipe.models[0]
  changed = copy.deepcopy(dict(configs.get(owner, {})))
  dtype = recipe.out_dtype or recipe.dtype
  if dtype is not None and changed:
    key = 'dtype' if 'dtype' in changed else 'torch_dtype'
    for each in _parts(changed):
      if each is changed or key in each:
        each[key] = str(dtype)
  if recipe.sliced:
    sources = [part.sources[0] for part in recipe.slices]
    number = sum(b - a for a, b in (each.layers or (0, 0) for each in sources))
    for place, each in enumerate(_parts(changed)):
      _relayer(each, number, sources, configs, place)
  return changed


def _parts(config):
  """The config, and that of its language model where that is apart."""
  inner = config.get('text_config')
  return [config, inner] if isinstance(inner, dict) else [config]


def _relayer(part, number, sources, configs, place):
  count = next((part[key] for key in plan.COUNTS if key in part), None)
  if count is None:
    return
  for key in plan.COUNTS:
    if part.get(key) == count:
      part[key] = number
  for key, value in part.items():
    if isinstance(value, list) and len(value) == count and count > 1:
      lists = []
      for source in sources:
        theirs = _parts(configs.get(source.model, {}))[place:]
        entries = theirs[0].get(key) if theirs else None
        first, end = source.layers
        if isinstance(entries, list) and len(entries) >= end:
          lists += entries[first:end]
      if len(lists) == number:
        part[key] = lists
