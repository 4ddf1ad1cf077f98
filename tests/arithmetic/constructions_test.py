"""A decoder that adds by construction, through layout, decoding and scoring."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import constructions
from arithmetic import decoding
from arithmetic import evaluation
from arithmetic import layouts
from arithmetic import tasks
from arithmetic import tokenizers
from arithmetic import transformer

TOKENIZER = tokenizers.DigitTokenizer('+')


def adder(width, **options):
  digits, (separator, equals, end) = (
    TOKENIZER.encode(text) for text in ('0123456789', ',=$')
  )
  return constructions.adder(
    width,
    **{
      'digits': digits,
      'separator': separator,
      'equals': equals,
      'end': end,
      'vocabulary_size': TOKENIZER.vocabulary_size,
      **options,
    },
  )


def check(pairs, width, order):
  """Everything that is written, against Python's integers."""
  layout = layouts.Layout(operand_order=order, pad=True)
  config, params = adder(width, operand_order=order)
  lines = [
    layout.text(tasks.addition, (str(a), str(b)), level=width) for a, b in pairs
  ]
  start = len(lines[0][0])
  assert {len(prompt) for prompt, _ in lines} == {start}
  tokens = jnp.asarray(
    [TOKENIZER.encode(prompt + answer) for prompt, answer in lines]
  )

  starts = jnp.full(len(tokens), start)
  written = jax.jit(
    functools.partial(decoding.generate, config=config, prefill=start)
  )(params, tokens, starts)
  np.testing.assert_array_equal(written, tokens)
  for (a, b), (_, answer) in zip(pairs, lines, strict=True):
    assert answer == f'{a + b:0{width + 1}}'[::-1] + '$'


def test_all_sums_of_two_digits_are_right():
  check(list(itertools.product(range(100), repeat=2)), 2, 'plain')


def test_long_sums_are_right():
  rng = np.random.default_rng(0)
  numbers = [
    int(''.join(map(str, x))) for x in rng.integers(10, size=(200, 30))
  ]
  nines = 10**30 - 1
  # Carries that ripple through all digits, or stop in the middle.
  extra = [(nines, 1), (nines, nines), (0, 0), (nines - 10**15, 10**15 + 1)]
  check(
    [*zip(numbers[::2], numbers[1::2], strict=True), *extra], 30, 'reversed'
  )


def test_it_is_a_decoder_that_is_scored_as_any_other():
  config, params = adder(2)
  shapes = jax.eval_shape(
    lambda key: transformer.init(key, config), jax.random.key(0)
  )
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  # 31 + 75 = 106, another sum, and no end.
  lines = ['+13,57=601$', '+13,57=611$', '+13,57=6010']
  tokens = jnp.asarray([TOKENIZER.encode(line) for line in lines])
  batch = layouts.Batch(
    tokens, jnp.broadcast_to(jnp.arange(11) > 6, tokens.shape)
  )
  apply = jax.jit(functools.partial(transformer.apply, config=config))
  logits = apply(params, tokens[:, :-1])
  right = evaluation.exact_match(logits, batch)
  assert right.tolist() == [True, False, False]


def test_errors():
  with pytest.raises(ValueError, match='ten different tokens'):
    adder(2, digits=[1, 2, 3])
  with pytest.raises(ValueError, match='width is at least 1'):
    adder(0)
