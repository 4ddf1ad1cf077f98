"""Errors in units of the last place, tables and CORDIC."""

from decimal import Decimal
import math

import jax
import ml_dtypes
import numpy as np
import pytest

import numerics
from numerics.functions import cordic
from numerics.functions import errors
from numerics.functions import lookup

FORMATS = {
  'bfloat16': ml_dtypes.bfloat16,
  'float16': np.float16,
  'float8_e4m3fn': ml_dtypes.float8_e4m3fn,
}


@pytest.mark.parametrize('name', FORMATS)
def test_the_unit_is_the_distance_to_the_next_number(name):
  fmt, dtype = getattr(numerics, name), FORMATS[name]
  x = errors.arguments(0.0, fmt.max / 2, fmt).astype(np.float64)
  with np.errstate(all='ignore'):
    above = np.nextafter(x.astype(dtype), dtype(fmt.max)).astype(np.float64)
  np.testing.assert_array_equal(errors.errors_in_ulps(above, x, fmt), 1)
  np.testing.assert_array_equal(errors.errors_in_ulps(-above, -x, fmt), -1)
  np.testing.assert_array_equal(
    errors.errors_in_ulps(x, x, fmt), np.zeros_like(x)
  )


def test_what_is_not_finite_is_infinitely_wrong_or_right():
  found = errors.errors_in_ulps(
    [np.inf, np.nan, 1.0, np.inf],
    [np.inf, np.nan, np.nan, 1.0],
    numerics.float16,
  )
  assert found.tolist() == [0, 0, np.inf, np.inf]


def test_fixed_point_has_one_unit():
  fmt = numerics.FixedPoint(8, 4)
  found = errors.errors_in_ulps([0.0, 3.0], [0.03125, 2.9375], fmt)
  assert found.tolist() == [-0.5, 1.0]


def test_arguments_are_all_there_are():
  half = errors.arguments(-1.0, 1.0, numerics.float16)
  codes = np.arange(2**16, dtype=np.uint16).view(np.float16)
  inside = np.unique(codes[np.abs(codes) <= 1])  # −0 and 0 are one.
  np.testing.assert_array_equal(half, inside)
  single = numerics.Format(8, 23)
  few = errors.arguments(1.0, 1.0 + 2**-20, single)
  assert few.tolist() == [1 + n * 2.0**-23 for n in range(9)]
  some = errors.arguments(-2.0, 2.0, single, 1000)
  assert 500 < some.size <= 1000
  assert np.all(np.diff(some) > 0)
  assert np.all(np.abs(some) <= 2)


def test_roundings_are_correct_and_truncations_are_not():
  half = numerics.float16
  x = errors.arguments(1.0, 4.0, half)

  def rooted(mode):
    return lambda x: numerics.round_to(jax.numpy.sqrt(x), half, mode=mode)

  nearest = errors.accuracy(rooted('nearest_even'), np.sqrt, x, half)
  assert nearest.max_ulps <= 0.5
  assert nearest.correct == 1
  down = errors.accuracy(rooted('toward_zero'), np.sqrt, x, half)
  assert 0.9 < down.max_ulps < 1
  assert 0.4 < down.correct < 0.6


def test_questions_without_an_answer_are_refused():
  half = numerics.float16
  with pytest.raises(ValueError, match='no interval'):
    errors.arguments(1.0, 0.0, half)
  with pytest.raises(ValueError, match='has no number'):
    errors.arguments(1.0001, 1.0002, half)
  with pytest.raises(ValueError, match='no argument'):
    errors.accuracy(np.exp, np.exp, np.zeros(0, np.float32), half)
  with pytest.raises(ValueError, match='have shapes'):
    errors.accuracy(np.sum, np.exp, np.ones(3, np.float32), half)


ROTATIONS = {
  'sin': (lambda c, x: c.sin_cos(x)[0], math.sin, -1.74, 1.74),
  'cos': (lambda c, x: c.sin_cos(x)[1], math.cos, -1.74, 1.74),
  'exp': (lambda c, x: c.exp(x), math.exp, -1.11, 1.11),
  'log': (lambda c, x: c.log(x), math.log, 0.11, 3.0),
  'sqrt': (lambda c, x: c.sqrt(x), math.sqrt, 0.03, 2.0),
}


