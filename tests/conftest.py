"""Strict settings for every test: 8 CPU devices, no silent promotion."""

import hypothesis
import jax

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
