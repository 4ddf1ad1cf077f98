"""Checkpoints to merge: of the shape of Llama, with random values.

What a merge costs hardly depends on the values. Experts differ from the base in
one entry of five, by about a twentieth of its size, rounded to bfloat16.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

_PIECE = 2**22  # Entries drawn at a time.
_BASE = 0.02  # Standard deviations.
_CHANGE = 0.001
_CHANGED = 0.2


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a Llama."""

  hidden: int
  inner: int
  layers: int
  heads: int
  kv_heads: int
  vocabulary: int = 32000
  tied: bool = True

  def tensors(self) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor by name."""
    kv = self.hidden * self.kv_heads // self.heads
    block: dict[str, tuple[int, ...]] = {
      'input_layernorm': (self.hidden,),
      'mlp.down_proj': (self.hidden, self.inner),
      'mlp.gate_proj': (self.inner, self.hidden),
      'mlp.up_proj': (self.inner, self.hidden),
      'post_attention_layernorm': (self.hidden,),
      'self_attn.k_proj': (kv, self.hidden),
      'self_attn.o_proj': (self.hidden, self.hidden),
      'self_attn.q_proj': (self.hidden, self.hidden),
      'self_attn.v_proj': (kv, self.hidden),
    }
    embedding = (self.vocabulary, self.hidden)
    tensors: dict[str, tuple[int, ...]] = {
      'model.embed_tokens.weight': embedding
    }
    for i in range(self.layers):
      for name, shape in block.items():
        tensors[f'model.layers.{i}.{name}.weight'] = shape
    tensors['model.norm.weight'] = (self.hidden,)
    return tensors if self.tied else {'lm_head.weight': embedding} | tensors

  def config(self) -> dict[str, object]:
    """Returns what `config.json` holds."""
    return {
      'architectures': ['LlamaForCausalLM'],
      'hidden_act': 'silu',
      'hidden_size': self.hidden,
      'intermediate_size': self.inner,
      'max_position_embeddings': 2048,
      'model_type': 'llama',
      'num_attention_heads': self.heads,
      'num_hidden_layers': self.layers,
      'num_key_value_heads': self.kv_heads,
      'rms_norm_eps': 1e-5,
      'tie_word_embeddings': self.tied,
      'torch_dtype': 'bfloat16',
      'vocab_size': self.vocabulary,
    }


SIZES: Mapping[str, Shape] = {
  '1M': Shape(64, 176, 4, 4, 4, vocabulary=12800),
  '10M': Shape(256, 704, 8, 8, 8, vocabulary=16000),
  '125M': Shape(768, 2048, 12, 12, 12),
  '0.5B': Shape(1024, 4096, 24, 16, 16),
  '1.1B': Shape(2048, 5632, 22, 32, 4, tied=False),
}


def models(folder: Path, size: str, experts: int) -> list[Path]:
  """Makes a base and experts, unless they are there.

  Args:
    folder: Where; reused by later calls.
    size: Of `SIZES`.
    experts: How many.

  Returns:
    The directories, the base first.
  """
  shape = SIZES[size]
  found = []
  for seed in range(experts + 1):
    directory = folder / size / (f'expert{seed}' if seed else 'base')
    found.append(directory)
    # The configuration comes last: with it, the model is whole.
    if (directory / 'config.json').exists():
      continue
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'model.safetensors'
    with path.open('wb') as file:
      file.write(_header(shape.tensors()))
      for index, entries in enumerate(map(math.prod, shape.tensors().values())):
        for piece in _values(index, entries, seed):
          file.write(piece)
    (directory / 'config.json').write_text(json.dumps(shape.config()))
  return found


def hollow(folder: Path, shards: int) -> list[Path]:
  """Makes a base and two experts of many shards, whose values are holes.

  They take no room on most file systems, and serve to time what reads headers.

  Args:
    folder: Where; reused by later calls.
    shards: How many, a layer in each.

  Returns:
    The directories, the base first.
  """
  shape = dataclasses.replace(SIZES['0.5B'], layers=shards)
  tensors = shape.tensors()
  parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
  for name, value in tensors.items():
    layer = int(name.split('.')[2]) if '.layers.' in name else 0
    parts[layer][name] = value
  found = []
  for model in ('base', 'expert1', 'expert2'):
    directory = folder / f'{shards}-shards' / model
    found.append(directory)
    if (directory / 'config.json').exists():
      continue
    directory.mkdir(parents=True, exist_ok=True)
    where = {}
    for number, part in enumerate(parts, 1):
      name = f'model-{number:05}-of-{shards:05}.safetensors'
      where |= dict.fromkeys(part, name)
      with (directory / name).open('wb') as file:
        header = _header(part)
        file.write(header)
        file.truncate(len(header) + _bytes(part))
    index = {
      'metadata': {'total_size': _bytes(tensors)},
      'weight_map': where,
    }
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index))
    (directory / 'config.json').write_text(json.dumps(shape.config()))
  return found


def _bytes(tensors: Mapping[str, tuple[int, ...]]) -> int:
  return 2 * sum(map(math.prod, tensors.values()))


def _header(tensors: Mapping[str, tuple[int, ...]]) -> bytes:
  """The start of a safetensors file of these, in bfloat16 and in order."""
  header: dict[str, object] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for name, shape in tensors.items():
    stop = offset + 2 * math.prod(shape)
    header[name] = {
      'dtype': 'BF16',
      'shape': shape,
      'data_offsets': [offset, stop],
    }
    offset = stop
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text


def _values(index: int, entries: int, seed: int) -> Iterator[bytes]:
  """Yields the values of a tensor; the seed is that of the expert, or 0."""
  base = np.random.default_rng((0, index))
  own = np.random.default_rng((seed, index))
  for start in range(0, entries, _PIECE):
    count = min(_PIECE, entries - start)
    values = _BASE * base.standard_normal(count, np.float32)
    values = values.astype(ml_dtypes.bfloat16)
    if seed:
      change = own.standard_normal(count, np.float32)
      change *= _CHANGE * (own.random(count, np.float32) < _CHANGED)
      change += values.astype(np.float32)
      values = change.astype(ml_dtypes.bfloat16)
    yield values.tobytes()
