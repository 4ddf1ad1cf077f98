"""Models to run: weights in Hugging Face's names, and functions of them.

A model is a flat mapping of arrays by the names of its file, and pure functions
that take any such mapping. So a merged model runs as it is, and `jax.jit`,
`jax.vmap` over stacked weights and `jax.grad` apply:

    base = models.load('path/to/base')
    experts = {'math': models.load('path/to/math').params, ...}
    merged = merging.merge(merging.ties(), base.params, experts)
    models.perplexity(base.apply, merged, tokens)
"""

from third_party.huggingface.models.clip import normalize as normalize
from third_party.huggingface.models.decoding import Decoder as Decoder
from third_party.huggingface.models.decoding import greedy as greedy
from third_party.huggingface.models.evaluation import perplexity as perplexity
from third_party.huggingface.models.evaluation import (
  token_losses as token_losses,
)
from third_party.huggingface.models.evaluation import zero_shot as zero_shot
from third_party.huggingface.models.loading import check as check
from third_party.huggingface.models.loading import (
  expected_specs as expected_specs,
)
from third_party.huggingface.models.loading import load as load
from third_party.huggingface.models.loading import Model as Model
from third_party.huggingface.models.loading import MODEL_TYPES as MODEL_TYPES
