"""What `merge` promises of any transform, and what it refuses."""

import dataclasses

import flax.core
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import merging
from tests.merging import fixtures


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
  kernel: jax.Array
  bias: jax.Array


def simple(value, dtype=np.float32):
  return {'w': jnp.full((2, 3), value, dtype), 'b': jnp.full(3, value, dtype)}


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_accumulates_in_float32_and_rounds_once(dtype):
  base, experts = fixtures.models(dtype=dtype)
  merged = merging.merge(merging.task_arithmetic(0.3), base, experts)
  narrow = np.dtype(dtype)
  for path, x in merging.tree.flatten(merged).items():
    if path == 'step':
      continue
    start = np.asarray(merging.tree.flatten(base)[path]).astype(np.float32)
    exact = start.astype(np.float64)
    for expert in experts.values():
      end = np.asarray(merging.tree.flatten(expert)[path]).astype(np.float64)
      exact += 0.3 * (end - start)
    assert x.dtype == narrow
    # Rounded once: nowhere further from the exact sum than half a unit in the
    # last place (and what float32 adds to it).
    gap = np.abs(np.asarray(x).astype(np.float64) - exact)
    half = 0.5 * np.abs(
      np.spacing(np.abs(np.asarray(x))).astype(np.float64)
      if dtype != jnp.bfloat16
      else np.ldexp(1.0, np.frexp(np.asarray(x).astype(np.float64))[1] - 8)
    )
    assert np.all(gap <= half + 1e-6), path


def test_a_chain_of_bfloat16_roundings_would_differ():
  base = {'w': jnp.ones(1, jnp.bfloat16)}
  step = ml_dtypes.bfloat16(2**-7)
  experts = {
    name: {'w': jnp.full(1, 1 + step, jnp.bfloat16)} for name in 'abcdefgh'
  }
  # Each expert adds 3/8 of the last place: alone lost, together three.
  merged = merging.merge(merging.task_arithmetic(3 / 8), base, experts)
  assert merged['w'][0] == 1 + 3 * step


@pytest.mark.parametrize(
  'build',
  [
    lambda w, b: {'layer': {'kernel': w, 'bias': b}},
    lambda w, b: [w, (b,)],
    lambda w, b: Layer(kernel=w, bias=b),
    lambda w, b: flax.core.freeze({'layer': {'kernel': w, 'bias': b}}),
    lambda w, b: {'a': w, 'none': None, 'b': [b, {}]},
    lambda w, b: w,
  ],
  ids=['dict', 'list', 'dataclass', 'frozen', 'none', 'array'],
)
@pytest.mark.parametrize('array', [np.asarray, jnp.asarray])
def test_any_pytree_of_numpy_or_jax_arrays(build, array):
  def model(value):
    return build(
      array(np.full((2, 3), value, np.float32)),
      array(np.full(3, value, np.float32)),
    )

  merged = merging.merge(
    merging.average(), model(1.0), {'a': model(2.0), 'b': model(5.0)}
  )
  assert jax.tree.structure(merged) == jax.tree.structure(model(0.0))
  for leaf in jax.tree.leaves(merged):
    assert isinstance(leaf, jax.Array)
    np.testing.assert_array_equal(leaf, np.full(leaf.shape, 3.5))


def test_containers_may_differ_between_models():
  merged = merging.merge(
    merging.average(), simple(1.0), {'a': flax.core.freeze(simple(2.0))}
  )
  assert type(merged) is dict
  np.testing.assert_array_equal(merged['b'], np.full(3, 2.0))


def test_one_expert_and_a_scale_of_one_give_the_expert():
  base, experts = fixtures.models('lattice')
  expert = experts['math']
  for transform in (
    merging.average(),
    merging.task_arithmetic(1.0),
    merging.ties(1.0),
    merging.weighted_average([2.0]),
  ):
    merged = merging.merge(transform, base, {'math': expert})
    for x, y in zip(
      jax.tree.leaves(merged), jax.tree.leaves(expert), strict=True
    ):
      np.testing.assert_array_equal(x, y)


