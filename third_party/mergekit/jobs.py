"""From a recipe and the headers of its models to merges of single tensors."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import TYPE_CHECKING

import jax

import merging
from merging import transform
from third_party import problems
from third_party import strict_yaml
from third_party.mergekit import fit
from third_party.mergekit import methods
from third_party.mergekit import names
from third_party.mergekit import parameters
from third_party.mergekit import pieces as pieces_lib

if TYPE_CHECKING:
  from third_party.mergekit import recipe as recipe_lib

Extra = Literal['error', 'base', 'drop', 'keep']
EXTRAS: tuple[Extra, ...] = ('error', 'base', 'drop', 'keep')


class Job(NamedTuple):
  """A merge of some tensors.

  Attributes:
    transform: The merge; it finds the settings of a tensor by its output path.
    base: The model that changes are taken from; `None` for zeros, where the
      method speaks of models and not of changes.
    experts: The models, by names that sort in the order of the recipe.
    leaves: By output path, by model, the path there.
    settings: By output path, the values in force: of the whole merge by name,
      and of models by name and expert.
  """

  transform: transform.MergeTransform
  base: names.ModelRef | None
  experts: Mapping[str, names.ModelRef]
  leaves: Mapping[str, Mapping[names.ModelRef, str]]
  settings: Mapping[str, Mapping[str, Any]]


def jobs(
  recipe: 'recipe_lib.Recipe',
  specs: pieces_lib.Specs,
  configs: pieces_lib.Configs,
  *,
  seed: int = 0,
  extra: Extra = 'error',
) -> tuple[Job, ...]:
  """Returns the merges that make up the output of a recipe.

  Args:
    recipe: What `recipe.parse` read.
    specs: By model, its tensors; those of the model that an adapter is added
      to.
    configs: By model, the contents of `config.json`; may be empty.
    seed: What random methods draw from, with the names of tensor and model.
    extra: What becomes of tensors that not all models have: `'error'`; `'base'`
      has those of the base alone, unmerged where another model lacks them;
      `'drop'` leaves out those that the base lacks; `'keep'` has all, unmerged,
      from the base or else the first model that has them. Where a recipe names
      no base, its first model is meant.

  Returns:
    The jobs; no two of them make the same tensor.

  Raises:
    problems.ProblemError: With everything that does not fit: tensors, shapes,
      numbers of layers, and settings that only tensors show to be wrong.

  Examples:
    >>> import numpy as np
    >>> from third_party.mergekit import recipe
    >>> read = recipe.parse(
    ...   '{merge_method: linear, models: [{model: a, '
    ...   'parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]}'
    ... )
    >>> spec = transform.LeafSpec('w', (2,), np.dtype('f4'))
    >>> specs = dict.fromkeys(read.models, {'w': spec})
    >>> (job,) = jobs(read, specs, {})
    >>> job.experts, job.settings['w']['weight']
    ({'0 a': ModelRef('a'), '1 b': ModelRef('b')}, {'0 a': 1.0, '1 b': 3.0})
  """
  if extra not in EXTRAS:
    raise ValueError(f'extra is {extra!r}, expected one of {EXTRAS}')
  found = problems.Collector()
  with found:
    fit.check_configs(recipe, configs)
  pieces = pieces_lib.pieces(recipe, specs, configs, found)
  pieces, copied = _fit(recipe, pieces, specs, extra, found)
  _check_filters(recipe, pieces, found)
  found.check()
  made = tuple(_merges(recipe, pieces, specs, seed, found))
  found.check()
  return made + tuple(copies(copied))


def _fit(recipe, pieces, specs, extra, found):
  """Sorts out the tensors that not all models have, or in other shapes.

  Returns:
    Those to merge, and by output path the model and path to copy from.
  """
  merged, copied = {}, {}
  report = fit.Report(found, extra)
  for out, piece in pieces.items():
    reference = pieces_lib.reference(recipe, piece.part)
    having = [m for m, path in piece.paths.items() if path in specs[m]]
    if len(having) == len(piece.paths):
      report.shapes(out, reference, piece.paths, specs)
      merged[out] = piece
    elif extra == 'keep' or (extra == 'base' and reference in having):
      owner = reference if reference in having else having[0]
      copied[out] = owner, piece.paths[owner]
    elif reference in having:
      report.missing(reference, piece.paths, having)
    elif extra == 'error':
      report.surplus(reference, piece.paths, having)
  report.close(specs, recipe.sliced)
  return merged, copied


def _check_filters(recipe, pieces, found):
  """Refuses filters that take no tensor, level by level."""

  def check(settings, parts):
    mine = {o: p for o, p in pieces.items() if p.part in parts}
    shared = {
      each.name
      for each in methods.settings_of(recipe.method, parameters.Scope.MERGE)
    }
    inputs = list(
      dict.fromkeys(path for p in mine.values() for path in p.paths.values())
    )
    for name, setting in settings.items():
      paths = list(mine) if name in shared else inputs
      found.problems += parameters.unmatched({name: setting}, paths)

  check(recipe.parameters, recipe.slices)
  for part in recipe.slices:
    check(part.settings, (part,))
    for source in part.sources:
      paths = [
        piece.paths[source.model]
        for piece in pieces.values()
        if piece.part is part
      ]
      found.problems += parameters.unmatched(source.settings, paths)


class _Roles(NamedTuple):
  """What the models of a slice are to its method."""

  base: names.ModelRef | None
  experts: dict[str, names.ModelRef]


def _roles(recipe, part):
  models = pieces_lib.inputs(recipe, part)
  base = part.base or recipe.base
  if recipe.method.base == 'ignored':
    base = None
  others = [model for model in models if model != base]
  width = len(str(len(others) - 1))
  numbered = enumerate(others)
  return _Roles(
    base, {f'{i:0{width}d} {model}': model for i, model in numbered}
  )


def _merges(recipe, pieces, specs, seed, found) -> Iterator[Job]:
  groups: dict[tuple[Any, ...], dict[str, pieces_lib.Piece]] = {}
  for out, piece in pieces.items():
    roles = _roles(recipe, piece.part)
    key = (roles.base, *roles.experts.items())
    groups.setdefault(key, {})[out] = piece
  wrong = _Wrong(recipe)
  key = jax.random.key(seed) if recipe.method.draws else None
  for mine in groups.values():
    base, experts = _roles(recipe, next(iter(mine.values())).part)
    if base is not None and not experts:
      yield from copies({o: (base, p.paths[base]) for o, p in mine.items()})
      continue
    tensors = {}
    for out, piece in mine.items():
      shape = specs[next(iter(experts.values()))]
      path = piece.paths[next(iter(experts.values()))]
      tensor = _tensor(
        recipe, out, piece, base, experts, shape[path].shape, key, wrong
      )
      if tensor is not None:
        tensors[out] = tensor
        for told in recipe.method.check(tensor):
          wrong.add(piece.part.node, told, out)
    build = functools.partial(_build, recipe.method.build, tensors)
    # One tensor is enough to tell the papers, for all have the same method.
    sources = ()
    if tensors and not any(wrong.problems()):  # Else it may not build.
      sources = recipe.method.build(next(iter(tensors.values()))).sources
    yield Job(
      transform=merging.each(build)._replace(sources=sources),
      base=base,
      experts=experts,
      leaves={
        out: {
          model: piece.paths[model]
          for model in (*([] if base is None else [base]), *experts.values())
        }
        for out, piece in mine.items()
      },
      settings={out: _shown(tensor) for out, tensor in tensors.items()},
    )
  found.problems += wrong.problems()


def _build(build, tensors, spec):
  return build(tensors[spec.path])


def _shown(tensor):
  settings: dict[str, Any] = dict(tensor.merge)
  for expert, values in tensor.experts.items():
    for name, value in values.items():
      settings.setdefault(name, {})[expert] = value
  return settings


def _tensor(recipe, out, piece, base, experts, shape, key, wrong):
  """Resolves the settings of one tensor; `None` if some are missing."""
  common = (piece.part.settings, recipe.parameters)
  method = recipe.method
  missing = False

  def value(parameter, scopes, name, node, model):
    nonlocal missing
    try:
      return parameters.resolve(parameter, scopes, name, piece.t)
    except parameters.MissingError:
      missing = True
      wrong.add(node, _needs(method, parameter, base, model, recipe), out)
      return None

  merge = {
    each.name: value(each, common, out, recipe.slices[0].node, None)
    for each in methods.settings_of(method, parameters.Scope.MERGE)
  }
  own = [each for each in method.parameters if each.name not in merge]
  by_model = {source.model: source for source in piece.part.sources}
  values = {}
  for expert, model in experts.items():
    source = by_model.get(model)
    scopes = common if source is None else (source.settings, *common)
    node = piece.part.node if source is None else source.node
    path = piece.paths[model]
    values[expert] = {
      each.name: value(each, scopes, path, node, model) for each in own
    }
  if missing:
    return None
  return methods.Tensor(merge, values, shape, base is not None, key)


def _needs(method, parameter, base, model, recipe):
  told = f'{method.name} needs {parameter.name}'
  if model is None:
    return f'{told} in the parameters at the top, and it is missing'
  if base is None and model == recipe.base:
    return (
      f'{told} of {str(model)!r}: {method.name} merges base_model as one more '
      'model; list it among the models, or remove base_model'
    )
  return f'{told} of {str(model)!r}, and it is missing'


class _Wrong:
  """What is wrong with settings, told once and not for every tensor."""

  def __init__(self, recipe):
    self._recipe = recipe
    self._found: dict[tuple[int, str], tuple[strict_yaml.Node, list[str]]] = {}

  def add(self, node: strict_yaml.Node, told: str, path: str) -> None:
    _, paths = self._found.setdefault((id(node), told), (node, []))
    paths.append(path)

  def problems(self) -> Iterator[problems.Problem]:
    for (_, told), (node, paths) in self._found.items():
      more = f' and {len(paths) - 1} more' if len(paths) > 1 else ''
      yield node.problem(f'{told} (for {paths[0]}{more})')


def copies(
  found: Mapping[str, tuple[names.ModelRef, str]],
) -> Iterator[Job]:
  """Yields jobs that copy tensors which are not merged.

  Args:
    found: By output path, the model and the path there.

  Yields:
    A job for each model.
  """
  owners: dict[names.ModelRef, dict[str, str]] = {}
  for out, (model, path) in found.items():
    owners.setdefault(model, {})[out] = path
  for model, paths in owners.items():
    yield Job(
      transform=merging.passthrough(),
      base=None,
      experts={f'0 {model}': model},
      leaves={out: {model: path} for out, path in paths.items()},
      settings={out: {} for out in paths},
    )


def outputs(made: Sequence[Job]) -> list[str]:
  """Returns the paths of all tensors that jobs make, sorted."""
  return sorted(path for job in made for path in job.leaves)
