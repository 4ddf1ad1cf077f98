import dataclasses
from fractions import Fraction
import inspect

from hypothesis import given
from hypothesis import strategies as st
import ml_dtypes
import numpy as np
import pytest

import numerics
from tests.numerics import oracles
from tests.numerics import strategies

PRESETS = {
  name: value
  for name, value in inspect.getmembers(numerics)
  if isinstance(value, numerics.Format)
}
STORED = sorted(set(PRESETS) - {'tfloat32', 'float16'})


def test_presets_are_the_settled_ones():
  assert sorted(PRESETS) == [
    'bfloat16',
    'float16',
    'float4_e2m1fn',
    'float6_e2m3fn',
    'float6_e3m2fn',
    'float8_e3m4',
    'float8_e4m3',
    'float8_e4m3b11fnuz',
    'float8_e4m3fn',
    'float8_e4m3fnuz',
    'float8_e5m2',
    'float8_e5m2fnuz',
    'tfloat32',
  ]
  assert [PRESETS[name].name for name in PRESETS] == list(PRESETS)


@pytest.mark.parametrize('name', STORED)
def test_values_are_those_that_ml_dtypes_decodes(name):
  fmt = PRESETS[name]
  dtype = np.dtype(getattr(ml_dtypes, name))
  codes = np.arange(2**fmt.bits).astype(np.uint16 if fmt.bits > 8 else np.uint8)
  decoded = codes.view(dtype).astype(np.float32)
  finite = np.unique(decoded[np.isfinite(decoded)])
  np.testing.assert_array_equal(fmt.values(), finite)
  assert fmt.values().dtype == np.float32
  assert bool(np.isinf(decoded).any()) == fmt.infinities
  assert bool(np.isnan(decoded).any()) == (fmt.nan != 'none')
  negative_zeros = (decoded == 0) & np.signbit(decoded)
  assert bool(negative_zeros.any()) == fmt.negative_zero


@pytest.mark.parametrize('name', [*STORED, 'float16'])
def test_properties_are_those_of_finfo(name):
  fmt = PRESETS[name]
  info = ml_dtypes.finfo(
    name if name == 'float16' else getattr(ml_dtypes, name)
  )
  assert fmt.bits == info.bits
  assert fmt.max == float(info.max)
  assert fmt.min_normal == float(info.smallest_normal)
  assert fmt.min_subnormal == float(info.smallest_subnormal)
  assert fmt.eps == float(info.eps)
  assert fmt.emin == info.minexp


def test_tfloat32_is_bfloat16_with_the_mantissa_of_float16():
  fmt = numerics.tfloat32
  assert fmt.bits == 19
  assert fmt.max == 2.0**128 - 2.0**117
  assert fmt.min_subnormal == 2.0**-136


@given(strategies.formats())
def test_properties_describe_the_decoded_codes(fmt):
  spec = oracles.spec_of(fmt)
  first = 1 if fmt.subnormals else 2**fmt.mantissa_bits
  largest = oracles.decode(spec, oracles.largest_code(spec))
  assert Fraction(fmt.max) == largest
  assert Fraction(2) ** fmt.emax <= largest < Fraction(2) ** (fmt.emax + 1)
  assert fmt.min_normal == oracles.decode(spec, 2**fmt.mantissa_bits)
  assert fmt.min_normal == 2.0**fmt.emin
  assert fmt.min_subnormal == oracles.decode(spec, first)
  assert np.float32(fmt.max) == fmt.max
  assert np.float32(fmt.min_subnormal) == fmt.min_subnormal


@given(st.lists(strategies.formats(), min_size=2, max_size=30, unique=True))
def test_names_tell_formats_apart(drawn):
  every = {*drawn, *PRESETS.values()}
  assert len({fmt.name for fmt in every}) == len(every)


def test_names_of_derived_formats():
  fmt = numerics.float8_e4m3fn
  saturating = dataclasses.replace(fmt, overflow='saturate')
  assert saturating.name == 'float8_e4m3fn_saturate'
  coarse = dataclasses.replace(numerics.bfloat16, subnormals=False)
  assert coarse.name == 'bfloat16_no_subnormals'
  assert numerics.Format(5, 6).name == 'float12_e5m6'


def test_formats_are_values():
  fmt = numerics.Format(5, 10)
  assert fmt == numerics.Format(5, 10, bias=15) == numerics.float16
  assert len({fmt, numerics.float16}) == 1
  with pytest.raises(dataclasses.FrozenInstanceError):
    fmt.bias = 3


def test_only_narrow_formats_are_enumerated():
  assert len(numerics.bfloat16.values()) == 2 * (2**15 - 2**7) - 1
  with pytest.raises(ValueError, match='tfloat32 has 19 bits'):
    numerics.tfloat32.values()


FINITE = {'infinities': False, 'nan': 'none', 'overflow': 'saturate'}


@pytest.mark.parametrize(
  ('arguments', 'error', 'message'),
  [
    ({'exponent_bits': 4.0}, TypeError, 'exponent_bits must be an int'),
    ({'exponent_bits': 0}, ValueError, 'exponent_bits must be from 1 to 8'),
    ({'exponent_bits': 9}, ValueError, 'exponent_bits must be from 1 to 8'),
    ({'mantissa_bits': 24}, ValueError, 'mantissa_bits must be from 0'),
    ({'mantissa_bits': True}, TypeError, 'mantissa_bits must be an int'),
    ({'bias': 128}, ValueError, 'bias must be'),
    ({'bias': '7'}, TypeError, 'bias must be an int'),
    ({'bias': -125}, ValueError, 'needs 126 to 139'),
    ({'exponent_bits': 8, 'bias': 126}, ValueError, 'needs -125 to 128'),
    ({'subnormals': 1}, TypeError, 'subnormals must be a bool'),
    ({'infinities': None}, TypeError, 'infinities must be a bool'),
    ({'nan': 'quiet'}, ValueError, 'nan must be one of ieee, all_ones'),
    ({'overflow': 'clip'}, ValueError, 'overflow must be one of inf, nan'),
    ({'infinities': False}, ValueError, "nan='ieee' keeps the largest"),
    ({'mantissa_bits': 0}, ValueError, 'tells NaN from infinity'),
    ({'nan': 'all_ones'}, ValueError, 'infinities=True needs nan='),
    (FINITE | {'overflow': 'inf'}, ValueError, "overflow='inf' needs"),
    (FINITE | {'overflow': 'nan'}, ValueError, "Pass overflow='saturate'"),
    ({'overflow': 'nan'}, ValueError, "Pass overflow='inf'"),
    ({'exponent_bits': 1}, ValueError, 'no room for a normal number'),
  ],
)
def test_contradictions_are_refused(arguments, error, message):
  with pytest.raises(error, match=message):
    numerics.Format(**{'exponent_bits': 4, 'mantissa_bits': 3} | arguments)
