"""What runs programs stays what it is, around programs interpreted.

Each rule is `(frame, step, inputs) -> outputs`. Loops carry, beside their own
values, a counter from which the keys of an iteration are made, and the records
of the iterations so far; only if there is a key, and if there are records.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numerics import _compat
from numerics import programs

Values = list[Any]


def _fold(key: Any, counter: Any) -> Any:
  return None if key is None else jax.random.fold_in(key, counter)


def _call(frame: Any, step: Any, inputs: Values) -> Values:
  """A function compiled by itself, or called: runs in its place."""
  [(path, scope, program)] = step.programs()
  child = frame.child(step, frame.key, path, scope)
  child.draws = frame.draws
  outputs = child.run(program, inputs, notes=step.notes)
  frame.records.update(child.records)
  jaxpr, _ = _compat.opened(program)
  for outer, inner in zip(step.raw.outvars, jaxpr.outvars, strict=True):
    if isinstance(inner, _compat.Var):
      frame.notes[outer] = child.notes.get(inner)
  return outputs


def _jit(frame: Any, step: Any, inputs: Values) -> Values:
  """As a call, with arrays where it says that they lie."""
  outputs = _call(frame, step, _placed(inputs, step.params['in_shardings']))
  return _placed(outputs, step.params['out_shardings'])


def _placed(values: Values, shardings: Sequence[Any]) -> Values:
  """Puts every array of a value where the array lies that it stands for."""

  def put(value, sharding):
    if not isinstance(sharding, jax.sharding.Sharding):  # It does not matter.
      return value
    return jax.tree.map(
      lambda x: jax.lax.with_sharding_constraint(x, sharding), value
    )

  return list(map(put, values, shardings))


def _scan(frame: Any, step: Any, inputs: Values) -> Values:
  [(path, scope, program)] = step.programs()
  num_consts, num_carry = _compat.scan_counts(step.params)
  consts = inputs[:num_consts]
  carry = inputs[num_consts : num_consts + num_carry]
  xs = inputs[num_consts + num_carry :]
  key = step.inner_key()
  notes = list(step.notes)
  notes[num_consts : num_consts + num_carry] = [None] * num_carry

  def body(loop, xs):
    carry, counter, records = loop
    child = frame.child(step, _fold(key, counter), path, scope)
    outputs = child.run(program, [*consts, *carry, *xs], notes=notes)
    loop = (outputs[:num_carry], *_advance(frame, counter, records, child))
    return loop, outputs[num_carry:]

  start = (carry, *_start(frame, key, inputs, [(path, scope, program)]))
  (carry, _, records), ys = jax.lax.scan(
    body,
    start,
    xs,
    length=step.params['length'],
    reverse=step.params['reverse'],
    unroll=step.params['unroll'],
  )
  frame.records.update(records)
  return [*carry, *ys]


def _while(frame: Any, step: Any, inputs: Values) -> Values:
  cond, body = step.programs()
  split = step.params['cond_nconsts']
  start = split + step.params['body_nconsts']
  cond_consts, body_consts = inputs[:split], inputs[split:start]
  key = step.inner_key()

  def test(loop):
    carry, counter, _ = loop
    child = frame.child(step, _fold(_fold(key, 0), counter), *cond[:2])
    [decision] = child.run(cond[2], [*cond_consts, *carry])
    return frame.interpretation.lower(decision), child.records

  def turn(loop):
    carry, counter, records = loop
    child = frame.child(step, _fold(_fold(key, 1), counter), *body[:2])
    outputs = child.run(body[2], [*body_consts, *carry])
    child.records.update(test(loop)[1])  # Of the test that let this turn in.
    return (outputs, *_advance(frame, counter, records, child))

  init = (inputs[start:], *_start(frame, key, inputs, [cond, body]))
  carry, _, records = jax.lax.while_loop(lambda l: test(l)[0], turn, init)
  frame.records.update(records)
  return carry


def _start(
  frame: Any, key: Any, inputs: Values, inner: Sequence[tuple[str, str, Any]]
) -> tuple[Any, dict[str, Any]]:
  """A counter and records for a loop, marked as varying as its inputs do."""
  counter = None if key is None else np.uint32(0)
  records = {}
  for path, scope, program in inner:
    records.update(frame.empty(program, path, scope))
  if records:
    axes = frozenset().union(
      *map(_compat.varying_axes, jax.tree.leaves(inputs))
    )
    records = jax.tree.map(
      lambda x: _compat.vary(jnp.asarray(x), axes), records
    )
  return counter, records


def _advance(
  frame: Any, counter: Any, records: dict[str, Any], child: Any
) -> tuple[Any, dict[str, Any]]:
  """The counter and the records after an iteration."""
  counter = None if counter is None else counter + np.uint32(1)
  combine = frame.interpretation.combine
  return counter, {
    path: combine(record, child.records[path])
    for path, record in records.items()
  }


def _cond(frame: Any, step: Any, inputs: Values) -> Values:
  inner = step.programs()
  key = step.inner_key()
  empty = {}
  for path, scope, program in inner:
    empty.update(frame.empty(program, path, scope))

  def branch(place, path, scope, program):
    def run(inputs):
      child = frame.child(step, _fold(key, place), path, scope)
      outputs = child.run(program, inputs)
      return outputs, {**empty, **child.records}

    return run

  branches = [branch(place, *each) for place, each in enumerate(inner)]
  index = frame.interpretation.lower(inputs[0])
  if len(branches) == 2:  # A clamp of the index would remain in the program.
    outputs, records = jax.lax.cond(
      index != np.array(0, index.dtype), branches[1], branches[0], inputs[1:]
    )
  else:
    outputs, records = jax.lax.switch(index, branches, inputs[1:])
  frame.records.update(records)
  return outputs


def _remat(frame: Any, step: Any, inputs: Values) -> Values:
  """`jax.checkpoint`; in a derivative, the wall that keeps it recomputed."""
  prevent_cse = step.params['prevent_cse']
  if step.params['differentiated']:
    walls = (
      prevent_cse
      if isinstance(prevent_cse, tuple)
      else (prevent_cse,) * len(inputs)
    )
    inputs = [
      jax.lax.optimization_barrier(x) if wall else x
      for x, wall in zip(inputs, walls, strict=True)
    ]
    return _call(frame, step, inputs)
  [(path, scope, program)] = step.programs()

  def run(key, inputs):
    child = frame.child(step, key, path, scope)
    outputs = child.run(program, inputs, notes=step.notes)
    return outputs, child.records

  outputs, records = jax.checkpoint(
    run,
    prevent_cse=prevent_cse,  # pyrefly: ignore[bad-argument-type]
    policy=step.params['policy'],
  )(step.inner_key(), inputs)
  frame.records.update(records)
  return outputs


def _shard_map(frame: Any, step: Any, inputs: Values) -> Values:
  """Every device interprets its part; records of all are combined."""
  [(path, scope, program)] = step.programs()
  params = step.params
  axes = tuple(sorted(params['newly_manual_axes']))
  all_axes = jax.P(axes)

  def run(key, inputs):
    child = frame.child(step, key, path, scope)
    outputs = child.run(program, inputs)
    records = jax.tree.map(
      lambda x: _compat.vary(jnp.asarray(x), frozenset(axes))[None],
      child.records,
    )
    return outputs, records

  outputs, records = jax.shard_map(
    run,
    mesh=params['mesh'],
    in_specs=(jax.P(), list(params['in_specs'])),
    out_specs=(list(params['out_specs']), all_axes),
    axis_names=set(axes),
    check_vma=params['check_vma'],
  )(step.inner_key(), inputs)
  combine = frame.interpretation.combine
  for name, parts in records.items():
    total = jax.tree.map(lambda x: x[0], parts)
    for place in range(1, len(jax.tree.leaves(parts)[0])):
      total = combine(total, jax.tree.map(lambda x, i=place: x[i], parts))
    frame.records[name] = total
  return outputs


def _custom_jvp(frame: Any, step: Any, inputs: Values) -> Values:
  """A function with a derivative of its author's, which stays its own.

  Its operations leave no records, which have no place in such a derivative.
  """
  if not frame.interpretation.arrays:
    return _call(frame, step, inputs)
  [(path, scope, program)] = step.programs()
  frame.records.update(frame.empty(program, path, scope))
  moving = _moving(step)

  @jax.custom_jvp
  def call(key, *inputs):
    return frame.child(step, key, path, scope).run(program, inputs)

  @call.defjvp
  def derivative(primals, tangents):
    key, *primals = primals
    tangents = [tangents[1 + i] for i in moving]

    def original(inputs, tangents):
      function = _original(step, inputs, moving)
      return jax.jvp(function, [inputs[i] for i in moving], tangents)

    traced, shape = jax.make_jaxpr(original, return_shape=True)(
      _declared(primals, step.inputs),
      _declared(tangents, [step.inputs[i] for i in moving]),
    )
    outputs = frame.child(step, key, path, scope).run(
      traced, [*primals, *tangents], tangents=len(tangents)
    )
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)

  return call(step.inner_key(), *inputs)


def _custom_vjp(frame: Any, step: Any, inputs: Values) -> Values:
  """Likewise, with a derivative in reverse."""
  if not frame.interpretation.arrays:
    return _call(frame, step, inputs)
  if frame.interpretation.retyped:
    return _retyped_vjp(frame, step, inputs)
  [(path, scope, program)] = step.programs()
  frame.records.update(frame.empty(program, path, scope))
  moving = _moving(step)

  @jax.custom_vjp
  def call(key, inputs):
    return frame.child(step, key, path, scope).run(program, inputs)

  def forward(key, inputs):
    primals = [inputs[i] for i in moving]

    def original(*primals):
      return jax.vjp(_original(step, inputs, moving), *primals)

    traced, shape = jax.make_jaxpr(original, return_shape=True)(*primals)
    outputs = frame.child(step, key, path, scope).run(traced, primals)
    return jax.tree.unflatten(jax.tree.structure(shape), outputs)

  def backward(pullback, cotangents):
    return None, _among(pullback(cotangents), moving, len(inputs))

  call.defvjp(forward, backward)
  return call(step.inner_key(), inputs)


def _retyped_vjp(frame: Any, step: Any, inputs: Values) -> Values:
  """The same where values have dtypes of their own.

  The derivative is traced in the dtypes of the program and interpreted whole,
  with the outputs that it needs computed again.
  """
  [(path, scope, program)] = step.programs()
  moving = _moving(step)
  moved = [i for i, x in enumerate(step.outputs) if programs.is_inexact(x)]

  @jax.custom_vjp
  def call(key, inputs):
    return frame.child(step, key, path, scope).run(program, inputs)

  def forward(key, inputs):
    return call(key, inputs), (key, inputs)

  def backward(saved, cotangents):
    key, inputs = saved
    floats = [cotangents[i] for i in moved]

    def original(inputs, floats):
      every = list(cotangents)
      for place, each in zip(moved, floats, strict=True):
        every[place] = each
      function = _original(step, inputs, moving)
      return jax.vjp(function, *[inputs[i] for i in moving])[1](every)

    traced = jax.make_jaxpr(original)(
      _declared(inputs, step.inputs),
      _declared(floats, [step.outputs[i] for i in moved]),
    )
    found = frame.child(step, key, path, scope).run(traced, [*inputs, *floats])
    return None, _among(found, moving, len(inputs))

  call.defvjp(forward, backward)
  return call(step.inner_key(), inputs)


def _among(found: Sequence[Any], places: list[int], count: int) -> Values:
  """Values at their places, and None at all others."""
  every = [None] * count
  for place, each in zip(places, found, strict=True):
    every[place] = each
  return every


def _declared(values: Sequence[Any], types: Sequence[Any]) -> Values:
  """Arrays of the dtypes that the program says, to trace a derivative with."""
  return [
    x if x.dtype == wanted.dtype else x.astype(wanted.dtype)
    for x, wanted in zip(values, types, strict=True)
  ]


def _moving(step: Any) -> list[int]:
  """Inputs that have derivatives: floats that the function did not close on."""
  first = step.params['num_consts']
  return [
    place
    for place, each in enumerate(step.inputs)
    if place >= first and programs.is_inexact(each)
  ]


def _original(
  step: Any, inputs: Sequence[Any], moving: list[int]
) -> Callable[..., Values]:
  """The function as its author wrote it, of the inputs that move."""

  def call(*primals):
    operands = list(inputs)
    for place, primal in zip(moving, primals, strict=True):
      operands[place] = primal
    return step.bind(*operands)

  return call


RULES: dict[str, Callable[[Any, Any, Values], Values]] = {
  **dict.fromkeys(programs.CALLS, _call),
  **dict.fromkeys(['jit', 'pjit'], _jit),
  **dict.fromkeys(['remat', 'remat2', 'checkpoint'], _remat),
  'scan': _scan,
  'while': _while,
  'cond': _cond,
  'shard_map': _shard_map,
  'custom_jvp_call': _custom_jvp,
  'custom_vjp_call': _custom_vjp,
}
