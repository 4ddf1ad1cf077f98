"""Holding an adapter to its base: which tensors change, in which layout."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
import re
from typing import Any
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from merging import adapters
from merging import matrices
from merging import patterns
from merging import streams
from merging import transform
from third_party import problems
from third_party.peft import config as config_lib
from third_party.peft import leaves
from third_party.peft import matching

if TYPE_CHECKING:
  from third_party.peft import adapter as adapter_lib

# Whose rows are tokens: what may be resized in training.
_VOCABULARY = re.compile(r'(?:^|\.)(?:embed_tokens|lm_head|wte|embed_in)\.')
_OTHER_BASE = 'use the base that it was trained on'

_Build = Callable[[], Any]


class Adapter(Mapping[str, Any]):
  """The changes of the tensors of a base, read when they are asked for.

  Attributes:
    name: Of the adapter.
    shapes: Of the tensors that change, by name.
    notes: What is odd but does no harm.
  """

  def __init__(
    self,
    name: str,
    builds: Mapping[str, _Build],
    shapes: Mapping[str, tuple[int, ...]],
    notes: tuple[problems.Problem, ...] = (),
  ):
    """Takes what reads each change."""
    self.name = name
    self.shapes = dict(shapes)
    self.notes = notes
    self._builds = dict(builds)

  def __getitem__(self, path: str) -> Any:
    """Reads the change of a tensor, such as a `merging.adapters.Lora`."""
    return self._builds[path]()

  def __iter__(self) -> Iterator[str]:
    """Names of the tensors that change."""
    return iter(self._builds)

  def __len__(self) -> int:
    """Number of tensors that change."""
    return len(self._builds)


def fit(
  files: 'adapter_lib.PeftAdapter', base: streams.Specs, base_name: str = ''
) -> Adapter:
  """Returns the changes of a base, see `PeftAdapter.fit`."""
  names = [f'{module}.weight' for module in files.parts] + list(files.whole)
  rename, note = _rename(files.name, names, base)
  fitting = _Fitting(files, base, rename)
  fitting.run()
  if fitting.problems:
    raise problems.ProblemError(fitting.problems)
  notes = (*files.notes, *note, *_other_base(files, base_name))
  return Adapter(files.name, fitting.builds, fitting.shapes, notes)


def _other_base(files, base_name: str) -> Iterator[problems.Problem]:
  trained_on = files.config.base_name
  first, second = (
    os.path.basename(each.rstrip('/')) for each in (trained_on, base_name)
  )
  if first and second and first != second:
    yield problems.Problem(
      problems.Kind.INCOMPATIBLE,
      (files.name,),
      f'was trained on {trained_on!r}, the base is {base_name!r}',
      'make sure that they are the same model',
    )


def _rename(
  owner: str, names: Sequence[str], base: streams.Specs
) -> tuple[Callable[[str], str], list[problems.Problem]]:
  """How names become those of the base: some checkpoints lack a prefix."""
  heads = dict.fromkeys(name.partition('.')[0] for name in base)
  options: list[Callable[[str], str]] = [
    lambda name: name,
    lambda name: name.partition('.')[2],
    *(lambda name, head=head: f'{head}.{name}' for head in heads),
  ]
  counts = [sum(option(name) in base for name in names) for option in options]
  best = options[counts.index(max(counts))]
  if best is options[0]:
    return best, []
  what = f'{names[0]!r} of the adapter is {best(names[0])!r} in the base'
  kind = problems.Kind.INCOMPATIBLE
  return best, [problems.Problem(kind, (owner,), what)]


class _Fitting:
  """Matches an adapter with a base, and collects what does not fit."""

  def __init__(self, files: 'adapter_lib.PeftAdapter', base, rename):
    self._files = files
    self._config = files.config
    self._tensors = files.file.header.tensors
    self._base = base
    self._rename = rename
    self.problems: list[problems.Problem] = []
    self.builds: dict[str, _Build] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}

  def run(self) -> None:
    parts = self._files.parts
    modules = list(parts)
    config = self._config
    where = (self._files.name, config_lib.NAME)
    ranks, alphas = (
      matching.first_of(list(rules), modules, where)
      for rules in (config.ranks, config.alphas)
    )
    square = self._square_layout()
    for module in modules:
      rank = config.ranks.get(ranks.get(module, ''), config.rank)
      alpha = config.alphas.get(alphas.get(module, ''), config.alpha)
      self._fit_module(module, parts[module], rank, alpha, square)
    for target, key in self._files.whole.items():
      self._fit_whole(target, key)
    self._check_targets(where)

  def _read(self, key: str) -> jax.Array:
    return jnp.asarray(self._files.file.array(key))

  def _refuse(self, place, what, remedy='', kind=problems.Kind.INCOMPATIBLE):
    self.problems.append(self._files.problem(place, what, remedy, kind))

  def _spec(self, target: str, place: str) -> transform.LeafSpec | None:
    spec = self._base.get(self._rename(target))
    if spec is None:
      head = target.rpartition('.')[0].endswith('lm_head')
      self._refuse(
        place,
        f'the base has no tensor {self._rename(target)!r}'
        f'{patterns.suggest(self._rename(target), self._base)}',
        'it may be tied to the embedding: untie the base' if head else '',
      )
    elif not jnp.issubdtype(spec.dtype, jnp.floating):
      self._refuse(
        place,
        f'the tensor of the base is {spec.dtype}, expected a floating-point '
        'one',
        'use a base that is not quantised',
      )
      return None
    return spec

  def _square_layout(self) -> matrices.Layout:
    """What a square matrix does not tell: whether it is `[in, out]`."""
    if self._config.transposed:
      return 'in_out'
    layouts = set()
    for module, parts in self._files.parts.items():
      spec = self._base.get(self._rename(f'{module}.weight'))
      if spec is not None and 'lora_A' in parts and 'lora_B' in parts:
        fan_in = self._tensors[parts['lora_A']].shape[1:]
        fan_out = self._tensors[parts['lora_B']].shape[:1]
        if fan_in != fan_out:
          layouts.add(
            'in_out' if tuple(spec.shape) == fan_in + fan_out else 'out_in'
          )
    return 'in_out' if layouts == {'in_out'} else 'out_in'

  def _fit_module(self, module, parts, rank, alpha, square) -> None:
    target = f'{module}.weight'
    spec = self._spec(target, module)
    if spec is None:
      return
    if self._config.kind == 'LOKR':
      built = self._lokr(module, parts, rank, alpha, spec)
    else:
      built = self._lora(module, parts, rank, alpha, spec, square)
    if built is None:
      return
    path = self._rename(target)
    whole = self._files.whole.get(target)
    self.shapes[path] = tuple(spec.shape)
    if whole is None:
      self.builds[path] = built
    elif self._same_shape(whole, spec):
      read = self._read
      self.builds[path] = lambda: leaves.Replaced(read(whole), built())
    if 'bias' in parts:
      self._fit_bias(module, parts['bias'], self._config.scale(alpha, rank))

  def _fit_bias(self, module: str, key: str, scale: float) -> None:
    target = f'{module}.bias'
    spec = self._spec(target, key)
    if spec is None or not self._same_shape(key, spec):
      return
    if target in self._files.whole:
      self._refuse(key, f'{target!r} is stored whole too')
      return
    read = self._read
    path = self._rename(target)
    self.builds[path] = lambda: leaves.Added(read(key), scale)
    self.shapes[path] = tuple(spec.shape)

  def _same_shape(self, key: str, spec: transform.LeafSpec) -> bool:
    shape = self._tensors[key].shape
    if shape == tuple(spec.shape):
      return True
    rows = shape[1:] == tuple(spec.shape)[1:]
    resized = rows and _VOCABULARY.search(spec.path)
    self._refuse(
      key,
      f'has shape {list(shape)}, the base has {list(spec.shape)}',
      'the vocabulary was resized in training: resize the base first'
      if resized
      else _OTHER_BASE,
    )
    return False

  def _lora(self, module, parts, rank, alpha, spec, square) -> _Build | None:
    embedding = 'lora_embedding_A' in parts
    a, b = (
      self._tensors[parts[f'lora_embedding_{x}' if embedding else f'lora_{x}']]
      for x in 'AB'
    )
    window = a.shape[2:]
    ones = (1,) * len(window)
    pair = len(a.shape) >= 2 and len(b.shape) == len(a.shape)
    if not pair or a.shape[0] != b.shape[1] or b.shape[2:] != ones:
      self._refuse(
        module,
        f'lora_A {list(a.shape)} and lora_B {list(b.shape)} do not multiply, '
        'expected [rank, in] and [out, rank]',
        kind=problems.Kind.INPUT,
      )
      return None
    if a.shape[0] != rank:
      self._refuse(
        module,
        f'has rank {a.shape[0]}, {config_lib.NAME} says {rank}',
        'correct r or rank_pattern',
        kind=problems.Kind.INPUT,
      )
      return None
    fan_in, fan_out = math.prod(a.shape[1:]), b.shape[0]
    shape = tuple(spec.shape)
    if window:
      layout = 'out_in'
      fits = shape == (fan_out, *a.shape[1:])
    elif embedding:
      layout = 'in_out'
      fits = shape == (fan_in, fan_out)
    else:
      layout = square if fan_in == fan_out else 'out_in'
      fits = shape == (fan_out, fan_in)
      if not fits and shape == (fan_in, fan_out):
        layout, fits = 'in_out', True
    if not fits:
      self._refuse(
        module,
        f'adapts {fan_in} inputs and {fan_out} outputs, the base has '
        f'{list(shape)}',
        _OTHER_BASE,
      )
      return None
    magnitude = parts.get('lora_magnitude_vector')
    if magnitude is not None and self._tensors[magnitude].size != fan_out:
      self._refuse(
        magnitude,
        f'has shape {list(self._tensors[magnitude].shape)}, expected '
        f'[{fan_out}]',
        kind=problems.Kind.INPUT,
      )
      return None
    read = self._read
    scale = self._config.scale(alpha, rank)

    def build():
      lora = adapters.Lora(
        a=read(a.name).reshape(rank, fan_in).T,
        b=read(b.name).reshape(fan_out, rank).T,
        magnitude=None if magnitude is None else read(magnitude).reshape(-1),
        scale=scale,
        layout=layout,
      )
      return leaves.Kernel(lora, shape) if window else lora

    return build

  def _lokr(self, module, parts, rank, alpha, spec) -> _Build | None:
    shapes = {part: self._tensors[key].shape for part, key in parts.items()}
    if 'lokr_t2' in parts or len(spec.shape) != 2:
      self._refuse(
        module,
        'is a convolution, which LoKr is not read for',
        'merge it into its base with PEFT first',
        kind=problems.Kind.INPUT,
      )
      return None
    factors = [
      (part,) if part in parts else (f'{part}_a', f'{part}_b')
      for part in ('lokr_w1', 'lokr_w2')
    ]
    sides = []
    for factor in factors:
      given = [shapes[part] for part in factor]
      inner = len(given) == 1 or (
        len(given[0]) == len(given[1]) == 2
        and given[0][1] == given[1][0] == rank
      )
      if not inner or len(given[0]) != 2:
        self._refuse(
          module,
          f'{" and ".join(factor)} have shapes {[list(x) for x in given]}, '
          f'expected matrices that multiply, of rank {rank}',
          kind=problems.Kind.INPUT,
        )
        return None
      sides.append((given[0][0], given[-1][1]))
    (m, n), (p, q) = sides
    if (m * p, n * q) != tuple(spec.shape):
      self._refuse(
        module,
        f'is a product of {[m, n]} and {[p, q]}, the base has '
        f'{list(spec.shape)}',
        _OTHER_BASE,
      )
      return None
    scale = self._config.scale(alpha, rank)

    def factor(names):
      first, *rest = (
        self._read(parts[name]).astype(jnp.float32) for name in names
      )
      return jnp.matmul(first, *rest, precision='highest') if rest else first

    def build():
      left, right = map(factor, factors)
      return adapters.Kronecker(scale * left[None], right[None])

    return build

  def _fit_whole(self, target: str, key: str) -> None:
    path = self._rename(target)
    if path in self.shapes:  # It is part of the change of a module.
      return
    spec = self._spec(target, key)
    if spec is None or not self._same_shape(key, spec):
      return
    read = self._read
    self.builds[path] = lambda: leaves.Replaced(read(key))
    self.shapes[path] = tuple(spec.shape)

  def _check_targets(self, where: tuple[str, ...]) -> None:
    """Holds the modules in the file to those that the config names."""
    config = self._config
    if config.targets is None:
      return
    have = set(self._files.parts)
    # Names as PEFT sees them: those of the base, under the adapter's prefix.
    back = {self._rename(f'{module}.weight'): module for module in have}
    names = {}
    for path, spec in self._base.items():
      if path.endswith('.weight') and len(spec.shape) >= 2:
        names[back.get(path) or self._unrename(path)] = path
    said = matching.targeted(config, sorted(have | set(names)), where)
    extra = sorted(have - said)
    missing = sorted(name for name in said - have if name in names)
    for module in extra:
      self._refuse(
        module,
        f'is not one of target_modules in {config_lib.NAME}',
        'the two files may be of different adapters',
        kind=problems.Kind.INPUT,
      )
    for module in missing:
      self._refuse(
        module,
        f'is one of target_modules in {config_lib.NAME}, but is not here',
        'the file may be incomplete: fetch it again',
        kind=problems.Kind.INPUT,
      )

  def _unrename(self, path: str) -> str:
    """The name of a module that has no adapter, by what others are called."""
    module = path.removesuffix('.weight')
    for name in self._files.parts:
      there = self._rename(name)
      if there != name and name.endswith(f'.{there}'):
        return name.removesuffix(there) + module
      if there != name and there.endswith(f'.{name}'):
        return module.removeprefix(there.removesuffix(name))
    return module
