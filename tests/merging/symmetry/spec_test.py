"""Specs: where channels are, and what is said of models they do not fit."""

import jax.numpy as jnp
import numpy as np
import pytest

from merging import symmetry


def carrier(path='w', axis=0, **fields):
  return symmetry.Carrier(path, axis, **fields)


@pytest.mark.parametrize(
  ('fields', 'place'),
  [
    ({}, lambda h, r, c: 3 * h + c),
    ({'copies': 2}, lambda h, r, c: 6 * h + 3 * r + c),
    # Packed head by head, as GPT-NeoX does: keys of 2 heads of 3 channels.
    ({'start': 3, 'strides': (9, 0, 1)}, lambda h, r, c: 9 * h + 3 + c),
    # Channels last, behind copies: a flattened image.
    (
      {'copies': 4, 'strides': (3, 6, 1)},
      lambda h, r, c: 6 * r + 3 * h + c,
    ),
  ],
)
def test_positions(fields, place):
  space = symmetry.Space('permutation', 3, (), heads=2)
  found = symmetry.positions(space, carrier(**fields))
  for (h, r, c), position in np.ndenumerate(found):
    assert position == place(h, r, c)
  assert found.shape == (2, fields.get('copies', 1), 3)


@pytest.mark.parametrize(
  ('group', 'carriers', 'message'),
  [
    ('permutations', [], "is 'permutations', expected.*mean 'permutation'"),
    ('rotary', [], 'rotary with 3 channels'),
    (
      'scaling',
      [carrier('v')],
      r"at 'v': no such leaf; the leaves are 'n', 'w",
    ),
    ('scaling', [carrier('n')], "at 'n': int32, expected floating"),
    ('scaling', [carrier(axis=1)], r'no axis 1 in shape \(8,\)'),
    ('scaling', [carrier(start=6)], 'too short for 3 channels that end at 9'),
    ('scaling', [carrier(start=-1)], 'too short'),
    ('scaling', [carrier(), carrier(start=2)], 'two channels have one place'),
  ],
)
def test_specs_that_do_not_fit(group, carriers, message):
  model = {'w': jnp.zeros(8), 'n': jnp.zeros(8, jnp.int32)}
  space = symmetry.Space(group, 3, tuple(carriers))
  with pytest.raises(ValueError, match=message):
    symmetry.check(model, {'space': space})


def model(**more):
  dense = {'kernel': np.ones((8, 8)), 'bias': np.ones(8)}
  packed = {'kernel': np.ones((8, 24)), 'bias': np.ones(24)}
  block = {'qkv': packed, 'out': dense, 'up': dense, 'down': dense}
  return {'block': {**block, **more}}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'heads': 3}, '8 channels, which 3 heads cannot share'),
    ({'key_value_heads': 3}, '4 query heads cannot share 3 heads'),
    (
      {'key_value_heads': 2},
      'makes 24 channels, expected 16 for 4 query heads',
    ),
    ({'heads': 8, 'positions': 'rotary'}, 'rotary with 1 channels'),
    ({'positions': 'rope'}, "positions is 'rope', expected one of"),
    ({'output': 'ouput'}, "'ouput' is no dense layer.*mean 'out'"),
    ({'query': 'up'}, 'name either the packed layer or'),
    ({'packed': None, 'query': 'up'}, 'key=None'),
    ({'layout': 'torch'}, "layout is 'torch'"),
  ],
)
def test_attention_that_does_not_fit(arguments, message):
  given = {'heads': 4, 'packed': 'qkv', 'output': 'out'} | arguments
  with pytest.raises(ValueError, match=message):
    symmetry.attention(model()['block'], **given)


def test_norms_of_queries_and_keys_have_to_be_declared():
  normed = model(q_norm={'scale': np.ones(2)})['block']
  given = {'heads': 4, 'packed': 'qkv', 'output': 'out'}
  with pytest.raises(
    ValueError, match=r"'q_norm/scale' seem .* query_key_norm"
  ):
    symmetry.attention(normed, **given)
  spaces = symmetry.attention(normed, **given, query_key_norm=True)
  assert list(spaces) == ['value_output']


def test_perceptrons_that_do_not_fit():
  block = model()['block']
  with pytest.raises(ValueError, match='one width, but qkv/kernel has 24'):
    symmetry.perceptron(block, ['qkv'], ['down'])
  block['up'] = {**block['up'], 'gain': np.ones(8)}
  with pytest.raises(ValueError, match="'up' has 'up/gain' besides"):
    symmetry.perceptron(block, ['up'], ['down'])


def test_blocks_by_pattern():
  params = {'encoder': model(), 'decoder': model(), 'norm': np.ones(8)}
  layers = {'writers': ['up'], 'readers': ['down']}
  attention = {'heads': 4, 'packed': 'qkv', 'output': 'out'}
  spec = symmetry.decoder(
    params, blocks=r'\w+/block', perceptron=layers, attention=attention
  )
  assert sorted(spec) == [
    f'{part}/block/{name}'
    for part in ('decoder', 'encoder')
    for name in ('hidden', 'query_key', 'value_output')
  ]
  only = symmetry.decoder(
    params, blocks='decoder/block', perceptron=layers, attention={}
  )
  assert only == {'decoder/block/hidden': spec['decoder/block/hidden']}
  with pytest.raises(ValueError, match=r"matches 'blocks'; the leaves are"):
    symmetry.decoder(params, blocks='blocks', perceptron=layers, attention={})
