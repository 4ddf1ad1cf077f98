"""The methods of mergekit: their parameters, and what they are here.

Every method of mergekit is one of single tensors, and so are the merges built
here: each for one tensor and its settings. `tests/peers` compares them.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import math
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax

import merging
from merging import patterns
from merging import transform
from third_party import strict_yaml
from third_party.mergekit import apart
from third_party.mergekit import parameters
from third_party.mergekit.parameters import Parameter
from third_party.mergekit.parameters import Scope


class Tensor(NamedTuple):
  """What a merge of one tensor is built from.

  Attributes:
    merge: Values of the parameters of the whole merge.
    experts: By expert, in order, values of the parameters of models.
    shape: Of the tensor.
    based: Whether the models are taken as changes from a base.
    key: For methods that draw.
  """

  merge: Mapping[str, Any]
  experts: Mapping[str, Mapping[str, Any]]
  shape: tuple[int, ...]
  based: bool
  key: jax.Array | None

  def each(self, name: str) -> dict[str, Any]:
    """Returns a parameter of all experts."""
    return {expert: values[name] for expert, values in self.experts.items()}


class Method(NamedTuple):
  """A method of mergekit.

  Attributes:
    name: Its name in recipes.
    build: The merge of one tensor.
    parameters: What a recipe may set.
    base: Whether it takes changes from a base; where it is `'ignored'`, a
      `base_model` is one more model to merge.
    least: Fewest models besides the base.
    most: Most models besides the base.
    draws: Whether it is random.
    check: Yields what is wrong with the settings of a tensor.
  """

  name: str
  build: Callable[[Tensor], transform.MergeTransform]
  parameters: tuple[Parameter, ...] = ()
  base: Literal['required', 'optional', 'ignored'] = 'required'
  least: int = 1
  most: int | None = None
  draws: bool = False
  check: Callable[[Tensor], Iterator[str]] = lambda tensor: iter(())


def _weight(scope):
  return Parameter('weight', scope, required=True)


def _fraction(name, default, scope=Scope.EXPERT):
  return Parameter(name, scope, default, least=0, most=1)


def _switch(name, default):
  return Parameter(name, Scope.MERGE, default, kind='switch')


def _inert(name, default, kind, why):
  return Parameter(name, Scope.MERGE, default, kind=kind, inert=why)


_MASK = _inert('int8_mask', False, 'switch', 'masks take no memory here')


def _sums_to_zero(weights):
  mass, size = sum(weights), sum(map(abs, weights))
  return not abs(mass) > 1e-6 * size


def _check_normalised(name):
  def check(tensor):
    weights = list(tensor.each('weight').values())
    if tensor.merge[name] and _sums_to_zero(weights):
      yield (
        f'the weights {_listed(weights)} add up to 0 and {name} is true; give '
        f'weights with another sum, or set {name}: false'
      )

  return check


def _listed(weights):
  return ', '.join(f'{weight:g}' for weight in weights)


def _linear(tensor):
  return merging.linear(
    tensor.each('weight'), normalize=tensor.merge['normalize']
  )


def _passthrough(tensor):
  (scale,) = tensor.each('scale').values()
  return merging.passthrough(1.0 if scale is None else scale)


def _slerp(tensor):
  return merging.slerp(tensor.merge['t'])


def _nuslerp(tensor):
  whole = tensor.merge['nuslerp_flatten'] or len(tensor.shape) != 2
  by_input = tensor.merge['nuslerp_row_wise']
  return merging.nuslerp(
    tensor.each('weight'),
    of='deltas' if tensor.based else 'parameters',
    axis=None if whole else 0 if by_input else 1,
    layout='out_in',
  )


def _check_nuslerp(tensor):
  if not tensor.merge['nuslerp_flatten'] and len(tensor.shape) > 2:
    yield (
      f'has the shape {list(tensor.shape)}, and nuslerp_flatten: false takes '
      'vectors and matrices'
    )


def _multislerp(tensor):
  return merging.multislerp(
    tensor.each('weight'),
    of='deltas' if tensor.based else 'parameters',
    normalize=tensor.merge['normalize_weights'],
  )


def _karcher(tensor):
  return merging.karcher(
    max_iter=tensor.merge['max_iter'], tol=tensor.merge['tol']
  )


def _model_stock(tensor):
  by_output = tensor.merge['filter_wise'] and len(tensor.shape) == 2
  return merging.model_stock(
    clip=False, axis=1 if by_output else None, layout='out_in'
  )


def _check_model_stock(tensor):
  if tensor.merge['filter_wise'] and len(tensor.shape) > 2:
    yield (
      f'has the shape {list(tensor.shape)}, and filter_wise: true takes '
      'vectors and matrices'
    )


def _nearswap(tensor):
  return merging.nearswap(tensor.merge['t'])


def _arcee_fusion(tensor):
  # Rows are along the last axis, as torch stores them.
  return merging.chain(merging.keep_outlying(), merging.total())


def _sce(tensor):
  return merging.sce(tensor.merge['select_topk'])


def _ram(tensor):
  return merging.ram(tensor.merge['epsilon'])


def _ramplus(tensor):
  values = tensor.merge
  return merging.ramplus(
    values['r'], values['alpha'], values['epsilon'], scope='tensor'
  )


def _trimmed(tensor, values):
  size = math.prod(tensor.shape)
  density = values['density']
  if density * size < 1:  # mergekit keeps one entry at least.
    density = min(1.0, 1.5 / max(size, 1))
  step = merging.trim(density, scope='tensor', ties='index')
  return apart.restoring_sum(step) if tensor.merge['rescale'] else step


def _banded(tensor, values):
  size = math.prod(tensor.shape)
  kept = int(values['density'] * size)
  if not kept:
    return merging.scale(0.0)
  low = max(0, size - kept - int(values['gamma'] * size))
  high = size - kept - low
  # Counts, as fractions that are turned into the same counts again.
  step = merging.keep_band(low and (low + 0.5) / size, (high + 0.4) / size)
  return apart.restoring_sum(step) if tensor.merge['rescale'] else step


def _dropped(tensor, values):
  rescale = 'l1' if tensor.merge['rescale'] else 'none'
  return merging.drop_and_rescale(
    1 - values['density'], key=tensor.key, rescale=rescale
  )


def _pruned(tensor, values):
  density = values['density']
  return merging.magprune(
    density,
    2 * values['epsilon'] if density < 1 else 0.0,
    key=tensor.key,
    rescale='l1' if tensor.merge['rescale'] else 'none',
  )


def _sparse(tensor, step, names):
  """Each expert's step, or one for all if they have the same settings."""

  def make(values):
    if values['density'] <= 0:
      return merging.scale(0.0)
    return step(tensor, values)

  own = {
    expert: {name: values[name] for name in names}
    for expert, values in tensor.experts.items()
  }
  first, *others = own.values()
  if all(each['density'] >= 1 for each in own.values()):
    return merging.identity()
  if all(other == first for other in others):
    return make(first)
  # One that keeps all is a step like the others, to run the same program.
  return apart.apart({expert: make(values) for expert, values in own.items()})


