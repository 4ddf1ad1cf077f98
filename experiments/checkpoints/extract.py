"""A fine-tuned model as an adapter of its base: truncated singular values."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import os
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.checkpoints import changes
from merging import adapters
from merging import patterns
from merging import streams
from merging.adapters import factoring
from third_party import problems
from third_party.peft import leaves
from third_party.peft import write

Others = Literal['save', 'drop', 'refuse']
Method = Literal['exact', 'sketch']
Progress = Callable[[float, str], object]  # Fraction done, and the leaf.

# Families of transformers whose linear layers are `Conv1D`, `[in, out]`.
_CONV1D = ('gpt2', 'openai-gpt', 'imagegpt', 'decision_transformer')
_CONV1D_NAMES = r'\.(?:c_attn|q_attn|c_proj|c_fc)\.weight$'


_OVERSAMPLED = 10  # Dimensions of the subspace beyond the rank.
_POWERS = 4  # Times that it is multiplied with the matrix and its transpose.


class Row(NamedTuple):
  """What became of a leaf.

  Attributes:
    path: The leaf.
    shape: Its shape.
    kept: `'low rank'`, `'whole'`, `'unchanged'`, or `'lost'`.
    rank: Of the factors, or 0.
    change: Norm of the change over that of the base.
    error: Norm of what is not kept over that of the change.
  """

  path: str
  shape: tuple[int, ...]
  kept: Literal['low rank', 'whole', 'unchanged', 'lost']
  rank: int
  change: float
  error: float


class Extracted(NamedTuple):
  """What an extraction wrote.

  Attributes:
    rows: One for each leaf.
    size: Bytes of the weights of the adapter.
    full_size: Bytes of the expert's tensors.
    notes: What a person should know.
  """

  rows: tuple[Row, ...]
  size: int
  full_size: int
  notes: tuple[str, ...]

  @property
  def lost(self) -> tuple[Row, ...]:
    """Leaves that the expert changed and the adapter leaves as they were."""
    return tuple(row for row in self.rows if row.kept == 'lost')


def in_out_pattern(config: Mapping[str, Any]) -> str:
  """Returns a pattern of the matrices that a model stores as `[in, out]`.

  Args:
    config: The contents of `config.json`.

  Returns:
    A regular expression to find in a path, embeddings left out; empty for
    none.

  Examples:
    >>> in_out_pattern({'model_type': 'llama'})
    ''
  """
  return _CONV1D_NAMES if config.get('model_type') in _CONV1D else ''


def missing_prefix(config: Mapping[str, Any], paths: Iterable[str]) -> str:
  """Returns what names of modules begin with, and those of weights do not.

  Checkpoints of GPT-2 are often of the model without its output layer, which is
  a part called `transformer` of the one that PEFT adapts.

  Args:
    config: The contents of `config.json`.
    paths: Of the weights.

  Returns:
    What PEFT's names have before the paths; mostly nothing.

  Examples:
    >>> missing_prefix({'model_type': 'gpt2'}, ['h.0.ln_1.weight'])
    'transformer.'
    >>> missing_prefix({'model_type': 'llama'}, ['model.norm.weight'])
    ''
  """
  prefix = 'transformer.'
  bare = not any(path.startswith(prefix) for path in paths)
  return prefix if config.get('model_type') == 'gpt2' and bare else ''


def extract_lora(
  base: streams.Source,
  expert: streams.Source,
  directory: str | os.PathLike[str],
  *,
  rank: int | None = 32,
  energy: float | None = None,
  modules: str = '',
  method: Method = 'exact',
  others: Others = 'save',
  in_out: str = '',
  embeddings: str = write.EMBEDDINGS,
  dtype: Any = np.float32,
  base_name: str = '',
  prefix: str = '',
  name: str = 'expert',
  progress: Progress | None = None,
) -> Extracted:
  """Writes the adapter nearest to a fine-tuned model, for PEFT.

  For each matrix, with `expert - base = u diag(s) v'`, the leading `k` triples
  are kept: `k = rank`, or as few as hold the fraction `energy` of the sum of
  squares, but not more than `rank`. No other change of that rank is nearer. One
  leaf is in memory at a time. What did not change is left out.

  Args:
    base: What the expert was fine-tuned from.
    expert: The fine-tuned model.
    directory: Where the adapter goes, see `write.AdapterWriter`.
    rank: Most triples to keep; `None` for no limit.
    energy: Fraction of the squared norm of a change to hold, or `None`.
    modules: Which matrices get factors: a regular expression to find in the
      path. The others that changed are treated like vectors.
    method: `'exact'` takes the whole decomposition; `'sketch'` finds the
      leading triples in a subspace, at first a random one, that is multiplied
      with the matrix and its transpose four times. It is far cheaper (18 times
      at 2048 x 2048 and rank 32), gives the same result each time, and loses
      little: the errors in the rows are those of what is written. It needs a
      rank.
    others: What happens to changed leaves that get no factors: `'save'` stores
      them whole (leaves that PEFT cannot store, parameters that are no weight
      or bias, are lost all the same), `'drop'` loses them, `'refuse'` is an
      error. The rows say which are lost.
    in_out: Regular expression for matrices stored as `[in, out]`, see
      `in_out_pattern`; embeddings are found by `embeddings`.
    embeddings: Regular expression for the names of embedding modules.
    dtype: Of what is written.
    base_name: Where PEFT finds the base; may be empty.
    prefix: See `write.AdapterWriter`.
    name: Of the expert, for messages.
    progress: Called after each leaf.

  Returns:
    What became of each leaf.

  Raises:
    ValueError: An option is out of range.
    problems.ProblemError: The models do not fit each other, hold NaN, nothing
      changed that factors can hold, or the directory cannot be written.

  References:
    Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li,
    Shean Wang, Lu Wang, Weizhu Chen. "LoRA: Low-Rank Adaptation of Large
    Language Models". ICLR 2022. arXiv:2106.09685.
    Nathan Halko, Per-Gunnar Martinsson, Joel A. Tropp. "Finding Structure with
    Randomness: Probabilistic Algorithms for Constructing Approximate Matrix
    Decompositions". SIAM Review 2011. arXiv:0909.4061.
  """
  _check_options(rank, energy, method, others)
  changes.check_same(base, {name: expert})
  selects = patterns.predicate('extract_lora', modules)
  is_embedding = patterns.predicate('extract_lora', embeddings)
  is_in_out = patterns.predicate('extract_lora', in_out or r'(?!)')
  specs = base.specs
  matrices = [path for path in specs if _is_matrix(specs, path)]
  patterns.check_found('extract_lora', modules, matrices)
  chosen = {path for path in matrices if selects(path)}
  sizes = [spec.dtype.itemsize * _size(spec) for spec in specs.values()]
  writer = write.AdapterWriter(
    directory,
    specs,
    base_name=base_name,
    prefix=prefix,
    dtype=dtype,
    embeddings=embeddings,
  )
  with writer:
    rows = []
    done = 0
    for path, size in zip(specs, sizes, strict=True):
      transposed = is_in_out(path) or is_embedding(path.rpartition('.')[0])
      layout = 'in_out' if transposed else 'out_in'
      take = (rank, energy, method, layout) if path in chosen else None
      rows.append(_extract(base, expert, name, path, writer, take, others))
      done += size
      if progress is not None:
        progress(done / sum(sizes), path)
    if not any(row.kept == 'low rank' for row in rows):
      raise problems.refuse(
        problems.Kind.INCOMPATIBLE,
        (name,),
        'no chosen matrix differs from the base',
        'are these the models that were meant?',
      )
    _save_biases(rows, base, expert, writer)
    written = writer.finish()
  return Extracted(tuple(rows), written, sum(sizes), tuple(_notes(rows, specs)))


def _check_options(rank, energy, method, others) -> None:
  patterns.check_option(
    'extract_lora', 'others', others, ('save', 'drop', 'refuse')
  )
  patterns.check_option('extract_lora', 'method', method, ('exact', 'sketch'))
  if rank is None and method == 'sketch':
    raise ValueError("extract_lora: method='sketch' needs a rank")
  if rank is None and energy is None:
    raise ValueError('extract_lora: give rank or energy')
  if rank is not None:
    adapters.lora.check_rank('extract_lora', rank)
  if energy is not None and not 0 < energy <= 1:
    raise ValueError(
      f'extract_lora: energy is {energy}, expected 0 < energy <= 1'
    )


def _is_matrix(specs: streams.Specs, path: str) -> bool:
  spec = specs[path]
  two = len(spec.shape) == 2 and min(spec.shape) > 0
  return two and path.endswith('.weight') and changes.is_float(spec.dtype)


def _size(spec) -> int:
  return int(np.prod(spec.shape, dtype=np.int64))


def _extract(base, expert, name, path, writer, take, others: Others) -> Row:
  """Writes a leaf, if there is something to write."""
  before, after = changes.read(base, path), changes.read(expert, path)
  shape = tuple(before.shape)
  if not changes.is_float(before.dtype):
    changes.check_equal(name, path, before, after)
    return Row(path, shape, 'unchanged', 0, 0.0, 0.0)
  change = changes.widened(after) - changes.widened(before)
  changes.check_finite(name, path, change)
  if not change.any():
    return Row(path, shape, 'unchanged', 0, 0.0, 0.0)
  moved = changes.relative(change, before)
  if take is not None:
    lora = _factor(change, *take, dtype=writer.dtype)
    held = np.asarray(lora.delta(jnp.asarray(change)))
    error = changes.relative(change - held, change)
    writer.add(path, lora)
    return Row(path, shape, 'low rank', lora.rank, moved, error)
  if others == 'refuse':
    raise problems.refuse(
      problems.Kind.INCOMPATIBLE,
      (name, path),
      'changed, and gets no factors',
      "choose it with modules, or say others='save' or 'drop'",
    )
  if others == 'drop' or not writer.can_save(path):
    return Row(path, shape, 'lost', 0, moved, 1.0)
  writer.add(path, leaves.Replaced(jnp.asarray(after)))
  kept = np.asarray(after).astype(writer.dtype).astype(np.float32)
  error = changes.relative(kept - changes.widened(after), change)
  return Row(path, shape, 'whole', 0, moved, error)


def _factor(
  change: np.ndarray,
  rank: int | None,
  energy: float | None,
  method: Method,
  layout: Any,
  *,
  dtype: Any,
) -> adapters.Lora:
  """The nearest adapter, rounded as it will be stored."""
  full = min(change.shape)
  most = full if rank is None else min(rank, full)
  if method == 'sketch' and most + _OVERSAMPLED < full:
    matrix = change if layout == 'in_out' else change.T
    a, b = _sketch(matrix, most)
  else:
    found, _ = factoring.factor(jnp.asarray(change), most, layout)
    a, b = np.asarray(found.a), np.asarray(found.b)
  if energy is not None:
    # The rows of b have the norm of the root of their singular value.
    kept = np.cumsum(np.sum(np.square(b, dtype=np.float64), axis=1) ** 2)
    total = float(np.sum(np.square(change, dtype=np.float64)))
    # Of all triples the sum is the total but for rounding.
    wanted = energy * (kept[-1] if most == full else total)
    most = min(most, 1 + int(np.searchsorted(kept, wanted)))
  return adapters.Lora(
    a=jnp.asarray(a[:, :most].astype(dtype)),
    b=jnp.asarray(b[:most].astype(dtype)),
    layout=layout,
  )


def _sketch(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns factors of the leading triples, from a random subspace."""
  random = np.random.default_rng(0)
  shape = (matrix.shape[1], rank + _OVERSAMPLED)
  basis = random.standard_normal(shape, dtype=np.float32)
  for _ in range(_POWERS):
    left, _ = np.linalg.qr(matrix @ basis)
    basis, _ = np.linalg.qr(matrix.T @ left)
  left, _ = np.linalg.qr(matrix @ basis)
  u, s, vh = np.linalg.svd(left.T @ matrix, full_matrices=False)
  root = np.sqrt(s[:rank])
  return left @ (u[:, :rank] * root), root[:, None] * vh[:rank]


def _save_biases(rows: list[Row], base, expert, writer) -> None:
  """Adds biases that did not change to modules that are stored whole."""
  kept = {row.path: row.kept for row in rows}
  for path, how in kept.items():
    bias = f'{path.removesuffix(".weight")}.bias'
    if how == 'whole' and bias != path and kept.get(bias) == 'unchanged':
      value = jnp.asarray(changes.read(expert, bias))
      writer.add(bias, leaves.Replaced(value))


def _notes(rows: Iterable[Row], specs: streams.Specs):
  lost = [row.path for row in rows if row.kept == 'lost']
  if lost:
    yield f'{len(lost)} changed leaves are lost: {patterns.listing(lost)}'
  heads = ('lm_head.weight', 'embed_out.weight')
  adapted = [
    row.path
    for row in rows
    if row.kept != 'unchanged'
    and row.path.endswith(('embed_tokens.weight', 'wte.weight'))
  ]
  if adapted and not any(head in specs for head in heads):
    yield (
      f'{adapted[0]!r} changed, and the output layer may be tied to it: added '
      'to the weights, the adapter changes both, as the expert did; PEFT '
      'unties them and changes the input only'
    )
