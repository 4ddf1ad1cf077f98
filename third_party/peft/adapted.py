"""A model and its adapter as one model."""

import collections
from collections.abc import Mapping
import math
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import streams
from merging.adapters import leaves as leaves_lib


class Adapted:
  """A source of the weights of a model with an adapter added.

  What is adapted is read whole and kept while its pieces are asked for, in
  float32; everything else comes from the model as it is.

  Attributes:
    specs: What is known of every leaf. Adapted leaves are float32.

  Examples:
    >>> from merging import adapters
    >>> base = streams.InMemory({'w': np.zeros((2, 3), np.float32)})
    >>> lora = adapters.Lora(jnp.ones((2, 1)), jnp.ones((1, 3)))
    >>> source = Adapted(base, {'w': lora})
    >>> out = np.empty(2, np.float32)
    >>> source.read('w', 1, out)
    >>> out.tolist()
    [1.0, 1.0]
  """

  def __init__(
    self,
    source: streams.Source,
    adapter: Mapping[str, Any],
    *,
    leaves: int = 2,
  ):
    """Takes a model and its adapter.

    Args:
      source: The model.
      adapter: By path, such as `merging.adapters.Lora`; read leaf by leaf.
      leaves: How many adapted leaves to keep, while threads are between two.

    Raises:
      ValueError: The adapter has a leaf that the model lacks, or `leaves` is
        not positive.
    """
    unknown = sorted(set(adapter) - set(source.specs))
    if unknown:
      raise ValueError(f'the model has no leaf {unknown[0]!r} to adapt')
    if leaves < 1:
      raise ValueError(f'leaves is {leaves}, expected at least 1')
    self._source = source
    self._adapter = adapter
    self._limit = leaves
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[str, np.ndarray] = (
      collections.OrderedDict()
    )
    self.specs: streams.Specs = {
      path: spec._replace(dtype=np.dtype(np.float32))
      if path in adapter
      else spec
      for path, spec in source.specs.items()
    }

  @property
  def held_bytes(self) -> int:
    """Bytes of the leaves that are kept, and of one that is being made."""
    sizes = [math.prod(self.specs[path].shape) for path in self._adapter]
    return (self._limit + 3) * 4 * max(sizes, default=0)

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with the entries `[start, start + out.size)` of a leaf."""
    if path not in self._adapter:
      self._source.read(path, start, out)
      return
    out[...] = self._leaf(path)[start : start + out.size]

  def _leaf(self, path: str) -> np.ndarray:
    # One leaf is made at a time: several at once would be that much memory.
    with self._lock:
      if path not in self._kept:
        if len(self._kept) >= self._limit:
          self._kept.popitem(last=False)
        self._kept[path] = self._make(path)
      self._kept.move_to_end(path)
      return self._kept[path]

  def _make(self, path: str) -> np.ndarray:
    spec = self._source.specs[path]
    leaf = np.empty(int(np.prod(spec.shape)), spec.dtype)
    self._source.read(path, 0, leaf)
    changed = _add(jnp.asarray(leaf.reshape(spec.shape)), self._adapter[path])
    return np.asarray(changed, np.float32).reshape(-1)


@jax.jit
def _add(base, adapter):
  return leaves_lib.widened(base) + adapter.delta(base)
