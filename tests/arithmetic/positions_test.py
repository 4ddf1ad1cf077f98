"""Ids against loops over tokens, names, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import layouts
from arithmetic import positions
from arithmetic import tasks
from arithmetic import tokenizers
from arithmetic import transformer
from tests.arithmetic import literal

TOKENIZER = tokenizers.DigitTokenizer('+')
CLASSES = positions.Classes(
  digits=tuple(TOKENIZER.encode('0123456789')),
  equals=TOKENIZER.encode('=')[0],
  anchors=tuple(TOKENIZER.encode(',=')),
)
KEY = jax.random.key(0)


def tokens_of(*lines):
  """Lines as tokens, always of one shape, so that programs are shared."""
  rows = [TOKENIZER.encode(line.ljust(20)) for line in lines]
  return jnp.asarray(rows + rows[:1] * (40 - len(rows)), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def vectors_of(scheme, tokens, key=None):
  return positions.places(
    scheme, tokens, max_length=20, classes=CLASSES, key=key
  ).vectors


def scheme_of(*ids, order='plain'):
  return positions.Positions(
    vectors='learned',
    vector_ids=ids,
    max_offset=9,
    size=30,
    operand_order=order,
  )


@pytest.mark.parametrize('order', ['plain', 'reversed'])
def test_ids_of_sums_are_those_of_loops(order):
  layout = layouts.Layout(operand_order=order)
  rng = np.random.default_rng(0)
  lines = [
    ''.join(layout.text(tasks.addition, tuple(map(str, pair)), level=3))
    for pair in (rng.random((40, 2)) * [[1000, 50]]).astype(int)
  ]
  tokens = tokens_of(*lines)
  scheme = scheme_of('abacus', 'coupled', order=order)
  found, weights = np.asarray(vectors_of(scheme, tokens))
  drawn, shifted = np.asarray(vectors_of(scheme, tokens, KEY))
  offsets, starts = set(), set()
  for i, line in enumerate(np.asarray(tokens)):
    assert found[i].tolist() == literal.abacus(line, CLASSES)
    assert weights[i].tolist() == literal.coupled(line, CLASSES, order)
    (equals,) = np.flatnonzero(line == CLASSES.equals)
    offset, start = int(drawn[i, equals]), int(shifted[i, equals])
    assert drawn[i].tolist() == literal.abacus(line, CLASSES, offset)
    assert shifted[i].tolist() == literal.coupled(line, CLASSES, order, start)
    offsets.add(offset)
    starts.add(start)
  assert min(offsets) == 0
  assert max(offsets) == 9
  assert min(starts) >= 1
  assert max(starts) > 20
  assert shifted.max() < 30


def test_coupled_ids_as_papers_print_them():
  # Three operands and the sums of the first, of two, and of all.
  tokens = tokens_of('653,049=2070', '57,48,13=75,501,811')
  scheme = scheme_of('coupled', 'numbers')
  (short, weight), (_, number) = vectors_of(scheme, tokens)[:, :2].tolist()
  assert short[:12] == [4, 3, 2, 1, 4, 3, 2, 1, 2, 3, 4, 5]
  assert weight[:19] == [
    *(3, 2, 1, 3, 2, 1, 3, 2, 1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4)
  ]  # fmt: skip
  assert number[:19] == [
    *(1, 1, 1, 2, 2, 2, 3, 3, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
  ]  # fmt: skip
  tokens = tokens_of('75,84,31=75,501,811')
  scheme = scheme_of('coupled', 'numbers', order='reversed')
  found = np.asarray(vectors_of(scheme, tokens)[1, :, :19])
  assert found[0, :9].tolist() == [1, 1, 2, 2, 2, 3, 3, 3, 1]
  starts = np.asarray(vectors_of(scheme, tokens, KEY)[1, :, :19])
  np.testing.assert_array_equal(starts - starts[:, :1], found - 1)
  assert 25 < starts.max() < 30
  assert 1 <= starts.min() < 5


def test_numbers_at_the_ends_of_lines():
  ids = vectors_of(scheme_of('abacus', 'coupled'), tokens_of('12,3', '++47'))
  assert ids[0, 0].tolist() == [1, 2, 0, 1] + [0] * 16
  assert ids[0, 1, :4].tolist() == [0, 0, 1, 2]


def test_later_turns_repeat_the_ids_of_the_first():
  tokens = tokens_of('12,34,0=5,11=6,7=8', '1=23,4=5', '12,34')
  found = vectors_of(scheme_of('turns'), tokens)[0].tolist()
  assert found[0] == [*range(9), *(5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 10)]
  assert found[1][:8] == [0, 1, 2, 3, 0, 1, 2, 3]
  assert found[2][:5] == [0, 1, 2, 3, 4]
  plain = positions.Classes(digits=(1, 2), equals=3)
  with pytest.raises(ValueError, match='turns begin with an anchor'):
    positions.get('turns').check(9, plain)


def test_random_starts_and_samples_are_uniform():
  starts = positions.ids.random_start(KEY, 6000, 3, size=8)
  np.testing.assert_array_equal(jnp.diff(starts, axis=1), 1)
  counts = np.bincount(starts[:, 0], minlength=6)
  assert len(counts) == 6
  assert abs(counts - 1000).max() < 5 * np.sqrt(1000)
  sets = positions.ids.randomised(KEY, 6000, 2, size=4)
  found = dict.fromkeys(itertools.combinations(range(4), 2), 0)
  for pair in sets.tolist():
    found[tuple(pair)] += 1
  assert abs(np.asarray(list(found.values())) - 1000).max() < 5 * np.sqrt(1000)


def test_even_spacing_does_not_depend_on_the_array():
  scheme = positions.get('randomised+fire')
  short, long = (
    positions.places(scheme, tokens_of('1')[:, :n], max_length=8).attention
    for n in (3, 8)
  )
  assert long.tolist() == [[0, 128, 256, 384, 512, 640, 768, 896]]
  np.testing.assert_array_equal(short, long[:, :3])


def test_one_scheme_draws_the_same_for_vectors_and_attention():
  found = positions.places(
    positions.get('randomised+learned+rotary'),
    tokens_of('123', '456'),
    max_length=20,
    key=KEY,
  )
  np.testing.assert_array_equal(found.vectors[0], found.attention)
  assert found.attention[0].tolist() != found.attention[1].tolist()


@pytest.mark.parametrize(
  'name', [w for w in positions.WORDS if w != 'randomised']
)
def test_names_are_what_they_say(name):
  scheme = positions.get(name)
  assert positions.get(scheme) is scheme
  assert name == 'none' or scheme.used_ids
  if 'plain' in scheme.used_ids:
    assert positions.get(f'randomised+{name}') == positions.get(
      f'{name}+randomised'
    )


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('learnt', "got 'learnt'; did you mean 'learned'"),
    ('abacus,fire', r'joined by \+'),
    ('alibi+fire', 'two things at once'),
    ('sinusoidal+abacus', 'two things at once'),
    ('abacus+abacus', 'names one twice'),
    ('none+fire', 'two things at once'),
    ('randomised', 'no plain ids to draw'),
    ('randomised+abacus', 'no plain ids to draw'),
  ],
)
def test_names_that_mean_nothing(name, message):
  with pytest.raises(ValueError, match=message):
    positions.get(name)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'vectors': 'learnd'}, "got 'learnd'; did you mean 'learned'"),
    ({'attention': 'rope'}, "got 'rope'"),
    ({'vectors': 'learned', 'vector_ids': ()}, 'vector_ids is empty'),
    ({'vector_ids': ('abacus',)}, 'no effect while vectors is none'),
    ({'attention_ids': 'randomised'}, 'no effect while attention is none'),
    ({'attention': 'fire', 'attention_ids': 'abacus'}, 'increase along a line'),
    ({'buckets': 32, 'max_distance': 16}, 'below twice max_distance'),
    ({'size': 0}, 'size is at least 1'),
    ({'max_offset': -1}, 'max_offset is at least 0'),
    ({'base': 1.0}, 'base is above 1'),
    ({'hidden': 0}, 'hidden is at least 1'),
  ],
)
def test_bad_positions(fields, message):
  with pytest.raises(ValueError, match=message):
    positions.Positions(**fields)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'positions': 'abacus'}, 'classes is missing: abacus'),
    (
      {'positions': 'coupled', 'classes': positions.Classes(digits=(1, 2))},
      'classes.equals is missing',
    ),
    (
      {'positions': 'abacus', 'classes': positions.Classes(digits=(1, 99))},
      'token 99 of a vocabulary of 14',
    ),
    (
      {'positions': positions.Positions(vectors='learned', size=7)},
      'of 7 ids are too few: plain ids of lines of up to 9 tokens can need 9',
    ),
    ({'positions': 'rotary', 'width': 6}, 'rotary .* width 3 is odd'),
  ],
)
def test_positions_that_do_not_fit_a_decoder(fields, message):
  with pytest.raises(ValueError, match=message):
    transformer.Config(
      **{'vocabulary_size': 14, 'max_length': 9, 'heads': 2, **fields}
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'digits': ()}, 'no token is part of a number'),
    ({'digits': (1, 2), 'equals': -1}, 'not negative'),
    (
      {'digits': (1, 2), 'anchors': (2, 3)},
      r'tokens \[2\] are digits and marks',
    ),
  ],
)
def test_bad_classes(fields, message):
  with pytest.raises(ValueError, match=message):
    positions.Classes(**fields)


def test_rotary_scores_depend_on_differences_only():
  x = np.random.default_rng(0).normal(size=(1, 2, 1, 8)).astype(np.float32)

  @jax.jit
  def score(shift):
    places = jnp.asarray([[shift, shift + 3]])
    y = positions.rotate(x, places)
    return jnp.vdot(y[0, 0, 0], y[0, 1, 0])

  np.testing.assert_allclose(score(0), score(17), rtol=1e-4)


@pytest.mark.parametrize('count', [8, 32])
def test_buckets_are_those_of_t5(count):
  """Each bucket's first distance, from the formula solved for the distance."""
  table = jnp.arange(count, dtype=jnp.float32)[:, None]
  distance = jnp.arange(200)[None, None]
  found = positions.biases.t5(distance, table)[0, 0, 0]
  half = count // 2
  first = [*range(half)]
  first += [half * (128 / half) ** (k / half) for k in range(half)]
  expected = np.sum(
    np.arange(200)[:, None] >= np.ceil(np.asarray(first) - 1e-9)[None], axis=1
  )
  np.testing.assert_array_equal(found, expected - 1)


def test_kerple_is_bounded_and_differentiable_at_distance_zero():
  distance = jnp.asarray([[[0, 1, 5]]])

  def total(scale, power):
    terms = positions.biases.kerple_power(distance, scale, power)
    return jnp.sum(terms)

  low, high = jnp.asarray([-1.0]), jnp.asarray([3.0])
  value, gradient = jax.value_and_grad(total, (0, 1))(low, high)
  np.testing.assert_allclose(value, -0.01 * (1 + 25), rtol=1e-5)
  np.testing.assert_allclose(gradient[0], [-26.0], rtol=1e-5)
  np.testing.assert_allclose(gradient[1], [-0.01 * 25 * np.log(5)], rtol=1e-5)
