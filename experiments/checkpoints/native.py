"""Recipes that name the transforms of `merging`.

    base: models/base
    experts: {math: models/math, code: models/base+adapters/code}
    merge:
      - trim: {density: 0.2}
      - elect_sign
      - disjoint_mean
      - scale: 0.5
    out_dtype: bfloat16

A list under `merge` is a chain. A transform is called as in Python: its name
alone, with its first argument, or with arguments by name. Where an argument is
a transform, it is written the same way. Random keys come from `seed`, and the
layout of matrices is that of PyTorch, `out_in`, unless a recipe says otherwise.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import inspect
import types
from typing import Any

import jax
import numpy as np

import merging
from merging import patterns
from third_party import problems
from third_party import strict_yaml
from third_party.huggingface import policies
from third_party.mergekit import fit
from third_party.mergekit import jobs as jobs_lib
from third_party.mergekit import names
from third_party.mergekit import pieces
from third_party.mergekit import tokens

KEYS = (
  *('base', 'experts', 'merge', 'out_dtype', 'seed', 'name'),
  *tokens.KEYS,
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a recipe of this kind says.

  Attributes:
    base: The base model, or `None` for zeros.
    experts: The models by name.
    method: How they are merged, in a word.
    merge: `seed -> transform`.
    out_dtype: The type of the output; that of the base by default.
    vocabulary: What it says of tokenizers and chat templates.
    name: What it calls the output; may be empty.
    seed: What random transforms draw from.
    where: Of the transform, for messages.
    text: The recipe as it was written.
    notes: What a person should know.
  """

  base: names.ModelRef | None
  experts: Mapping[str, names.ModelRef]
  method: str
  merge: Callable[[int], merging.MergeTransform]
  out_dtype: np.dtype | None
  vocabulary: policies.Policy
  name: str
  seed: int | None
  where: tuple[str, ...]
  text: str
  notes: tuple[str, ...] = ()

  @property
  def models(self) -> tuple[names.ModelRef, ...]:
    """All models, the base first."""
    first = [] if self.base is None else [self.base]
    return tuple(dict.fromkeys([*first, *self.experts.values()]))

  def jobs(
    self,
    specs: pieces.Specs,
    configs: pieces.Configs,
    *,
    seed: int | None = None,
    extra: jobs_lib.Extra = 'error',
  ) -> tuple[jobs_lib.Job, ...]:
    """Returns the merges to make, as a recipe of mergekit does.

    Args:
      specs: By model, its tensors.
      configs: By model, the contents of `config.json`; not looked at.
      seed: What random transforms draw from.
      extra: What becomes of tensors that not all models have.

    Returns:
      One merge, and copies of the tensors that are not merged.

    Raises:
      problems.ProblemError: With all that does not fit.
    """
    del configs
    found = problems.Collector()
    report = fit.Report(found, extra)
    reference, *_ = self.models
    merged: dict[str, dict[names.ModelRef, str]] = {}
    copies: dict[str, tuple[names.ModelRef, str]] = {}
    for path in dict.fromkeys(p for each in self.models for p in specs[each]):
      paths = dict.fromkeys(self.models, path)
      having = [each for each in self.models if path in specs[each]]
      if len(having) == len(self.models):
        report.shapes(path, reference, paths, specs)
        merged[path] = paths
      elif extra == 'keep' or (extra == 'base' and reference in having):
        copies[path] = having[0], path
      elif reference in having:
        report.missing(reference, paths, having)
      elif extra == 'error':
        report.surplus(reference, paths, having)
    report.close(specs, False)
    found.check()
    transform = self.merge((self.seed or 0) if seed is None else seed)
    job = jobs_lib.Job(transform, self.base, self.experts, merged, {})
    return job, *jobs_lib.copies(copies)

  def config(self, configs: pieces.Configs) -> dict[str, Any]:
    """Returns the `config.json` of the output."""
    changed = dict(configs.get(self.models[0], {}))
    if self.out_dtype is not None and changed:
      key = 'dtype' if 'dtype' in changed else 'torch_dtype'
      changed[key] = str(self.out_dtype)
    return changed


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
    >>> recipe = parse('{base: a, experts: {math: b}, merge: {ties: 0.2}}')
    >>> recipe.models, recipe.method
    ((ModelRef('a'), ModelRef('b')), 'ties')
  """
  found = problems.Collector()
  root = strict_yaml.load(text, file=file)
  fields = root.mapping(KEYS, of='a recipe', definitions=True)
  for key in ('experts', 'merge'):
    if key not in fields:
      found.problems.append(
        root.problem(f'expected the key {key}, and it is missing')
      )
  found.check()
  base, experts, out_dtype, seed, make = None, {}, None, None, None
  with found:
    base = names.read_model(fields['base']) if 'base' in fields else None
    base = same.get(base, base) if base is not None else None
  for name, node in fields['experts'].mapping().items():
    with found:
      model = names.read_model(node)
      experts[name] = same.get(model, model)
  with found:
    make = _reader(fields['merge'])
    make(_Keys(0))  # Arguments are refused here, with their line.
  with found:
    if 'out_dtype' in fields:
      out_dtype = names.read_dtype(fields['out_dtype'])
  with found:
    seed = fields['seed'].integer(0) if 'seed' in fields else None
  policy = policies.Policy()
  with found:
    policy = tokens.read_policy(fields).renamed(
      {name: str(ref) for name, ref in experts.items()}
    )
  if not experts and not found.problems:
    found.problems.append(fields['experts'].problem('there are no experts'))
  found.check()
  assert make is not None
  return Recipe(
    base=base,
    experts=experts,
    method=_words(fields['merge']),
    merge=functools.partial(_make, make),
    out_dtype=out_dtype,
    vocabulary=policy,
    name=fields['name'].string() if 'name' in fields else '',
    seed=seed,
    where=fields['merge'].where,
    text=text if isinstance(text, str) else text.decode('utf-8-sig'),
  )


class _Keys:
  """Random keys, another one at every turn."""

  def __init__(self, seed: int):
    self._key = jax.random.key(seed)
    self._turn = 0

  def next(self) -> jax.Array:
    self._turn += 1
    return jax.random.fold_in(self._key, self._turn)


def _make(make, seed):
  return make(_Keys(seed))


_Reader = Callable[[_Keys], Any]


def factories() -> dict[str, Callable[..., merging.MergeTransform]]:
  """Returns the functions of `merging` that make transforms, by name.

  Examples:
    >>> 'ties' in factories(), 'merge' in factories()
    (True, False)
  """
  found = {}
  for name, value in vars(merging).items():
    if inspect.isfunction(value):
      made = inspect.signature(value).return_annotation
      if _is_transform(made) and name not in ('stateless', 'map_deltas'):
        found[name] = value
  # They take functions; and a list is a chain.
  for name in ('combine_deltas', 'each', 'chain'):
    del found[name]
  return found


def _is_transform(annotation) -> bool:
  return 'MergeTransform' in str(annotation)


def _words(node) -> str:
  """The names of the transforms."""
  if isinstance(node.value, list):
    return ', '.join(_words(each) for each in node.value)
  if isinstance(node.value, dict):
    return ', '.join(node.value)
  return str(node.value)


def _reader(node: strict_yaml.Node) -> _Reader:
  """Returns what makes the transform that is written at a node."""
  if isinstance(node.value, list):
    steps = [_reader(each) for each in node.items('transforms')]
    return lambda keys: merging.chain(*(step(keys) for step in steps))
  name, arguments = node.value, None
  if isinstance(node.value, dict):
    if len(node.value) != 1:
      raise node.error(
        f'expected one transform, got {patterns.listing(node.value)}',
        'write a chain as a list',
      )
    ((name, arguments),) = node.value.items()
  known = factories()
  if not isinstance(name, str) or name not in known:
    raise node.error(
      f'merging has no transform {name!r}{patterns.suggest(str(name), known)}',
      '' if patterns.suggest(str(name), known) else 'see docs/merging.md',
    )
  return _call(node, name, known[name], arguments)


def _call(node, name, factory, arguments) -> _Reader:
  parameters = inspect.signature(factory).parameters
  given: dict[str, Any] = {}
  if arguments is not None and not arguments.is_null:
    first = next(iter(parameters), '')
    written = arguments.value
    named = isinstance(written, dict) and (
      set(written) & set(parameters) or not _is_mapping(parameters.get(first))
    )
    if named:
      for key, value in written.items():
        if key not in parameters:
          raise value.error(
            f'{name} has no argument {key!r}'
            f'{patterns.suggest(key, parameters)}',
            f'it has {patterns.listing(parameters)}',
          )
        given[key] = _argument(parameters[key], value)
    elif first:
      given[first] = _argument(parameters[first], arguments)
    else:
      raise arguments.error(f'{name} has no arguments', 'remove them')
  for key, parameter in parameters.items():
    if key == 'key' and key not in given:
      given[key] = lambda keys: keys.next()
    elif key == 'layout' and key not in given:
      given[key] = lambda keys: 'out_in'
    elif (
      parameter.default is parameter.empty
      and parameter.kind is not parameter.VAR_POSITIONAL
      and key not in given
    ):
      raise node.error(f'{name} needs the argument {key!r}')

  def make(keys):
    values = {key: read(keys) for key, read in given.items()}
    try:
      made = factory(**values)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
      raise node.error(str(error)) from error
    return made._replace(
      init=_telling(made.init, node), route=_telling(made.route, node)
    )

  return make


def _telling(function, node):
  """A function of names and shapes whose errors say where the recipe is."""

  @functools.wraps(function)
  def call(*arguments):
    try:
      return function(*arguments)
    except problems.ProblemError:  # Of a transform within.
      raise
    except (TypeError, ValueError) as error:
      raise node.error(str(error)) from error

  return call


def _is_mapping(parameter) -> bool:
  return parameter is not None and 'Mapping' in str(parameter.annotation)


def _argument(parameter, node) -> _Reader:
  if parameter.name == 'key':
    raise node.error('random keys come from the seed', 'say seed: instead')
  if not _is_transform(parameter.annotation):
    value = node.plain()
    return lambda keys: value
  if isinstance(node.value, dict) and 'Mapping' in str(parameter.annotation):
    inner = {key: _reader(each) for key, each in node.value.items()}
    return lambda keys: {key: read(keys) for key, read in inner.items()}
  named = 'Literal' in str(parameter.annotation)
  if named and isinstance(node.value, str) and node.value not in factories():
    value = node.value  # Such as a policy for the other leaves.
    return lambda keys: value
  return _reader(node)
