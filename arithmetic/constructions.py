"""Parameters made by hand, of decoders that are right by construction.

They are oracles: what trains, decodes and scores them has no excuse.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import positions as position_schemes
from arithmetic import transformer

# The score of a key that matches, beside one of 0: e^-60 is no share at all.
_MATCH = 60.0
# What root-mean-square norms add to the mean square.
_EPSILON = 1e-6


def adder(
  width: int,
  *,
  digits: Sequence[int],
  separator: int,
  equals: int,
  end: int,
  vocabulary_size: int,
  operand_order: position_schemes.ids.Order = 'reversed',
) -> tuple[transformer.Config, transformer.Params]:
  """One block with two heads that adds two numbers exactly.

  Lines are those of `Layout(pad=True)`, with answers written least significant
  digit first. Positions are coupled: digits of weight 10^k have the id k + 2.
  At an answer's digit s of weight 10^k, one head averages the digits there, a,
  b and s itself, and the other those of the next weight, a' and b', or looks at
  the first token if there are none. What a + b - s can be, -1 or 0 without and
  9 or 10 with a carry, tells the carry, so that the perceptron finds the next
  digit, a' + b' and carry modulo 10, from z = 20 (a' + b') + (a + b - s) alone:
  the sum is the number of j >= 1 with z >= 20 j - 15. Norms only scale, which
  ReLUs pass on and the largest logit does not feel.

  That one layer suffices with coupled positions is a theorem of Cho et al.,
  2024, arXiv:2405.20671; this proof, which reads the carry off the digit that
  was just written, is shorter than theirs.

  Args:
    width: Digits of each operand, as padded; at least 1.
    digits: The tokens of the digits 0 to 9.
    separator: The token between the operands.
    equals: The token before the answer.
    end: The token behind it.
    vocabulary_size: How many tokens there are.
    operand_order: How operands are written.

  Returns:
    The decoder's `Config` and its parameters, as `init` would give them.

  Raises:
    ValueError: If there are not ten digits, or a width below 1.

  Examples:
    >>> import jax, jax.numpy as jnp
    >>> from arithmetic import decoding, tokenizers
    >>> tokenizer = tokenizers.DigitTokenizer('+')
    >>> config, params = adder(
    ...   3,
    ...   digits=tokenizer.encode('0123456789'),
    ...   separator=tokenizer.encode(',')[0],
    ...   equals=tokenizer.encode('=')[0],
    ...   end=tokenizer.encode('$')[0],
    ...   vocabulary_size=tokenizer.vocabulary_size,
    ... )
    >>> prompt = jnp.asarray([tokenizer.encode('+759,860=     ')])
    >>> line = decoding.generate(
    ...   params, prompt, jnp.asarray([9]), config=config
    ... )
    >>> tokenizer.decode(line[0])  # 957 + 68 = 1025
    '+759,860=5201$'
  """
  if len(set(digits)) != 10:
    raise ValueError(f'digits are ten different tokens, got {list(digits)}')
  if width < 1:
    raise ValueError(f'width is at least 1, got {width}')
  max_length = 3 * width + 5
  ids = width + 3
  # Features of the stream: one of each token, one of each id, a constant, the
  # averages that the heads find, and logits.
  token, place = np.arange(vocabulary_size), vocabulary_size + np.arange(ids)
  one, here, following = vocabulary_size + ids + np.arange(3)
  logit = following + 1 + np.arange(11)
  features = max(int(logit[-1]) + 1, 2 * ids)
  features += features % 2
  config = transformer.Config(
    vocabulary_size=vocabulary_size,
    max_length=max_length,
    layers=1,
    heads=2,
    width=features,
    hidden_ratio=-(-(2 * 19 + 1) // features),
    positions=position_schemes.Positions(
      vectors='learned',
      vector_ids=('coupled',),
      size=max_length + 1,
      operand_order=operand_order,
    ),
    classes=position_schemes.Classes(
      digits=tuple(digits), equals=equals, anchors=(separator, equals)
    ),
    activation='relu',
  )
  values = np.zeros(features)
  values[list(digits)] = np.arange(10)

  embedding = np.zeros((vocabulary_size, features))
  embedding[token, token] = embedding[:, one] = 1
  table = np.zeros((max_length + 1, features))
  table[np.arange(ids), place] = 1

  # Every token has three features of 1, which the norm divides by their root
  # mean square.
  norm = np.sqrt(3 / features + _EPSILON)
  packed = np.zeros((features, 3, 2, config.head_width))
  sharp = _MATCH * norm**2 * np.sqrt(config.head_width)
  for i in range(ids):
    packed[place[i], 0, 0, i] = sharp
    if i + 1 < ids:
      packed[place[i], 0, 1, i + 1] = sharp
    packed[place[i], 0, 1, 0] += sharp / 2
    packed[place[i], 1, :, i] = 1
  packed[:, 2, :, 0] = values[:, None] * norm
  output = np.zeros((2, config.head_width, features))
  output[0, 0, here] = output[1, 0, following] = 1

  # z = 40 following + 3 here - 2 s, and a step at 20 j - 15 for each j.
  hidden = config.hidden_ratio * features
  up, down = np.zeros((features, hidden)), np.zeros((hidden, features))
  for j in range(1, 20):
    for k, (edge, sign) in enumerate(((20 * j - 16, 1), (20 * j - 15, -1))):
      unit = 2 * (j - 1) + k
      up[:, unit] = -2 * values
      up[following, unit], up[here, unit], up[one, unit] = 40, 3, -edge
      down[unit, logit[j % 10]] += sign
      down[unit, logit[(j - 1) % 10]] -= sign
  # The first digit's logit starts at 1, and behind the last comes the end.
  up[one, -1] = 1
  down[-1, logit[0]] = 1
  up[place[-1], -2] = 1
  down[-2, logit[10]] = 10

  unembedding = np.zeros((features, vocabulary_size))
  unembedding[logit, [*digits, end]] = 1
  ones = {'scale': np.ones(features)}

  def dense(kernel: np.ndarray) -> transformer.Params:
    return {'kernel': kernel, 'bias': np.zeros(kernel.shape[1])}

  params = {
    'embedding': {'embedding': embedding},
    'positions': table,
    'blocks_0': {
      'attention_norm': ones,
      'attention': {
        'query_key_value': dense(packed.reshape(features, -1)),
        'output': dense(output.reshape(features, -1)),
      },
      'perceptron_norm': ones,
      'up': dense(up),
      'down': dense(down),
    },
    'norm': ones,
    'unembedding': {'kernel': unembedding},
  }
  return config, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
