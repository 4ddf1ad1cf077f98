"""Which ids and which encodings: one small value, or a name for it."""

import dataclasses
import difflib
from typing import Any
from typing import get_args
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from arithmetic.positions import ids as id_schemes

Ids = Literal[
  'plain',
  'random_start',
  'randomised',
  'abacus',
  'coupled',
  'numbers',
  'turns',
]
Vectors = Literal['none', 'learned', 'sinusoidal']
Attention = Literal[
  'none', 'rotary', 'alibi', 't5', 'kerple_log', 'kerple_power', 'fire'
]

# Schemes that need to know which tokens are what, and where answers begin.
_READ_TOKENS = ('abacus', 'coupled', 'numbers', 'turns')
_READ_EQUALS = ('coupled', 'numbers', 'turns')
# Schemes whose ids grow along a line, as distances need them to.
_INCREASING = ('plain', 'random_start', 'randomised')
_DEFAULT_SIZE = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
  """A way to tell a decoder where tokens stand.

  Attributes:
    vectors: Added to embeddings: rows of `learned` tables, fixed `sinusoidal`
      vectors, or `none`.
    vector_ids: The ids of these vectors. Several are summed, each from a table
      of its own.
    attention: What happens to queries and keys: `rotary`, or to their scores:
      a bias by distance, `alibi`, `t5`, `kerple_log`, `kerple_power`, `fire`;
      or `none`.
    attention_ids: The ids of `attention`. A bias needs ids that increase
      along a line.
    size: Ids are below it: the rows of a learned table, the range that is drawn
      from. By default as many as the longest line has tokens, if all ids are
      plain, else 1024.
    max_offset: Abacus adds at most this to ids in training.
    operand_order: How operands are written, for `coupled` and `numbers`: as
      the layout says.
    at_test: `randomised` ids without a key are spread `even`ly over the range,
      or are `plain`.
    base: Of the angles of `rotary`.
    buckets: T5's buckets.
    max_distance: From here on T5 has one bucket.
    hidden: FIRE's hidden features.
    threshold: FIRE's L before training; a multiple of it is learned.
    shared: Whether the layers share the parameters of a bias, as in T5 and in
      Zhou et al., 2024, or each has its own, as in KERPLE.

  Raises:
    ValueError: For a misspelt choice or a combination that means nothing.

  Examples:
    >>> get('abacus+fire') == Positions(
    ...   vectors='learned', vector_ids=('abacus',), attention='fire'
    ... )
    True
  """

  vectors: Vectors = 'none'
  vector_ids: tuple[Ids, ...] = ('plain',)
  attention: Attention = 'none'
  attention_ids: Ids = 'plain'
  size: int | None = None
  max_offset: int = 99
  operand_order: id_schemes.Order = 'plain'
  at_test: Literal['even', 'plain'] = 'even'
  base: float = 10_000.0
  buckets: int = 32
  max_distance: int = 128
  hidden: int = 32
  threshold: int = 512
  shared: bool = True

  def __post_init__(self):
    _among('vectors', self.vectors, get_args(Vectors))
    for name in self.vector_ids:
      _among('vector_ids', name, get_args(Ids))
    _among('attention', self.attention, get_args(Attention))
    _among('attention_ids', self.attention_ids, get_args(Ids))
    _among('operand_order', self.operand_order, get_args(id_schemes.Order))
    _among('at_test', self.at_test, ('even', 'plain'))
    if not self.vector_ids:
      raise ValueError("vector_ids is empty; for no vectors, vectors='none'")
    if len(set(self.vector_ids)) < len(self.vector_ids):
      raise ValueError(f'vector_ids names one twice: {self.vector_ids}')
    for half, ids, default in (
      ('vectors', 'vector_ids', ('plain',)),
      ('attention', 'attention_ids', 'plain'),
    ):
      if getattr(self, half) == 'none' and getattr(self, ids) != default:
        raise ValueError(f'{ids} have no effect while {half} is none')
    if self.biased and self.attention_ids not in _INCREASING:
      raise ValueError(
        f'attention_ids of {self.attention} increase along a line:'
        f' {", ".join(_INCREASING)}; got {self.attention_ids!r}'
      )
    if self.size is not None and self.size < 1:
      raise ValueError(f'size is at least 1, got {self.size}')
    if self.max_offset < 0:
      raise ValueError(f'max_offset is at least 0, got {self.max_offset}')
    for field in ('hidden', 'threshold'):
      if getattr(self, field) < 1:
        raise ValueError(f'{field} is at least 1, got {getattr(self, field)}')
    if not 2 <= self.buckets < 2 * self.max_distance:
      raise ValueError(
        'buckets is at least 2 and below twice max_distance; got'
        f' {self.buckets} and {self.max_distance}'
      )
    if not self.base > 1:
      raise ValueError(f'base is above 1, got {self.base}')

  @property
  def biased(self) -> bool:
    """Whether something is added to attention scores."""
    return self.attention not in ('none', 'rotary')

  @property
  def used_ids(self) -> tuple[Ids, ...]:
    """The id schemes that something is made of."""
    used = self.vector_ids if self.vectors != 'none' else ()
    return used if self.attention == 'none' else (*used, self.attention_ids)

  def rows(self, max_length: int) -> int:
    """How many ids there are for lines of up to `max_length` tokens."""
    if self.size is not None:
      return self.size
    plain = set(self.used_ids) <= {'plain', 'turns'}
    return max_length if plain else _DEFAULT_SIZE

  def check(self, max_length: int, classes: id_schemes.Classes | None) -> None:
    """Raises a ValueError if ids cannot be made, or would not fit."""
    for name in self.used_ids:
      needed = {
        'abacus': max_length + self.max_offset + 1,
        'coupled': max_length + 1,
        'numbers': max_length + 1,
      }.get(name, max_length)
      if name == 'plain' and self.vectors != 'learned':
        needed = 1  # Nothing is looked up, so that ids may be any.
      if self.rows(max_length) < needed:
        raise ValueError(
          f'positions of {self.rows(max_length)} ids are too few: {name} ids of'
          f' lines of up to {max_length} tokens can need {needed}; set their'
          ' size'
        )
      if name in _READ_TOKENS and classes is None:
        raise ValueError(
          f'classes is missing: {name} ids need positions.Classes, which say'
          ' what the tokens of the vocabulary are'
        )
      if name in _READ_EQUALS and classes and classes.equals is None:
        raise ValueError(f'classes.equals is missing: {name} ids need it')
      if name == 'turns' and classes and not classes.anchors:
        raise ValueError('classes.anchors is empty: turns begin with an anchor')


