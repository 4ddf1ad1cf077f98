"""Programs for `2**x` that were published."""

from numerics.functions import straight_line

_Step = straight_line.Step

# Of Real et al. (2023), on (0, 1]: (c4 / (c1 / u + c2 + u) + 1)**8 with
# u = c3 / x + x. The form is theirs, the constants were fitted anew, by
# `numerics.functions.levelled`. At 0 it divides by 0.
EXP2_TEN_OPERATIONS = straight_line.Program(
  (
    _Step('/', 5783.524924750466, 0),
    _Step('+', 1, 0),
    _Step('/', 15141.9307651355, 2),
    _Step('+', 3, -250.55212470132602),
    _Step('+', 4, 2),
    _Step('/', 501.1042494111795, 5),
    _Step('+', 6, 0.9999999999999998),
    _Step('*', 7, 7),
    _Step('*', 8, 8),
    _Step('*', 9, 9),
  )
)
