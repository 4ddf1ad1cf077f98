"""Rounding beside pychop: flags, and a table without the peer."""

import pytest

from experiments.benchmarks import numerics as suite
from experiments.runtime import errors


def test_bad_flags_are_told_before_anything_is_measured(capsys):
  with pytest.raises(errors.UsageError, match="did you mean 'float16'"):
    suite.run(names=['float61'], repeats=1, peer='')
  with pytest.raises(errors.UsageError, match='there is no /none/bin/python'):
    suite.run(names=[], repeats=1, peer='/none')
  assert not capsys.readouterr().out


@pytest.mark.slow
def test_it_measures_without_the_peer(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('ARITHMERGE_PEERS', str(tmp_path))
  monkeypatch.setattr(suite, '_SIZES', (1_000,))
  suite.run(names=['float16'], repeats=1, peer='')
  rows = [line for line in capsys.readouterr().out.splitlines() if '|' in line]
  assert len(rows) == 2 + 6
  assert len({row.count('|') for row in rows}) == 1
