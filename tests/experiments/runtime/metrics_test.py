"""Records of a run that was killed are those of a run that was not."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime import metrics


def _write(writer, stage, steps):
  for step in steps:
    writer.write(stage, step, {'train/loss': np.float32(1.0) / step})


def test_one_object_a_line_with_exact_numbers(tmp_path):
  path = tmp_path / 'new' / 'metrics.jsonl'
  writer = metrics.JsonlWriter(path)
  loss = np.float32(0.1)
  writer.write('base', 1, {'train/loss': loss, 'eval/n': 3, 'eval/ok': True})
  writer.write('base', 2, {'train/loss': jnp.array([0.5, 0.25])})
  lines = path.read_text().splitlines()
  assert json.loads(lines[0]) == {
    'stage': 'base',
    'step': 1,
    'train/loss': float(loss),
    'eval/n': 3,
    'eval/ok': True,
  }
  assert np.float32(json.loads(lines[0])['train/loss']) == loss
  assert json.loads(lines[1])['train/loss'] == [0.5, 0.25]


@pytest.mark.parametrize('torn', [b'', b'{"stage": "experts", "st', b'x'])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, torn):
  whole = metrics.JsonlWriter(tmp_path / 'whole.jsonl')
  _write(whole, 'base', range(1, 5))
  _write(whole, 'experts', range(1, 9))
  cut = metrics.JsonlWriter(tmp_path / 'cut.jsonl')
  _write(cut, 'base', range(1, 5))
  _write(cut, 'experts', range(1, 7))
  with (tmp_path / 'cut.jsonl').open('ab') as file:
    file.write(torn)
  resumed = metrics.JsonlWriter(tmp_path / 'cut.jsonl')
  resumed.rewind('experts', 4)
  _write(resumed, 'experts', range(5, 9))
  expected = (tmp_path / 'whole.jsonl').read_bytes()
  assert (tmp_path / 'cut.jsonl').read_bytes() == expected


def test_rewind_before_the_first_step_drops_the_stage_alone(tmp_path):
  writer = metrics.JsonlWriter(tmp_path / 'm.jsonl')
  _write(writer, 'base', [1, 2])
  _write(writer, 'experts', [1, 2])
  writer.rewind('experts', -1)
  assert [r['stage'] for r in writer.records()] == ['base', 'base']
  assert writer.records('experts') == []


@pytest.mark.parametrize('value', [float('nan'), jnp.inf, [0.5, -np.inf]])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, value):
  writer = metrics.JsonlWriter(tmp_path / 'm.jsonl')
  with pytest.raises(
    metrics.NonFiniteError, match=r'train/loss is .* in stage base at step 7'
  ):
    writer.write('base', 7, {'train/loss': value})
  assert writer.records() == []
