"""Training and decoding of small decoders, in turns with nanoGPT.

The same shapes, as many random tokens a step, float32 and all threads on both
sides; only whole steps are timed, behind a first round that compiles. The
limit is how fast this machine multiplies two matrices of 1024 by 1024.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from arithmetic import decoding
from arithmetic import population
from arithmetic import training
from arithmetic import transformer
from experiments.benchmarks import turns as turns_lib
from experiments.runtime import config as config_lib
from third_party.peers import client

_STREAM = 1_000_000  # Tokens that lines are cut from.


class Case(NamedTuple):
  """A decoder and how it is trained in one turn.

  Attributes:
    layers: Of the decoder, as are `heads` and `width`.
    heads: Attention heads.
    width: Features.
    length: Tokens a line.
    batch: Lines a step.
    steps: Steps a turn.
    models: How many models are trained.
    vocabulary: Different tokens.
  """

  layers: int
  heads: int
  width: int
  length: int
  batch: int
  steps: int
  models: int = 1
  vocabulary: int = 64

  @property
  def tokens(self) -> int:
    """Tokens that are learned in one turn."""
    return self.models * self.steps * self.batch * self.length


TRAINED: Mapping[str, Case] = {
  'laboratory': Case(2, 4, 96, 16, 128, 20),
  'small': Case(2, 4, 128, 32, 256, 6),
  'paper': Case(6, 6, 384, 256, 8, 2),
}
_POPULATION = Case(2, 2, 64, 16, 32, 20, models=16)
_PROMPT, _ANSWER, _BATCH, _PROMPTS = 8, 5, 1_024, 10_240
NAMES = (*TRAINED, 'population', 'decoding')

Programs = Mapping[str, Callable[[], turns_lib.Time]]


def run(*, names: Sequence[str], repeats: int, peer: str) -> None:
  """Prints a table.

  Args:
    names: Which rows, of `NAMES`; all if none.
    repeats: Turns.
    peer: The environment that has nanoGPT (see `turns.peer`).
  """
  for name in names:
    config_lib.choose('row', name, dict.fromkeys(NAMES))
  with turns_lib.peer('nanogpt', peer) as nanogpt:
    if nanogpt is not None:
      print(f'nanoGPT with torch {nanogpt.versions["torch"]}', end='; ')
    limit = _multiplications(repeats)
    print(
      f'{turns_lib.machine()}; {limit / 1e9:.0f} GFLOP/s in a product of'
      f' matrices; {repeats} turns, median [range]\n'
    )
    turns_lib.row(
      *('case', 'program', 'ms a step, wall', 'CPU', 'tokens/s'),
      *('GFLOP/s', 'of the limit, %', 'x nanoGPT, wall', 'CPU'),
    )
    print('| :- | :- ' + '| -: ' * 7 + '|', flush=True)
    for name in names or NAMES:
      case, programs_of = _POPULATION, _populations
      if name in TRAINED:
        case, programs_of = TRAINED[name], _trainings
      elif name == 'decoding':
        case = TRAINED['small']._replace(length=_PROMPT + _ANSWER)
        programs_of = _decoding
      times = turns_lib.race(programs_of(case, nanogpt), repeats)
      _print(name, times, None if name == 'decoding' else case, limit=limit)


def config_of(case: Case) -> transformer.Config:
  """The decoder that is nanoGPT's, but for the tanh in its GELU."""
  shape = transformer.Shape(
    layers=case.layers,
    heads=case.heads,
    width=case.width,
    norm='layer',
    tied=True,
  )
  return shape.reading(vocabulary_size=case.vocabulary, max_length=case.length)


def _optimizer() -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(1e-3, b1=0.9, b2=0.99, weight_decay=0.1),
  )


def _start(case: Case, key: jax.Array) -> training.State:
  params = transformer.init(key, config_of(case))
  return training.start(params, _optimizer(), key)


def _train(
  case: Case, stream: jax.Array, state: training.State
) -> tuple[training.State, jax.Array]:
  """The steps of one turn, of one model."""
  config = config_of(case)

  def draw(key, _):
    starts = jax.random.randint(
      key, (case.batch, 1), 0, len(stream) - case.length
    )
    return stream[starts + jnp.arange(case.length + 1)[None]]

  def loss(params, lines):
    logits = transformer.apply(params, lines[:, :-1], config=config)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, lines[:, 1:]
    ).mean()

  return training.train(
    state, case.steps, loss_fn=loss, draw=draw, optimizer=_optimizer()
  )


def _tokens(case: Case, *shape: int) -> jax.Array:
  return jax.random.randint(jax.random.key(1), shape, 0, case.vocabulary)


def _trainings(case: Case, nanogpt: client.Peer | None) -> Programs:
  """Both programs, which go on where their last turn stopped."""
  stream = _tokens(case, _STREAM)
  step = jax.jit(functools.partial(_train, case), donate_argnums=1)
  states = [jax.jit(functools.partial(_start, case))(jax.random.key(0))]

  def ours() -> turns_lib.Time:
    begin = turns_lib.now()
    states[0], losses = step(stream, states[0])
    losses.block_until_ready()
    return turns_lib.since(begin)

  programs: dict[str, Callable[[], turns_lib.Time]] = {'arithmerge': ours}
  if nanogpt is not None:
    programs['nanoGPT'] = functools.partial(_peer_trains, nanogpt, case)
    programs['nanoGPT, compiled'] = functools.partial(
      _peer_trains, nanogpt, case, compiled=True
    )
  return programs