@pytest.mark.parametrize('name', ROTATIONS)
@pytest.mark.parametrize('iterations', [8, 24])
def test_cordic_keeps_its_bound(name, iterations):
  compute, exact, low, high = ROTATIONS[name]
  made = cordic.Cordic(28, iterations)
  x = np.linspace(low, high, 4096)
  codes = made.encode(x)
  found = made.decode(jax.jit(lambda x: compute(made, x))(codes))
  right = np.vectorize(exact)(made.decode(codes))
  bound = 2.0 ** (2 - iterations) + 2 * iterations * 2.0**-28
  assert np.max(np.abs(found - right) / np.maximum(1, np.abs(right))) < bound


def test_cordic_is_of_integers_only():
  made = cordic.Cordic(20, 20)
  x = np.zeros(4, np.int32)
  for compute, *_ in ROTATIONS.values():
    program = jax.make_jaxpr(lambda x, compute=compute: compute(made, x))(x)
    used = {equation.primitive.name for equation in program.eqns}
    assert not used & {'mul', 'div', 'dot_general', 'exp', 'sin', 'convert'}
    assert 'f32' not in str(program)


def test_cordic_refuses_what_it_cannot_carry():
  with pytest.raises(ValueError, match='fraction_bits must be'):
    cordic.Cordic(29)
  with pytest.raises(ValueError, match='iterations must be'):
    cordic.Cordic(16, 17)
  with pytest.raises(ValueError, match='beyond ±8'):
    cordic.Cordic().encode(8.0)
  with pytest.raises(TypeError, match='expected int32'):
    cordic.Cordic().exp(jax.numpy.float32(1))


@pytest.mark.parametrize(('bits', 'degree'), [(0, 4), (4, 2), (10, 0), (6, 1)])
def test_pieces_reach_the_error_of_their_degree(bits, degree):
  made = lookup.pieces(np.exp2, 0.0, 1.0, bits=bits, degree=degree)
  x = np.linspace(0, 1, 5001, dtype=np.float32)
  error = np.abs(
    np.asarray(made(x), np.float64) - np.exp2(x.astype(np.float64))
  )
  # f^(n+1) (w/2)^(n+1) / (2^n (n+1)!), as at the nodes of Chebyshev.
  n, width = degree, 2.0**-bits
  slope = 2 * math.log(2) ** (n + 1)
  bound = slope * (width / 2) ** (n + 1) / (2**n * math.factorial(n + 1))
  assert np.max(error) < 1.02 * bound + 3 * 2.0**-23
  assert made.coefficients.shape == (1 << bits, degree + 1)


@pytest.mark.parametrize('name', ['exp2', 'reciprocal', 'sqrt'])
def test_two_tables_are_nearly_as_exact_as_a_large_one(name):
  function = {
    'exp2': np.exp2,
    'reciprocal': lambda x: 1 / (1 + x),
    'sqrt': lambda x: np.sqrt(1 + x),
  }[name]
  made = lookup.bipartite(function, 0.0, 1.0, bits=(5, 4, 4))
  codes = np.arange(2**13)
  found = np.asarray(made(codes), np.float64)
  # Both entries lie on a curve whose bend is all that is lost.
  bend = {'exp2': 0.96, 'reciprocal': 2.0, 'sqrt': 0.25}[name]
  a, b = 2.0**-5, 2.0**-9
  assert (
    np.max(np.abs(found - function(codes / 2**13)))
    < bend * (a * b / 4 + b * b / 8) + 2.0**-23
  )
  assert made.entries == 2**9 + 2**9


def test_tables_refuse_what_they_are_not_for():
  with pytest.raises(ValueError, match='0 to 16 bits'):
    lookup.pieces(np.exp2, 0.0, 1.0, bits=17, degree=0)
  with pytest.raises(ValueError, match='three widths'):
    lookup.bipartite(np.exp2, 0.0, 1.0, bits=(8, 8, 8))
  made = lookup.bipartite(np.exp2, 0.0, 1.0, bits=(2, 2, 2))
  with pytest.raises(TypeError, match='expected integers'):
    made(0.5)


def test_exact_decimals_are_exact():
  from tests.numerics.functions import exact

  assert abs(exact.exp2(0.5) ** 2 - 2) < Decimal('1e-45')
