"""Strict settings for every test: 8 CPU devices, no silent promotion."""

import re

import hypothesis
import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

hypothesis.settings.register_profile(
  'repeatable',
  derandomize=True,
  database=None,
  deadline=None,
  print_blob=True,
)
hypothesis.settings.load_profile('repeatable')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """All tests of a row of the table of merges, else of a file, in one process.

  They share compiled programs, which is most of what they cost.
  """
  from xdist import scheduler

  class ByRow(scheduler.LoadScopeScheduling):
    def _split_scope(self, nodeid):
      row = re.search(r'merges_test\.py::\w+\[(\w+)', nodeid)
      return row[1] if row else nodeid.partition('::')[0]

  return ByRow(config, log)
