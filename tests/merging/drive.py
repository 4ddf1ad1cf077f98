"""Running a merge in other ways: leaf by leaf, and spread over devices."""

import contextlib
from typing import Any

import jax
import numpy as np

import merging
from merging import programs
from merging import streams

AUTO = (jax.sharding.AxisType.Auto,) * 2
EXPLICIT = (jax.sharding.AxisType.Explicit,) * 2
_FLOAT32 = np.dtype(np.float32)


class Disk:
  """Models whose leaves are read one at a time, as an out-of-core driver."""

  def __init__(self, transform, base, experts, extra):
    self.transform = transform
    self.models = tuple(sorted(experts))
    self._columns = [merging.tree.flatten(base)]
    self._columns += [merging.tree.flatten(experts[x]) for x in self.models]
    self._extra = extra
    paths = sorted(self._columns[0])
    self.specs = tuple(
      merging.LeafSpec(path, leaf.shape, leaf.dtype)
      for path in paths
      for leaf in (self._columns[0][path],)
    )

  def read(self, index):
    path = self.specs[index].path
    data = {
      name: tuple(
        merging.tree.flatten(value[model]).get(path) for model in self.models
      )
      for name, value in self._extra.items()
    }
    data = {k: None if v[0] is None else v for k, v in data.items()}
    row = tuple(column[path] for column in self._columns)
    inputs = programs.Inputs(np.int32(index), row, data)
    return self.transform.route(self.specs[index]), inputs

  def observe(self, observer, index, state):
    route, inputs = self.read(index)
    return programs.observe_leaf(
      observer.observe, route, _FLOAT32, inputs, state
    )


def stream(transform, base, experts, extra=None, **options):
  """Merges from sources into a sink; returns what it got, as a flat tree."""
  source = streams.InMemory(base)
  sink = streams.Collected(source.specs)
  sources = {name: streams.InMemory(each) for name, each in experts.items()}
  data: dict[str, Any] = {
    name: {model: streams.InMemory(x) for model, x in columns.items()}
    for name, columns in (extra or {}).items()
  }
  merging.merge_stream(transform, source, sources, sink, **data, **options)
  return sink.leaves


def shard(tree, mesh):
  return jax.device_put(tree, jax.NamedSharding(mesh, jax.P('x', 'y')))


def check_sharded(
  case, base, experts, kinds, context, run=lambda merge, *args: merge(*args)
):
  """Compares a merge of matrices over eight devices with one on one."""
  extra = case.extra(base)
  expected = merging.merge(case.make(), base, experts, **extra)
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=kinds)
  sharded = shard((base, experts, extra), mesh)

  def merge(base, experts, extra):
    return merging.merge(case.make(), base, experts, **extra)

  with jax.set_mesh(mesh) if context else contextlib.nullcontext():
    merged = run(merge, *sharded)
  for path, x in merged.items():
    scale = np.abs(expected[path]).max()
    np.testing.assert_allclose(
      x,
      expected[path],
      rtol=case.sharded,
      atol=case.sharded * scale,
      err_msg=path,
    )
    assert x.sharding.is_equivalent_to(sharded[0][path].sharding, x.ndim)
