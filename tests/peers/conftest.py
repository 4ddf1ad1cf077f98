"""The peers, where their environments are installed."""

import pytest

from third_party.peers import client


def _start(name):
  python = client.python_of(name)
  if not python.exists():
    pytest.skip(
      f'{name} is not installed in {python.parents[1]}: see '
      'third_party/peers/README.md, or name the folder in ARITHMERGE_PEERS'
    )
  with client.Merger(name) as peer:
    yield peer


@pytest.fixture(scope='session')
def mergekit():
  yield from _start('mergekit')


@pytest.fixture(scope='session')
def fusion_bench():
  yield from _start('fusion-bench')
