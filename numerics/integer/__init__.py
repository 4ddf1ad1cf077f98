"""Transformers in integers only: scales, exponentials, norms, and the proof."""

from numerics.integer.checking import check_integer_only as check_integer_only
from numerics.integer.exponentials import shift_exp as shift_exp
from numerics.integer.exponentials import shift_gelu as shift_gelu
from numerics.integer.exponentials import shiftmax as shiftmax
from numerics.integer.exponentials import unit as unit
from numerics.integer.norms import layer_norm as layer_norm
from numerics.integer.norms import norm_bias as norm_bias
from numerics.integer.scales import add_rescaled as add_rescaled
from numerics.integer.scales import Dyadic as Dyadic
from numerics.integer.scales import dyadic as dyadic
from numerics.integer.scales import rescale as rescale
