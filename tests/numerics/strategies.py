"""hypothesis strategies."""

from hypothesis import assume
from hypothesis import strategies as st

import numerics
from tests.numerics import oracles

# infinities, nan, overflow.
_SPECIALS = (
  (True, 'ieee', 'inf'),
  (True, 'ieee', 'saturate'),
  (True, 'negative_zero', 'inf'),
  (True, 'negative_zero', 'saturate'),
  (False, 'all_ones', 'nan'),
  (False, 'all_ones', 'saturate'),
  (False, 'negative_zero', 'nan'),
  (False, 'negative_zero', 'saturate'),
  (False, 'none', 'saturate'),
)


@st.composite
def formats(draw) -> numerics.Format:
  """Any format that float32 carries."""
  exponent_bits = draw(st.integers(1, 8))
  mantissa_bits = draw(st.integers(0, 23))
  infinities, nan, overflow = draw(st.sampled_from(_SPECIALS))
  assume(nan != 'ieee' or (exponent_bits > 1 and mantissa_bits > 0))
  subnormals = draw(st.booleans())
  fields = (subnormals, infinities, nan, overflow)
  unbiased = oracles.Spec(exponent_bits, mantissa_bits, 0, *fields)
  top_field = oracles.largest_code(unbiased) >> mantissa_bits
  assume(1 <= top_field <= 254)
  bias = draw(st.integers(max(top_field - 127, -126), 127))
  return numerics.Format(exponent_bits, mantissa_bits, bias, *fields)
