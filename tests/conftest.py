"""Strict settings for every test: 8 CPU devices, no silent promotion."""

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


def pytest_itemcollected(item):
  """Tests of one row of a table, else of one file, run in one process."""
  case = getattr(item, 'callspec', None) and item.callspec.params.get('case')
  group = getattr(case, 'name', None) or item.path.name
  item.add_marker(pytest.mark.xdist_group(group))
