"""Do the models of a recipe fit one another, by name, shape and config?"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TYPE_CHECKING

from merging import patterns
from merging import streams
from third_party import problems
from third_party.mergekit import names
from third_party.mergekit import plan

if TYPE_CHECKING:
  from third_party.mergekit import recipe as recipe_lib

_SHOWN = 8  # Tensors of a model that are named, of one kind of problem.
_WIDTHS = (
  *('hidden_size', 'n_embd', 'd_model', 'intermediate_size', 'n_inner'),
  *('num_attention_heads', 'n_head', 'num_key_value_heads', 'head_dim'),
)
_TOKENS = ('embed', 'wte', 'lm_head', 'tok_', 'shared', 'output')


def check_configs(
  recipe: 'recipe_lib.Recipe',
  configs: Mapping[names.ModelRef, Mapping[str, Any]],
) -> None:
  """Compares the families, widths and numbers of layers of the models.

  Args:
    recipe: The recipe.
    configs: By model, the contents of `config.json`; may be empty.

  Raises:
    problems.ProblemError: With everything that differs.
  """
  known = [model for model in recipe.models if configs.get(model)]
  found = []
  if not known:
    return
  first, *others = known
  keys = ['model_type', *_WIDTHS]
  for model in others:
    for key in keys:
      mine, theirs = configs[model].get(key), configs[first].get(key)
      if mine is not None and theirs is not None and mine != theirs:
        found.append(
          _problem(
            (str(model), 'config.json'),
            f'{key} is {mine!r}, and {theirs!r} in {str(first)!r}',
            'merge models of one architecture',
          )
        )
    mine, theirs = (plan.layer_count(configs[each]) for each in (model, first))
    if not recipe.sliced and None not in (mine, theirs) and mine != theirs:
      found.append(
        _problem(
          (str(model), 'config.json'),
          f'has {mine} layers, and {str(first)!r} has {theirs}',
          'say with slices which layers to merge',
        )
      )
  if found:
    raise problems.ProblemError(found)


def _problem(where, what, remedy=''):
  kind = problems.Kind.INCOMPATIBLE
  return problems.Problem(kind, tuple(where), what, remedy)


class Report:
  """Gathers the tensors that do not fit, and tells of them by model."""

  def __init__(self, found: problems.Collector, extra: str):
    """Takes where to put problems, and the policy in force."""
    self._found = found
    self._extra = extra
    self._missing: dict[tuple[names.ModelRef, names.ModelRef], list[str]] = {}
    self._surplus: dict[tuple[names.ModelRef, names.ModelRef], list[str]] = {}
    self._shapes: dict[names.ModelRef, list[problems.Problem]] = {}

  def missing(
    self,
    reference: names.ModelRef,
    paths: Mapping[names.ModelRef, str],
    having: Sequence[names.ModelRef],
  ) -> None:
    """Notes a tensor that the reference has and others lack."""
    for model in paths:
      if model not in having:
        self._missing.setdefault((model, reference), []).append(paths[model])

  def surplus(
    self,
    reference: names.ModelRef,
    paths: Mapping[names.ModelRef, str],
    having: Sequence[names.ModelRef],
  ) -> None:
    """Notes a tensor that the reference lacks."""
    for model in having:
      self._surplus.setdefault((model, reference), []).append(paths[model])

  def shapes(
    self,
    out: str,
    reference: names.ModelRef,
    paths: Mapping[names.ModelRef, str],
    specs: Mapping[names.ModelRef, streams.Specs],
  ) -> None:
    """Notes the models in which a tensor has another shape."""
    wanted = tuple(specs[reference][paths[reference]].shape)
    for model, path in paths.items():
      got = tuple(specs[model][path].shape)
      if got == wanted:
        continue
      rows = len(got) == len(wanted) and got[1:] == wanted[1:]
      tokens = rows and any(word in out for word in _TOKENS)
      self._shapes.setdefault(model, []).append(
        _problem(
          (str(model), path),
          f'has the shape {list(got)}, and {list(wanted)} in '
          f'{str(reference)!r}',
          'say tokenizer_source: base or union' if tokens else '',
        )
      )

  def close(
    self,
    specs: Mapping[names.ModelRef, streams.Specs],
    sliced: bool,
  ) -> None:
    """Turns everything into problems, the first few tensors of each model.

    Of a model whose config differs, shapes and layers say nothing more.
    """
    differing = {each.where[0] for each in self._found.problems}
    for (model, reference), paths in self._missing.items():
      mine, theirs = plan.depths(specs[model]), plan.depths(specs[reference])
      if mine != theirs and mine.keys() == theirs.keys() and not sliced:
        if str(model) not in differing:
          self._layers(model, reference, mine, theirs)
        continue
      for path in paths[:_SHOWN]:
        self._add(
          model,
          path,
          f'is missing, and {str(reference)!r} has it'
          f'{patterns.suggest(path, specs[model])}',
          "--extra=base keeps the base's"
          if self._extra in ('error', 'drop')
          else '',
        )
      self._rest(model, paths, f'are missing, and {str(reference)!r} has them')
    for (model, reference), paths in self._surplus.items():
      mine, theirs = plan.depths(specs[model]), plan.depths(specs[reference])
      if mine != theirs and mine.keys() == theirs.keys() and not sliced:
        if str(model) not in differing:
          self._layers(model, reference, mine, theirs)
        continue
      for path in paths[:_SHOWN]:
        self._add(
          model,
          path,
          f'is not in {str(reference)!r}',
          '--extra=drop leaves it out',
        )
      self._rest(model, paths, f'are not in {str(reference)!r}')
    for model, several in self._shapes.items():
      if str(model) in differing:
        continue
      self._found.problems += several[:_SHOWN]
      told = [each.where[-1] for each in several]
      self._rest(model, told, 'have other shapes')

  def _layers(self, model, reference, mine, theirs):
    for stack in mine:
      if mine[stack] != theirs[stack]:
        self._add(
          model,
          stack,
          f'has {mine[stack]} layers, and {theirs[stack]} in '
          f'{str(reference)!r}',
          'say with slices which layers to merge',
        )

  def _add(self, model, path, what, remedy=''):
    self._found.problems.append(_problem((str(model), path), what, remedy))

  def _rest(self, model, paths, what):
    if len(paths) > _SHOWN:
      self._found.problems.append(
        _problem((str(model),), f'{len(paths) - _SHOWN} more tensors {what}')
      )
