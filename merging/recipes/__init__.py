"""Published merging methods by their names, as compositions of transforms."""

from merging.recipes.competition import arcee_fusion as arcee_fusion
from merging.recipes.competition import pcb as pcb
from merging.recipes.competition import ram as ram
from merging.recipes.competition import ramplus as ramplus
from merging.recipes.competition import widen as widen
from merging.recipes.interference import aswudi as aswudi
from merging.recipes.interference import doge as doge
from merging.recipes.interference import optmerge as optmerge
from merging.recipes.interference import swudi as swudi
from merging.recipes.interference import wudi as wudi
from merging.recipes.interpolation import model_stock as model_stock
from merging.recipes.interpolation import nearswap as nearswap
from merging.recipes.layers import layer_swap as layer_swap
from merging.recipes.layers import lines as lines
from merging.recipes.layers import metagpt as metagpt
from merging.recipes.layers import reasoning_vector as reasoning_vector
from merging.recipes.layers import robust_signature as robust_signature
from merging.recipes.masks import consensus as consensus
from merging.recipes.soups import average as average
from merging.recipes.soups import linear as linear
from merging.recipes.soups import (
  metrics_weighted_average as metrics_weighted_average,
)
from merging.recipes.soups import passthrough as passthrough
from merging.recipes.soups import weighted_average as weighted_average
from merging.recipes.sparse import breadcrumbs as breadcrumbs
from merging.recipes.sparse import della as della
from merging.recipes.sparse import sce as sce
from merging.recipes.spherical import karcher as karcher
from merging.recipes.spherical import multislerp as multislerp
from merging.recipes.spherical import nuslerp as nuslerp
from merging.recipes.spherical import slerp as slerp
from merging.recipes.subspaces import iso_c as iso_c
from merging.recipes.subspaces import iso_cts as iso_cts
from merging.recipes.subspaces import knots as knots
from merging.recipes.subspaces import opcm as opcm
from merging.recipes.subspaces import r_tsvm as r_tsvm
from merging.recipes.subspaces import tsv as tsv
from merging.recipes.task_vectors import analogy as analogy
from merging.recipes.task_vectors import dare as dare
from merging.recipes.task_vectors import dare_ties as dare_ties
from merging.recipes.task_vectors import negate as negate
from merging.recipes.task_vectors import task_arithmetic as task_arithmetic
from merging.recipes.task_vectors import ties as ties