def _populations(case: Case, nanogpt: client.Peer | None) -> Programs:
  """Many models in one program, one after the other in one, and in many."""
  stream = _tokens(case, _STREAM)
  keys = jax.random.split(jax.random.key(0), case.models)
  start = jax.jit(jax.vmap(functools.partial(_start, case)))
  train = functools.partial(_train, case)

  def together(how: population.How) -> Callable[[], turns_lib.Time]:
    @jax.jit
    def step(stream, states):
      one = functools.partial(train, stream)
      return population.population(one, how)(states)

    states = [start(keys)]

    def turn() -> turns_lib.Time:
      begin = turns_lib.now()
      states[0], losses = step(stream, states[0])
      losses.block_until_ready()
      return turns_lib.since(begin)

    return turn

  alone = jax.jit(train)
  state = jax.jit(functools.partial(_start, case))(keys[0])

  def one_by_one() -> turns_lib.Time:
    begin = turns_lib.now()
    for _ in range(case.models):
      alone(stream, state)[1].block_until_ready()
    return turns_lib.since(begin)

  programs = {
    'arithmerge, vmap': together('vmap'),
    'arithmerge, map': together('map'),
    'arithmerge, 16 runs': one_by_one,
  }
  if nanogpt is not None:
    programs['nanoGPT'] = functools.partial(_peer_trains, nanogpt, case)
  return programs


def _decoding(case: Case, nanogpt: client.Peer | None) -> Programs:
  """Greedy answers of five tokens to prompts of eight."""
  config = config_of(case)
  params = jax.jit(transformer.init, static_argnums=1)(
    jax.random.key(0), config
  )
  prompts = _tokens(case, _PROMPTS // _BATCH, _BATCH, case.length)
  length = jnp.full(_BATCH, _PROMPT)

  @jax.jit
  def write(params, prompts):
    return decoding.generate(
      params, prompts, length, config=config, prefill=_PROMPT
    )

  def ours() -> turns_lib.Time:
    begin = turns_lib.now()
    for some in prompts:
      write(params, some).block_until_ready()
    return turns_lib.since(begin)

  programs: dict[str, Callable[[], turns_lib.Time]] = {'arithmerge': ours}
  if nanogpt is not None:
    programs['nanoGPT'] = functools.partial(
      turns_lib.ask,
      nanogpt,
      job='generate',
      shape=_shape(case),
      prompts=_PROMPTS,
      prompt=_PROMPT,
      tokens=_ANSWER,
      batch=_BATCH,
    )
  return programs


def _peer_trains(
  nanogpt: client.Peer, case: Case, *, compiled: bool = False
) -> turns_lib.Time:
  return turns_lib.ask(
    nanogpt,
    job='train',
    shape=_shape(case),
    batch=case.batch,
    steps=case.steps,
    models=case.models,
    stream=_STREAM,
    compiled=compiled,
  )


def _shape(case: Case) -> dict[str, int]:
  names = ('layers', 'heads', 'width', 'length', 'vocabulary')
  return {name: getattr(case, name) for name in names}


def _multiplications(repeats: int) -> float:
  """Floating-point operations a second in a product of matrices."""
  size, count = 1_024, 8
  matrix = jax.random.normal(jax.random.key(0), (size, size))
  multiply = jax.jit(jnp.dot)
  multiply(matrix, matrix).block_until_ready()
  times = []
  for _ in range(repeats):
    begin = turns_lib.now()
    for _ in range(count):
      multiply(matrix, matrix).block_until_ready()
    times.append(turns_lib.since(begin).wall)
  return 2 * size**3 * count / min(times)


def _operations(case: Case) -> float:
  """Of one turn: forward, and twice as much backward.

  Every parameter but the positions multiplies once for each token, and so does
  attention, for each pair of tokens, twice.
  """
  params = jax.eval_shape(
    lambda key: transformer.init(key, config_of(case)), jax.random.key(0)
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  count -= case.length * case.width
  attention = 2 * case.layers * case.length * case.width
  return 6.0 * case.tokens * (count + attention)


def _print(
  name: str,
  times: Mapping[str, Sequence[turns_lib.Time]],
  case: Case | None = None,
  *,
  limit: float = 0.0,
) -> None:
  """Prints the rows of a case; of decoding a step is a token of all prompts."""
  steps = case.steps * case.models if case else _ANSWER
  tokens = case.tokens if case else _ANSWER * _PROMPTS
  others = times.get('nanoGPT', [])
  for program, turns in times.items():
    wall = statistics.median(turn.wall for turn in turns)
    rate = _operations(case) / wall if case else 0.0
    cells = [
      turns_lib.spread([1e3 * turn.wall / steps for turn in turns]),
      turns_lib.spread([1e3 * turn.cpu / steps for turn in turns]),
      f'{tokens / wall:,.0f}',
      f'{rate / 1e9:.0f}' if rate else '',
      f'{100 * rate / limit:.0f}' if rate else '',
    ]
    for field in turns_lib.Time._fields:
      ratios = [
        getattr(b, field) / getattr(a, field)
        for a, b in zip(turns, others, strict=False)
      ]
      cells.append(
        turns_lib.spread(ratios) if ratios and program != 'nanoGPT' else ''
      )
    turns_lib.row(name, program, *cells)
