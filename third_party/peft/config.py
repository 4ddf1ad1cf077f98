"""What `adapter_config.json` says, as far as a change of weights needs it."""

from collections.abc import Mapping
import dataclasses
import math
import os
import re
from typing import Any
from typing import Literal

from merging import patterns
from third_party import problems
from third_party.huggingface import json_files

NAME = 'adapter_config.json'
_MAX_BYTES = 10_000_000
_MAX_RANK = 2**20
_MAX_PATTERNS = 100_000

# What changes more than one tensor by a fixed amount, or by what we know not.
_REFUSED = {
  'alora_invocation_tokens': 'acts on some tokens only and has no weights to '
  'merge',
  'arrow_config': 'routes between adapters and has no weights to merge',
  'kasa_config': 'KaSA cuts singular values off the base',
  'layer_replication': 'repeats layers of the base',
  'megatron_config': "adapts Megatron's parallel layers",
  'monteclora_config': 'MonteCLoRA samples its weights',
  'target_parameters': 'adapts parameters that are not those of a layer',
  'trainable_token_indices': 'trains single rows of an embedding',
  'use_bdlora': 'BD-LoRA has block-diagonal factors',
  'use_effective_conv2d': 'decomposes kernels of convolutions',
  'use_qalora': 'QA-LoRA pools the inputs',
}
# The rest of what PEFT writes: it has no bearing on the change of weights.
_HARMLESS = frozenset(
  (
    'auto_mapping',
    'corda_config',
    'decompose_both',
    'decompose_factor',
    'ensure_weight_tying',
    'eva_config',
    'inference_mode',
    'init_weights',
    'loftq_config',
    'lora_dropout',
    'lora_ga_config',
    'megatron_core',
    'module_dropout',
    'peft_version',
    'qalora_group_size',
    'rank_dropout',
    'rank_dropout_scale',
    'revision',
    'runtime_config',
    'task_type',
    'velora_config',
  )
)
# Ways to begin that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and
# LoRA-GA take a part out of the base; the adapter alone is then no change of
# the base that people have.
_PLAIN_STARTS = (True, False, None, 'gaussian', 'eva', 'orthogonal', 'mica')


@dataclasses.dataclass(frozen=True)
class Config:
  """The settings of an adapter.

  Attributes:
    kind: PEFT's type of adapter.
    rank: Of modules without a rank of their own.
    alpha: Likewise.
    ranks: Other ranks, by a pattern of the name of a module.
    alphas: Other alphas, likewise.
    rslora: Whether alpha is divided by the root of the rank.
    dora: Whether there are magnitudes.
    bias: Which biases were trained.
    transposed: Whether the base stores `[in, out]`, as `Conv1D` does.
    targets: Which modules are adapted: a regular expression for whole names,
      or names or their ends. `None` if the config does not say.
    excluded: Which are not, likewise.
    saved: Ends of the names of modules that are stored whole.
    layers: Numbers of the only layers adapted, or `None`.
    layers_patterns: Names of what the layers are in.
    base_name: What the base was called in training; may be empty.
    contents: All of the file.
    notes: What is odd but does no harm.
  """

  kind: Literal['LORA', 'LOKR']
  rank: int
  alpha: float
  ranks: Mapping[str, int]
  alphas: Mapping[str, float]
  rslora: bool
  dora: bool
  bias: str
  transposed: bool
  targets: str | tuple[str, ...] | None
  excluded: str | tuple[str, ...]
  saved: tuple[str, ...]
  layers: tuple[int, ...] | None
  layers_patterns: tuple[str, ...]
  base_name: str
  contents: Mapping[str, Any]
  notes: tuple[problems.Problem, ...]

  def scale(self, alpha: float, rank: int) -> float:
    """Returns the factor of a change."""
    return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_config(directory: str | os.PathLike[str], name: str = '') -> Config:
  """Reads and checks the config of an adapter.

  Args:
    directory: Of the adapter.
    name: Of the adapter, for problems.

  Returns:
    The settings.

  Raises:
    problems.ProblemError: With all that is wrong with them.
  """
  where = (name or os.fspath(directory), NAME)
  contents = json_files.load(os.path.join(directory, NAME), where, _MAX_BYTES)
  return parse_config(contents, where)


def parse_config(contents: Mapping[str, Any], where: tuple[str, ...]) -> Config:
  """Checks the contents of a config.

  Args:
    contents: The JSON object.
    where: What problems name.

  Returns:
    The settings.

  Raises:
    problems.ProblemError: With all that is wrong with them.

  Examples:
    >>> contents = {'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8}
    >>> config = parse_config(contents, ())
    >>> config.scale(config.alpha, config.rank)
    2.0
    >>> try:
    ...   parse_config({'peft_type': 'LOHA'}, ('mine',))
    ... except problems.ProblemError as error:
    ...   print(error)
    mine: expected peft_type LORA or LOKR, got 'LOHA', which is not supported;
    merge it into its base with PEFT first
  """
  kind = contents.get('peft_type')
  if kind not in ('LORA', 'LOKR'):
    raise problems.refuse(
      problems.Kind.INPUT,
      where,
      f'expected peft_type LORA or LOKR, got {_shown(kind)}, which is not '
      'supported',
      'merge it into its base with PEFT first',
    )
  reader = _Reader(contents, where)
  alpha = 'lora_alpha' if kind == 'LORA' else 'alpha'
  config = Config(
    kind=kind,
    rank=reader.rank('r', contents.get('r', 8)),
    alpha=reader.alpha(alpha, contents.get(alpha, 8)),
    ranks=reader.by_pattern('rank_pattern', reader.rank),
    alphas=reader.by_pattern('alpha_pattern', reader.alpha),
    rslora=reader.flag('use_rslora'),
    dora=reader.flag('use_dora'),
    bias=reader.bias(),
    transposed=reader.flag('fan_in_fan_out'),
    targets=reader.targets(),
    excluded=reader.names('exclude_modules', one=True),
    saved=tuple(reader.names('modules_to_save')),
    layers=reader.layers(),
    layers_patterns=reader.several('layers_pattern'),
    base_name=reader.text('base_model_name_or_path'),
    contents=dict(contents),
    notes=(),
  )
  reader.refuse_what_is_no_plain_change()
  if reader.problems:
    raise problems.ProblemError(reader.problems)
  return dataclasses.replace(config, notes=tuple(reader.notes()))


