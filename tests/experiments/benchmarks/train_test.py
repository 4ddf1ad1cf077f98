"""Training beside nanoGPT: the same decoder, and a table without the peer."""

import jax
import pytest

from arithmetic import transformer
from experiments.benchmarks import train
from experiments.runtime import errors


@pytest.mark.parametrize('name', train.TRAINED)
def test_the_decoder_has_as_many_parameters_as_nanogpts(name):
  case = train.TRAINED[name]
  params = jax.eval_shape(
    lambda key: transformer.init(key, train.config_of(case)), jax.random.key(0)
  )
  # Embedding and positions; twelve matrices, nine biases and two norms a
  # block; the norm at the end. The head is the embedding.
  width = case.width
  count = (case.vocabulary + case.length) * width + 2 * width
  count += case.layers * (12 * width**2 + 9 * width + 4 * width)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_bad_flags_are_told_before_anything_is_measured(capsys):
  with pytest.raises(errors.UsageError, match="did you mean 'paper'"):
    train.run(names=['papr'], repeats=1, peer='')
  with pytest.raises(errors.UsageError, match='there is no /none/bin/python'):
    train.run(names=[], repeats=1, peer='/none')
  assert not capsys.readouterr().out


@pytest.mark.slow
@jax.numpy_dtype_promotion('standard')  # optax counts in floats.
def test_it_measures_without_the_peer(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('ARITHMERGE_PEERS', str(tmp_path))
  tiny = train.Case(1, 1, 8, 4, 2, 1, models=2)
  monkeypatch.setattr(train, 'TRAINED', {'laboratory': tiny, 'small': tiny})
  monkeypatch.setattr(train, '_POPULATION', tiny)
  train.run(names=['laboratory', 'population', 'decoding'], repeats=1, peer='')
  rows = [line for line in capsys.readouterr().out.splitlines() if '|' in line]
  assert len(rows) == 2 + 1 + 3 + 1
  assert len({row.count('|') for row in rows}) == 1
