"""Models as linear functions of their parameters, and what that reveals.

A model linearised at its base can be trained, merged and evaluated as any
other: merging needs nothing but `merging.merge`. The measures say how far task
vectors leave one another's inputs alone, in linear models and others.

In all functions `apply(params, inputs, ...)` is the user's own model: any
function of any pytree, whose integer leaves are constants here, which can be
differentiated in forward mode (no bare `jax.custom_vjp`), and in which nothing
is random: without dropout, with normalisation by stored statistics.
"""

from merging.tangent.disentanglement import argmax_differs as argmax_differs
from merging.tangent.disentanglement import (
  disentanglement_error as disentanglement_error,
)
from merging.tangent.kernel import (
  eigenfunction_localization as eigenfunction_localization,
)
from merging.tangent.kernel import Localization as Localization
from merging.tangent.kernel import ntk as ntk
from merging.tangent.linear import linearize as linearize
from merging.tangent.linear import linearize_at as linearize_at
from merging.tangent.linear import Responses as Responses
from merging.tangent.linear import responses as responses
