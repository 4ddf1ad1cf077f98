"""From a config and tensors to a model that runs."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import os
import re
from types import ModuleType
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from merging import streams
from third_party import problems
from third_party.huggingface import checkpoint
from third_party.huggingface.models import clip
from third_party.huggingface.models import decoding
from third_party.huggingface.models import fields as fields_lib
from third_party.huggingface.models import gpt2
from third_party.huggingface.models import llama

Dtype = Literal['float32', 'bfloat16']
Config = gpt2.Config | llama.Config | clip.Config
Shapes = dict[str, tuple[int, ...]]

_FAMILIES: Mapping[str, ModuleType] = {
  'clip': clip,
  'clip_text_model': clip,
  'clip_vision_model': clip,
  'gpt2': gpt2,
  'llama': llama,
  'mistral': llama,
  'qwen2': llama,
}
MODEL_TYPES = tuple(_FAMILIES)


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that runs: its weights, and functions of any weights like them.

  Attributes:
    params: Weights by the names that they have in the file, as a flat mapping,
      in the types of the file. Where embeddings are tied, there is one.
    apply: For a decoder `(params, tokens, *, attention_mask, positions)` to
      logits, see `decoding.apply`; for CLIP `(params, images, tokens, *,
      attention_mask)` to zero-shot logits, see `clip.apply`; for one of its
      towers alone, the features.
    config: What was read of `config.json`; static.
    decoder: What `decoding.greedy` takes; None if it is no decoder.
    image_features: `(params, images)`, see `clip.image_features`, or None.
    text_features: `(params, tokens, *, attention_mask)`, see
      `clip.text_features`, or None.
  """

  params: dict[str, jax.Array]
  apply: Callable[..., jax.Array]
  config: Config
  decoder: decoding.Decoder | None = None
  image_features: Callable[..., jax.Array] | None = None
  text_features: Callable[..., jax.Array] | None = None


def expected_specs(
  config: Mapping[str, Any], names: Collection[str] = ()
) -> Shapes:
  """Returns the tensors that a model of a config has.

  Args:
    config: Content of `config.json`, of one of `MODEL_TYPES`.
    names: Names of the tensors in its files, which say what the config does
      not: the prefix of a model that was saved without its head, and whether a
      tower of CLIP alone has a projection.

  Returns:
    Shapes by name. The second name of a tied embedding is not among them.

  Raises:
    ProblemError: The config is not supported; all reasons.

  Examples:
    >>> config = {'model_type': 'gpt2', 'n_embd': 8, 'n_head': 2, 'n_layer': 1}
    >>> specs = expected_specs(config | {'vocab_size': 5})
    >>> specs['transformer.wte.weight'], len(specs)
    ((5, 8), 16)
  """
  family, read = _read(config, names, '')
  return family.shapes(read)


def check(
  config: Mapping[str, Any], specs: streams.Specs, *, name: str = ''
) -> tuple[problems.Problem, ...]:
  """Returns what is wrong with the tensors of a checkpoint by its config.

  Args:
    config: Content of `config.json`, of one of `MODEL_TYPES`.
    specs: What the files have.
    name: What to call the model.

  Returns:
    All problems: fields that are not supported; tensors that are missing, have
    another shape, are not floating-point numbers, or are unknown to the family.
    Buffers of older versions and the second name of a tied embedding may be
    there or not.

  Examples:
    >>> config = {'model_type': 'gpt2', 'n_embd': 8, 'n_head': 3}
    >>> print(*check(config, {}, name='math'))
    math / config.json / n_head: 8 channels are not shared by 3 heads
  """
  try:
    family, read = _read(config, specs, name)
  except problems.ProblemError as error:
    return error.problems
  return tuple(_compare(family, read, specs, name))


