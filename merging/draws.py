"""Random numbers of entries, each from its place in a leaf alone.

The number of an entry follows from the key, the leaf's path, the expert's name
and the place of the entry, by one block of Threefry: whatever the order of
leaves and experts, the sharding, the pieces a leaf comes in and the number of
threads, it is the same. The numbers are those of `jax.random.uniform`. That one
runs the rounds of Threefry in a loop, through memory; here they are one
expression, which XLA makes part of the pass over the deltas, and which takes a
seventh of the time.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from merging import transform

# Of Threefry-2x32: distances of the rotations in four rounds and in the next
# four, in turns, and what the third word of the key is made with.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

Array = jax.Array | np.ndarray


class Seeds(NamedTuple):
  """What numbers are drawn from.

  Attributes:
    key: Random key.
    paths: A number for each leaf, `u32[leaves]`.
    models: A number for each expert, `u32[models]`.
    words: Keys of Threefry that follow from these, `u32[leaves, models, 2]`, or
      `None` for other generators.
  """

  key: jax.Array
  paths: np.ndarray
  models: np.ndarray | jax.Array
  words: np.ndarray | jax.Array | None


def check_key(caller: str, key: jax.Array) -> None:
  """Raises `TypeError` unless `key` may be a random key."""
  if not isinstance(key, jax.Array):
    raise TypeError(
      f'{caller}: key is {key!r}, expected a random key such as '
      'jax.random.key(0)'
    )


def by_place(key: jax.Array) -> bool:
  """Tells whether a key's generator draws any entry without those before it."""
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return False
  return str(jax.random.key_impl(key)) == 'threefry2x32'


def hashes(names: Sequence[str]) -> np.ndarray:
  """Returns a number for each name that is the same in every run, `u32[len]`.

  Examples:
    >>> hashes(['kernel']).tolist()
    [1574083243]
  """
  return np.array([zlib.crc32(name.encode()) for name in names], np.uint32)


def seeds(
  key: jax.Array, specs: transform.Specs, models: transform.Models
) -> Seeds:
  """Returns what the numbers of these leaves and experts are drawn from."""
  paths, names = hashes([spec.path for spec in specs]), hashes(models)
  if not by_place(key):
    return Seeds(key, paths, names, None)
  data = jax.random.key_data(key)
  xp: Any = jnp if isinstance(data, jax.core.Tracer) else np
  # As `jax.random.fold_in` does it, but for all leaves and experts at once.
  words = xp.asarray(data)[:, None, None]
  for numbers in (paths[:, None], names[None]):
    words = xp.stack(threefry(words, np.zeros_like(numbers), numbers))
  return Seeds(key, paths, names, xp.moveaxis(words, 0, -1))


def of_model(found: Seeds, model: jax.Array) -> Seeds:
  """Returns the seeds of one expert, given its place."""
  words = found.words
  if words is not None:
    words = jnp.asarray(words)[:, model][:, None]
  return found._replace(
    models=jnp.asarray(found.models)[model][None], words=words
  )


def uniforms(
  caller: str, leaf: transform.Leaf, source: Seeds
) -> list[jax.Array]:
  """Draws a number from 0 to 1 for every entry of each expert.

  Args:
    caller: Name for error messages.
    leaf: The leaf, or a piece of one, with the deltas of all experts.
    source: What they are drawn from.

  Returns:
    `f32[*shape]` for each expert.

  Raises:
    ValueError: The experts are already combined.
  """
  shape, count = leaf.base.shape, len(source.models)
  if len(leaf.deltas) != count:
    raise ValueError(
      f'{caller}: {len(leaf.deltas)} deltas of {count} experts; drop before '
      'the experts are combined'
    )
  if source.words is not None:
    words = jnp.asarray(source.words)[leaf.index]
    places = jnp.arange(leaf.base.size, dtype=jnp.uint32).reshape(shape)
    places += jnp.asarray(leaf.start, jnp.uint32)
    return [_uniform(words[place], places) for place in range(count)]
  path = jnp.asarray(source.paths)[leaf.index]
  own = jax.random.fold_in(source.key, path)
  return [
    jax.random.uniform(jax.random.fold_in(own, model), shape)
    for model in jnp.asarray(source.models)
  ]


def _uniform(words, places):
  high, low = threefry(words, jnp.zeros_like(places), places)
  # The upper bits as digits of a number from 1 to 2.
  digits = ((high ^ low) >> 9) | jnp.uint32(0x3F800000)
  return jax.lax.bitcast_convert_type(digits, jnp.float32) - 1


def threefry(
  key: Sequence[Array] | Array, high: Array, low: Array
) -> tuple[Array, Array]:
  """Returns the blocks of Threefry-2x32 with 20 rounds, at any counters.

  Args:
    key: Two words, `u32[]` or any shape that goes with the counters.
    high: Upper words of the counters, `u32[*shape]`.
    low: Lower words.

  Returns:
    The two words of each block, arrays of NumPy if all are.

  Examples:
    >>> zero = np.zeros(1, np.uint32)
    >>> [hex(word[0]) for word in threefry((zero, zero), zero, zero)]
    ['0x6b200159', '0x99ba4efe']

  References:
    John K. Salmon, Mark A. Moraes, Ron O. Dror, David E. Shaw. "Parallel
    Random Numbers: As Easy as 1, 2, 3". SC 2011.
  """
  first, second = key
  keys = first, second, first ^ second ^ np.uint32(_PARITY)
  high, low = high + first, low + second
  for turn in range(5):
    for distance in _ROTATIONS[turn % 2]:
      high = high + low
      low = (low << np.uint32(distance)) | (low >> np.uint32(32 - distance))
      low = low ^ high
    high = high + keys[(turn + 1) % 3]
    low = low + keys[(turn + 2) % 3] + np.uint32(turn + 1)
  return high, low
