"""A cache changes the time that decoding takes, and nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import decoding
from arithmetic import positions
from arithmetic import transformer

CONFIG = transformer.Config(
  vocabulary_size=12,
  max_length=14,
  layers=1,
  heads=2,
  width=16,
  classes=positions.Classes(digits=tuple(range(1, 9)), equals=10, anchors=(9,)),
)
# Numbers, a comma (9), an equals sign (10), and what is to be written.
PROMPTS = jnp.asarray(
  [
    [1, 2, 9, 3, 4, 10, 0, 0, 0, 0, 0, 0, 0, 0],
    [5, 9, 6, 10, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
    [1, 2, 3, 9, 4, 5, 6, 10, 1, 1, 1, 1, 1, 1],
    [8, 9, 8, 10, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0],
  ]
)
STARTS = jnp.asarray([6, 4, 8, 6])
GENERATE = jax.jit(
  decoding.generate,
  static_argnames=(
    'config', 'prefill', 'end', 'loops', 'temperature', 'top_k'
  ),
)  # fmt: skip


@functools.partial(jax.jit, static_argnames=('config', 'loops'))
def slowly(params, *, config, loops=None):
  logits_fn = functools.partial(
    transformer.apply, params, config=config, loops=loops
  )
  return decoding.greedy(logits_fn, PROMPTS, STARTS)


def model(scheme='learned', seed=0, **changes):
  """A decoder drawn apart from `init`, to which each token matters much."""
  config = dataclasses.replace(CONFIG, positions=scheme, **changes)
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(
    functools.partial(transformer.init, config=config), jax.random.key(0)
  )
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.7).astype(np.float32), shapes
  )
  params['embedding']['embedding'] *= 4
  return params, config


@pytest.mark.parametrize(
  ('scheme', 'changes', 'options'),
  [
    ('learned', {}, {'prefill': 4}),
    ('abacus+rotary', {'loops': 2, 'inject': True}, {'loops': 3}),
    ('coupled+kerple_log', {'dtype': 'bfloat16'}, {}),
    pytest.param('none', {}, {}, marks=pytest.mark.slow),
    pytest.param('sinusoidal+alibi', {}, {}, marks=pytest.mark.slow),
    pytest.param('rotary', {}, {'prefill': 4}, marks=pytest.mark.slow),
    pytest.param('t5', {'loops': 2}, {}, marks=pytest.mark.slow),
    pytest.param('kerple_power', {}, {}, marks=pytest.mark.slow),
    pytest.param('abacus+fire', {}, {'prefill': 3}, marks=pytest.mark.slow),
    pytest.param('randomised+fire', {}, {}, marks=pytest.mark.slow),
    pytest.param('multilevel', {}, {'prefill': 4}, marks=pytest.mark.slow),
  ],
)
def test_cached_decoding_writes_what_greedy_writes(scheme, changes, options):
  seen = set()
  for seed in range(3):
    params, config = model(scheme, seed, **changes)
    loops = options.get('loops')
    expected = slowly(params, config=config, loops=loops)
    written = GENERATE(params, PROMPTS, STARTS, config=config, **options)
    np.testing.assert_array_equal(written, expected)
    given = jnp.arange(14)[None] < STARTS[:, None]
    np.testing.assert_array_equal(
      jnp.where(given, written, 0), jnp.where(given, PROMPTS, 0)
    )
    seen |= set(np.asarray(written)[:, 8:].ravel().tolist())
  assert len(seen) > 2


def test_an_end_mark_ends_a_line():
  params, config = model()
  whole = np.asarray(GENERATE(params, PROMPTS, STARTS, config=config))
  end = int(whole[0, 8])
  found = GENERATE(params, PROMPTS, STARTS, config=config, end=end)
  for line, start, ended in zip(whole, STARTS, np.asarray(found), strict=True):
    places = np.flatnonzero((line == end) & (np.arange(14) >= start))
    stop = places[0] + 1 if len(places) else 14
    np.testing.assert_array_equal(ended[:stop], line[:stop])
    np.testing.assert_array_equal(ended[stop:], 0)
  assert not np.array_equal(found, whole)


def test_drawn_tokens_follow_the_tempered_distribution():
  params, config = model()
  prompts = jnp.tile(PROMPTS[:1], (4000, 1))[:, :7]
  drawn = GENERATE(
    params,
    prompts,
    jnp.full(4000, 6),
    config=config,
    temperature=2.0,
    top_k=3,
    key=jax.random.key(0),
    prefill=6,
  )[:, 6]
  logits = transformer.apply(params, PROMPTS[:1, :6], config=config)[0, 5]
  likeliest = np.argsort(logits)[::-1][:3]
  weights = np.exp(np.asarray(logits)[likeliest] / 2.0)
  expected = np.zeros(12)
  expected[likeliest] = weights / weights.sum()
  share = np.bincount(drawn, minlength=12) / 4000
  deviation = np.sqrt(expected * (1 - expected) / 4000)
  assert (np.abs(share - expected) <= 5 * deviation).all()
  assert (share[likeliest] > 0).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'prefill': 0}, 'prefill is from 1 to the 14 tokens of a line, got 0'),
    ({'temperature': -1.0}, 'temperature is at least 0'),
    ({'temperature': 0.8}, 'key is missing'),
    ({'top_k': 0}, 'top_k is at least 1'),
  ],
)
def test_bad_options(options, message):
  params, config = model()
  with pytest.raises(ValueError, match=message):
    decoding.generate(params, PROMPTS, STARTS, config=config, **options)


def test_lines_that_do_not_fit():
  params, config = model()
  with pytest.raises(ValueError, match='lines of 28 tokens do not fit'):
    decoding.generate(params, jnp.tile(PROMPTS, (1, 2)), STARTS, config=config)


def test_tokens_told_in_between_are_read_and_not_written():
  params, config = model('learned')
  given = np.zeros(PROMPTS.shape, bool)
  given[:, [8, 9, 12]] = True
  prompts = np.where(given, 5, PROMPTS)

  @jax.jit
  def run(params):
    written = decoding.generate(
      params, jnp.asarray(prompts), STARTS, config=config, given=given
    )
    return written, transformer.apply(params, written, config=config)

  written, logits = map(np.asarray, run(params))
  told = given | (np.arange(14) < np.asarray(STARTS)[:, None])
  np.testing.assert_array_equal(written[told], prompts[told])
  # All else is what one pass over the line finds likeliest.
  likeliest = logits.argmax(axis=-1)[:, :-1]
  own = ~told[:, 1:]
  np.testing.assert_array_equal(written[:, 1:][own], likeliest[own])
