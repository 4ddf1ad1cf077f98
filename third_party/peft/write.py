"""Adapters as directories that PEFT loads."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
import json
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from merging import adapters
from merging import patterns
from merging import streams
from third_party import problems
from third_party import storage
from third_party.huggingface import appending
from third_party.peft import adapter as adapter_lib
from third_party.peft import config as config_lib
from third_party.peft import leaves

# Names of modules that look their input up instead of multiplying it.
EMBEDDINGS = (
  r'(?:^|\.)(?:embed_tokens|embed_positions|wte|wpe|embed_in|shared'
  r'|\w*_embeddings?|embeddings)$'
)


class AdapterWriter:
  """Writes an adapter, tensor by tensor, into a directory for PEFT.

  PEFT has one rank and alpha for all modules, and others by pattern: the most
  frequent pair becomes the former. Names of modules are written whole, or as
  their last part where all matrices of that name are adapted.

  Whole tensors are written as `modules_to_save`, their biases with them; other
  biases as ones that were trained.

  Entering the context begins the file of weights, `finish` ends it and writes
  the config last. A directory without a config is no adapter.

  Attributes:
    dtype: Of everything written.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    base: streams.Specs,
    *,
    paths: Iterable[str] | None = None,
    base_name: str = '',
    prefix: str = '',
    task: str | None = 'CAUSAL_LM',
    dtype: Any = np.float32,
    embeddings: str = EMBEDDINGS,
  ):
    """Says where to write.

    Args:
      directory: A new or empty one, or one without an adapter.
      base: What the tensors of the base are.
      paths: Which of them may be added; by default all.
      base_name: Where PEFT finds the base; may be empty.
      prefix: What PEFT's names of modules have before the base's, such as
        `'transformer.'` for a GPT-2 whose checkpoint leaves it out.
      task: PEFT's type of task, or `None`.
      dtype: Of everything written.
      embeddings: Regular expression for the names of embeddings.
    """
    self._directory = Path(directory)
    self._base = base
    self._prefix = prefix
    self._base_name = base_name
    self._task = task
    self.dtype = np.dtype(dtype)
    self._is_embedding = patterns.predicate('AdapterWriter', embeddings)
    # Of one tensor there are three here at most, by names no longer than this.
    longest = f'{adapter_lib.PREFIX}{prefix}.lora_magnitude_vector'
    room = 3 * appending.room_for(
      longest + path for path in (base if paths is None else paths)
    )
    path = self._directory / adapter_lib.WEIGHTS
    self._file = appending.Appending(path, room)
    self._loras: dict[str, tuple[int, float]] = {}  # By module.
    self._dora: set[bool] = set()
    self._transposed = False
    self._saved: list[str] = []  # Modules.
    # By path. Until the end nobody knows whether their module is adapted.
    self._biases: dict[str, np.ndarray] = {}

  def __enter__(self) -> 'AdapterWriter':
    """Begins the file of weights.

    Raises:
      problems.ProblemError: There is an adapter already, or no permission.
    """
    for name in (config_lib.NAME, adapter_lib.WEIGHTS):
      if (self._directory / name).exists():
        raise problems.refuse(
          problems.Kind.CONFIG,
          (str(self._directory),),
          f'holds {name} already',
          'remove it, or write to another directory',
        )
    with storage.reported(self._directory):
      self._directory.mkdir(parents=True, exist_ok=True)
    self._file.__enter__()
    return self

  def __exit__(self, *exception: object) -> None:
    """Removes what is not finished."""
    self._file.__exit__(*exception)

  @staticmethod
  def can_save(path: str) -> bool:
    """Whether PEFT can store this tensor whole: if it is one of a module."""
    return path.endswith(('.weight', '.bias'))

  def add(self, path: str, change: Any) -> None:
    """Writes the change of a tensor.

    Args:
      path: The tensor of the base.
      change: A `merging.adapters.Lora`, or `leaves.Replaced` for a tensor that
        is stored whole.

    Raises:
      ValueError: The base has no such tensor or it has another shape, or it is
        no change that PEFT knows.
    """
    spec = self._base.get(path)
    if spec is None:
      raise ValueError(
        f'the base has no tensor {path!r}{patterns.suggest(path, self._base)}'
      )
    if change.shape != tuple(spec.shape):
      raise ValueError(
        f'{path!r}: a change of {change.shape} for a tensor {spec.shape}'
      )
    if isinstance(change, adapters.Lora) and path.endswith('.weight'):
      self._add_lora(path, change)
    elif isinstance(change, leaves.Replaced) and self.can_save(path):
      self._add_whole(path, self._cast(change.value), change.inner)
    else:
      raise ValueError(
        f'{path!r}: PEFT has no place for a {type(change).__name__} here'
      )

  def _add_lora(self, path: str, lora: adapters.Lora) -> None:
    if len(lora.shape) != 2:
      raise ValueError(
        f'{path!r}: expected a matrix, got a stack {lora.shape}; give each '
        'layer a leaf of its own'
      )
    module = self._prefix + _module(path)
    start = adapter_lib.PREFIX + module
    embedding = self._is_embedding(module) and lora.layout == 'in_out'
    kinds = (
      ('lora_embedding_A', 'lora_embedding_B')
      if embedding
      else ('lora_A.weight', 'lora_B.weight')
    )
    for kind, factor in zip(kinds, (lora.a, lora.b), strict=True):
      self._file.append(f'{start}.{kind}', self._cast(factor).T)
    if lora.magnitude is not None:
      name = f'{start}.lora_magnitude_vector'
      self._file.append(name, self._cast(lora.magnitude))
    self._dora.add(lora.magnitude is not None)
    self._transposed |= lora.layout == 'in_out' and not embedding
    self._loras[module] = (lora.rank, lora.scale * lora.rank)

  def _add_whole(self, path: str, value: np.ndarray, inner: Any) -> None:
    module, _, parameter = (self._prefix + path).rpartition('.')
    if parameter == 'bias':
      self._biases[path] = value
    elif isinstance(inner, adapters.Lora):
      self._add_lora(path, inner)
      name = f'{adapter_lib.PREFIX}{module}.base_layer.weight'
      self._file.append(name, value)
    else:
      self._saved.append(module)
      self._file.append(f'{adapter_lib.PREFIX}{module}.weight', value)

  def _cast(self, array: Any) -> np.ndarray:
    return np.asarray(array).astype(self.dtype)

  def finish(self) -> int:
    """Writes the config, and so makes it an adapter.

    Returns:
      Bytes of the weights.

    Raises:
      ValueError: Nothing was added, or some changes have magnitudes (DoRA) and
        some not, for which PEFT has one switch.
      problems.ProblemError: The disk is full, and the like.
    """
    if not self._loras:
      raise ValueError('PEFT needs a low-rank change of one matrix at least')
    if len(self._dora) > 1:
      raise ValueError(
        'some changes have magnitudes (DoRA) and some have none; PEFT has one '
        'switch for all: write two adapters'
      )
    both = sorted(set(self._saved) & set(self._loras))
    if both:
      raise ValueError(f'{both[0]!r} is both adapted and stored whole')
    bias = 'none'
    for path, value in self._biases.items():
      module = self._prefix + _module(path)
      adapted = module in self._loras
      if adapted and bias == 'none':
        bias = 'lora_only'
      if not adapted and module not in self._saved:
        bias = 'all'
      end = 'base_layer.bias' if adapted else 'bias'
      self._file.append(f'{adapter_lib.PREFIX}{module}.{end}', value)
    self._check_saved()
    size = self._file.finish({'format': 'pt'})
    config = self._config(bias)
    text = json.dumps(config, indent=2, sort_keys=True) + '\n'
    path = self._directory / config_lib.NAME
    hidden = path.with_name(f'.{path.name}.partial')
    with storage.reported(path):
      with open(hidden, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
      os.replace(hidden, path)
    return size

  def _check_saved(self) -> None:
    """PEFT loads all of a module, or does not load."""
    for module in self._saved:
      bias = f'{module}.bias'.removeprefix(self._prefix)
      if bias in self._base and bias not in self._biases:
        raise ValueError(
          f'{module!r} is stored whole without its bias; add {bias!r} too'
        )

  def _config(self, bias: str) -> dict[str, Any]:
    (rank, alpha), _ = collections.Counter(self._loras.values()).most_common(1)[
      0
    ]
    return {
      'peft_type': 'LORA',
      'task_type': self._task,
      'base_model_name_or_path': self._base_name or None,
      'inference_mode': True,
      'r': rank,
      'lora_alpha': _number(alpha),
      'rank_pattern': self._others(0, rank),
      'alpha_pattern': {
        name: _number(value) for name, value in self._others(1, alpha).items()
      },
      'target_modules': self._targets(),
      'modules_to_save': self._saved or None,
      'bias': bias,
      'fan_in_fan_out': self._transposed,
      'use_dora': True in self._dora,
      'use_rslora': False,
      'init_lora_weights': True,
      'lora_dropout': 0.0,
    }

  def _others(self, place: int, common: float) -> dict[str, Any]:
    """The ranks or alphas that are not the common one, by a pattern."""
    # Anchored, for PEFT also takes a pattern for the end of a longer name.
    return {
      f'^{re.escape(module)}': each[place]
      for module, each in self._loras.items()
      if each[place] != common
    }

  def _targets(self) -> list[str] | str:
    """Names of the adapted modules, short where that says the same."""
    matrices: dict[str, set[str]] = {}
    for path, spec in self._base.items():
      if path.endswith('.weight') and len(spec.shape) >= 2:
        module = self._prefix + _module(path)
        matrices.setdefault(module.rpartition('.')[2], set()).add(module)
    adapted = set(self._loras)
    targets = set()
    for last in {module.rpartition('.')[2] for module in adapted}:
      here = matrices[last] & adapted
      if here == matrices[last]:
        targets.add(last)
        continue
      others = matrices[last] - adapted
      if any(other.endswith(f'.{each}') for other in others for each in here):
        # A name would also be taken for the end of a longer one.
        return '|'.join(map(re.escape, sorted(adapted)))
      targets |= here
    return sorted(targets)


def write_adapter(
  directory: str | os.PathLike[str],
  adapter: Mapping[str, Any],
  base: streams.Specs,
  **options: Any,
) -> int:
  """Writes an adapter as a directory that PEFT loads.

  Args:
    directory: See `AdapterWriter`.
    adapter: Changes by tensor of the base; read one at a time.
    base: What the tensors of the base are.
    **options: See `AdapterWriter`.

  Returns:
    Bytes of the weights.

  Raises:
    ValueError: PEFT has no place for a change.
    problems.ProblemError: The directory holds an adapter already, the disk is
      full, and the like.

  Examples:
    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from merging import transform
    >>> spec = transform.LeafSpec('q.weight', (2, 3), np.dtype(np.float32))
    >>> lora = adapters.Lora(
    ...   jnp.ones((3, 1)), jnp.ones((1, 2)), scale=2.0, layout='out_in'
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   _ = write_adapter(folder, {'q.weight': lora}, {'q.weight': spec})
    ...   read = adapter_lib.open_adapter(folder).fit({'q.weight': spec})
    ...   read['q.weight'].delta(jnp.zeros((2, 3))).tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
  """
  writer = AdapterWriter(directory, base, paths=list(adapter), **options)
  with writer:
    for path in adapter:
      writer.add(path, adapter[path])
    return writer.finish()


def _module(path: str) -> str:
  return path.rpartition('.')[0]


def _number(value: float) -> float:
  """A whole number as one: PEFT says that alpha is an integer."""
  return int(value) if float(value).is_integer() else float(value)
