"""From a recipe to all that is known of a merge before a weight is read."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.checkpoints import consistency
from experiments.checkpoints import kinship
from experiments.checkpoints import opening
from experiments.checkpoints import recipes
import merging
from merging import outline
from merging import patterns
from merging import streams
from third_party import problems
from third_party import strict_yaml
from third_party.huggingface import embeddings
from third_party.huggingface import policies
from third_party.huggingface import vocabulary
from third_party.mergekit import jobs as jobs_lib
from third_party.mergekit import names

_SEEDS = 1 << 32
_SAMPLE = 1e-3  # Of the values, to know a stranger by.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What a person says beside the recipe.

  Attributes:
    model_paths: By name in the recipe, the directory to use.
    seed: What random methods draw from; that of the recipe, or 0, by default.
    extra: What becomes of tensors that not all models have.
    untie: Whether to give tied models heads of their own.
    strict: Whether what is doubtful is wrong.
  """

  model_paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
  seed: int | None = None
  extra: jobs_lib.Extra = 'error'
  untie: bool = False
  strict: bool = False


class Merge(NamedTuple):
  """Tensors of the output that are merged alike.

  Attributes:
    job: As the recipe tells it.
    base: The base, under the names of the output; `None` for zeros.
    experts: The experts by name, likewise; adapters of the base stay adapters.
    out_dtype: Type of the merged floating tensors, or types by path.
    plan: What is known of it.
  """

  job: jobs_lib.Job
  base: streams.Source | None
  experts: dict[str, Any]
  out_dtype: np.dtype | dict[str, np.dtype]
  plan: outline.Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """A merge that could begin.

  Attributes:
    recipe: The recipe.
    recipe_file: What to call it beside the model.
    models: The models, the base first.
    merges: What makes the tensors of the output; no two make the same.
    specs: Of the output.
    config: Contents of its `config.json`.
    vocabulary: What lies beside the weights, and where it comes from.
    seed: What random methods draw from.
    notes: What a person should know.
  """

  recipe: Any
  recipe_file: recipes.RecipeFile
  models: dict[names.ModelRef, opening.Model]
  merges: tuple[Merge, ...]
  specs: dict[str, merging.LeafSpec]
  config: dict[str, Any]
  vocabulary: vocabulary.VocabularyPlan
  seed: int
  notes: tuple[str, ...]

  @property
  def method(self) -> str:
    """How models are merged, in a word or two."""
    method = self.recipe.method
    return method if isinstance(method, str) else method.name

  @property
  def has_base(self) -> bool:
    """Whether the first model is the base of the others."""
    first = next(iter(self.models))
    return any(merge.job.base == first for merge in self.merges)

  @property
  def bytes_read(self) -> int:
    """Bytes of tensors that will be read."""
    return sum(each.plan.bytes_read for each in self.merges)

  @property
  def bytes_written(self) -> int:
    """Bytes of tensors of the output."""
    return sum(each.plan.bytes_written for each in self.merges)

  @property
  def inputs(self) -> list[Path]:
    """All directories that are read."""
    found = []
    for model in self.models.values():
      found.append(Path(model.directory))
      if model.files is not None:
        found.append(Path(model.files.directory))
    return list(dict.fromkeys(found))


def prepare(file: Path, options: Options) -> Prepared:
  """Reads a recipe and the headers of its models, and checks all of it.

  Args:
    file: The recipe.
    options: What a person says beside it.

  Returns:
    The merge that could begin.

  Raises:
    problems.ProblemError: With all that speaks against it, as far as could be
      looked: a recipe with errors is not compared with models.
  """
  data = recipes.contents(file)
  recipe, recipe_file = recipes.parse(data, file.name, {})
  places: Any = {
    'beside': file.resolve().parent,
    'places': options.model_paths,
  }
  opening.check_places(options.model_paths, recipe.models)
  same = opening.same(recipe.models, **places)
  if same:
    recipe, recipe_file = recipes.parse(data, file.name, same)
  models = opening.open_models(recipe.models, **places, strict=options.strict)
  base, *others = models.values()
  policy = _with_names(recipe.vocabulary, models, places)
  words = vocabulary.plan(policy, base, others, untie=options.untie)
  found = list(words.problems)
  sources = {ref: words.sources.get(str(ref), models[ref]) for ref in models}
  configs = {ref: model.config for ref, model in models.items()}
  seed = (recipe.seed if options.seed is None else options.seed) or 0
  if seed >= _SEEDS:  # JAX would take its last 32 bits.
    found.append(
      problems.Problem(
        problems.Kind.CONFIG, ('seed',), f'expected less than 2**32, got {seed}'
      )
    )
    raise problems.ProblemError(found)
  made: Sequence[jobs_lib.Job] = ()
  try:
    made = recipe.jobs(
      {ref: source.specs for ref, source in sources.items()},
      configs,
      seed=seed,
      extra=options.extra,
    )
  except problems.ProblemError as error:
    # A vocabulary that differs is told once, with its remedies.
    found += [
      each
      for each in error.problems
      if not (words.problems and _is_of_vocabulary(each))
    ]
  if found:
    raise problems.ProblemError(found)
  merges = tuple(_merge(recipe, job, models, sources, found) for job in made)
  if found:
    raise problems.ProblemError(found)
  specs = {
    spec.path: spec
    for merge in merges
    if merge is not None
    for spec in merge.plan.specs
  }
  wide = _wide(models.values())
  found += wide if options.strict else []
  notes = dict.fromkeys(note for m in models.values() for note in m.notes)
  config = vocabulary.changed(recipe.config(configs), words.config_changes)
  found += consistency.check_plan(
    'the merged model', config, specs, problems.Kind.INCOMPATIBLE
  )
  if found:
    raise problems.ProblemError(found)
  return Prepared(
    recipe=recipe,
    recipe_file=recipe_file,
    models=models,
    merges=merges,
    specs=dict(sorted(specs.items())),
    config=config,
    vocabulary=words,
    seed=seed,
    notes=(
      *(f'{ref} and {first} are one model' for ref, first in same.items()),
      *recipe.notes,
      *words.notes,
      *notes,
      *_mixed(models.values()),
      *map(str, wide),
    ),
  )