# What a name is put together from: its fields.
WORDS: dict[str, dict[str, Any]] = {
  'none': {},
  'learned': {'vectors': 'learned', 'vector_ids': ('plain',)},
  'random_start': {'vectors': 'learned', 'vector_ids': ('random_start',)},
  'sinusoidal': {'vectors': 'sinusoidal', 'vector_ids': ('plain',)},
  'abacus': {'vectors': 'learned', 'vector_ids': ('abacus',)},
  'coupled': {'vectors': 'learned', 'vector_ids': ('coupled',)},
  'multilevel': {'vectors': 'learned', 'vector_ids': ('coupled', 'numbers')},
  **{
    name: {'attention': name} for name in get_args(Attention) if name != 'none'
  },
  'turns': {'vectors': 'learned', 'vector_ids': ('turns',)},
  'randomised': {},
}


def get(name: str | Positions) -> Positions:
  """What a name means; of `Positions`, themselves.

  A name is words joined by `+`: what is added to embeddings, `learned`,
  `random_start`, `sinusoidal`, `abacus`, `coupled`, `multilevel` or `turns`;
  what happens in attention, `rotary`, `alibi`, `t5`, `kerple_log`,
  `kerple_power` or `fire`; and `randomised`, by which all plain ids are drawn
  at random. `none` stands alone.

  Args:
    name: A name, or `Positions`.

  Returns:
    The `Positions`; settings other than those named have their default.

  Raises:
    ValueError: If the name cannot be read.

  Examples:
    >>> get('fire+randomised').attention_ids
    'randomised'
    >>> get('learned+abacus').vector_ids
    ('plain', 'abacus')
    >>> get('abacus+fier')
    Traceback (most recent call last):
    ...
    ValueError: positions is words of none, learned, random_start, sinusoidal,
    abacus, coupled, multilevel, rotary, alibi, t5, kerple_log, kerple_power,
    fire, turns, randomised, joined by +; got 'abacus+fier'; did you mean
    'fire'?
  """
  if isinstance(name, Positions):
    return name
  words = name.split('+')
  for word in words:
    if word not in WORDS:
      near = difflib.get_close_matches(word, WORDS, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise ValueError(
        f'positions is words of {", ".join(WORDS)}, joined by +; got'
        f' {name!r}{hint}'
      )
  fields: dict[str, Any] = {}
  for word in words:
    meaning = dict(WORDS[word])
    # Learned vectors of different ids are summed; nothing else can be twice.
    if meaning.get('vectors') == fields.get('vectors') == 'learned':
      meaning['vector_ids'] = fields['vector_ids'] + meaning['vector_ids']
      del fields['vectors'], fields['vector_ids']
    if set(meaning) & set(fields) or ('none' in words and len(words) > 1):
      raise ValueError(
        f'positions {name!r} is two things at once: there can be one kind of'
        ' vectors and one kind of attention'
      )
    fields |= meaning
  found = Positions(**fields)
  if 'randomised' not in words:
    return found
  if 'plain' not in found.used_ids or words.count('randomised') > 1:
    raise ValueError(
      f"positions {name!r} have no plain ids to draw; 'randomised' goes with"
      " another word, as in 'randomised+fire'"
    )

  if found.vectors != 'none':
    fields['vector_ids'] = tuple(
      'randomised' if ids == 'plain' else ids for ids in found.vector_ids
    )
  if found.attention != 'none':
    fields['attention_ids'] = 'randomised'
  return Positions(**fields)


class Places(NamedTuple):
  """The ids of the tokens of a batch; an axis of 1 stands for all lines.

  Attributes:
    vectors: i32[streams, batch or 1, length], one stream for each of
      `vector_ids`.
    attention: i32[batch or 1, length].
  """

  vectors: jax.Array
  attention: jax.Array


def places(
  positions: Positions,
  tokens: jax.Array,
  *,
  max_length: int,
  classes: id_schemes.Classes | None = None,
  key: jax.Array | None = None,
) -> Places:
  """The ids of tokens.

  Args:
    positions: Which schemes.
    tokens: i32[batch, length].
    max_length: The longest line, which ids are spread over.
    classes: What tokens are, for schemes that look at them.
    key: Draws, for schemes that draw in training. The same scheme draws the
      same for vectors and attention.

  Returns:
    `Places`.

  Examples:
    >>> import jax.numpy as jnp
    >>> line = jnp.asarray([[11, 3, 4, 5, 11, 6, 7, 12, 0]])
    >>> found = places(
    ...   get('abacus+rotary'),
    ...   line,
    ...   max_length=9,
    ...   classes=id_schemes.Classes(digits=tuple(range(1, 11))),
    ... )
    >>> found.vectors.tolist(), found.attention.tolist()
    ([[[0, 1, 2, 3, 0, 1, 2, 0, 0]]], [[0, 1, 2, 3, 4, 5, 6, 7, 8]])
  """
  positions.check(max_length, classes)
  batch, length = tokens.shape
  size = positions.rows(max_length)

  def make(name: Ids) -> jax.Array:
    draw = None
    if key is not None:
      draw = jax.random.fold_in(key, get_args(Ids).index(name))
    if name == 'abacus' and classes:
      return id_schemes.abacus(
        tokens, classes, max_offset=positions.max_offset, key=draw
      )
    if name == 'turns' and classes:
      return id_schemes.turns(tokens, classes)
    if name in _READ_EQUALS and classes:
      scheme = id_schemes.coupled if name == 'coupled' else id_schemes.numbers
      return scheme(
        tokens,
        classes,
        operand_order=positions.operand_order,
        size=size,
        key=draw,
      )
    if draw is not None and name == 'random_start':
      return id_schemes.random_start(draw, batch, length, size=size)
    if draw is not None and name == 'randomised':
      return id_schemes.randomised(draw, batch, length, size=size)
    if name == 'randomised' and positions.at_test == 'even':
      return id_schemes.evenly_spaced(length, of=max_length, size=size)
    return id_schemes.plain(length)

  streams = [make(name) for name in positions.vector_ids]
  rows = max(len(x) for x in streams)
  streams = [jnp.broadcast_to(x, (rows, length)) for x in streams]
  return Places(jnp.stack(streams), make(positions.attention_ids))


def _among(field: str, value: str, options: tuple[str, ...]) -> None:
  if value not in options:
    near = difflib.get_close_matches(value, options, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'{field} is one of {", ".join(options)}, got {value!r}{hint}'
    )
