"""Parameters that differ and functions that do not."""

from merging.symmetry.elements import compose as compose
from merging.symmetry.elements import invert as invert
from merging.symmetry.elements import Linear as Linear
from merging.symmetry.elements import Monomial as Monomial
from merging.symmetry.elements import random as random
from merging.symmetry.elements import Rotary as Rotary
from merging.symmetry.elements import transform as transform
from merging.symmetry.spec import attention as attention
from merging.symmetry.spec import Carrier as Carrier
from merging.symmetry.spec import check as check
from merging.symmetry.spec import decoder as decoder
from merging.symmetry.spec import perceptron as perceptron
from merging.symmetry.spec import positions as positions
from merging.symmetry.spec import Space as Space
from merging.symmetry.spec import Spec as Spec
from merging.symmetry.unmergeable import merge_lock as merge_lock
from merging.symmetry.unmergeable import Protected as Protected
from merging.symmetry.unmergeable import (
  rearrange_and_scale as rearrange_and_scale,
)
from merging.symmetry.unmergeable import recover as recover
