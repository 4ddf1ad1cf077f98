"""What a recipe of mergekit says of its models, and of slices of them."""

from collections.abc import Mapping
from collections.abc import Sequence

from merging import patterns
from third_party import problems
from third_party import strict_yaml
from third_party.mergekit import methods
from third_party.mergekit import names
from third_party.mergekit import parameters
from third_party.mergekit import plan

_PARAMETERS = frozenset(
  each.name for method in methods.METHODS.values() for each in method.parameters
)
# Of other methods, or of mergekit as it was.
_IGNORED = _PARAMETERS | {'embed_slerp'}
# Keys that mergekit takes no notice of where they stand, and where it would.
BELONGS = {
  **dict.fromkeys(_PARAMETERS, 'write it under parameters'),
  **dict.fromkeys(('tokens', 'pad_to_multiple_of'), 'write it under tokenizer'),
  'revision': 'write model: NAME@REVISION',
}

_Fields = Mapping[str, strict_yaml.Node]


class Reader:
  """Reads `models`, `slices` and their `parameters`, with the method known.

  Attributes:
    base: The base model of the recipe, if it names one.
    notes: What a person should know.
  """

  def __init__(
    self,
    root: strict_yaml.Node,
    method: methods.Method,
    same: Mapping[names.ModelRef, names.ModelRef],
    found: problems.Collector,
  ):
    """Reads the base.

    Args:
      root: The recipe.
      method: Its method.
      same: By model, the one that it is another name of.
      found: Where problems go.
    """
    self.notes: list[str] = []
    self._root = root
    self._method = method
    self._same = same
    self._found = found
    self.base = self._base(root.value)

  def settings(
    self, node: strict_yaml.Node | None, *, of_model: bool = False
  ) -> parameters.Settings:
    """Reads a `parameters:` mapping.

    Args:
      node: The mapping, if there is one.
      of_model: Whether it belongs to one model.

    Returns:
      The settings by name.
    """
    known = self._method.parameters
    settings: parameters.Settings = {}
    with self._found:
      settings = parameters.read_settings(
        node, self._method.name, known, of_model=of_model, ignored=_IGNORED
      )
    for name in settings:
      why = next(each.inert for each in known if each.name == name)
      if why:
        self._note(f'{name} changes nothing: {why}')
    return settings

  def slices(self, fields: _Fields) -> list[plan.Slice]:
    """Reads `models`, as one slice of all layers, or `slices`.

    Args:
      fields: Of a recipe or of a module.

    Returns:
      The slices that are sound.
    """
    keys = sorted(fields.keys() & {'models', 'slices'})
    if len(keys) != 1:
      got = 'both' if keys else 'neither'
      told = self._root.problem(f'expected one of models and slices, got {got}')
      self._found.problems.append(told)
      return []
    node = fields[keys[0]]
    with self._found:
      if keys == ['models']:
        return [self._whole(node)]
      return [
        each
        for child in node.items('slices')
        for each in [self._slice(child)]
        if each is not None
      ]
    return []

  def _base(self, fields) -> names.ModelRef | None:
    if 'base_model' in fields and not fields['base_model'].is_null:
      with self._found:
        return self._model(fields['base_model'])
    return None

  def _model(self, node) -> names.ModelRef:
    model = names.read_model(node)
    return self._same.get(model, model)

  def _note(self, note):
    if note not in self.notes:
      self.notes.append(note)

  def _whole(self, node):
    sources = []
    listed = node.items('models')
    for child in listed:
      with self._found:
        fields = child.mapping(
          ('model', 'parameters'), of='a model', hints=BELONGS
        )
        sources.append(self._source(child, fields, None, self.base))
    with self._found:
      self._check(node, self.base, sources, len(listed), sliced=False)
    return plan.Slice(tuple(sources), None, {}, node)

  def _slice(self, node):
    with self._found:
      fields = node.mapping(
        ('sources', 'base_model', 'parameters', 'residual_weight'),
        of='a slice',
        hints=BELONGS,
      )
      if 'residual_weight' in fields:
        raise fields['residual_weight'].error(
          'residual_weight has no effect in mergekit', 'remove it'
        )
      if 'sources' not in fields:
        raise node.error('expected the key sources, and it is missing')
      own = self._base(fields)
      base = own or self.base
      sources = []
      listed = fields['sources'].items('sources')
      for child in listed:
        with self._found:
          values = child.mapping(
            ('model', 'layer_range', 'parameters'),
            of='a source',
            hints=BELONGS,
          )
          if 'layer_range' not in values:
            raise child.error('expected the key layer_range, and it is missing')
          layers = _layers(values['layer_range'])
          sources.append(self._source(child, values, layers, base))
      settings = self.settings(fields.get('parameters'))
      self._check(node, base, sources, len(listed), sliced=True)
      spans = (each.layers or (0, 0) for each in sources)
      lengths = [end - first for first, end in spans]
      if len(set(lengths)) > 1:
        told = ', '.join(
          f'{each.model}: {length}'
          for each, length in zip(sources, lengths, strict=True)
        )
        raise node.error(f'expected as many layers of every source, got {told}')
      return plan.Slice(tuple(sources), own, settings, node)
    return None

  def _source(self, node, fields, layers, base):
    if 'model' not in fields:
      raise node.error('expected the key model, and it is missing')
    model = self._model(fields['model'])
    settings = self.settings(fields.get('parameters'), of_model=True)
    if model == base and self._method.base != 'ignored':
      for name in settings:
        self._note(f'{name} of {model} changes nothing: it is the base')
    return plan.Source(model, layers, settings, node)

  def _check(self, node, base, sources, listed, *, sliced):
    """Checks which models there are, as far as the method cares.

    Args:
      node: Where they are listed.
      base: The base of the slice.
      sources: Those that could be read.
      listed: How many are listed.
      sliced: Whether it is a slice, which has no model but these.
    """
    method = self._method
    models = [each.model for each in sources]
    for place, model in enumerate(models):
      if model in models[:place]:
        raise node.error(
          f'{str(model)!r} is here twice', 'list every model once'
        )
    if method.base == 'required' and base is None:
      told = self._root.problem(
        f'{method.name} needs base_model, and it is missing',
        'name the model that the others were fine-tuned from',
      )
      if told not in self._found.problems:  # Of another slice.
        self._found.problems.append(told)
      return
    if len(models) < listed:  # Their number says nothing.
      return
    others = [model for model in models if model != base]
    if method.base == 'ignored':
      others = models if base is None or sliced else [*others, base]
    elif sliced and base is not None and base not in models:
      raise node.error(
        f'the base {str(base)!r} is not among the sources',
        'add it, with its layer_range',
      )
    count, most = len(others), method.most
    if count < method.least or (most is not None and count > most):
      raise node.error(
        f'{method.name} takes {_wanted(method)}, got {_told(others)}',
        'remove base_model, which is merged as one more model'
        if method.base == 'ignored' and base is not None and most == 1
        else '',
      )
    if not others:
      self._note(f'there is nothing to merge: the output is {base}')


def _wanted(method: methods.Method) -> str:
  """Says how many models a method takes."""
  some = 'some' if method.most is None else str(method.most)
  if method.most != method.least:
    some = (
      f'{method.least} or more'
      if method.most is None
      else f'up to {method.most}'
    )
  besides = '' if method.base == 'ignored' else ' besides the base'
  return f'{some} model{"" if method.most == 1 else "s"}{besides}'


def _told(models: Sequence[names.ModelRef]) -> str:
  names_ = patterns.listing(map(str, models))
  return f'{len(models)}: {names_}' if models else '0'


def _layers(node: strict_yaml.Node) -> tuple[int, int]:
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
