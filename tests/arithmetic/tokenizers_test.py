"""Tokens on the device equal tokens in Python, and text comes back."""

import re

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import layouts
from arithmetic import tasks
from arithmetic import tokenizers
from tests.arithmetic import lines

SYMBOLS = '+-.'
CHUNKS = {
  f'{size} from {start}, then {answer}': tokenizers.ChunkTokenizer(
    SYMBOLS, size=size, start=start, answer_start=answer
  )
  for size, start, answer in [
    (1, 'left', None),
    (2, 'right', 'left'),
    (3, 'left', None),
    (3, 'right', None),
    (4, 'left', 'right'),
  ]
}


def test_round_trip_and_errors():
  tokenizer = tokenizers.DigitTokenizer('+')
  assert tokenizer.decode(tokenizer.encode('+12,3=51$ ')) == '+12,3=51$ '
  assert tokenizer.vocabulary_size == len(set(tokenizer.characters)) == 15
  with pytest.raises(ValueError, match="no token for 'x'"):
    tokenizer.encode('1x')
  with pytest.raises(ValueError, match="'='"):
    tokenizers.DigitTokenizer('+=')
  with pytest.raises(ValueError, match="'\\+'"):
    tokenizers.DigitTokenizer('++')
  with pytest.raises(ValueError, match='size=6'):
    tokenizers.ChunkTokenizer('+', size=6)
  with pytest.raises(ValueError, match=r"answer_start is .* got 'middle'"):
    tokenizers.ChunkTokenizer('+', answer_start='middle')  # pyrefly: ignore


def test_tokenizers_by_name():
  assert tokenizers.get('digits', '+') == tokenizers.DigitTokenizer('+')
  assert tokenizers.get('left2', '+') == tokenizers.ChunkTokenizer(
    '+', size=2, start='left'
  )
  assert tokenizers.get('right3-left3', '') == tokenizers.ChunkTokenizer(
    '', size=3, start='right', answer_start='left'
  )
  for name in ('digit', 'right', 'right6', 'right3-left2', 'middle3'):
    with pytest.raises(ValueError, match=f"got '{name}'"):
      tokenizers.get(name, '')


def _literal(text, size, start):
  """Chunks by thousands separators, or by a greedy regular expression."""
  if start == 'left':
    return re.findall(f'[0-9]{{1,{size}}}|[^0-9]', text)
  # From the right: cut the reversed text from the left.
  return [x[::-1] for x in _literal(text[::-1], size, 'left')][::-1]


@pytest.mark.parametrize('name', CHUNKS)
@hypothesis.settings(max_examples=60)
@hypothesis.given(
  text=st.text('0123456789' * 3 + ' ,=$+', min_size=1, max_size=30)
)
def test_chunks_are_cut_where_they_should_be(name, text):
  tokenizer = CHUNKS[name]
  prompt, mark, answer = text.partition('=')
  expected = _literal(prompt, tokenizer.size, tokenizer.start) + [mark] * bool(
    mark
  )
  expected += _literal(
    answer, tokenizer.size, tokenizer.answer_start or tokenizer.start
  )
  assert tokenizer.split(text) == expected
  ids = tokenizer.encode(text)
  assert [tokenizer.vocabulary[i] for i in ids] == expected
  assert tokenizer.decode(ids) == text


@pytest.mark.parametrize('name', CHUNKS)
def test_chunks_on_the_device(name):
  tokenizer, width = CHUNKS[name], 24
  rng = np.random.default_rng(0)
  letters = np.asarray(list('0123456789' * 4 + ' ,=$+'))
  texts = [''.join(rng.choice(letters, n)) for n in rng.integers(1, 25, 300)]
  characters = np.zeros((300, width), np.int32)
  for i, text in enumerate(texts):
    characters[i, : len(text)] = [tokenizer.characters.index(c) for c in text]
  write = jax.jit(tokenizer.from_characters)
  tokens, place = map(np.asarray, write(jnp.asarray(characters)))
  for i, text in enumerate(texts):
    # Blanks at the end are no part of a line.
    split = tokenizer.split(text.rstrip())
    ids = tokenizer.encode(text.rstrip())
    np.testing.assert_array_equal(tokens[i], ids + [0] * (width - len(ids)))
    starts = np.cumsum([0, *map(len, split)])[:-1]
    if tokenizer.size > 1:
      np.testing.assert_array_equal(place[i, : len(ids)], starts)
      assert (place[i, len(ids) :] == width).all()


@pytest.mark.parametrize('name', CHUNKS)
def test_lines_of_chunks(name):
  # Equal numbers of digits, reversed answers, signs, and blanks that fill up.
  tokenizer = CHUNKS[name]
  layout = layouts.Layout(notation='infix')
  lines.check_lines(layout, tasks.signed_subtraction, tokenizer, level=5)


def test_share_of_pairs_whose_chunks_have_the_same_weights():
  def weights(tokenizer, digits):
    """The weights at which the chunks of a number begin, from the right."""
    sizes = [len(x) for x in tokenizer.split('9' * digits)][::-1]
    return np.cumsum([0, *sizes[:-1]]).tolist()

  def aligned(start):
    tokenizer = tokenizers.ChunkTokenizer('', size=3, start=start)
    pairs = [
      (weights(tokenizer, n), weights(tokenizer, m))
      for n in range(1, 21)
      for m in range(1, 21)
    ]
    return sum(x[: len(y)] == y[: len(x)] for x, y in pairs)

  # 134 pairs have lengths that are equal modulo three; among the others are
  # those in which a number is one chunk.
  assert aligned('right') == 400
  assert 134 <= aligned('left') < 240


def test_classes_say_what_tokens_are():
  tokenizer = tokenizers.ChunkTokenizer('+', size=2)
  classes = tokenizer.classes
  assert len(classes.digits) == tokenizer.vocabulary_size == 115
  for i, text in enumerate(tokenizer.vocabulary):
    assert classes.digits[i] == (len(text) if text.isdigit() else 0)
    assert classes.separator[i] == (text == ',')
    assert classes.equals[i] == (text == '=')
    assert classes.end[i] == (text == '$')
    assert classes.padding[i] == (text == ' ')
