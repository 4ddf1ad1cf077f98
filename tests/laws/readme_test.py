"""The examples of the README run as they stand."""

from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
  r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL
)


def test_there_are_examples():
  assert len(BLOCKS) >= 2


@pytest.mark.parametrize('block', BLOCKS)
def test_example_runs(block, capsys):
  exec(compile(block, 'README.md', 'exec'), {})
  assert capsys.readouterr().out
