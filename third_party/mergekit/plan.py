"""Which tensors of which models become which tensors of the output."""

from collections.abc import Iterable
from collections.abc import Mapping
import re
from typing import Any
from typing import NamedTuple

from third_party import strict_yaml
from third_party.mergekit import names
from third_party.mergekit import parameters

_INDEX = re.compile(r'\.(\d+)\.')
# What follows the layers; anything else outside of them precedes them.
_AFTER = re.compile(
  r'(^|\.)(norm|norm_f|ln_f|final_layer_?norm|final_norm|layer_norm|lm_head'
  r'|embed_out|output|output_layer|score|classifier|pre_classifier|pooler|cls'
  r'|head|vocab_(transform|layer_norm|projector)|post_layernorm|layernorm_post'
  r'|ln_post)(\.|$)'
)
# Where families say how many layers they have.
COUNTS = ('num_hidden_layers', 'n_layer', 'num_layers', 'n_layers')


class Source(NamedTuple):
  """A model of a slice.

  Attributes:
    model: The model.
    layers: The first of its layers, and the one after the last; `None` for all.
    settings: Of this model.
    node: Where it stands.
  """

  model: names.ModelRef
  layers: tuple[int, int] | None
  settings: parameters.Settings
  node: strict_yaml.Node


class Slice(NamedTuple):
  """Layers that the same models make.

  Attributes:
    sources: The models.
    base: Its own base model, if it names one.
    settings: Of this slice.
    node: Where it stands.
  """

  sources: tuple[Source, ...]
  base: names.ModelRef | None
  settings: parameters.Settings
  node: strict_yaml.Node


class Layered(NamedTuple):
  """The name of a tensor, taken apart.

  Attributes:
    stack: What precedes the number of its layer; empty outside of layers.
    layer: The number.
    rest: What follows.
  """

  stack: str
  layer: int
  rest: str


def layered(path: str) -> Layered | None:
  """Takes the name of a tensor of a layer apart; `None` outside of layers.

  Examples:
    >>> layered('model.layers.3.mlp.experts.0.weight')
    Layered(stack='model.layers', layer=3, rest='mlp.experts.0.weight')
  """
  match = _INDEX.search(path)
  if match is None:
    return None
  stack, rest = path[: match.start()], path[match.end() :]
  return Layered(stack, int(match[1]), rest)


def depths(paths: Iterable[str]) -> dict[str, int]:
  """Returns how many layers each stack of a model has.

  Examples:
    >>> depths(['h.0.w', 'h.1.w', 'h.1.b', 'x.h.0.w', 'x.h.1.w', 'norm.w'])
    {'h': 2, 'x.h': 2}
  """
  found: dict[str, int] = {}
  for path in paths:
    where = layered(path)
    if where is not None:
      found[where.stack] = max(found.get(where.stack, 0), where.layer + 1)
  return found


def stack_of(
  paths: Iterable[str], config: Mapping[str, Any]
) -> tuple[str, int] | None:
  """Returns the stack of layers that slices are of, and how many it has.

  Args:
    paths: Names of the tensors of a model.
    config: Its `config.json`, which decides where there are several.

  Returns:
    The stack, or `None` if there is none, or no single one.
  """
  found = list(depths(paths).items())
  if len(found) == 1:
    return found[0]
  count = layer_count(config)
  fitting = [each for each in found if each[1] == count]
  return fitting[0] if len(fitting) == 1 else None


def layer_count(config: Mapping[str, Any]) -> int | None:
  """Returns the number of layers that a `config.json` names.

  Examples:
    >>> layer_count({'n_layer': 12})
    12
  """
  for each in (config, config.get('text_config')):
    if isinstance(each, Mapping):
      for key in COUNTS:
        if isinstance(each.get(key), int):
          return each[key]
  return None


def follows(path: str) -> bool:
  """Whether a tensor outside of layers comes after them.

  Examples:
    >>> follows('lm_head.weight'), follows('model.embed_tokens.weight')
    (True, False)
  """
  return _AFTER.search(path) is not None and '.embeddings.' not in path


def depth_of(path: str, counts: Mapping[str, int]) -> float:
  """Returns where gradients are: 0 at the first layer, 1 at the last.

  Tensors outside of layers are at 0, those of the only layer at 1, as in
  mergekit.

  Examples:
    >>> depth_of('h.1.w', {'h': 5}), depth_of('norm.w', {'h': 5})
    (0.25, 0.0)
  """
  where = layered(path)
  if where is None:
    return 0.0
  last = counts[where.stack] - 1
  return where.layer / last if last else 1.0
