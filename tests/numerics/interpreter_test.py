import functools
import re

import jax
from jax.extend.core import primitives
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from tests.numerics import written

X, W = written.X, written.W
FAST = (
  written.branches,
  written.own_vjp,
  written.own_jvp,
  written.sharded,
)
SLOW = (
  written.softmax,
  written.checkpointed,
  written.recurrent,
  written.backwards,
  written.activations,
  written.layer_norm,
  written.attention,
  written.counted,
  written.compiled,
  written.mapped,
  written.linen,
)
WITHOUT_GRADIENT = (written.loop, written.gradient)


def identity(step, inputs):
  return step.bind(*inputs)


def value_and_gradient(function):
  def loss(x, w):
    outputs = function(x, w)
    return sum(map(jnp.sum, jax.tree.leaves(outputs))), outputs

  return jax.value_and_grad(loss, (0, 1), has_aux=True)


def program(compiled):
  """The optimised program, without names and places in the source."""
  text = re.sub(r', metadata=\{[^}]*\}', '', compiled.as_text())
  text = text[text.index('\n') :].partition('\nFileNames')[0]
  names = {}
  return re.sub(
    r'%[\w.\-]+', lambda m: names.setdefault(m[0], f'%{len(names)}'), text
  )


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert (a.dtype, a.weak_type) == (b.dtype, b.weak_type)
    np.testing.assert_array_equal(a, b)


def check_identity(function, lift=lambda f: f):
  transformed = numerics.transform(function, identity)
  compiled = [
    jax.jit(lift(f)).lower(X, W).compile() for f in (function, transformed)
  ]
  assert program(compiled[0]) == program(compiled[1])
  assert_same(*(each(X, W) for each in reversed(compiled)))


def named(cases):
  return pytest.mark.parametrize('function', cases, ids=lambda f: f.__name__)


@named(FAST)
def test_the_identity_changes_no_bit_and_no_instruction(function):
  check_identity(function, value_and_gradient)


@pytest.mark.slow
@named(SLOW)
def test_the_identity_changes_nothing_in_larger_functions(function):
  check_identity(function, value_and_gradient)


@named(WITHOUT_GRADIENT)
def test_the_identity_changes_nothing_without_a_gradient(function):
  check_identity(function)


def test_derivatives_of_authors_are_kept():
  transformed = numerics.transform(written.clipped, identity)
  assert jax.grad(transformed)(0.0) == np.float32(0.1)
  transformed = numerics.transform(written.halved, identity)
  assert jax.grad(transformed)(1.0, 3) == 1.5
  relu = numerics.transform(jax.nn.relu, identity)
  assert jax.grad(relu)(0.0) == 0.0


def test_calls_are_followed():
  closed = jax.make_jaxpr(jnp.sin)(1.0)

  def f(x):
    call = primitives.closed_call_p
    [y] = call.bind(x, **call.get_bind_params({'call_jaxpr': closed}))
    return y

  assert numerics.transform(f, negate_sines)(0.5) == -jnp.sin(0.5)


def negate_sines(step, inputs):
  outputs = step.bind(*inputs)
  return [-x for x in outputs] if step.primitive in ('sin', 'cos') else outputs


def test_the_rule_sees_what_is_inside():
  def nested(x):
    def body(c, _):
      c = jax.lax.cond(c[0] > 9, jnp.cos, jax.checkpoint(jnp.sin), c)
      return jax.jit(jnp.sin)(c), None

    c, _ = jax.lax.scan(body, x, length=1)
    return jax.lax.while_loop(lambda c: c[0] > 9, jnp.sin, c)

  x = jnp.array([0.5])
  expected = jnp.sin(jnp.sin(x))  # Negated twice, of an odd function.
  np.testing.assert_array_equal(
    numerics.transform(nested, negate_sines)(x), expected
  )


def test_residuals_of_an_author_are_interpreted_and_cotangents_are_not():
  clipped = numerics.transform(written.clipped, negate_sines)
  value, gradient = jax.value_and_grad(clipped)(1.55)
  assert value == -jnp.sin(1.55)
  assert gradient == -jnp.cos(1.55)  # The saved cosine is negated.
  # The linear part of a rule for tangents is left alone; what it saves is not.
  halved = numerics.transform(
    written.halved,
    lambda step, inputs: [
      10 * x if step.primitive == 'mul' else x for x in step.bind(*inputs)
    ],
  )
  assert halved(2.0, 3.0) == 60.0
  primal, tangent = jax.jvp(lambda x: halved(x, 3.0), (2.0,), (1.0,))
  assert (primal, tangent) == (60.0, 0.5 * 60.0)


def test_it_composes():
  f = written.softmax
  g = numerics.transform(numerics.transform(f, identity), identity)
  batch = jnp.stack([X, X + 1])
  np.testing.assert_array_equal(
    jax.vmap(g, (0, None))(batch, W),
    jax.jit(jax.vmap(f, (0, None)))(batch, W),
  )
  tangents = (X, W)
  assert_same(
    jax.jvp(g, (X, W), tangents), jax.jvp(jax.jit(f), (X, W), tangents)
  )
  mapped = jax.shard_map(
    numerics.transform(written.clipped, identity),
    mesh=written.MESH,
    in_specs=jax.P('i'),
    out_specs=jax.P('i'),
  )
  sharding = jax.NamedSharding(written.MESH, jax.P('i'))
  rows = jax.device_put(W, sharding)
  np.testing.assert_array_equal(mapped(rows), jax.jit(jnp.sin)(W))
  whole = numerics.transform(written.clipped, identity)(rows)
  assert whole.sharding.is_equivalent_to(sharding, 2)