def _task_vectors(step=None, names=('density',), elect=False):
  def build(tensor):
    weights = tensor.each('weight')
    factor = tensor.merge['lambda']
    together = merging.total()
    if tensor.merge['normalize'] and elect:
      together = merging.disjoint_mean(weights)
    elif tensor.merge['normalize']:
      mass = sum(weights.values())
      factor = factor / mass if abs(mass) >= 1e-8 else factor
    return merging.chain(
      *([_sparse(tensor, step, names)] if step else []),
      merging.weigh(weights),
      *([merging.elect_sign(zero='positive')] if elect else []),
      together,
      merging.scale(factor),
    )

  return build


def _check_window(tensor):
  for expert, values in tensor.experts.items():
    density, epsilon = values['density'], values['epsilon']
    between = epsilon < density < 1 - epsilon
    if 0 < density < 1 and not between:
      yield (
        f'density {density:g} and epsilon {epsilon:g} of {expert!r} keep with '
        f'probabilities from {density - epsilon:g} to {density + epsilon:g}, '
        'expected more than 0 and less than 1; take a smaller epsilon'
      )


def _family(name, normalize, rescale, step=None, extra=(), **options):
  elect = options.pop('elect', False)
  density = _fraction('density', 1.0)
  rescaling = _switch('rescale', rescale)
  if step is None:
    why = f'{name} keeps all changes'
    density, rescaling = (
      each._replace(inert=why) for each in (density, rescaling)
    )
  names = ('density', *(each.name for each in extra))
  return Method(
    name,
    _task_vectors(step, names, elect),
    (
      _weight(Scope.EXPERT),
      density,
      *extra,
      _switch('normalize', normalize),
      Parameter('lambda', Scope.MERGE, 1.0),
      rescaling,
      _MASK,
    ),
    least=0,  # Many recipes add an adapter to the base, and no more.
    **options,
  )