def _with_names(policy, models, places) -> policies.Policy:
  """Returns a policy that names models as the recipe does."""
  asked = [names.read_model(strict_yaml.Node(each)) for each in policy.models]
  known = opening.same([*models, *asked], **places)
  return policy.renamed({str(ref): str(first) for ref, first in known.items()})


def strangers(prepared: Prepared) -> list[str]:
  """Says which experts seem to be made from another base than the recipe's.

  It reads some values of every tensor, a few at a time. Adapters have no values
  but their changes, and are left out.

  Args:
    prepared: The merge.

  Returns:
    A sentence for each.
  """
  base, *others = prepared.models.values()
  experts = {each.name: each for each in others if each.adapter is None}
  if not (prepared.has_base and experts):
    return []
  try:
    found = kinship.kinship(base, experts, sample=_SAMPLE)
  except problems.ProblemError:
    return []  # No tensor of theirs can be compared, or read: told by others.
  numbers = zip(
    found.diagnosis.experts,
    found.diagnosis.relative_norms,
    found.base_cosines,
    strict=True,
  )
  return [
    f'{name} is {norm:.2g} times the length of {base.name} away from it, at a '
    f'cosine of {cosine:.2g}: was it made from this base?'
    for name, norm, cosine in numbers
    if name in found.foreign
  ]


def _is_of_vocabulary(problem: problems.Problem) -> bool:
  tensor = problem.where[-1] if problem.where else ''
  return 'tokenizer_source' in problem.remedy or embeddings.is_known(tensor)


def _floats(spec: merging.LeafSpec) -> bool:
  return jnp.issubdtype(spec.dtype, jnp.floating)


def _wide(models: Iterable[opening.Model]) -> list[problems.Problem]:
  """Says which models lose digits, since merges are in float32."""
  found = []
  for model in models:
    specs = model.checkpoint.specs
    paths = [path for path, spec in specs.items() if spec.dtype == np.float64]
    if paths:
      found.append(
        problems.Problem(
          problems.Kind.INPUT,
          (model.name,),
          'has tensors of float64, which are merged in float32: '
          f'{patterns.listing(paths, 3)}',
        )
      )
  return found


def _mixed(models: Iterable[opening.Model]) -> list[str]:
  """Says so where models are of different types."""
  kinds = {
    model.name: patterns.listing(
      sorted(
        {str(s.dtype) for s in model.checkpoint.specs.values() if _floats(s)}
      )
    )
    for model in models
  }
  if len(set(kinds.values())) < 2:
    return []
  told = ', '.join(f'{name}: {kind}' for name, kind in kinds.items())
  return [f'models are of different types, and merged in float32: {told}']


def _merge(recipe, job, models, sources, found) -> Any:
  """Gives the sources of a job the names of the output."""

  def named(ref):
    return streams.Renamed(
      sources[ref], {out: paths[ref] for out, paths in job.leaves.items()}
    )

  base = None if job.base is None else named(job.base)
  experts = {}
  for name, ref in job.experts.items():
    adapter = _adapter_of(ref, job.base, models, sources, job)
    experts[name] = named(ref) if adapter is None else adapter
  out_dtype = recipe.out_dtype or getattr(recipe, 'dtype', None)
  if out_dtype is None:
    # Not that of tensors with an adapter added, which are read as float32.
    first = next(iter(job.experts.values())) if job.base is None else job.base
    stored = models[first].checkpoint.specs
    out_dtype = {
      out: stored[paths[first]].dtype
      for out, paths in job.leaves.items()
      if paths[first] in stored
    }
  try:
    plan = merging.plan(job.transform, base, experts, out_dtype=out_dtype)
  except problems.ProblemError as error:  # That knows its line.
    found += error.problems
    return None
  except (ValueError, TypeError) as error:
    found.append(
      problems.Problem(problems.Kind.CONFIG, recipe.where, str(error))
    )
    return None
  return Merge(job, base, experts, out_dtype, plan)


def _adapter_of(ref, base, models, sources, job) -> Mapping[str, Any] | None:
  """The adapter of an expert that is the base and it: an exact change."""
  model = models[ref]
  if model.adapter is None or base is None:
    return None
  mine = models[base]
  same = mine.checkpoint is model.checkpoint and mine.adapter is None
  plain = sources[ref] is model and sources[base] is mine
  straight = all(
    path == out for out, paths in job.leaves.items() for path in paths.values()
  )
  whole = set(model.adapter) <= set(job.leaves)
  return model.adapter if same and plain and straight and whole else None