def test_trees_keywords_statics_and_types_stay():
  def f(tree, power, *, scale, name):
    assert isinstance(power, int)
    assert name == 'x'
    return {'y': [tree['a'] ** power * scale, None], 'n': tree['n'] + 1}

  g = numerics.transform(f, identity, static_argnums=1, static_argnames='name')
  tree = {'a': jnp.ones(2, jnp.bfloat16), 'n': 3}
  kwargs = {'scale': 0.5, 'name': 'x'}
  expected = jax.jit(f, static_argnums=1, static_argnames='name')
  assert_same(g(tree, 2, **kwargs), expected(tree, 2, **kwargs))
  assert g.__name__ == 'f'


@pytest.mark.slow
def test_integers_and_closed_over_values_are_no_obstacle():
  @jax.custom_vjp
  def pick(x, i):
    return x[i]

  pick.defvjp(
    lambda x, i: (x[i], i),
    lambda i, g: (jnp.zeros(3).at[i].set(2 * g), None),
  )

  def f(x, scale):
    @jax.custom_jvp
    def inner(y):
      return y * scale

    inner.defjvp(lambda p, t: (inner(p[0]), 7 * t[0]))
    return inner(numerics.transform(pick, identity)(x, 1))

  x = jnp.arange(1.0, 4.0)
  g = numerics.transform(lambda x: f(x, 2 * x[0]), identity)
  assert g(x) == f(x, 2 * x[0]) == 4.0
  g = numerics.transform(lambda x: f(x, 3.0), identity)
  np.testing.assert_array_equal(jax.grad(g)(x), [0, 14, 0])


def test_effects_happen(capfd):
  def f(x):
    jax.debug.print('saw {}', x)
    return x

  jax.block_until_ready(numerics.transform(f, identity)(1.5))
  jax.effects_barrier()
  assert 'saw 1.5' in capfd.readouterr().out


def test_nested_shardings_stay():
  sharding = jax.NamedSharding(written.MESH, jax.P(None, 'i'))
  inner = jax.jit(jnp.sin, out_shardings=sharding)
  result = numerics.transform(lambda x: inner(x) + 1, identity)(W)
  assert result.sharding.is_equivalent_to(sharding, 2)


def test_a_type_is_traced_once():
  traces = 0

  def f(x):
    nonlocal traces
    traces += 1
    return jnp.sin(x)

  g = numerics.transform(f, identity)
  for x in (1.0, 2.0, 3.0):
    g(x)
  assert traces == 1
  g(jnp.ones(2))
  assert traces == 2


def draws(step, inputs):
  outputs = step.bind(*inputs)
  if step.primitive == 'sin':
    outputs = [jax.random.uniform(step.new_key(), x.shape) for x in outputs]
  return outputs


def test_keys_differ_by_step_turn_and_branch_and_by_nothing_else():
  def f(x):
    def body(c, _):
      return c, (jnp.sin(c), jax.jit(jnp.sin)(c))

    _, ys = jax.lax.scan(body, x, length=3)
    _, zs = jax.lax.while_loop(
      lambda c: c[0] < 3,
      lambda c: (c[0] + 1, c[1].at[c[0]].set(jnp.sin(x))),
      (0, jnp.zeros(3)),
    )
    return ys, zs, jax.lax.cond(x > 0, jnp.sin, jnp.sin, x)

  g = numerics.transform(f, draws)
  key = jax.random.key(0)
  first = g(0.5, rounding_key=key)
  flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(first)])
  assert len(set(flat.tolist())) == flat.size == 10
  assert_same(g(0.5, rounding_key=key), first)
  other = g(0.5, rounding_key=jax.random.key(1))
  assert not set(flat.tolist()) & set(np.ravel(other[0][0]).tolist())
  with pytest.raises(ValueError, match=r'sin at .*interpreter_test.py.*key'):
    g(0.5)


@pytest.mark.slow
def test_members_of_a_vmap_share_draws_unless_the_key_is_mapped():
  f = numerics.transform(jnp.sin, draws)
  key = jax.random.key(0)
  xs = jnp.full(2, 0.5)
  alike = jax.vmap(functools.partial(f, rounding_key=key))(xs)
  keys = jax.random.split(key, 2)
  apart = jax.vmap(lambda x, key: f(x, rounding_key=key))(xs, keys)
  assert alike[0] == alike[1] == f(0.5, rounding_key=key)
  assert apart[0] != apart[1]


def test_wrong_rules_are_told():
  with pytest.raises(ValueError, match='returned 2 outputs for sin at'):
    numerics.transform(jnp.sin, lambda s, i: s.bind(*i) * 2)(1.0)
  with pytest.raises(TypeError, match=r'returned float16\[\] for sin at'):
    numerics.transform(
      jnp.sin, lambda s, i: [x.astype(jnp.float16) for x in s.bind(*i)]
    )(1.0)
  with pytest.raises(TypeError, match='expected a function and a rule'):
    numerics.transform(1.0, identity)
  with pytest.raises(TypeError, match='rounding_key must be a PRNG key'):
    numerics.transform(jnp.sin, identity)(1.0, rounding_key=3.0)
