"""What is wrong is told by the function that was called."""

import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import streams

BASE = {'w': jnp.ones((2, 2)), 'n': jnp.int32(3)}
CALLS = {
  'merge': lambda experts: merging.merge(merging.average(), BASE, experts),
  'merge_stream': lambda experts: merging.merge_stream(
    merging.average(), streams.InMemory(BASE), experts, streams.Collected({})
  ),
  'diagnose': lambda experts: merging.report.diagnose(BASE, experts),
  'compress': lambda experts: merging.dynamic.tsv.compress(BASE, experts),
  'merge_adapters': lambda experts: merging.adapters.merge_adapters(
    merging.average(), BASE, experts
  ),
  'responses': lambda experts: merging.tangent.responses(
    lambda params: params['w'], BASE, experts
  ),
}


@pytest.mark.parametrize('name', CALLS)
def test_no_experts(name):
  with pytest.raises(ValueError, match=f'^{name}: there are no experts'):
    CALLS[name]({})
  with pytest.raises(TypeError, match=f'^{name}: experts is a list, expected'):
    CALLS[name]([BASE])


@pytest.mark.parametrize('name', ['merge', 'diagnose', 'compress'])
def test_leaves_and_values(name):
  with pytest.raises(TypeError, match=f'^{name}: leaves of a wrong type'):
    CALLS[name]({'math': {**BASE, 'w': np.ones((2, 2), complex)}})
  with pytest.raises(ValueError, match=f'^{name}: unusable values'):
    CALLS[name]({'math': {**BASE, 'n': jnp.int32(4)}})


def test_extra_data():
  lora = merging.adapters.Lora(a=jnp.ones((2, 1)), b=jnp.ones((1, 2)))
  with pytest.raises(TypeError, match=r"^merge: the transform takes no 'a'"):
    merging.merge(merging.average(), BASE, {'math': BASE}, a={})
  with pytest.raises(TypeError, match=r'^merge_adapters: the transform takes'):
    merging.adapters.merge_adapters(
      merging.average(), BASE, {'math': {'w': lora}}, a={}
    )
