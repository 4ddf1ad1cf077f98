"""A recipe of mergekit, read: what it says before any model is looked at."""

from collections.abc import Mapping
import dataclasses
import types
from typing import Any

import numpy as np

from merging import patterns
from merging import streams
from third_party import problems
from third_party import strict_yaml
from third_party.huggingface import policies
from third_party.mergekit import jobs as jobs_lib
from third_party.mergekit import methods
from third_party.mergekit import names
from third_party.mergekit import output
from third_party.mergekit import parameters
from third_party.mergekit import plan
from third_party.mergekit import sources
from third_party.mergekit import tokens

_KEYS = (
  *('merge_method', 'models', 'slices', 'modules', 'base_model', 'parameters'),
  *('dtype', 'out_dtype', *tokens.KEYS, 'name', 'random_seed'),
)
_MODULE = 'default'  # What mergekit calls all of a model.
_ELSEWHERE = {
  'experts': 'this is a recipe of mergekit-moe, which is not supported',
  'gate_mode': 'this is a recipe of mergekit-moe, which is not supported',
  'genome': 'this is a recipe of mergekit-evolve, which is not supported',
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a recipe says.

  Attributes:
    method: The method.
    slices: What becomes the layers of the output, in order. A recipe with
      `models` has one slice, of all layers.
    sliced: Whether it has `slices`.
    base: The base model, if it names one.
    parameters: Settings of all slices.
    dtype: The type that mergekit casts models to; here the merge is in float32,
      and this is that of the output unless there is an `out_dtype`.
    out_dtype: The type of the output.
    vocabulary: What it says of tokenizers and chat templates; models are named
      as `str(ModelRef)`.
    name: What it calls the output; may be empty.
    seed: Its `random_seed`, if it has one.
    notes: What a person should know, such as settings without an effect.
    where: Of its method, for messages.
    text: The recipe as it was written.
  """

  method: methods.Method
  slices: tuple[plan.Slice, ...]
  sliced: bool
  base: names.ModelRef | None
  parameters: parameters.Settings
  dtype: np.dtype | None
  out_dtype: np.dtype | None
  vocabulary: policies.Policy
  name: str
  seed: int | None
  notes: tuple[str, ...]
  where: tuple[str, ...]
  text: str

  @property
  def models(self) -> tuple[names.ModelRef, ...]:
    """All models that it names, the base first."""
    refs = [] if self.base is None else [self.base]
    for each in self.slices:
      refs += [] if each.base is None else [each.base]
      refs += [source.model for source in each.sources]
    return tuple(dict.fromkeys(refs))

  def jobs(
    self,
    specs: Mapping[names.ModelRef, streams.Specs],
    configs: Mapping[names.ModelRef, Mapping[str, Any]],
    *,
    seed: int | None = None,
    extra: jobs_lib.Extra = 'error',
  ) -> tuple[jobs_lib.Job, ...]:
    """Returns the merges that make up the output; see `jobs.jobs`.

    Args:
      specs: By model, its tensors; those of the model that an adapter is
        added to.
      configs: By model, the contents of `config.json`; may be empty.
      seed: What methods draw from that are random; that of the recipe by
        default, or 0.
      extra: What becomes of tensors that not all models have.

    Returns:
      The jobs; no two of them make the same tensor.

    Raises:
      problems.ProblemError: With everything that does not fit.
    """
    if seed is None:
      seed = self.seed or 0
    return jobs_lib.jobs(self, specs, configs, seed=seed, extra=extra)

  def config(
    self, configs: Mapping[names.ModelRef, Mapping[str, Any]]
  ) -> dict[str, Any]:
    """Returns the `config.json` of the output; see `output.config`."""
    return output.config(self, configs)


def parse(
  text: str | bytes,
  file: str = '',
  same: Mapping[names.ModelRef, names.ModelRef] = types.MappingProxyType({}),
) -> Recipe:
  """Reads a recipe, strictly, without looking at any model.

  Args:
    text: The YAML.
    file: Its name, for messages.
    same: By model, the one that it is another name of.

  Returns:
    The recipe.

  Raises:
    problems.ProblemError: With everything that is wrong, each with its line.

  Examples:
    >>> recipe = parse(
    ...   '{merge_method: slerp, base_model: a, models: [{model: '
    ...   'b}], parameters: {t: 0.25}, dtype: bf16}'
    ... )
    >>> recipe.models, str(recipe.dtype)
    ((ModelRef('a'), ModelRef('b')), 'bfloat16')
  """
  root = strict_yaml.load(text, file=file)
  return _Reader(root, same).read(
    text if isinstance(text, str) else text.decode('utf-8-sig')
  )


class _Reader:
  """Reads one recipe, gathering what is wrong."""

  def __init__(
    self,
    root: strict_yaml.Node,
    same: Mapping[names.ModelRef, names.ModelRef],
  ):
    self._root = root
    self._same = same
    self._found = problems.Collector()

  def read(self, text: str) -> Recipe:
    fields = self._fields()
    method = self._method(fields)
    if method is None:  # Nothing else can be judged.
      raise self._error()
    reader = sources.Reader(self._root, method, self._same, self._found)
    settings = reader.settings(fields.get('parameters'))
    if 'modules' in fields:
      inner = self._module(fields)
      if inner is None:
        raise self._error()
      own = reader.settings(inner.pop('parameters', None))
      settings = parameters.nested(own, settings)
      fields |= inner
    slices = reader.slices(fields)
    policy = policies.Policy()
    with self._found:
      policy = tokens.read_policy(fields)
    recipe = Recipe(
      method=method,
      slices=tuple(slices),
      sliced='slices' in fields,
      base=reader.base,
      parameters=settings,
      dtype=self._get(fields, 'dtype', names.read_dtype),
      out_dtype=self._get(fields, 'out_dtype', names.read_dtype),
      vocabulary=policy,
      name=self._get(fields, 'name', strict_yaml.Node.string) or '',
      seed=self._get(fields, 'random_seed', lambda node: node.integer(0)),
      notes=tuple(reader.notes),
      where=fields['merge_method'].where,
      text=text,
    )
    if self._found.problems:
      raise self._error()
    return recipe

  def _error(self):
    lines = (
      int(each.where[0].rpartition(':')[2]) for each in self._found.problems
    )
    ordered = sorted(zip(lines, self._found.problems, strict=True), key=_first)
    return problems.ProblemError(each for _, each in ordered)

  def _get(self, fields, key, read):
    if key in fields:
      with self._found:
        return read(fields[key])
    return None

  def _fields(self):
    root = self._root
    if not isinstance(root.value, dict):
      raise root.error(f'expected a recipe, got {root.shown}')
    for key in root.value:
      if key in _ELSEWHERE:
        raise root.value[key].error(_ELSEWHERE[key])
    with self._found:
      return root.mapping(
        _KEYS, of='a recipe', hints=sources.BELONGS, definitions=True
      )
    return {
      key: node
      for key, node in root.value.items()
      if key in _KEYS and not node.is_null
    }

  def _method(self, fields):
    if 'merge_method' not in fields:
      self._found.problems.append(
        self._root.problem(
          'expected the key merge_method, and it is missing',
          f'methods are {patterns.listing(methods.METHODS, 30)}',
        )
      )
      return None
    return self._get(fields, 'merge_method', methods.read_method)

  def _module(self, fields):
    """Returns what a recipe says of its only module; `None` if it is wrong."""
    with self._found:
      node = fields['modules']
      several = node.mapping(of='modules')
      if set(several) != {_MODULE}:
        raise node.error(
          f'expected {_MODULE!r} alone, got '
          f'{patterns.listing(several) or "nothing"}',
          'merging modules of a model apart is not supported',
        )
      for key in ('models', 'slices'):
        if key in fields:
          raise fields[key].error('expected either this or modules, got both')
      return several[_MODULE].mapping(
        ('models', 'slices', 'parameters'), of='a module', hints=sources.BELONGS
      )
    return None


def _first(pair):
  return pair[0]
