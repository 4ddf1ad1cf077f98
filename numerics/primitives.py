"""What kind of operation each primitive of JAX is."""

import typing

Kind = typing.Literal['structural', 'elementwise', 'matmul', 'reduction']


def _names(text: str) -> frozenset[str]:
  return frozenset(text.split())


# Moves numbers, chooses among them, or compares them: what comes out went in.
STRUCTURAL = _names("""
  abs all_gather all_gather_invariant all_to_all approx_top_k argmax argmin
  bitcast_convert_type broadcast_in_dim clamp concatenate copy copy_p cummax
  cummin device_put dynamic_slice dynamic_update_slice empty empty2
  expand_dims gather get imag is_finite max min name neg optimization_barrier
  pad pbroadcast pmax pmin ppermute pvary ragged_all_to_all random_gamma real
  reduce_max reduce_min reduce_window_max reduce_window_min reshape reshard
  rev rng_uniform scatter scatter-max scatter-min select_and_gather_add
  select_n sharding_constraint slice sort split squeeze stop_gradient swap
  top_k transpose
""")

# Computes every element of the result from an element of each operand.
ELEMENTWISE = _names("""
  acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e
  cbrt ceil convert_element_type cos cosh digamma div erf erf_inv erfc exp
  exp2 expm1 floor igamma igamma_grad_a igammac integer_pow iota lgamma log
  log1p log2 logistic mul nextafter one_minus_square polygamma pow
  reduce_precision regularized_incomplete_beta rem round rsqrt sign sin sinh
  sqrt square sub tan tanh zeta
""")

# Adds products.
MATMUL = _names("""
  dot_general conv_general_dilated ragged_dot ragged_dot_general
""")

# Adds up, or multiplies together, many elements of one operand.
REDUCTION = _names("""
  cumlogsumexp cumprod cumsum psum psum2 psum_invariant reduce_prod
  reduce_scatter reduce_sum reduce_window_sum scatter-add scatter-mul
  select_and_scatter_add
""")

# Says how numbers lie to one another, as booleans.
COMPARISONS = _names('eq ne lt le gt ge eq_to le_to lt_to')


def kind(primitive: str) -> Kind | None:
  """Returns the kind of a primitive; None if it is not known."""
  if primitive in STRUCTURAL:
    return 'structural'
  if primitive in ELEMENTWISE:
    return 'elementwise'
  if primitive in MATMUL:
    return 'matmul'
  if primitive in REDUCTION:
    return 'reduction'
  return None
