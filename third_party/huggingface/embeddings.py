"""Which tensors of a checkpoint have a row for each token."""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from merging import streams

# Names under which families keep them, after whatever prefix.
INPUTS = (
  'embed_tokens.weight',
  'wte.weight',
  'shared.weight',
  'word_embeddings.weight',
  'embed_in.weight',
  'tok_embeddings.weight',
  'token_embedding.weight',
  'tokens_embed.weight',
  'embeddings.weight',
  'embedding.weight',
)
HEADS = (
  'lm_head.weight',
  'embed_out.weight',
  'output.weight',
  'output_layer.weight',
  'head.weight',
  'cls.predictions.decoder.weight',
  'lm_head.decoder.weight',
)
_BIASES = (
  'lm_head.bias',
  'embed_out.bias',
  'cls.predictions.bias',
  'cls.predictions.decoder.bias',
  'lm_head.decoder.bias',
  'final_logits_bias',
)


def find_input(
  specs: streams.Specs, config: Mapping[str, Any] | None = None
) -> str | None:
  """Returns the path of the input embedding, if there is one.

  Args:
    specs: What the tensors are.
    config: The contents of `config.json`; where several names fit, the one with
      `vocab_size` rows is meant.

  Returns:
    The path or `None`.

  Examples:
    >>> from merging import transform
    >>> path = 'model.embed_tokens.weight'
    >>> find_input({path: transform.LeafSpec(path, (8, 4), None)})
    'model.embed_tokens.weight'
  """
  found = list(_named(specs, INPUTS))
  sizes = {size for _, size in vocabulary_sizes(config or {})}
  fitting = [path for path in found if specs[path].shape[0] in sizes]
  return next(iter(fitting or found), None)


def find_head(specs: streams.Specs, embedding: str | None) -> str | None:
  """Returns the path of the output head, if one is stored.

  Args:
    specs: What the tensors are.
    embedding: The input embedding, as wide as the head, if there is one.

  Returns:
    The path or `None`.
  """
  for path in _named(specs, HEADS):
    if path == embedding:
      continue
    shape = specs[path].shape
    if embedding is None or shape[1:] == specs[embedding].shape[1:]:
      return path
  return None


def vocabulary_sizes(
  config: Mapping[str, Any],
) -> Iterator[tuple[tuple[str, ...], int]]:
  """Yields where a config has `vocab_size`, outermost first, and its value.

  Examples:
    >>> list(vocabulary_sizes({'text_config': {'vocab_size': 8}}))
    [(('text_config', 'vocab_size'), 8)]
  """
  for path, value in walk(config):
    if path[-1] == 'vocab_size' and type(value) is int:
      yield path, value


def by_token(
  specs: streams.Specs, rows: int, config: Mapping[str, Any]
) -> tuple[str, ...]:
  """Returns the paths of all tensors that have a row for each token.

  Known names count if their first axis (after axes of size one) has `rows`
  entries. So does any other tensor, if no other number of the config is equal
  to `rows`.

  Args:
    specs: What the tensors are.
    rows: Rows of the input embedding.
    config: The contents of `config.json`.

  Returns:
    Paths.
  """
  others = {
    value
    for path, value in walk(config)
    if type(value) is int and 'vocab' not in path[-1]
  }
  return tuple(
    path
    for path, spec in specs.items()
    if first_axis(spec.shape) == rows and (is_known(path) or rows not in others)
  )


def is_known(path: str) -> bool:
  """Whether a tensor of this name has a row for each token."""
  return _ends(path, (*INPUTS, *HEADS, *_BIASES))


def first_axis(shape: tuple[int, ...]) -> int:
  """Returns the size of the first axis that is not one.

  Examples:
    >>> first_axis((1, 8, 4)), first_axis((1,)), first_axis(())
    (8, 1, 1)
  """
  return next((size for size in shape if size != 1), 1)


def walk(
  config: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Yields keys and values of nested mappings, outer ones first."""
  for key, value in config.items():
    if not isinstance(value, Mapping):
      yield (*above, key), value
  for key, value in config.items():
    if isinstance(value, Mapping):
      yield from walk(value, (*above, key))


def _named(specs: streams.Specs, names: tuple[str, ...]) -> Iterator[str]:
  """Yields matrices outside of layers that have the names, by their order."""
  matrices = sorted(
    path
    for path, spec in specs.items()
    if len(spec.shape) == 2
    and _ends(path, names)
    and not any(part.isdigit() for part in path.split('.'))
  )
  for name in names:
    yield from (path for path in matrices if _ends(path, (name,)))


def _ends(path: str, names: tuple[str, ...]) -> bool:
  return path.endswith(names) and any(
    path == name or path.endswith('.' + name) for name in names
  )