class _Reader:
  """Takes fields of a config, and collects what is wrong with them."""

  def __init__(self, contents: Mapping[str, Any], where: tuple[str, ...]):
    self._contents = contents
    self._where = where
    self._asked = {'peft_type', 'init_lora_weights', 'lora_bias'}
    self.problems: list[problems.Problem] = []

  def _get(self, field: str) -> Any:
    self._asked.add(field)
    return self._contents.get(field)

  def _refuse(self, what: str, remedy: str = '') -> None:
    self.problems.append(
      problems.Problem(problems.Kind.INPUT, self._where, what, remedy)
    )

  def _expected(self, field: str, expected: str, value: object) -> None:
    self._refuse(f'{field}: expected {expected}, got {_shown(value)}')

  def rank(self, field: str, value: Any) -> int:
    self._asked.add(field)
    if type(value) is int and 0 < value <= _MAX_RANK:
      return value
    self._expected(field, f'a rank, 1 to {_MAX_RANK}', value)
    return 1

  def alpha(self, field: str, value: Any) -> float:
    self._asked.add(field)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value < 1e30:
      return float(value)
    self._expected(field, 'a number that is not negative', value)
    return 0.0

  def by_pattern(self, field, check) -> dict[str, Any]:
    value = self._get(field) or {}
    if not isinstance(value, dict) or len(value) > _MAX_PATTERNS:
      self._expected(field, 'an object of patterns', value)
      return {}
    return {
      pattern: check(f'{field}[{_shown(pattern)}]', each)
      for pattern, each in value.items()
    }

  def flag(self, field: str) -> bool:
    value = self._get(field)
    if value is not None and not isinstance(value, bool):
      self._expected(field, 'true or false', value)
    return value is True

  def text(self, field: str) -> str:
    value = self._get(field)
    if value is None or isinstance(value, str):
      return value or ''
    self._expected(field, 'text', value)
    return ''

  def bias(self) -> str:
    value = self._get('bias') or 'none'
    if value not in ('none', 'all', 'lora_only'):
      self._expected('bias', "'none', 'all' or 'lora_only'", value)
    return str(value)

  def names(self, field: str, one: bool = False) -> str | tuple[str, ...]:
    value = self._get(field)
    if value is None:
      return ()
    if one and isinstance(value, str):
      return value
    if isinstance(value, list) and all(
      isinstance(each, str) and each for each in value
    ):
      return tuple(value)
    self._expected(field, 'a list of names', value)
    return ()

  def targets(self) -> str | tuple[str, ...] | None:
    value = self.names('target_modules', one=True)
    return None if value in ((), '', 'all-linear') else value

  def several(self, field: str) -> tuple[str, ...]:
    value = self.names(field, one=True)
    return (value,) if isinstance(value, str) else value

  def layers(self) -> tuple[int, ...] | None:
    value = self._get('layers_to_transform')
    several = [value] if type(value) is int else value
    if not several and type(several) in (type(None), list):
      return None
    if isinstance(several, list) and all(type(i) is int for i in several):
      return tuple(several)
    self._expected('layers_to_transform', 'numbers of layers', value)
    return None

  def refuse_what_is_no_plain_change(self) -> None:
    for field, why in _REFUSED.items():
      self._asked.add(field)
      if self._contents.get(field):
        self._refuse(
          f'{field} is set: {why}, which is not supported',
          'merge it into its base with PEFT first, if it can be merged',
        )
    start = self._contents.get('init_lora_weights')
    if not any(start is each or start == each for each in _PLAIN_STARTS):
      self._refuse(
        f'init_lora_weights is {_shown(start)}: it may have changed the base '
        'too, so that the adapter alone is no change of it',
        'convert it with path_initial_model_for_weight_conversion of PEFT',
      )

  def notes(self) -> list[problems.Problem]:
    """What PEFT may mean by fields that it did not have so far."""
    unknown = [
      field
      for field, value in self._contents.items()
      if value and field not in self._asked | _HARMLESS
    ]
    return [
      problems.Problem(
        problems.Kind.INPUT,
        self._where,
        f'{_shown(field)} is unknown here and was passed over'
        f'{patterns.suggest(field, self._asked | _HARMLESS)}',
      )
      for field in unknown
    ]


def _shown(value: object) -> str:
  """A value as a problem prints it, however large."""
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:77]}...'


def is_literal(pattern: str) -> bool:
  """Whether a pattern is a name, and so matches in no time.

  Examples:
    >>> is_literal('^model.layers.0'), is_literal('(a+)+')
    (True, False)
  """
  return re.fullmatch(r'\^?(?:[\w.\-]|\\[.\-])*\$?', pattern) is not None
