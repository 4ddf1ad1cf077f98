"""Programs, polynomials and what evolution finds, against decimals."""

from fractions import Fraction

import jax
import numpy as np
import pytest

import numerics
from numerics.functions import evolution
from numerics.functions import fitting
from numerics.functions import polynomials
from numerics.functions import straight_line
from tests.numerics.functions import exact

Program, Step = straight_line.Program, straight_line.Step
EXP2 = numerics.functions.EXP2_TEN_OPERATIONS
POINTS = np.linspace(1 / 64, 1, 64)


def test_the_published_program_has_fourteen_digits():
  errors = [exact.relative_error(EXP2, float(x)) for x in POINTS]
  assert EXP2.operations == 10
  assert 1e-15 < max(errors) < 3e-15


def test_a_program_is_the_same_in_every_arithmetic():
  x = np.float32(0.625)
  ours = EXP2(Fraction(0.625), number=Fraction)
  assert abs(EXP2(np.float64(0.625)) / float(ours) - 1) < 2e-14
  assert abs(float(jax.jit(EXP2)(x)) / float(ours) - 1) < 3e-6
  emulated = numerics.emulate(EXP2, numerics.bfloat16)
  assert float(emulated(x)) != float(EXP2(x))


@pytest.mark.parametrize(
  ('steps', 'message'),
  [
    ([Step('^', 0, 1.0)], 'expected one of'),
    ([Step('+', 0, 1)], 'not there yet'),
    ([Step('+', -1, 1.0)], 'not there yet'),
  ],
)
def test_what_is_no_program_is_refused(steps, message):
  with pytest.raises(ValueError, match=message):
    Program(tuple(steps))


def test_constants_are_put_back_in_their_places():
  program = EXP2.with_constants(tuple(2 * c for c in EXP2.constants))
  assert program.constants == tuple(2 * c for c in EXP2.constants)
  assert program.with_constants(EXP2.constants) == EXP2
  with pytest.raises(ValueError, match='expected 5'):
    EXP2.with_constants((1.0,))


@pytest.mark.parametrize('degree', [1, 2, 4, 8])
@pytest.mark.parametrize('relative', [True, False])
def test_minimax_errors_are_level_and_alternate(degree, relative):
  found = polynomials.minimax(np.exp2, degree, 0.0, 1.0, relative=relative)
  x = np.linspace(0, 1, 4001)
  error = np.polynomial.polynomial.polyval(x, found.coefficients) - np.exp2(x)
  error = error / np.exp2(x) if relative else error
  assert np.max(np.abs(error)) <= found.error * (1 + 1e-3) + 1e-15
  # de la Vallée Poussin: no polynomial is better than the least of such peaks.
  starts = np.flatnonzero(np.diff(error >= 0)) + 1
  peaks = [np.max(np.abs(run)) for run in np.split(error, starts)]
  assert len(peaks) >= degree + 2
  assert min(peaks) > 0.99 * found.error


def test_horner_computes_the_polynomial():
  for degree in (1, 3, 5):
    found = polynomials.minimax(np.exp2, degree, 0.0, 1.0)
    assert found.program.operations == 2 * degree
    at = found.program(POINTS)
    assert np.max(np.abs(at / np.exp2(POINTS) - 1)) <= found.error * 1.001
  with pytest.raises(ValueError, match='expected at least 2'):
    straight_line.horner((1.0,))


@pytest.mark.parametrize(
  'arguments', [(np.exp2, 0, 0.0, 1.0), (np.exp2, 2, 1.0, 1.0)]
)
def test_minimax_refuses_what_is_no_question(arguments):
  with pytest.raises(ValueError, match='expected an interval'):
    polynomials.minimax(*arguments)


def test_minimax_refuses_functions_without_relative_errors():
  with pytest.raises(ValueError, match='or zero,'):
    polynomials.minimax(np.sin, 3, -1.0, 1.0)
  with pytest.raises(ValueError, match='not finite'):
    polynomials.minimax(lambda x: x + np.inf, 3, 0.0, 1.0)


SMALL = evolution.Evolution(operations=4, generations=40, children=64, kept=10)


@pytest.fixture(scope='module')
def front():
  return evolution.evolve(np.exp2, 0.0, 1.0, seed=1, settings=SMALL)


def test_evolution_beats_polynomials_of_as_many_operations(front):
  assert [found.program.operations for found in front] == [1, 2, 3, 4]
  quadratic = polynomials.minimax(np.exp2, 2, 0.0, 1.0)
  assert quadratic.program.operations == 4
  assert front[3].error < quadratic.error / 3


def test_evolved_programs_err_as_they_say(front):
  for found in front:
    errors = [float(exact.relative_error(found.program, x)) for x in POINTS]
    assert max(errors) <= found.error * (1 + 1e-3)
    assert max(errors) > 0.5 * found.error


def test_evolution_is_repeatable(front):
  again = evolution.evolve(np.exp2, 0.0, 1.0, seed=1, settings=SMALL)
  assert again == front


@pytest.mark.slow
def test_evolution_finds_ten_digits_in_ten_operations():
  front = evolution.evolve(np.exp2, 0.0, 1.0)
  assert front[-1].program.operations == 10
  assert front[-1].digits > 10


def test_changes_give_programs_that_run():
  rng = np.random.default_rng(0)
  program = Program(())
  seen = set()
  for _ in range(2000):
    program = evolution.changed(program, rng)
    if program.operations > 12:
      program = Program(program.steps[:6])
    simple = evolution.simplified(program)
    if simple and simple.operations:
      assert simple.operations <= program.operations
      assert evolution.simplified(simple) == simple
      with np.errstate(all='ignore'):
        np.testing.assert_array_equal(simple(POINTS), program(POINTS))
      seen.add(simple)
  assert len(seen) > 300


def test_arrays_of_programs_compute_what_programs_do():
  line = Program((Step('-', 2.0, 0), Step('/', 0, 1), Step('*', 2, 3.0)))
  fitted, errors = fitting.fit(
    [line, EXP2], 10, POINTS, np.exp2(POINTS), turns=0
  )
  assert fitted == [line, EXP2]
  expected = [
    np.max(np.abs(program(POINTS) / np.exp2(POINTS) - 1))
    for program in (line, EXP2)
  ]
  np.testing.assert_allclose(errors, expected, rtol=1e-6, atol=5e-15)


@pytest.mark.parametrize(
  ('function', 'low', 'high', 'message'),
  [
    (np.exp2, 1.0, 0.0, 'no interval'),
    (np.sin, -1.0, 1.0, 'zero'),
    (np.log, -1.0, 1.0, 'not finite'),
    (np.zeros_like, 0.0, 1.0, 'zero'),
  ],
)
@pytest.mark.filterwarnings('ignore:invalid value:RuntimeWarning')
def test_evolution_refuses_what_has_no_relative_error(
  function, low, high, message
):
  fronts = SMALL.fronts(function, low, high, seed=0)
  with pytest.raises(ValueError, match=message):
    next(fronts)


def test_settings_are_positive():
  with pytest.raises(ValueError, match='children must be 1 or more'):
    evolution.Evolution(children=0)