_GAMMA = (_fraction('gamma', 0.01),)
_EPSILON = (_fraction('epsilon', 0.15),)
_THRESHOLD = Parameter('epsilon', Scope.MERGE, 1e-5, least=0)
_T = Parameter('t', Scope.MERGE, required=True)

_ALL = (
  Method(
    'linear',
    _linear,
    (_weight(Scope.MODEL), _switch('normalize', True)),
    base='ignored',
    check=_check_normalised('normalize'),
  ),
  Method(
    'passthrough',
    _passthrough,
    (Parameter('scale', Scope.MODEL),),
    base='ignored',
    most=1,
  ),
  Method('slerp', _slerp, (_T,), most=1),
  Method(
    'nuslerp',
    _nuslerp,
    (
      _weight(Scope.EXPERT),
      _switch('nuslerp_flatten', True),
      _switch('nuslerp_row_wise', False),
    ),
    base='optional',
    least=2,
    most=2,
    check=_check_nuslerp,
  ),
  Method(
    'multislerp',
    _multislerp,
    (
      _weight(Scope.EXPERT),
      _switch('normalize_weights', True),
      _inert('eps', 1e-8, 'number', 'no division needs it here'),
    ),
    base='optional',
    check=_check_normalised('normalize_weights'),
  ),
  Method(
    'karcher',
    _karcher,
    (
      Parameter('max_iter', Scope.MERGE, 10, kind='integer', least=0),
      Parameter('tol', Scope.MERGE, 1e-5, least=0),
    ),
    base='ignored',
  ),
  Method(
    'model_stock',
    _model_stock,
    (_switch('filter_wise', False),),
    least=2,
    check=_check_model_stock,
  ),
  Method('nearswap', _nearswap, (_T._replace(least=0),), most=1),
  Method('arcee_fusion', _arcee_fusion, most=1),
  Method(
    'sce', _sce, (_fraction('select_topk', 1.0, scope=Scope.MERGE), _MASK)
  ),
  Method('ram', _ram, (_THRESHOLD,)),
  Method(
    'ramplus_tl',
    _ramplus,
    (
      Parameter('r', Scope.MERGE, 0.1),
      Parameter('alpha', Scope.MERGE, 0.2, least=0),
      _THRESHOLD,
    ),
  ),
  _family('task_arithmetic', False, False),
  _family('ties', True, False, _trimmed, elect=True),
  _family('dare_linear', False, True, _dropped, draws=True),
  _family('dare_ties', False, True, _dropped, draws=True, elect=True),
  _family('breadcrumbs', False, False, _banded, _GAMMA),
  _family('breadcrumbs_ties', False, False, _banded, _GAMMA, elect=True),
  _family(
    'della',
    True,
    True,
    _pruned,
    _EPSILON,
    elect=True,
    draws=True,
    check=_check_window,
  ),
  _family(
    'della_linear',
    False,
    True,
    _pruned,
    _EPSILON,
    draws=True,
    check=_check_window,
  ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def read_method(node: strict_yaml.Node) -> Method:
  """Reads the name of a method.

  Args:
    node: Its name.

  Returns:
    The method.

  Raises:
    problems.ProblemError: There is none of this name.

  Examples:
    >>> read_method(strict_yaml.load('ties')).base
    'required'
  """
  name = node.string()
  if name not in METHODS:
    near = name.lower().replace('-', '_')
    raise node.error(
      f'unknown method {name!r}{patterns.suggest(near, METHODS)}',
      f'methods are {patterns.listing(METHODS, 30)}',
    )
  return METHODS[name]


def settings_of(
  method: Method, scope: parameters.Scope
) -> tuple[Parameter, ...]:
  """Returns the parameters of a method that have a value for each such thing.

  Examples:
    >>> [each.name for each in settings_of(METHODS['slerp'], Scope.MERGE)]
    ['t']
  """
  return tuple(each for each in method.parameters if each.scope is scope)
