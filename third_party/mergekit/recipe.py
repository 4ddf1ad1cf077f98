"""A recipe of mergekit, read: what it says before any model is looked at."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
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
from third_party.mergekit import tokens

_KEYS = (
  *('merge_method', 'models', 'slices', 'base_model', 'parameters'),
  *('dtype', 'out_dtype', *tokens.KEYS, 'name', 'random_seed'),
)
_ELSEWHERE = {
  'modules': 'merging modules of a model apart is not supported',
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
    file: Its name, for messages.
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
  file: str
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


def parse(text: str | bytes, file: str = '') -> Recipe:
  """Reads a recipe, strictly, without looking at any model.

  Args:
    text: The YAML.
    file: Its name, for messages.

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
  return _Reader(root).read(
    text if isinstance(text, str) else text.decode('utf-8-sig')
  )


class _Reader:
  """Reads one recipe, gathering what is wrong."""

  def __init__(self, root: strict_yaml.Node):
    self._root = root
    self._found = strict_yaml.Collector()
    self._notes: list[str] = []

  def read(self, text: str) -> Recipe:
    fields = self._fields()
    method = self._method(fields)
    if method is None:  # Nothing else can be judged.
      raise self._error()
    base = self._get(fields, 'base_model', names.read_model)
    settings = self._settings(fields.get('parameters'), method, None)
    slices = self._slices(fields, method, base)
    policy = policies.Policy()
    with self._found:
      policy = tokens.read_policy(fields)
    recipe = Recipe(
      method=method,
      slices=tuple(slices),
      sliced='slices' in fields,
      base=base,
      parameters=settings,
      dtype=self._get(fields, 'dtype', names.read_dtype),
      out_dtype=self._get(fields, 'out_dtype', names.read_dtype),
      vocabulary=policy,
      name=self._get(fields, 'name', strict_yaml.Node.string) or '',
      seed=self._get(fields, 'random_seed', lambda node: node.integer(0)),
      notes=(),
      file=self._root.file,
      text=text,
    )
    if self._found.problems:
      raise self._error()
    return dataclasses.replace(recipe, notes=tuple(self._notes))

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
      root.mapping(_KEYS, of='a recipe')
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

  def _settings(self, node, method, model):
    settings = {}
    with self._found:
      settings = parameters.read_settings(
        node, method.name, method.parameters, of_model=model is not None
      )
    for name in settings:
      why = next(p.inert for p in method.parameters if p.name == name)
      if why:
        self._note(f'{name} changes nothing: {why}')
    return settings

  def _note(self, note):
    if note not in self._notes:
      self._notes.append(note)

  def _slices(self, fields, method, base):
    if ('models' in fields) == ('slices' in fields):
      got = 'both' if 'models' in fields else 'neither'
      self._found.problems.append(
        self._root.problem(f'expected one of models and slices, got {got}')
      )
      return []
    key = 'models' if 'models' in fields else 'slices'
    node = fields[key]
    with self._found:
      if key == 'models':
        return [self._whole(node, method, base)]
      return [
        each
        for child in node.items('slices')
        for each in [self._slice(child, method, base)]
        if each is not None
      ]
    return []

  def _whole(self, node, method, base):
    sources = []
    for child in node.items('models'):
      with self._found:
        fields = child.mapping(('model', 'parameters'), of='a model')
        sources.append(self._source(child, fields, None, method, base))
    with self._found:
      self._check(node, method, base, [each.model for each in sources], False)
    return plan.Slice(tuple(sources), None, {}, node)

  def _slice(self, node, method, base):
    with self._found:
      fields = node.mapping(
        ('sources', 'base_model', 'parameters', 'residual_weight'),
        of='a slice',
      )
      if 'residual_weight' in fields:
        raise fields['residual_weight'].error(
          'residual_weight has no effect in mergekit', 'remove it'
        )
      if 'sources' not in fields:
        raise node.error('expected the key sources, and it is missing')
      own = self._get(fields, 'base_model', names.read_model)
      sources = []
      for child in fields['sources'].items('sources'):
        with self._found:
          values = child.mapping(
            ('model', 'layer_range', 'parameters'), of='a source'
          )
          if 'layer_range' not in values:
            raise child.error('expected the key layer_range, and it is missing')
          layers = self._get(values, 'layer_range', _layers)
          sources.append(
            self._source(child, values, layers, method, own or base)
          )
      settings = self._settings(fields.get('parameters'), method, None)
      self._check(
        node, method, own or base, [each.model for each in sources], True
      )
      lengths = {b - a for a, b in (each.layers or (0, 0) for each in sources)}
      if len(lengths) > 1:
        told = ', '.join(
          f'{each.model}: {each.layers[1] - each.layers[0]}'
          for each in sources
          if each.layers
        )
        raise node.error(f'expected as many layers of every source, got {told}')
      return plan.Slice(tuple(sources), own, settings, node)
    return None

  def _source(self, node, fields, layers, method, base):
    if 'model' not in fields:
      raise node.error('expected the key model, and it is missing')
    model = names.read_model(fields['model'])
    settings = self._settings(fields.get('parameters'), method, model)
    if model == base and method.base != 'ignored':
      for name in settings:
        self._note(f'{name} of {model} changes nothing: it is the base')
    return plan.Source(model, layers, settings, node)

  def _check(self, node, method, base, models, listed):
    """Checks which models there are, as far as the method cares."""
    for place, model in enumerate(models):
      if model in models[:place]:
        raise node.error(
          f'{str(model)!r} is here twice', 'list every model once'
        )
    if method.base == 'required' and base is None:
      raise self._root.error(
        f'{method.name} needs base_model, and it is missing',
        'name the model that the others were fine-tuned from',
      )
    others = [model for model in models if model != base]
    if method.base == 'ignored':
      others = models if base is None or listed else [*others, base]
    elif listed and base is not None and base not in models:
      raise node.error(
        f'the base {str(base)!r} is not among the sources',
        'add it, with its layer_range',
      )
    count, most = len(others), method.most
    if count < method.least or (most is not None and count > most):
      some = 'some' if most is None else str(most)
      if most != method.least:
        some = f'{method.least} or more' if most is None else f'up to {most}'
      besides = '' if method.base == 'ignored' else ' besides the base'
      told = [str(each) for each in others]
      got = f': {patterns.listing(told)}' if told else ''
      raise node.error(
        f'{method.name} takes {some} model{"" if most == 1 else "s"}{besides}, '
        f'got {count}{got}',
        'remove base_model, which is merged as one more model'
        if method.base == 'ignored' and base is not None and most == 1
        else '',
      )


def _first(pair):
  return pair[0]


def _layers(node):
  several: Sequence[strict_yaml.Node] = node.items('layer_range')
  if len(several) != 2:
    raise node.error(
      f'expected [first, last + 1], got {len(several)} numbers',
      'the first 8 layers are [0, 8]',
    )
  first, end = (each.integer(0) for each in several)
  if first >= end:
    raise node.error(
      f'expected layers from the first to before the second, got '
      f'[{first}, {end}]'
    )
  return first, end