def test_a_wider_leaf_than_dtype_keeps_its_width():
  base = {'w': jnp.ones(2), 'h': jnp.ones(2, jnp.bfloat16)}
  expert = {'w': base['w'] + 2**-20, 'h': base['h'] + 1}
  merged = merging.merge(
    merging.average(), base, {'a': expert}, dtype=jnp.bfloat16
  )
  np.testing.assert_array_equal(merged['w'], expert['w'])
  np.testing.assert_array_equal(merged['h'], expert['h'])


def test_leaves_that_are_not_floating_pass_through():
  base = {
    'w': jnp.ones(2),
    'step': np.array(2**40),
    'flag': jnp.array([True, False]),
    'rng': jax.random.key(0),
  }
  merged = merging.merge(merging.average(), base, {'a': base})
  assert merged['step'] is base['step']
  assert merged['flag'] is base['flag']
  assert merged['rng'] is base['rng']


def test_gradient_of_the_scale_is_the_inner_product_with_task_vectors():
  base, experts = fixtures.models()
  base, experts = fixtures.part(base, experts, 'bias', 'wide', 'tall')

  def loss(params):
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(params))

  def merged(scale):
    return merging.merge(merging.task_arithmetic(scale), base, experts)

  tau = merging.tree.task_vector(experts['code'], base)
  for name in ('math', 'prose'):
    other = merging.tree.task_vector(experts[name], base)
    tau = merging.tree.add(tau, other)
  expected = merging.tree.dot(jax.grad(loss)(merged(0.3)), tau)
  gradient = jax.grad(lambda scale: loss(merged(scale)))(0.3)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_gradient_of_an_expert_flows_where_trimming_keeps():
  base = {'w': jnp.zeros(4)}
  expert = {'w': jnp.array([1.0, -4.0, 2.0, 3.0])}

  def total(expert):
    merged = merging.merge(merging.ties(0.5, 0.25), base, {'a': expert})
    return jnp.sum(merged['w'])

  np.testing.assert_array_equal(
    jax.grad(total)(expert)['w'], [0, 0.25, 0.25, 0.25]
  )


@pytest.mark.parametrize(
  'transform',
  [merging.ties(0.5), merging.ties(0.5, scope='tensor', ties='index')],
  ids=['global', 'tensor'],
)
def test_vmap_over_seeds_of_models_is_a_loop(transform):
  seeds = [
    fixtures.part(*fixtures.models(seed=seed), 'wide') for seed in range(2)
  ]
  together = jax.vmap(
    lambda base, experts: merging.merge(transform, base, experts)
  )(*merging.tree.stack(seeds))
  for merged, (base, experts) in zip(
    merging.tree.unstack(together), seeds, strict=True
  ):
    alone = merging.merge(transform, base, experts)
    for path, x in alone.items():
      np.testing.assert_allclose(merged[path], x, rtol=1e-6, atol=1e-7)


def test_traced_values_are_not_looked_at_but_constants_are():
  bad = {'w': jnp.array([1.0, jnp.nan, 3.0])}
  with pytest.raises(ValueError, match="'a' at 'w': holds a NaN"):
    jax.jit(lambda base: merging.merge(merging.average(), base, {'a': bad}))(
      bad
    )
  merged = jax.jit(
    lambda base, expert: merging.merge(merging.average(), base, {'a': expert})
  )({'w': jnp.zeros(3)}, bad)
  np.testing.assert_array_equal(merged['w'], bad['w'])


def refused(error, match, transform=None, base=None, experts=None, **extra):
  with pytest.raises(error, match=match):
    merging.merge(
      transform or merging.average(),
      simple(0.0) if base is None else base,
      {'math': simple(1.0)} if experts is None else experts,
      **extra,
    )


def test_experts_must_be_a_mapping_of_names():
  refused(
    TypeError, 'experts is a list, expected a mapping', experts=[simple(1)]
  )
  refused(TypeError, 'an expert is named 3', experts={3: simple(1.0)})
  refused(ValueError, 'there are no experts', experts={})