def load(
  source: str | os.PathLike | streams.Source | Mapping[str, Any],
  config: Mapping[str, Any] | None = None,
  *,
  name: str = '',
  dtype: Dtype = 'float32',
) -> Model:
  """Reads a model of the family of GPT-2, Llama or CLIP, to run it.

  Everything is checked before any tensor is read: a field of the config that
  changes the computation and is not supported is refused by its name, and all
  tensors must be there, in their shapes, and no others.

  Args:
    source: A directory in Hugging Face's layout; any source of tensors; or
      arrays by name, such as a merge returned.
    config: Content of `config.json`; by default that of the directory.
    name: What to call the model in messages.
    dtype: What activations are in. Products are accumulated, and norms, softmax
      and logits computed, in float32 in any case.

  Returns:
    The model.

  Raises:
    ProblemError: The model is not supported, or its parts do not fit; all
      reasons.
    ValueError: No config, or an unknown dtype.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> config = {'model_type': 'gpt2', 'n_embd': 8, 'n_head': 2, 'n_layer': 1}
    >>> config |= {'vocab_size': 5, 'n_positions': 4}
    >>> specs = expected_specs(config)
    >>> zeros = {name: np.zeros(x, np.float32) for name, x in specs.items()}
    >>> model = load(zeros, config)
    >>> jax.jit(model.apply)(model.params, jnp.array([[1, 2]])).shape
    (1, 2, 5)
  """
  if dtype not in get_args(Dtype):
    known = ', '.join(get_args(Dtype))
    raise ValueError(f'dtype is one of {known}, got {dtype!r}')
  if isinstance(source, str | os.PathLike):
    opened = checkpoint.open_checkpoint(source, name=name)
    with contextlib.closing(opened):
      return load(opened, config, name=opened.name, dtype=dtype)
  if isinstance(source, Mapping):
    source = streams.InMemory(source)
  if config is None and isinstance(source, checkpoint.Checkpoint):
    config = source.config
  if config is None:
    raise ValueError(
      'tensors alone do not say what the model is: give the content of its'
      ' config.json as config'
    )
  specs = source.specs
  family, read = _read(config, specs, name)
  if wrong := _compare(family, read, specs, name):
    raise problems.ProblemError(wrong)
  arrays = {path: _array(source, path) for path in family.shapes(read)}
  _check_copies(source, family.ties(read), arrays, name)
  params = {path: jnp.asarray(x) for path, x in arrays.items()}
  return _model(family, params, read, jnp.dtype(dtype))


def _read(config, names, name):
  """Returns the family and its config, or raises all that is wrong with it."""
  where = (name, 'config.json') if name else ('config.json',)
  fields = fields_lib.Fields(config, where)
  word = config.get('model_type')
  if not isinstance(word, str) or word not in _FAMILIES:
    fields.choice('model_type', '', _FAMILIES)
    raise problems.ProblemError(fields.problems)
  family = _FAMILIES[word]
  fields.only(
    'quantization_config', None, 'load the model that it was made from'
  )
  code = fields.section('auto_map')
  for each in ('AutoModel', 'AutoModelForCausalLM'):
    code.only(each, None, 'a model with code of its own is not run')
  read = family.read(fields, names)
  if fields.problems:
    raise problems.ProblemError(fields.problems)
  return family, read


def _compare(family, config, specs, name):
  """Returns what is wrong with the tensors."""
  wrong = []

  def keep(path, what, remedy):
    place = (name, path) if name else (path,)
    wrong.append(problems.Problem(problems.Kind.INPUT, place, what, remedy))

  shapes, ties = family.shapes(config), family.ties(config)
  shapes |= {each: shapes[ties[each]] for each in ties if each in specs}
  for path, shape in shapes.items():
    if path not in specs:
      keep(
        path,
        f'expected a tensor {list(shape)}, but there is none',
        'fetch the files again, or correct config.json',
      )
      continue
    spec = specs[path]
    if tuple(spec.shape) != shape:
      keep(
        path,
        f'expected {list(shape)} by config.json, got {list(spec.shape)}',
        'correct config.json, or fetch the files again',
      )
    if not jnp.issubdtype(spec.dtype, jnp.floating):
      keep(path, f'expected floating-point numbers, got {spec.dtype}', '')
  for path in specs:
    if path not in shapes and not re.fullmatch(family.BUFFERS, path):
      keep(
        path,
        'the model that config.json describes has no such tensor',
        'correct config.json, or remove the tensor',
      )
  return wrong


def _array(source, path):
  spec = source.specs[path]
  array = np.empty(spec.shape, spec.dtype)
  source.read(path, 0, array.reshape(-1))
  return array


def _check_copies(source, ties, arrays, name):
  """Refuses a copy of a tied weight that is not equal to it."""
  wrong = [
    problems.Problem(
      problems.Kind.INPUT,
      (name, copy) if name else (copy,),
      f'differs from {path}, to which config.json ties it',
      'set tie_word_embeddings to false, or remove one of them',
    )
    for copy, path in ties.items()
    if copy in source.specs
    and not np.array_equal(_array(source, copy), arrays[path])
  ]
  if wrong:
    raise problems.ProblemError(wrong)


def _model(family, params, config, dtype):
  if family is not clip:
    decoder = decoding.Decoder(family.forward, config, dtype)
    apply = functools.partial(decoding.apply, decoder=decoder)
    return Model(params, apply, config, decoder=decoder)
  images, lines, both = (
    functools.partial(each, config=config, dtype=dtype)
    for each in (clip.image_features, clip.text_features, clip.apply)
  )
  if config.vision is None:
    return Model(params, lines, config, text_features=lines)
  if config.text is None:
    return Model(params, images, config, image_features=images)
  return Model(params, both, config, image_features=images, text_features=lines)
