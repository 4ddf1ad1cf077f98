"""A base, two experts and a recipe in a directory, to be broken and merged."""

import json
from pathlib import Path
import shutil
import stat
import threading

import ml_dtypes
import numpy as np
import safetensors.numpy

from experiments.checkpoints import command
from experiments.runtime import errors
from tests.third_party.huggingface import crafted
from third_party import problems

HIDDEN, WORDS, LAYERS = 16, 32, 3
CONFIG = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'hidden_size': HIDDEN,
  'intermediate_size': HIDDEN,
  'num_attention_heads': 2,
  'num_hidden_layers': LAYERS,
  'num_key_value_heads': 2,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'vocab_size': WORDS,
}
NAMES = ('base', 'math', 'code')
EMBEDDINGS, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
PROJECTION = 'model.layers.1.self_attn.q_proj.weight'
FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SHARDS = tuple(crafted.shard_name(number, 2) for number in (1, 2))


def tensors(seed, *, dtype=ml_dtypes.bfloat16, layers=LAYERS, hidden=HIDDEN):
  """A Llama of few shapes, which are what a first merge compiles for."""
  rng = np.random.default_rng(seed)
  matrices = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj']
  matrices += ['self_attn.o_proj', 'mlp.gate_proj', 'mlp.up_proj']
  matrices += ['mlp.down_proj']
  shapes: dict[str, tuple[int, ...]] = {EMBEDDINGS: (WORDS, hidden)}
  for i in range(layers):
    for name in ('input_layernorm', 'post_attention_layernorm'):
      shapes[f'model.layers.{i}.{name}.weight'] = (hidden,)
    for name in matrices:
      shapes[f'model.layers.{i}.{name}.weight'] = (hidden, hidden)
  shapes |= {'model.norm.weight': (hidden,), HEAD: (WORDS, hidden)}
  return {
    path: rng.normal(size=shape).astype(dtype) for path, shape in shapes.items()
  }


def save(directory, arrays, config=CONFIG, *, shards=1, words=WORDS):
  """Writes a model directory as others write it."""
  directory.mkdir(parents=True, exist_ok=True)
  if shards == 1:
    store(directory / FILE, arrays)
  else:
    crafted.write_sharded(directory, arrays, shards)
  (directory / 'config.json').write_text(json.dumps(config))
  vocabulary = {f't{i}': i for i in range(words)}
  content = {'model': {'type': 'BPE', 'vocab': vocabulary, 'merges': []}}
  (directory / 'tokenizer.json').write_text(json.dumps(content))


def recipe(method='linear', models=('math', 'code'), *, base=None, **fields):
  """The text of a recipe in JSON, which is YAML."""
  content = {
    'merge_method': method,
    'models': [
      {'model': name, 'parameters': {'weight': 0.5}} for name in models
    ],
    **({} if base is None else {'base_model': base}),
    **fields,
  }
  return json.dumps(content)


class Workspace:
  """Models that fit each other, until a fault is put in.

  Attributes:
    root: Holds everything.
    base: Directory of the base.
    math: Directory of an expert.
    code: Directory of another.
    recipe: The file of the recipe.
    target: Where the merged model goes.
    flags: Of the command.
    notices: What the command printed to standard error.
    printed: What it printed to standard output.
  """

  def __init__(self, root, capture=None):
    """Takes a directory that holds the models, and pytest's `capsys`."""
    self.root = Path(root)
    self.base, self.math, self.code = (self.root / name for name in NAMES)
    self.recipe = self.root / 'recipe.yml'
    self.target = self.root / 'merged'
    self.flags = {}
    self.notices = self.printed = ''
    self._capture = capture
    self.say(recipe())

  def say(self, text):
    """Writes the recipe."""
    data = text if isinstance(text, bytes) else text.encode()
    self.recipe.write_bytes(data)

  def arrays(self, name):
    """The tensors of a model that is one file."""
    return load(self.root / name / FILE)

  def change(self, name, **tensors_):
    """Replaces tensors of a model; `None` removes one."""
    arrays = {**self.arrays(name), **tensors_}
    arrays = {path: x for path, x in arrays.items() if x is not None}
    store(self.root / name / FILE, arrays)

  def configure(self, name, **fields):
    """Changes fields of a `config.json`."""
    path = self.root / name / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

  def shard(self, name):
    """Writes a model anew in two shards; returns where each tensor is."""
    arrays = self.arrays(name)
    config = json.loads((self.root / name / 'config.json').read_text())
    (self.root / name / FILE).unlink()
    save(self.root / name, arrays, config, shards=2)
    return json.loads((self.root / name / INDEX).read_text())['weight_map']

  def merge(self):
    """Runs the command; returns the exit status and the lines it would say.

    Whatever else it raises is a fault of its own.
    """
    before = threading.active_count()
    status, lines = 0, []
    try:
      command.merge(self.recipe, self.target, command.Flags(**self.flags))
    except problems.ProblemError as error:
      status, lines = error.status, [str(each) for each in error.problems]
    except errors.UsageError as error:
      status, lines = 2, [str(error)]
    finally:
      if self._capture is not None:
        self.printed, self.notices = self._capture.readouterr()
    assert threading.active_count() == before, 'a thread is left'
    return status, lines

  def snapshot(self):
    """All there is, by path: links, sizes and bytes, of large files not all."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(self.root.rglob('*')):
      name = str(path.relative_to(self.root))
      status = path.lstat()
      found[name] = (status.st_mode, status.st_mtime_ns)
      if stat.S_ISREG(status.st_mode):
        with path.open('rb') as file:
          found[name] = (status.st_mode, status.st_size, file.read(1 << 20))
    return found


def load(path):
  """The tensors of a file."""
  return safetensors.numpy.load_file(path)


def store(path, arrays):
  """Writes a file of tensors."""
  safetensors.numpy.save_file(arrays, path, {'format': 'pt'})


def weights(directory):
  """All tensors of a directory, as bits."""
  found = {}
  for path in sorted(Path(directory).glob('*.safetensors')):
    found |= load(path)
  return {path: (x.dtype, x.shape, x.tobytes()) for path, x in found.items()}


def build(root):
  """Writes the sound models."""
  base = tensors(0)
  rng = np.random.default_rng(1)
  save(root / 'base', base)
  for name in NAMES[1:]:
    tuned = {
      path: (x + 0.1 * rng.normal(size=x.shape)).astype(x.dtype)
      for path, x in base.items()
    }
    save(root / name, tuned)


def copy(source, root, capture=None):
  """Copies sound models to a place where they may be broken."""
  shutil.copytree(source, root, dirs_exist_ok=True)
  return Workspace(root, capture)