def test_structure_is_checked_before_arithmetic_and_all_is_named():
  experts = {
    'code': {'w': jnp.ones((3, 2)), 'bb': jnp.ones(3)},
    'math': {'w': jnp.ones((2, 3), jnp.int32), 'b': jnp.ones(3)},
  }
  refused(
    ValueError,
    r"""(?x)4\ differences\ from\ base:\n
      'code'\ at\ 'b':\ missing;\ did\ you\ mean\ 'bb'\?\n
      'code'\ at\ 'bb':\ not\ in\ base\n
      'code'\ at\ 'w':\ shape\ \(3,\ 2\),\ expected\ \(2,\ 3\)\n
      'math'\ at\ 'w':\ int32,\ expected\ float32""",
    experts=experts,
  )


def test_values_must_be_finite():
  code, math = simple(1.0), simple(2.0)
  code['w'] = code['w'].at[1, 2].set(jnp.nan)
  math['b'] = math['b'].at[0].set(jnp.inf)
  refused(
    ValueError,
    "'math' at 'b': holds a NaN or an infinity\n"
    "'code' at 'w': holds a NaN or an infinity",
    experts={'code': code, 'math': math},
  )
  refused(ValueError, "'base' at 'w'", base=code)


def test_other_leaves_must_agree():
  base = {**simple(0.0), 'step': jnp.array(1), 'mask': np.array([True])}
  expert = {**simple(1.0), 'step': jnp.array(2), 'mask': np.array([False])}
  refused(
    ValueError,
    "'math' at 'mask': differs from the base; bool .*\n"
    "'math' at 'step': differs from the base; int32 leaves are not merged",
    base=base,
    experts={'math': expert},
  )


def test_leaves_must_be_real_arrays_that_jax_can_hold():
  refused(TypeError, "'base' at 'w': a str, expected an array", base={'w': 'x'})
  wide = {'w': np.ones(2)}
  refused(
    TypeError,
    "'base' at 'w': float64 would be read as float32; cast it",
    base=wide,
    experts={'math': wide},
  )
  turning = {'w': jnp.ones(2, jnp.complex64)}
  refused(
    TypeError, 'complex64; merge real', base=turning, experts={'math': turning}
  )
  counter = {'step': jnp.array(1)}
  refused(
    ValueError,
    'base has no floating-point leaf',
    base=counter,
    experts={'math': counter},
  )


def test_dtype_must_be_floating():
  refused(TypeError, 'dtype is int32', dtype=jnp.int32)


def test_the_experts_must_be_combined():
  refused(
    ValueError,
    r'(?s)leaves 2 deltas, .*end the chain with mean\(\) or total.*leaf .b',
    transform=merging.trim(0.5),
    experts={'code': simple(1.0), 'math': simple(2.0)},
  )


def test_a_delta_must_keep_its_shape():
  transform = merging.combine_deltas(lambda deltas: deltas[0][:1])
  refused(
    ValueError, r'delta of shape \(1,\) for a leaf of shape \(3,\)', transform
  )


def test_extra_data_are_checked():
  fisher = merging.weighted_mean('fisher')
  refused(TypeError, "takes no 'fisher'; it takes", fisher=simple(1.0))
  refused(
    TypeError,
    r"takes no 'fischer'; it takes \['fisher'\]; did you mean 'fisher'",
    fisher,
    fischer={'math': simple(1.0)},
  )
  refused(TypeError, "the transform takes 'fisher': pass fisher=", fisher)
  refused(
    ValueError,
    "fisher is for 'code', expected the experts 'math'",
    fisher,
    fisher={'code': simple(1.0)},
  )
  refused(
    ValueError,
    "fisher of 'math' has a leaf 'kernel' that base has not",
    fisher,
    fisher={'math': {'kernel': jnp.ones(3)}},
  )
  refused(
    ValueError,
    "fisher of 'math' and of 'code' have not the same leaves: only one has 'w'",
    fisher,
    experts={'code': simple(1.0), 'math': simple(2.0)},
    fisher={'code': simple(1.0), 'math': {'b': jnp.ones(3)}},
  )
