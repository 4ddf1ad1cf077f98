"""Does a checkpoint agree with its own config.json and tokenizer?

What names and shapes of tensors, config and vocabulary say of one another;
nothing here reads a value. Families that `models` runs are held to every shape;
of others, what well-known names of tensors say is checked.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import re
from typing import Any
from typing import NamedTuple

from experiments.checkpoints import findings
from experiments.checkpoints import text
from merging import streams
from third_party import problems as problems_lib
from third_party.huggingface import checkpoint as checkpoint_lib
from third_party.huggingface import embeddings
from third_party.huggingface import layout
from third_party.huggingface import tied as tied_lib
from third_party.huggingface import tokenizer

_LAYER = re.compile(r'(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d{1,6})\.')
# Where a config may say that a stack has layers beyond `num_hidden_layers`.
_EXTRA_LAYERS = 'num_nextn_predict_layers'
# What has a head, and what has none, as families are known by; classifiers and
# the like have other tensors.
_LANGUAGE_MODELS = ('ForCausalLM', 'LMHeadModel')
_WHOLE = (*_LANGUAGE_MODELS, 'Model', 'WithProjection')
# Families whose attention and MLP are those of Llama, shape for shape.
_PLAIN = (
  'llama',
  'mistral',
  'qwen2',
  'qwen3',
  'gemma',
  'gemma2',
  'gemma3_text',
  'granite',
  'smollm3',
)


def check_all(
  model: checkpoint_lib.Checkpoint,
  kind: problems_lib.Kind,
  checksums: Mapping[str, int] | None = None,
) -> tuple[findings.Check, ...]:
  """Holds a checkpoint to its config and tokenizer in all ways there are.

  Args:
    model: An open checkpoint.
    kind: Of the problems.
    checksums: By path, of the bytes of tensors, as far as known.

  Returns:
    The checks.
  """
  tokens, warnings = _tokens(model, kind)
  return (
    check_shapes(model, kind),
    check_layers(model, kind),
    check_tied(model, kind, checksums),
    check_vocabulary(model, tokens, kind),
    findings.Check(
      'tokenizer',
      f'{tokens} tokens' if tokens else 'none that is read',
      warnings=warnings,
      ran=tokens is not None,
    ),
  )


class _Planned(NamedTuple):
  """A checkpoint before there are files."""

  name: str
  config: Mapping[str, Any]
  specs: streams.Specs


def check_plan(
  name: str,
  config: Mapping[str, Any],
  specs: streams.Specs,
  kind: problems_lib.Kind,
) -> list[problems_lib.Problem]:
  """Holds what is to be written to its config, before there are files.

  Args:
    name: What to call the model.
    config: What its `config.json` will say.
    specs: Of its tensors.
    kind: Of the problems.

  Returns:
    What `check_all` would find wrong, but for the tokenizer.
  """
  model: Any = _Planned(name, config, specs)
  checks = (
    check_shapes(model, kind),
    check_layers(model, kind),
    check_tied(model, kind),
    check_vocabulary(model, None, kind),
  )
  return [problem for each in checks for problem in each.problems]


def check_shapes(
  model: tied_lib.Model, kind: problems_lib.Kind
) -> findings.Check:
  """Holds shapes to what the config says they are.

  How many rows an embedding has is left to `check_vocabulary`.

  Args:
    model: A checkpoint.
    kind: Of the problems.

  Returns:
    The check; it did not run where the config says nothing of any tensor.
  """
  # Imported here: these are programs in JAX, which most checks do without.
  from third_party.huggingface import models

  config, specs = model.config, model.specs
  if not config:
    return findings.Check('shapes', 'there is no config.json', ran=False)
  embedding = embeddings.find_input(specs, config)
  if _is_whole(config):
    try:
      expected = models.expected_specs(config, specs)
    except problems_lib.ProblemError:
      pass  # A family, or a variant of it, that does not run here.
    else:
      rows = embedding is not None and (
        specs[embedding].shape[1:] == expected.get(embedding, ())[1:]
      )
      found = [
        each._replace(kind=kind)
        for each in models.check(config, specs, name=model.name)
        if not (rows and each.where[-1] == embedding)
      ]
      scope = f'all {len(expected)} tensors of {config.get("model_type")}'
      # Libraries leave alone what they do not know, such as a value head.
      unknown = set(specs) - set(expected)
      return findings.Check(
        'shapes',
        scope,
        tuple(each for each in found if each.where[-1] not in unknown),
        tuple(each for each in found if each.where[-1] in unknown),
      )
  shapes = _shapes_by_name(model)
  problems = tuple(
    problems_lib.Problem(
      kind,
      (model.name, path),
      f'expected {list(shape)} by config.json, got {list(specs[path].shape)}',
      'correct config.json, or fetch the files again',
    )
    for path, shape in shapes.items()
    if tuple(specs[path].shape) != shape
  )
  scope = f'{len(shapes)} of {len(specs)} tensors, known by their names'
  return findings.Check('shapes', scope, problems, ran=bool(shapes))


def check_layers(
  model: tied_lib.Model, kind: problems_lib.Kind
) -> findings.Check:
  """Counts the layers: as many as the config says, without a gap.

  Args:
    model: A checkpoint.
    kind: Of the problems.

  Returns:
    The check; it did not run on models with no stack of layers, or several.
  """
  stacks: dict[str, set[int]] = {}
  for path in model.specs:
    match = _LAYER.search(path)
    if match:
      stacks.setdefault(path[: match.start(1)], set()).add(int(match[1]))
  said = _number(model.config, 'num_hidden_layers', 'n_layer')
  if len(stacks) != 1 or said is None:
    scope = f'{text.plural(len(stacks), "stack")}, config.json says {said}'
    return findings.Check('layers', scope, ran=False)
  (prefix, found), *_ = stacks.items()
  count = max(found) + 1
  most = said + (_number(model.config, _EXTRA_LAYERS) or 0)
  problems = []
  if len(found) < count:
    hole = next(i for i in range(count) if i not in found)
    problems.append(
      problems_lib.Problem(
        kind,
        (model.name, f'{prefix}{hole}'),
        f'has no tensors, though {prefix}{count - 1} has',
      )
    )
  if not said <= count <= most:
    problems.append(
      problems_lib.Problem(
        kind,
        (model.name, 'config.json'),
        f'expected {said} layers, got tensors of {count}',
        f'set num_hidden_layers to {count}, or fetch the files again',
      )
    )
  return findings.Check('layers', f'{len(found)} layers', tuple(problems))


def check_tied(
  model: tied_lib.Model,
  kind: problems_lib.Kind,
  checksums: Mapping[str, int] | None = None,
) -> findings.Check:
  """Holds the output head to `tie_word_embeddings`.

  A tied model has no head of its own, or one that is equal byte for byte:
  libraries ignore it or use it, by their version. A language model that is not
  tied has one.

  Args:
    model: A checkpoint.
    kind: Of the problems.
    checksums: By path, of the bytes of tensors, as far as known.

  Returns:
    The check; it did not run on models without an embedding.
  """
  title = 'tied weights'
  found = tied_lib.find(model)
  embedding, head = found.embedding, found.head
  if embedding is None:
    return findings.Check(title, 'no embedding of tokens', ran=False)
  scope = found.state.value
  if found.state is tied_lib.State.TWICE and head is not None:
    sums = [(checksums or {}).get(path) for path in (embedding, head)]
    if model.specs[embedding].shape != model.specs[head].shape or (
      None not in sums and sums[0] != sums[1]
    ):
      problem = problems_lib.Problem(
        kind,
        (model.name, head),
        f'differs from {embedding}, though config.json ties them',
        'set tie_word_embeddings to false if the head counts, or else remove '
        'the tensor',
      )
      return findings.Check(title, scope, (problem,))
    known = 'the same' if None not in sums else 'perhaps not the same'
    warning = problems_lib.Problem(
      kind,
      (model.name, head),
      f'is tied to {embedding} and stored as well ({known})',
    )
    return findings.Check(title, scope, warnings=(warning,))
  headless = found.state is tied_lib.State.HEADLESS
  if headless and _is_one_of(model.config, _LANGUAGE_MODELS):
    problem = problems_lib.Problem(
      kind,
      (model.name, 'config.json'),
      'expected an output head, for tie_word_embeddings is false; got no such '
      f'tensor as {embeddings.HEADS[0]}',
      'set tie_word_embeddings to true, or fetch the files again',
    )
    return findings.Check(title, scope, (problem,))
  return findings.Check(title, scope)


def check_vocabulary(
  model: tied_lib.Model, tokens: int | None, kind: problems_lib.Kind
) -> findings.Check:
  """Holds rows of the embedding, `vocab_size` and tokenizer to one another.

  Rows beyond the tokens of the tokenizer are padding, which many models have;
  a token beyond the rows is an index out of range.

  Args:
    model: A checkpoint.
    tokens: The largest token of the tokenizer plus one, or `None`.
    kind: Of the problems.

  Returns:
    The check; it did not run on models without an embedding of tokens.
  """
  title = 'vocabulary'
  embedding = embeddings.find_input(model.specs, model.config)
  if embedding is None:
    return findings.Check(title, 'no embedding of tokens', ran=False)
  rows = model.specs[embedding].shape[0]
  sizes = [size for _, size in embeddings.vocabulary_sizes(model.config)]
  problems = []
  if sizes and rows not in sizes:
    problems.append(
      problems_lib.Problem(
        kind,
        (model.name, embedding),
        f'has {rows} rows, but vocab_size in config.json is {sizes[0]}: '
        'transformers would refuse the model',
        f'set vocab_size to {rows} if the tokenizer agrees',
      )
    )
  if tokens is not None and tokens > rows:
    problems.append(
      problems_lib.Problem(
        kind,
        (model.name, embedding),
        f'has {rows} rows, but the tokenizer has tokens up to {tokens - 1}',
        'use the tokenizer of the model that the embedding is from',
      )
    )
  scope = f'{rows} rows'
  if tokens is not None and tokens < rows:
    scope += f', {rows - tokens} of them padding'
  return findings.Check(title, scope, tuple(problems))


def _tokens(
  model: checkpoint_lib.Checkpoint, kind: problems_lib.Kind
) -> tuple[int | None, tuple[problems_lib.Problem, ...]]:
  """The largest token plus one, and why it is not known."""
  if embeddings.find_input(model.specs, model.config) is None:
    return None, ()
  try:
    found = tokenizer.read(layout.Directory(model.directory, model.name))
  except problems_lib.ProblemError as error:
    return None, tuple(each._replace(kind=kind) for each in error.problems)
  return max(found.tokens.values(), default=-1) + 1, ()


def _shapes_by_name(model: tied_lib.Model) -> dict[str, tuple[int, ...]]:
  """The shapes of tensors whose names say what they are."""
  config, specs = model.config, model.specs
  expected: dict[str, tuple[int, ...]] = {}
  width = _number(config, 'hidden_size', 'n_embd', 'd_model')
  embedding = embeddings.find_input(specs, config)
  if embedding is not None and width:
    # Some factorise the embedding, and say so.
    inner = _number(config, 'embedding_size', 'word_embed_proj_dim') or width
    shape = (specs[embedding].shape[0], inner)
    expected[embedding] = shape
    head = embeddings.find_head(specs, embedding)
    if head is not None:
      expected[head] = shape
  heads = _number(config, 'num_attention_heads')
  if config.get('model_type') not in _PLAIN or not width or not heads:
    return expected
  groups = _number(config, 'num_key_value_heads') or heads
  each = _number(config, 'head_dim') or width // heads
  shapes = {
    'self_attn.q_proj.weight': (heads * each, width),
    'self_attn.k_proj.weight': (groups * each, width),
    'self_attn.v_proj.weight': (groups * each, width),
    'self_attn.o_proj.weight': (width, heads * each),
  }
  inner = _number(config, 'intermediate_size')
  if inner:
    shapes |= {
      'mlp.gate_proj.weight': (inner, width),
      'mlp.up_proj.weight': (inner, width),
      'mlp.down_proj.weight': (width, inner),
    }
  for path in specs:
    match = _LAYER.search(path)
    if match and path[match.end() :] in shapes:
      expected[path] = shapes[path[match.end() :]]
  return expected


def _number(config: Mapping[str, Any], *names: str) -> int | None:
  """The first of some fields that is a positive whole number."""
  for name in names:
    value = config.get(name)
    if type(value) is int and value > 0:
      return value
  return None


def _is_whole(config: Mapping[str, Any]) -> bool:
  """Whether the model is what its family is known by, or does not say."""
  return not any(_architectures(config)) or _is_one_of(config, _WHOLE)


def _is_one_of(config: Mapping[str, Any], endings: tuple[str, ...]) -> bool:
  return any(each.endswith(endings) for each in _architectures(config))


def _architectures(config: Mapping[str, Any]) -> Iterator[str]:
  several = config.get('architectures')
  return (
    each
    for each in (several if isinstance(several, list) else ())
    if isinstance(each, str)
  )
