"""Places in the order of magnitudes, exactly, with ties by position.

In a whole leaf the entries up to a rank are found by selection, which needs no
sort (see `merging.select`). Where every entry's own place is needed, as for
probabilities that follow it, rows are sorted.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from merging import host
from merging import select
from merging import selections
from merging import transform


def smallest(
  rows: Sequence[jax.Array], number: select.Array | int
) -> list[jax.Array]:
  """Marks the smallest entries of each row, of equal ones the first.

  Args:
    rows: Magnitudes as bits (see `select.magnitude_bits`), `u32[size]` each.
    number: How many to mark in each row, at most `size`; `u32[]` or
      `u32[len(rows)]`.

  Returns:
    Masks, `bool[size]` for each row.

  Examples:
    >>> bits = select.magnitude_bits(jnp.array([3.0, -1.0, 2.0, 1.0]))
    >>> smallest([bits], 1)[0].tolist(), smallest([bits], 3)[0].tolist()
    ([False, True, False, False], [False, True, True, True])
  """
  number = jnp.broadcast_to(jnp.asarray(number, jnp.uint32), len(rows))
  kth = select.kth_smallest(rows, number)
  below = [row < each for row, each in zip(rows, kth, strict=True)]
  equal = [row == each for row, each in zip(rows, kth, strict=True)]
  # The last of the equal entries to mark is the k-th smallest of their places.
  places = jnp.arange(1, rows[0].size + 1, dtype=jnp.uint32)
  nowhere = jnp.uint32(2**31 - 1)
  marked = jnp.stack([jnp.sum(mask, dtype=jnp.uint32) for mask in below])
  last = select.kth_smallest(
    [jnp.where(mask, places, nowhere) for mask in equal], number - marked
  )
  return [
    less | (same & (places <= end))
    for less, same, end in zip(below, equal, last, strict=True)
  ]


def largest(
  rows: Sequence[jax.Array], number: select.Array | int
) -> list[jax.Array]:
  """Marks the largest entries of each row, of equal ones the first.

  Args:
    rows: Magnitudes as bits, `u32[size]` each.
    number: How many to mark in each row; `u32[]` or `u32[len(rows)]`.

  Returns:
    Masks, `bool[size]` for each row.

  Examples:
    >>> bits = select.magnitude_bits(jnp.array([3.0, -1.0, 2.0, -3.0]))
    >>> largest([bits], 1)[0].tolist()
    [True, False, False, False]
  """
  return smallest([jnp.uint32(2**31 - 1) - row for row in rows], number)


def in_rows(
  leaf: transform.Leaf, selected: Sequence[tuple[jax.Array]] | None = None
) -> list[jax.Array]:
  """Returns the place of each entry among the magnitudes of its row, from 0.

  Rows are those of a matrix `[out, in]`; any other leaf is one row.

  Args:
    leaf: The leaf, or some rows of it, with the deltas of all experts.
    selected: What a host found (see `SELECTION`).

  Returns:
    `u32[rows, width]` for each expert.
  """
  if selected is None:
    return [places(row).astype(jnp.uint32) for row in magnitudes(leaf)]
  return [as_rows(place) for (place,) in selected]


def magnitudes(leaf: transform.Leaf) -> list[jax.Array]:
  """Returns the magnitudes of all experts in rows, `[rows, width]` each."""
  return [jnp.abs(as_rows(delta)) for delta in leaf.deltas]


def as_rows(x: jax.Array) -> jax.Array:
  """Returns a matrix as it is, and all else as one row.

  Examples:
    >>> as_rows(jnp.zeros(3)).shape
    (1, 3)
  """
  return x if x.ndim == 2 else x.reshape(1, x.size)


def _looked_at(leaf, state, model):
  (row,) = magnitudes(leaf)
  return row.astype(jnp.float32)


# What a host finds for `in_rows`, which a processor sorts many times faster.
SELECTION = selections.Choice(_looked_at, host.places, by_row=True)


def places(x: jax.Array) -> jax.Array:
  """Returns the place of each entry in the order of its row, from 0.

  Args:
    x: `f32[rows, size]`.

  Returns:
    `i32[rows, size]`; of equal entries the first has the smaller place.

  Examples:
    >>> places(jnp.array([[3.0, 1.0, 2.0, 1.0]])).tolist()
    [[3, 0, 2, 1]]
  """
  order = jnp.argsort(x, axis=-1, stable=True)
  row = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
  place = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
  empty = jnp.zeros(x.shape, jnp.int32)
  return empty.at[row, order].set(place, unique_indices=True)
