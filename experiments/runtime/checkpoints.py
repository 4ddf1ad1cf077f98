"""Checkpoints of a training state: bit-exact, atomic. Knows Orbax, alone.

A checkpoint is a flat mapping from leaf paths to arrays, written by Orbax
under a temporary name and renamed when complete. Structure is the reader's
business: `restore` takes the tree that the program would build now, and names
every leaf that does not fit.
"""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any
from typing import NamedTuple
from typing import Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp


class Restored(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    step: The step it was saved at.
    tree: Arrays in the structure that was asked for.
    metadata: The mapping given to `save`.
  """

  step: int
  tree: Any
  metadata: dict[str, Any]


class Checkpoints:
  """The checkpoints of one stage of a run, in one directory.

  Leaves are arrays of any JAX dtype, typed PRNG keys among them. A process
  killed during `save` leaves the checkpoints before it as they were. Close it,
  or use it as a context manager.

  Examples:
    >>> import tempfile
    >>> state = {'w': jnp.ones((2,), jnp.bfloat16), 'key': jax.random.key(0)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   with Checkpoints(folder) as checkpoints:
    ...     checkpoints.save(100, state, {'examples': 3200})
    ...     step, tree, metadata = checkpoints.restore(state)
    >>> step, metadata, tree['w']
    (100, {'examples': 3200}, Array([1, 1], dtype=bfloat16))
  """

  def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2):
    """Opens a directory and removes what a killed save left there.

    Args:
      directory: Made if missing. Only one process may have it open.
      keep: How many of the latest checkpoints to keep.
    """
    if keep < 1:
      raise ValueError(f'keep must be at least 1, got {keep}')
    training: Any = ocp.training  # Its annotations are stricter than its code.
    self._checkpointer: Any = training.Checkpointer(
      Path(directory).absolute(),
      preservation_policy=training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> Self:
    """Returns itself."""
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends Orbax's threads."""
    self._checkpointer.close()

  def latest(self) -> int | None:
    """Returns the step of the latest complete checkpoint, if there is one."""
    latest = self._checkpointer.latest
    return None if latest is None else latest.step

  def save(
    self, step: int, tree: Any, metadata: Mapping[str, Any] | None = None
  ) -> None:
    """Saves a checkpoint and returns when it is complete on the disk.

    Args:
      step: Larger than the latest checkpoint's.
      tree: A pytree of arrays.
      metadata: What JSON can hold.

    Raises:
      ValueError: If the step is not larger, or a leaf is not an array.
    """
    latest = self.latest()
    if latest is not None and step <= latest:
      raise ValueError(
        f'cannot save step {step}: the latest checkpoint is of step {latest}'
      )
    leaves = _leaves(tree)
    for path, leaf in leaves.items():
      if not isinstance(leaf, jax.Array):
        raise ValueError(
          f'leaf {path} should be a jax.Array, got {type(leaf).__name__}'
        )
    self._checkpointer.save(
      step,
      # Orbax refuses arrays of size zero; their shape says it all. It also
      # refuses a tree without leaves, hence the marker.
      {path: _data(leaf) for path, leaf in leaves.items() if leaf.size}
      | {_MARKER: jnp.zeros((), jnp.int32)},
      force=True,
      custom_metadata={
        'leaves': {path: _kind(leaf) for path, leaf in leaves.items()},
        'user': dict(metadata or {}),
      },
    )

  def restore(self, abstract_tree: Any, step: int | None = None) -> Restored:
    """Restores a checkpoint.

    Args:
      abstract_tree: The structure, shapes and dtypes that the program expects:
        arrays, or `jax.ShapeDtypeStruct`s as from `jax.eval_shape`. A leaf
        with a sharding is restored with it, others on the first device.
      step: The latest by default.

    Returns:
      The step, the tree and the metadata.

    Raises:
      FileNotFoundError: If there is no such checkpoint.
      ValueError: If the checkpoint has other leaves than expected.
    """
    steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
    if step is None and steps:
      step = steps[-1]
    if step is None or step not in steps:
      wanted = 'no checkpoint' if step is None else f'no checkpoint {step}'
      raise FileNotFoundError(
        f'{wanted} in {self._checkpointer.directory}; there are {steps}'
      )
    saved = self._checkpointer.metadata(step).custom_metadata
    expected = _leaves(abstract_tree)
    _check_fits(
      saved['leaves'], expected, f'{self._checkpointer.directory}/{step}'
    )
    loaded = self._checkpointer.load(
      step,
      {
        path: _abstract_data(leaf)
        for path, leaf in expected.items()
        if leaf.size
      }
      | {_MARKER: _abstract_data(jnp.zeros((), jnp.int32))},
    )
    leaves = [
      _restored(leaf, loaded.get(path)) for path, leaf in expected.items()
    ]
    tree = jax.tree.unflatten(jax.tree.structure(abstract_tree), leaves)
    return Restored(step, tree, saved['user'])


_MARKER = 'complete'


def _leaves(tree: Any) -> dict[str, Any]:
  """Maps each leaf's path to the leaf, in the order of `jax.tree.leaves`."""
  return {
    f'tree{jax.tree_util.keystr(path)}': leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
  """Says dtype and shape in a word: `float32[2,3]`."""
  return f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'


def _data(leaf: jax.Array) -> jax.Array:
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _abstract_data(leaf: Any) -> jax.ShapeDtypeStruct:
  data = jax.eval_shape(_data, leaf) if _is_key(leaf) else leaf
  sharding = getattr(data, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def _restored(leaf: Any, data: jax.Array | None) -> jax.Array:
  """Turns what was loaded into what the abstract leaf says."""
  if data is None:
    return jnp.zeros(leaf.shape, leaf.dtype)
  if not _is_key(leaf):
    return data
  implementations = []

  def note(key: jax.Array) -> None:
    implementations.append(jax.random.key_impl(key))

  jax.eval_shape(note, leaf)  # Says it of abstract keys too.
  return jax.random.wrap_key_data(data, impl=implementations[0])


def _check_fits(
  saved: Mapping[str, str], expected: Mapping[str, Any], where: str
) -> None:
  kinds = {path: _kind(leaf) for path, leaf in expected.items()}
  problems = [
    f'{path}: saved {saved.get(path, "nothing")},'
    f' expected {kinds.get(path, "nothing")}'
    for path in sorted({*saved, *kinds})
    if saved.get(path) != kinds.get(path)
  ]
  if problems:
    more = f'; and {len(problems) - 5} more' if len(problems) > 5 else ''
    raise ValueError(
      f'checkpoint {where} does not fit this program:'
      f' {"; ".join(problems[:5])}{more}'
    )
