"""Published merging methods by their names, as compositions of transforms."""

from merging.recipes.soups import average as average
from merging.recipes.soups import weighted_average as weighted_average
from merging.recipes.task_vectors import analogy as analogy
from merging.recipes.task_vectors import dare as dare
from merging.recipes.task_vectors import dare_ties as dare_ties
from merging.recipes.task_vectors import negate as negate
from merging.recipes.task_vectors import task_arithmetic as task_arithmetic
from merging.recipes.task_vectors import ties as ties
