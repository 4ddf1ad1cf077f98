"""Soups, great circles, model stock: laws, edges, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import references
from tests.merging.cases import soups

RNG = np.random.default_rng(3)
BASE = RNG.normal(size=6)
A, B, C = (BASE + 0.3 * RNG.normal(size=6) for _ in range(3))
ZERO = np.zeros(6)


def merge(transform, base, **experts):
  """Merges vectors, or matrices, given in float64."""

  def model(x):
    return {'w': jnp.asarray(x, jnp.float32)}

  models = {name: model(x) for name, x in experts.items()}
  return np.asarray(merging.merge(transform, model(base), models)['w'])


def near(found, expected, atol=1e-6):
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# Sums of parameters.


def test_linear_is_the_sum_of_parameters_and_not_of_changes():
  weights = {'a': 0.5, 'b': 0.125, 'c': -0.25}
  transform = merging.linear(weights, normalize=False)
  near(merge(transform, BASE, a=A, b=B, c=C), 0.5 * A + 0.125 * B - 0.25 * C)


def test_linear_with_normalisation_is_the_weighted_average():
  weights = {'a': 3.0, 'b': 1.0}
  one, other = (
    merge(make(weights), BASE, a=A, b=B)
    for make in (merging.linear, merging.weighted_average)
  )
  np.testing.assert_array_equal(one, other)
  near(one, (3 * A + B) / 4)


def test_passthrough_is_the_expert_times_a_factor():
  near(merge(merging.passthrough(), BASE, a=A), A)
  near(merge(merging.passthrough(0.5), BASE, a=A), 0.5 * A)
  with pytest.raises(ValueError, match="'a', 'b', expected one; linear takes"):
    merge(merging.passthrough(), BASE, a=A, b=B)


def test_scale_base_leaves_deltas_alone():
  transform = merging.chain(merging.scale_base(0.0), merging.mean())
  near(merge(transform, BASE, a=A, b=B), (A + B) / 2 - BASE)


# Weights from metrics.


def test_without_a_penalty_all_checkpoints_count_equally():
  for form in ('power', 'softmax'):
    transform = merging.metrics_weighted_average(
      {'a': 0.1, 'b': 7.0}, 0.0, form=form
    )
    near(merge(transform, BASE, a=A, b=B), (A + B) / 2)


@pytest.mark.parametrize(
  ('form', 'better', 'expected'),
  [
    ('power', 'lower', [0.5**-2, 2.0**-2]),
    ('power', 'higher', [0.5**2, 2.0**2]),
    ('softmax', 'lower', np.exp([-1.0, -4.0])),
    ('softmax', 'higher', np.exp([1.0, 4.0])),
  ],
)
def test_weights_follow_from_metrics(form, better, expected):
  transform = merging.metrics_weighted_average(
    {'b': 2.0, 'a': 0.5}, 2.0, better=better, form=form
  )
  share = expected / np.sum(expected)
  near(merge(transform, BASE, a=A, b=B), share[0] * A + share[1] * B)


def test_large_metrics_and_penalties_do_not_overflow():
  steps = {'a': 1e5, 'b': 2e5}
  transform = merging.metrics_weighted_average(steps, 50.0, better='higher')
  near(merge(transform, BASE, a=A, b=B), B)
  losses = {'a': 3000.0, 'b': 3001.0}
  transform = merging.metrics_weighted_average(losses, form='softmax')
  near(merge(transform, BASE, a=A, b=B), (A + B / np.e) / (1 + 1 / np.e))


def test_metrics_are_checked():
  make = merging.metrics_weighted_average
  with pytest.raises(ValueError, match=r"'b' is 0, .* a positive number; form"):
    make({'a': 1, 'b': 0})
  with pytest.raises(ValueError, match="'a' is nan, expected a finite number"):
    make({'a': float('nan')}, form='softmax')
  with pytest.raises(ValueError, match='there are no metrics'):
    make({})
  with pytest.raises(ValueError, match=r"better is 'low', .* mean 'lower'"):
    make({'a': 1}, better='low')
  with pytest.raises(ValueError, match="no expert is named 'c'"):
    merge(make({'a': 1, 'c': 1}), BASE, a=A, b=B)


# Great circles.


def test_a_great_circle_meets_its_ends():
  for threshold in (0.9995, 1.0, 0.0):
    make = functools.partial(merging.slerp, threshold=threshold)
    near(merge(make(0.0, toward='b'), BASE, a=A, b=B), A)
    near(merge(make(1.0, toward='b'), BASE, a=A, b=B), B)
    near(merge(make(0.0), BASE, a=A), BASE)
    near(merge(make(1.0), BASE, a=A), A)


def test_a_great_circle_is_the_same_from_its_other_end():
  one = merge(merging.slerp(0.3, toward='b'), BASE, a=A, b=B)
  other = merge(merging.slerp(0.7, toward='a'), BASE, a=A, b=B)
  near(one, other)
  assert (
    np.abs(one - merge(merging.slerp(0.3, toward='a'), BASE, a=A, b=B)).max()
    > 0.01
  )


def test_a_great_circle_keeps_lengths_and_speed():
  a, b = A / np.linalg.norm(A), -B / np.linalg.norm(B)
  whole = np.arccos(a @ b)
  for t in (0.25, 0.5):
    x = merge(merging.slerp(t, toward='b'), BASE, a=a, b=b)
    near(np.linalg.norm(x), 1)
    near(np.arccos(a @ x), t * whole, atol=3e-6)


@pytest.mark.parametrize('size', [1e-2, 1e-4])
def test_small_angles_are_accurate(size):
  """To float32 in the change, not only in the parameters it is added to."""
  a, b = (np.float32(BASE + size * (x - BASE)) for x in (A, B))
  base, a, b = (np.float64(np.float32(x)) for x in (BASE, a, b))
  u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
  angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
  exact = (np.sin(0.3 * angle) * a + np.sin(0.7 * angle) * b) / np.sin(angle)

  def change(x, dtype):
    leaf = merging.Leaf(
      jnp.asarray(base, dtype),
      (jnp.asarray(a - base, dtype), jnp.asarray(b - base, dtype)),
      index=0,
    )
    state = x.init((), ('a', 'b'))
    return np.asarray(x.update(leaf, state).deltas[0])

  found = change(merging.slerp(0.7, toward='b', threshold=1.0), jnp.float32)
  near(found, exact - base, atol=3e-7 * size)


def test_nearly_parallel_vectors_are_joined_by_a_line_as_in_mergekit():
  b = A + 0.01 * (B - A)
  for threshold in (0.9995, 0.0):
    transform = merging.slerp(0.3, toward='b', threshold=threshold)
    near(merge(transform, BASE, a=A, b=b), 0.7 * A + 0.3 * b, atol=3e-7)


@pytest.mark.parametrize(
  ('a', 'b'),
  [(A, A), (A, 2 * A), (A, -A), (A, ZERO), (ZERO, B), (ZERO, ZERO)],
)
def test_where_there_is_no_angle_the_path_is_straight(a, b):
  for transform in (
    merging.slerp(0.25, toward='b', threshold=1.0),
    merging.nuslerp({'a': 3, 'b': 1}),
  ):
    near(merge(transform, BASE, a=a, b=b), 0.75 * a + 0.25 * b)
  deltas = merging.nuslerp({'a': 3, 'b': 1}, of='deltas')
  near(merge(deltas, BASE, a=BASE + a, b=BASE + b), BASE + 0.75 * a + 0.25 * b)


def test_great_circles_of_changes():
  slerp = merging.slerp(0.25, toward='b', of='deltas', threshold=1.0)
  nuslerp = merging.nuslerp({'a': 3, 'b': 1}, of='deltas')
  expected = BASE + soups.slerp_pair(0.25, A - BASE, B - BASE, 1.0)
  for transform in (slerp, nuslerp):
    near(merge(transform, BASE, a=A, b=B), expected)


def test_nuslerp_with_shares_is_slerp():
  one = merge(merging.nuslerp({'a': 0.4, 'b': 0.1}), BASE, a=A, b=-B)
  other = merging.slerp(0.2, toward='b', threshold=1.0)
  near(one, merge(other, BASE, a=A, b=-B), atol=1e-7)


def test_nuslerp_of_one_expert_and_of_weights_that_cancel():
  near(merge(merging.nuslerp({'a': 0.3}), BASE, a=A), A)
  near(
    merge(merging.nuslerp({'a': 1, 'b': -1}), BASE, a=A, b=B),
    soups.slerp_pair(0.5, A, B, 1.0),
  )


MATRICES = RNG.normal(size=(3, 4, 3))


@pytest.mark.parametrize(
  'make',
  [
    lambda **axis: merging.nuslerp({'a': 3, 'b': 1}, of='deltas', **axis),
    merging.model_stock,
  ],
  ids=['nuslerp', 'model_stock'],
)
def test_an_axis_is_one_of_the_frame(make):
  base, a, b = MATRICES
  b = b + a  # So that model stock has angles to speak of.
  for axis in (0, 1):
    here = merge(make(axis=axis), base, a=a, b=b)
    there = merge(make(axis=axis, layout='out_in'), base.T, a=a.T, b=b.T)
    np.testing.assert_allclose(there.T, here, rtol=1e-6)
  # Kernels are stored as [in, out]: what every output gets is a column.
  whole = merge(make(axis=1), base, a=a, b=b)
  for i in range(3):
    row = merge(make(), base[:, i], a=a[:, i], b=b[:, i])
    near(whole[:, i], row)
  assert np.abs(whole - merge(make(axis=0), base, a=a, b=b)).max() > 0.01


def test_where_a_path_leads_is_checked():
  make = merging.slerp
  with pytest.raises(
    ValueError, match="slerp: which of 'a', 'b' is at the end"
  ):
    merge(make(0.5), BASE, a=A, b=B)
  with pytest.raises(ValueError, match="nearswap: got the 3 experts 'a', 'b'"):
    merge(merging.nearswap(0.5), BASE, a=A, b=B, c=C)
  with pytest.raises(ValueError, match='nuslerp: got the 3 experts'):
    merge(merging.nuslerp([1, 1, 1]), BASE, a=A, b=B, c=C)
  with pytest.raises(ValueError, match=r"named 'mth' .*; did you mean 'math'"):
    merge(make(0.5, toward='mth'), BASE, math=A, b=B)
  with pytest.raises(ValueError, match="the delta of 'a' has no other to turn"):
    merge(make(0.5, of='deltas'), BASE, a=A)
  with pytest.raises(ValueError, match=r"of is 'delta', .* mean 'deltas'"):
    make(0.5, of='delta')
  with pytest.raises(ValueError, match='axis is 2, expected None'):
    merging.nuslerp([1, 1], axis=2)
  late = merging.chain(merging.mean(), make(0.5, toward='a'))
  with pytest.raises(ValueError, match='1 deltas of 2 experts; go between'):
    merge(late, BASE, a=A, b=B)


# Means on spheres.


def test_multislerp_is_the_mean_direction_times_the_mean_length():
  experts = [A, -2 * B, 0.5 * C]
  found = merge(merging.multislerp(), BASE, a=A, b=-2 * B, c=0.5 * C)
  mean = sum(x / np.linalg.norm(x) for x in experts)
  size = np.mean([np.linalg.norm(x) for x in experts])
  near(found, size * mean / np.linalg.norm(mean), atol=2e-6)


def test_multislerp_of_changes_with_weights_as_they_are():
  weights = {'a': 1.0, 'b': 2.0, 'c': 0.5}
  taus = [x - BASE for x in (A, B, C)]
  found = merge(
    merging.multislerp(weights, of='deltas', normalize=False),
    BASE, a=A, b=B, c=C,
  )  # fmt: skip
  near(found, BASE + soups.multislerp_tangent(taus, [1, 2, 0.5]))
  three = merge(merging.multislerp(normalize=False), BASE, a=A, b=B, c=C)
  near(three, 3 * merge(merging.multislerp(), BASE, a=A, b=B, c=C), atol=3e-6)


def test_directions_that_balance_out():
  near(merge(merging.multislerp(), BASE, a=A, b=-3 * A), -A)
  balanced = {'a': 1.0, 'b': 2.0, 'c': 1.0}
  found = merge(merging.multislerp(balanced), BASE, a=A, b=-A, c=A)
  near(found, ZERO)
  # The Karcher mean of opposites begins at the first and has nowhere to go.
  near(merge(merging.karcher(), BASE, a=A, b=-3 * A), 2 * A)


@pytest.mark.parametrize('make', [merging.multislerp, merging.karcher])
def test_zero_vectors_count_in_the_length_only(make):
  near(merge(make(), BASE, a=A, b=ZERO), A / 2)
  near(merge(make(), BASE, a=ZERO, b=ZERO), ZERO)
  near(merge(make(of='deltas'), BASE, a=BASE, b=BASE), BASE, atol=1e-7)
  near(merge(make(of='deltas'), BASE, a=A, b=BASE), (A + BASE) / 2)


@pytest.mark.parametrize('make', [merging.multislerp, merging.karcher])
def test_the_mean_of_one_expert_is_that_expert(make):
  for of in ('parameters', 'deltas'):
    near(merge(make(of=of), BASE, a=A), A)
    near(merge(make(of=of), [2.0], a=[-3.0]), [-3.0])


def test_the_karcher_mean_of_two_is_on_their_great_circle():
  b = -B * np.linalg.norm(A) / np.linalg.norm(B)
  for share in (0.5, 0.2):
    found = merge(merging.karcher({'a': 1 - share, 'b': share}), BASE, a=A, b=b)
    near(found, soups.slerp_pair(share, A, b, 1.0), atol=3e-6)


def test_the_karcher_mean_has_the_least_squared_angles():
  experts = {'a': A - BASE, 'b': BASE - B, 'c': C - BASE}
  u = np.float64(merge(merging.karcher(max_iter=60), ZERO, **experts))
  u /= np.linalg.norm(u)

  def cost(u):
    return sum(
      np.arccos(x @ u / np.linalg.norm(x)) ** 2 for x in experts.values()
    )

  for direction in np.eye(6):
    for sign in (-1, 1):
      moved = u + sign * 1e-2 * direction
      assert cost(moved / np.linalg.norm(moved)) >= cost(u) - 1e-6


def test_karcher_takes_the_steps_of_the_formula():
  """Far apart, where the mean of directions is not yet the answer."""
  experts = [A - BASE, BASE - B, 3 * (C - BASE)]
  for max_iter in (1, 10):
    found = merge(
      merging.karcher([3, 1, 1], of='deltas', max_iter=max_iter),
      BASE, a=BASE + experts[0], b=BASE + experts[1], c=BASE + experts[2],
    )  # fmt: skip
    expected = soups.karcher_steps(experts, [0.6, 0.2, 0.2], max_iter)
    near(found, BASE + expected, atol=2e-6)
  first = merge(merging.karcher(max_iter=0), BASE, a=A, b=B, c=C)
  near(first, merge(merging.multislerp(), BASE, a=A, b=B, c=C))


def test_karcher_stops_where_told():
  coarse = merging.karcher(tol=0.3)
  none = merging.karcher(max_iter=0)
  a, b = A - BASE, BASE - B
  one, other = (merge(x, ZERO, a=a, b=b, c=C) for x in (coarse, none))
  near(one, other)
  fine = merge(merging.karcher(), ZERO, a=a, b=b, c=C)
  assert np.abs(fine - other).max() > 1e-3


def test_weights_of_means_are_checked():
  for make in (merging.multislerp, merging.karcher):
    with pytest.raises(ValueError, match=r"\[1.0, -1.0\] of 'a', 'b' add up"):
      merge(make({'a': 1, 'b': -1}), BASE, a=A, b=B)
    with pytest.raises(ValueError, match=r'shape \(3,\), expected \(2,\)'):
      merge(make([1, 1, 1]), BASE, a=A, b=B)
    late = merging.chain(merging.mean(), make([1, 1]))
    with pytest.raises(
      ValueError, match='1 deltas of 2 experts; take the mean'
    ):
      merge(late, BASE, a=A, b=B)
  with pytest.raises(ValueError, match='max_iter is -1, expected 0 or more'):
    merging.karcher(max_iter=-1)


# Model stock.


def test_model_stock_of_parallel_changes_is_the_average():
  tau = A - BASE
  found = merge(
    merging.model_stock(), BASE, a=A, b=BASE + 3 * tau, c=BASE + tau / 2
  )
  near(found, BASE + 1.5 * tau)


def test_model_stock_of_orthogonal_changes_is_the_base():
  tau, other = np.eye(6)[:2]
  found = merge(merging.model_stock(), BASE, a=BASE + tau, b=BASE + other)
  near(found, BASE)


def test_model_stock_of_opposed_changes():
  a, b = A - BASE, -2 * (A - BASE) + 0.1 * (B - BASE)
  kept = merge(merging.model_stock(), BASE, a=BASE + a, b=BASE + b)
  near(kept, BASE, atol=1e-7)
  clip = {'clip': False}
  found = merge(merging.model_stock(**clip), BASE, a=BASE + a, b=BASE + 2 * B)
  expected = soups.stock([a, 2 * B], **clip)
  near(found, BASE + expected, atol=1e-5)
  tau = A - BASE  # The ratio is infinite, and the mean is zero.
  away = merge(merging.model_stock(**clip), BASE, a=A, b=BASE - tau)
  assert np.all(np.isfinite(away))


def test_model_stock_counts_a_missing_change_as_orthogonal():
  taus = [A - BASE, A - BASE + 0.1 * (B - BASE), ZERO]
  found = merge(merging.model_stock(), BASE, **{
    name: BASE + tau for name, tau in zip('abc', taus, strict=True)
  })  # fmt: skip
  near(found, BASE + soups.stock(taus))


def test_model_stock_needs_two():
  with pytest.raises(ValueError, match="'a' is the only expert, expected two"):
    merge(merging.model_stock(), BASE, a=A)
  late = merging.chain(merging.mean(), merging.model_stock())
  with pytest.raises(ValueError, match='one delta has no angle'):
    merge(late, BASE, a=A, b=B)


# Nearswap.


def test_nearswap_moves_by_at_most_t():
  for t in (0.0, 0.01, 0.1, 10.0):
    found = merge(merging.nearswap(t), BASE, a=A)
    near(found, soups.nearswap_pair(t, BASE, A), atol=3e-7)
    assert np.abs(found - BASE).max() <= t + 3e-7
  near(merge(merging.nearswap(10.0, toward='a'), BASE, a=A, b=B), A)
  near(merge(merging.nearswap(0.0, toward='a'), BASE, a=A, b=B), B)
  with pytest.raises(ValueError, match=r't is -0.1, .* 0 or more'):
    merging.nearswap(-0.1)


# All of them.

GRADED = {
  'slerp': merging.slerp(0.3, toward='b', threshold=1.0),
  'multislerp': merging.multislerp(),
  'karcher': merging.karcher(max_iter=2),
  'model_stock': merging.model_stock(),
  'nearswap': merging.nearswap(0.3, toward='b'),
}


@pytest.mark.parametrize('name', GRADED)
def test_gradients_are_finite_and_those_of_differences(name):
  base = {'w': jnp.asarray(BASE, jnp.float32)}

  @jax.jit
  def loss(a, b):
    merged = merging.merge(GRADED[name], base, {'a': {'w': a}, 'b': {'w': b}})
    return jnp.vdot(merged['w'], jnp.arange(6.0))

  gradient = jax.jit(jax.grad(loss))
  assert np.all(np.isfinite(gradient(base['w'], base['w'])))
  a, b = (jnp.asarray(x, jnp.float32) for x in (A, 1.5 * B))
  direction = jnp.asarray(C, jnp.float32)
  step = 1e-2
  slope = (loss(a + step * direction, b) - loss(a - step * direction, b)) / (
    2 * step
  )
  near(jnp.vdot(gradient(a, b), direction), slope, atol=2e-2)


def test_every_reference_can_be_read():
  names = (
    'karcher metrics_weighted_average model_stock multislerp nearswap nuslerp '
    'slerp'
  )
  for name in names.split():
    assert references.references_of(getattr(merging, name)), name
  assert references.references_of(merging.search.greedy_soup)
