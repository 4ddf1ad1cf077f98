"""Merges Hugging Face checkpoints by a recipe, in bounded memory.

    python -m experiments.merge RECIPE.yml OUT
    python -m experiments.merge RECIPE.yml OUT --plan

RECIPE is a YAML of mergekit, or names transforms of `merging` (see
docs/checkpoints.md). OUT appears whole or not at all; a run that was stopped
goes on with --resume. Exit status: 0 done, 2 recipe or flags, 3 a file is not
sound, 4 models do not fit, 5 disk or memory, 6 the output failed verification.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.runtime import cli

# What people type who know mergekit-yaml.
_NEEDLESS = 'it is not needed here: leave it out'
_DEVICE = 'JAX takes its default device: leave it out'
_NEVER = 'no code of a model is ever run: leave it out'
_OF_MERGEKIT = {
  **dict.fromkeys(
    (
      *('copy-tokenizer', 'write-model-card', 'safe-serialization'),
      *('lazy-unpickle', 'low-cpu-memory', 'async-write', 'clone-tensors'),
      *('lora-merge-cache', 'lora-merge-dtype'),
    ),
    _NEEDLESS,
  ),
  **dict.fromkeys(
    ('cuda', 'device', 'multi-gpu', 'read-to-gpu', 'gpu-rich'), _DEVICE
  ),
  'trust-remote-code': _NEVER,
  'unsafe-truncate-embeddings': 'say tokenizer: in the recipe',
  'allow-crimes': 'say what is meant with --extra, tokenizer: or slices:',
  'out-shard-size': 'say --shard_size, in bytes',
  'random-seed': 'say --seed',
  'write-threads': 'say --workers',
  'j': 'say --workers',
  'transformers-cache': 'set HF_HUB_CACHE in the environment',
}

_PLAN = flags.DEFINE_bool(
  'plan', False, 'Say what would be done, from headers alone, and end.'
)
_JSON = flags.DEFINE_bool('json', False, 'Print the plan or report as JSON.')
_MAX_MEMORY = flags.DEFINE_string(
  'max_memory',
  None,
  'Memory the process may take, such as 2GB; by default what the largest tensor'
  ' needs.',
)
_FORMAT = flags.DEFINE_enum(
  'format',
  'huggingface',
  ['huggingface', 'orbax'],
  'What to write; Orbax has no --resume.',
)
_SHARD_SIZE = flags.DEFINE_string(
  'shard_size', '5GB', 'Most bytes of tensors in a file.'
)
_WORKERS = flags.DEFINE_integer(
  'workers', None, 'Threads; one more than processors by default.', 1
)
_RESUME = flags.DEFINE_bool('resume', False, 'Continue a run that was stopped.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a model at OUT.')
_SEED = flags.DEFINE_integer(
  'seed', None, 'What random methods draw from; 0 by default.', 0
)
_EXTRA = flags.DEFINE_enum(
  'extra',
  'error',
  ['error', 'base', 'drop', 'keep'],
  'What becomes of tensors that not all models have.',
)
_UNTIE = flags.DEFINE_bool(
  'untie', False, 'Give models with tied embeddings an output head each.'
)
_STRICT = flags.DEFINE_bool('strict', False, 'Refuse what is doubtful.')
_ALLOW_NONFINITE = flags.DEFINE_bool(
  'allow_nonfinite', False, 'Merge NaN and infinities like numbers.'
)
_MODEL_PATH = flags.DEFINE_multi_string(
  'model_path', [], 'NAME=DIR: where a model of the recipe lies.'
)
_VERIFY = flags.DEFINE_enum(
  'verify',
  'quick',
  ['quick', 'full'],
  'Whether to read all values of the output again.',
)
_HASH = flags.DEFINE_enum(
  'hash',
  'known',
  ['known', 'full'],
  'SHA-256 of input files in the report: those that the Hub gave, or of all,'
  ' which reads them once more.',
)


def main(argv: Sequence[str]) -> None:
  """Plans or carries out one merge."""
  # Here, so that --help is quick.
  from experiments.checkpoints import command

  command.merge(
    Path(argv[1]),
    Path(argv[2]),
    command.Flags(
      plan=_PLAN.value,
      json=_JSON.value,
      max_memory=_MAX_MEMORY.value,
      format=_FORMAT.value,
      shard_size=_SHARD_SIZE.value,
      workers=_WORKERS.value,
      resume=_RESUME.value,
      overwrite=_OVERWRITE.value,
      seed=_SEED.value,
      extra=_EXTRA.value,
      untie=_UNTIE.value,
      strict=_STRICT.value,
      allow_nonfinite=_ALLOW_NONFINITE.value,
      model_paths=_MODEL_PATH.value,
      full_verify=_VERIFY.value == 'full',
      hash=_HASH.value,
    ),
  )


if __name__ == '__main__':
  cli.run(
    main,
    arguments=['RECIPE', 'OUT'],
    when_stopped='the target is as it was; --resume may continue',
    elsewhere=_OF_MERGEKIT,
  )
