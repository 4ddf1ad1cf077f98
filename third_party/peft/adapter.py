"""PEFT's adapters as exact changes of the tensors of a base.

A directory holds `adapter_config.json` and `adapter_model.safetensors`, whose
names are those of modules, with `base_model.model.` before them. Headers are
read and checked when a directory is opened, factors when somebody asks for a
tensor.
"""

from collections.abc import Iterator
import os
import re

import jax.numpy as jnp

from merging import patterns
from merging import streams
from third_party import problems
from third_party.huggingface import safetensors
from third_party.peft import config as config_lib
from third_party.peft import fitting

WEIGHTS = 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
_PARTS = {
  'LORA': (
    'lora_A',
    'lora_B',
    'lora_embedding_A',
    'lora_embedding_B',
    'lora_magnitude_vector',
  ),
  'LOKR': (
    'lokr_w1',
    'lokr_w1_a',
    'lokr_w1_b',
    'lokr_w2',
    'lokr_w2_a',
    'lokr_w2_b',
    'lokr_t2',
  ),
}
_PART = re.compile(
  r'(?P<module>.+)\.(?P<part>lora_\w+|lokr_\w+|hada_\w+|ia3_\w+|oft_\w+)'
  r'(?:\.default)?(?:\.(?P<parameter>weight|bias))?'
)
_WHOLE = re.compile(
  r'(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)'
  r'\.(?P<parameter>weight|bias)'
)


class PeftAdapter:
  """An adapter as its files describe it, before a base is known.

  Attributes:
    name: Of the adapter, for problems.
    directory: Where it lies.
    config: Its settings.
    notes: What is odd but does no harm.
    file: The weights.
    parts: By module, then by kind of factor, the name in the file.
    whole: By tensor of the base, the name in the file of what replaces it.
  """

  def __init__(self, directory: str | os.PathLike[str], name: str = ''):
    """Reads the config and the header of the weights, see `open_adapter`."""
    self.directory = os.fspath(directory)
    self.name = name or self.directory
    self.config = config_lib.read_config(directory, name)
    self.notes = self.config.notes
    path = os.path.join(directory, WEIGHTS)
    pickled = os.path.join(directory, 'adapter_model.bin')
    if not os.path.exists(path) and os.path.exists(pickled):
      raise problems.refuse(
        problems.Kind.INPUT,
        (self.name, 'adapter_model.bin'),
        'is a pickle, which can run code when it is read',
        'load it with PEFT and save it with save_pretrained',
      )
    self.file = safetensors.File(path, where=self.where())
    self.parts: dict[str, dict[str, str]] = {}
    self.whole: dict[str, str] = {}
    self._sort()

  @property
  def size(self) -> int:
    """Bytes of the weights."""
    return self.file.header.size

  def where(self, tensor: str = '') -> tuple[str, ...]:
    """Returns what a problem with the weights names."""
    return (
      self.name,
      WEIGHTS,
      *([safetensors.shown(tensor)] if tensor else []),
    )

  def _sort(self) -> None:
    """Says of each tensor what it is for."""
    found = []
    for key, tensor in self.file.header.tensors.items():
      wrong = self._sort_one(key, tensor)
      if wrong:
        kind = problems.Kind.INPUT
        found.append(problems.Problem(kind, self.where(key), *wrong))
    found += self._missing_parts()
    if found:
      raise problems.ProblemError(found)
    if not self.parts and not self.whole:
      raise problems.refuse(problems.Kind.INPUT, self.where(), 'has no tensors')

  def _sort_one(
    self, key: str, tensor: safetensors.Tensor
  ) -> tuple[str, ...] | None:
    if not key.startswith(PREFIX):
      return (f'expected a name that starts with {PREFIX!r}',)
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
      return (f'expected a floating-point tensor, got {tensor.dtype}',)
    if not tensor.size:
      return (
        f'is empty, of shape {list(tensor.shape)}',
        'gather the shards of the optimiser before saving',
      )
    name = key[len(PREFIX) :]
    part = _PART.fullmatch(name)
    if part is None:
      whole = _WHOLE.fullmatch(name)
      target = '.'.join(whole.groups()) if whole else name
      if '.original_module.' in name or 'token_adapter' in name:
        return ('is not a part of an adapter that is read here',)
      if target in self.whole:
        return (f'replaces {target!r}, as {self.whole[target]!r} does',)
      self.whole[target] = key
      return None
    module, kind = part['module'], part['part']
    known = _PARTS[self.config.kind]
    if kind not in known:
      return (
        f'{kind!r} is no part of {self.config.kind}, expected '
        f'{patterns.listing(known)}',
      )
    if part['parameter'] == 'bias':
      if kind != 'lora_B' or not self.config.contents.get('lora_bias'):
        return ('is a bias of a factor, but lora_bias is not set',)
      kind = 'bias'
    parts = self.parts.setdefault(module, {})
    if kind in parts:
      return (f'is the same part as {parts[kind]!r}',)
    parts[kind] = key
    return None

  def _missing_parts(self) -> Iterator[problems.Problem]:
    """What a module needs and does not have, or the reverse."""
    dora = self.config.dora
    for module, parts in self.parts.items():
      have = set(parts) - {'bias'}
      if self.config.kind == 'LOKR':
        good = all(
          f'lokr_w{i}' in have or {f'lokr_w{i}_a', f'lokr_w{i}_b'} <= have
          for i in (1, 2)
        )
        if not good:
          yield self.problem(
            module, f'has {sorted(have)}, expected two factors lokr_w1, lokr_w2'
          )
        continue
      magnitude = 'lora_magnitude_vector' in have
      if magnitude != dora:
        state = 'has a' if magnitude else 'has no'
        yield self.problem(
          module, f'{state} lora_magnitude_vector, but use_dora is {dora}'
        )
      pair = have - {'lora_magnitude_vector'}
      pairs = ({'lora_A', 'lora_B'}, {'lora_embedding_A', 'lora_embedding_B'})
      if pair not in pairs:
        yield self.problem(
          module, f'has {sorted(pair)}, expected lora_A and lora_B'
        )
    for end in self.config.saved:
      if not any(f'{end}.' in name for name in self.whole):
        yield self.problem(end, 'is in modules_to_save, but is not here')

  def problem(
    self,
    place: str,
    what: str,
    remedy: str = '',
    kind: problems.Kind = problems.Kind.INPUT,
  ) -> problems.Problem:
    """Returns a problem with a tensor or a module."""
    return problems.Problem(kind, self.where(place), what, remedy)

  def fit(self, base: streams.Specs, base_name: str = '') -> fitting.Adapter:
    """Says which tensors of a base change, and checks that they can.

    Args:
      base: What the tensors of the base are, by name.
      base_name: Of the base: a note tells when the adapter names another.

    Returns:
      The adapter by tensor of the base. Its `notes` hold those of the files
      too.

    Raises:
      problems.ProblemError: With all that does not fit.
    """
    return fitting.fit(self, base, base_name)


def open_adapter(
  directory: str | os.PathLike[str], *, name: str = ''
) -> PeftAdapter:
  """Opens an adapter: its config and the header of its weights.

  Args:
    directory: With `adapter_config.json` and `adapter_model.safetensors`.
    name: Of the adapter, for problems.

  Returns:
    The adapter; `fit` makes it a mapping for a base.

  Raises:
    problems.ProblemError: With all that is wrong with it, or not supported.
  """
  return PeftAdapter(directory, name)
