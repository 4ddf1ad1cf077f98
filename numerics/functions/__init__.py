"""Approximations of functions, and how wrong they are.

Classical ones (`minimax` polynomials, tables in `pieces` and `bipartite`,
`Cordic`) and programs that evolution finds (`evolve`), measured in units of the
last place (`accuracy`).
"""

from numerics.functions.cordic import Cordic
from numerics.functions.errors import Accuracy
from numerics.functions.errors import accuracy
from numerics.functions.errors import arguments
from numerics.functions.errors import errors_in_ulps
from numerics.functions.evolution import Evolution
from numerics.functions.evolution import evolve
from numerics.functions.evolution import Found
from numerics.functions.evolution import levelled
from numerics.functions.exponential import EXP2_TEN_OPERATIONS
from numerics.functions.lookup import Bipartite
from numerics.functions.lookup import bipartite
from numerics.functions.lookup import Pieces
from numerics.functions.lookup import pieces
from numerics.functions.polynomials import Minimax
from numerics.functions.polynomials import minimax
from numerics.functions.straight_line import horner
from numerics.functions.straight_line import Program
from numerics.functions.straight_line import Step

__all__ = [
  'EXP2_TEN_OPERATIONS',
  'Accuracy',
  'Bipartite',
  'Cordic',
  'Evolution',
  'Found',
  'Minimax',
  'Pieces',
  'Program',
  'Step',
  'accuracy',
  'arguments',
  'bipartite',
  'errors_in_ulps',
  'evolve',
  'horner',
  'levelled',
  'minimax',
  'pieces',
]
