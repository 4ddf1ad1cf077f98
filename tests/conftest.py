"""Strict settings for every test: 8 CPU devices, no silent promotion."""

import gc
import re

import hypothesis
import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
if jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)

# Files of few tests that take long.
_LONG = (
  *('reproduce_test.py', 'laboratory_test.py', 'suite_test.py'),
  *('learning_test.py', 'unmergeable_test.py', 'growth_test.py'),
)

hypothesis.settings.register_profile(
  'repeatable',
  derandomize=True,
  database=None,
  deadline=None,
  print_blob=True,
)
hypothesis.settings.load_profile('repeatable')


def pytest_collection_finish():
  """Spares the collector the modules and the tests, which stay to the end."""
  gc.collect()
  gc.freeze()


# Kept programs hold 1.5 MB each, and from some hundred on new ones take half as
# long again to compile.
_MOST_PROGRAMS = 500
_programs = 0


def _count(event, duration, **kwargs):
  global _programs
  del duration, kwargs
  _programs += event == '/jax/core/compile/backend_compile_duration'


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
  """Forgets programs where what shares them ends."""
  global _programs
  result = yield
  last = nextitem is None or _scope(nextitem.nodeid) != _scope(item.nodeid)
  if last and _programs > _MOST_PROGRAMS:
    jax.clear_caches()
    _programs = 0
  return result


def _scope(nodeid):
  row = re.search(r'merges_test\.py::\w+\[(\w+)', nodeid)
  return row[1] if row else nodeid.partition('::')[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """All tests of a row of the table of merges, else of a file, in one process.

  They share compiled programs, which is most of what they cost. Those of many
  tests come first, but for a few long ones, which would be left to the end.
  """
  from xdist import scheduler

  class ByRow(scheduler.LoadScopeScheduling):
    def _assign_work_unit(self, node):
      long = [scope for scope in self.workqueue if scope.endswith(_LONG)]
      if long:
        self.workqueue.move_to_end(long[0], last=False)
      super()._assign_work_unit(node)

    def _split_scope(self, nodeid):
      return _scope(nodeid)

  return ByRow(config, log)
