"""The tensors that a recipe makes, and from which tensors of its models."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import TYPE_CHECKING

from merging import streams
from third_party import problems
from third_party.mergekit import names
from third_party.mergekit import plan

if TYPE_CHECKING:
  from third_party.mergekit import recipe as recipe_lib

Specs = Mapping[names.ModelRef, streams.Specs]
Configs = Mapping[names.ModelRef, Mapping[str, Any]]


class Piece(NamedTuple):
  """A tensor to make.

  Attributes:
    part: The slice that makes it.
    paths: By model, the tensor it is made from.
    t: Where gradients are, from 0 to 1.
  """

  part: plan.Slice
  paths: Mapping[names.ModelRef, str]
  t: float


def inputs(
  recipe: 'recipe_lib.Recipe', part: plan.Slice
) -> list[names.ModelRef]:
  """Returns the models of a slice, with the base if `models` leaves it out."""
  models = [source.model for source in part.sources]
  base = part.base or recipe.base
  if not recipe.sliced and base is not None and base not in models:
    models.append(base)
  return models


def reference(recipe: 'recipe_lib.Recipe', part: plan.Slice) -> names.ModelRef:
  """Returns the model whose tensors the others should have."""
  models = inputs(recipe, part)
  base = part.base or recipe.base
  return base if base in models else models[0]


def pieces(
  recipe: 'recipe_lib.Recipe',
  specs: Specs,
  configs: Configs,
  found: problems.Collector,
) -> dict[str, Piece]:
  """Returns the tensors that some model of a recipe has, by output path.

  Args:
    recipe: The recipe.
    specs: By model, its tensors.
    configs: By model, the contents of `config.json`; may be empty.
    found: Where problems go.

  Returns:
    The pieces. Not all models need have the tensors they name.
  """
  if recipe.sliced:
    return _Slices(recipe, specs, configs, found).pieces()
  (part,) = recipe.slices
  models = inputs(recipe, part)
  paths = _paths(recipe, part, specs)
  counts = plan.depths(paths)
  return {
    path: Piece(part, dict.fromkeys(models, path), plan.depth_of(path, counts))
    for path in paths
  }


def _paths(recipe, part, specs) -> Iterable[str]:
  """The paths of all models of a slice, those of the reference first."""
  ordered = [reference(recipe, part), *inputs(recipe, part)]
  return dict.fromkeys(path for model in ordered for path in specs[model])


class _Slices:
  """Layers that are put together anew."""

  def __init__(self, recipe, specs, configs, found):
    self._recipe = recipe
    self._specs = specs
    self._found = found
    self._stacks: dict[names.ModelRef, tuple[str, int]] = {}
    for model in recipe.models:
      stack = plan.stack_of(specs[model], configs.get(model, {}))
      if stack is None:
        told = plan.depths(specs[model]) or 'none'
        found.problems.append(
          problems.Problem(
            problems.Kind.INCOMPATIBLE,
            (str(model),),
            f'expected one stack of layers to slice, got {told}',
            'use models instead of slices',
          )
        )
      else:
        self._stacks[model] = stack
    found.check()

  def pieces(self) -> dict[str, Piece]:
    parts = self._recipe.slices
    made = self._outside(parts[0], after=False)
    made |= self._outside(parts[-1], after=True)
    stack, _ = self._stacks[parts[0].sources[0].model]
    number = 0
    for part in parts:
      self._check(part)
      first, end = part.sources[0].layers
      for offset in range(end - first):
        t = offset / (end - first - 1) if end - first > 1 else 1.0
        for rest in self._layer(part, offset):
          made[f'{stack}.{number}.{rest}'] = Piece(
            part,
            {
              source.model: f'{self._stacks[source.model][0]}.'
              f'{source.layers[0] + offset}.{rest}'
              for source in part.sources
            },
            t,
          )
        number += 1
    return made

  def _check(self, part):
    for source in part.sources:
      _, count = self._stacks[source.model]
      if source.layers[1] > count:
        self._found.problems.append(
          source.node.problem(
            f'expected layers of the {count} that the model has, got '
            f'{list(source.layers)}'
          )
        )

  def _outside(self, part, *, after):
    """The tensors that precede the layers, or that follow them."""
    models = inputs(self._recipe, part)
    stacks = {self._stacks[model][0] for model in models}
    made = {}
    for path in _paths(self._recipe, part, self._specs):
      where = plan.layered(path)
      inside = where is not None and where.stack in stacks
      if not inside and plan.follows(path) == after:
        made[path] = Piece(part, dict.fromkeys(models, path), 0.0)
    return made

  def _layer(self, part, offset):
    """What follows the number of a layer in the names of its tensors."""
    first = reference(self._recipe, part)
    rests: dict[str, None] = {}
    for source in sorted(part.sources, key=lambda each: each.model != first):
      stack, _ = self._stacks[source.model]
      number = source.layers[0] + offset
      for path in self._specs[source.model]:
        where = plan.layered(path)
        if where is not None and where[:2] == (stack, number):
          rests[where.rest] = None
    return rests
