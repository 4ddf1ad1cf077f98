"""What settings of several tables have to satisfy."""

from typing import Any


def at_least(config: Any, **limits: float) -> None:
  """Raises `ValueError` for a field below its limit."""
  for name, limit in limits.items():
    if not getattr(config, name) >= limit:
      raise ValueError(
        f'{name} is at least {limit}, got {getattr(config, name)}'
      )


def level_weights(config: Any, name: str) -> None:
  """Raises `ValueError` for weights that no level can be drawn by."""
  weights = getattr(config, name)
  if not weights or not weights[-1] > 0 or not min(weights) >= 0:
    raise ValueError(
      f'{name} are not negative and end with the largest level that is drawn,'
      f' whose weight is positive; got {weights}'
    )


def training(config: Any) -> None:
  """Raises `ValueError` for steps, rates and levels that make no training."""
  at_least(config, steps=1, batch_size=1, warmup=0)
  if not config.learning_rate > 0:
    raise ValueError(f'learning_rate is positive, got {config.learning_rate}')
  if config.warmup >= config.steps:
    raise ValueError(
      f'warmup of {config.warmup} steps leaves none of {config.steps}'
    )
  level_weights(config, 'level_weights')


def seed(config: Any) -> None:
  """Raises `ValueError` for a `seed` that JAX does not take."""
  at_least(config, seed=0)
  if config.seed >= 2**32:
    raise ValueError(f'seed is below 2^32, got {config.seed}')


def task(config: Any, *names: str) -> None:
  """Raises `ValueError` for a task that there is not."""
  # Imported here, so that --help does not wait for JAX.
  from arithmetic import tasks

  (field,) = {'task', 'tasks'} & set(vars(config))
  for name in names:
    try:
      tasks.get(name)
    except KeyError as error:
      raise ValueError(f'{field}: {error.args[0]}') from None


def one_model(config: Any) -> None:
  """Raises `ValueError` if a run of the laboratory is not one row in float32.

  It is scored in other arithmetics, in one pass.
  """
  if config.vary or config.study != 'none':
    raise ValueError('model: one is trained; leave vary and study alone')
  if config.layout.scratchpad:
    raise ValueError(
      'model: answers are scored in one pass, which a scratchpad is not;'
      ' leave layout.scratchpad alone'
    )
  if config.model.dtype != 'float32':
    raise ValueError(
      'model: other arithmetics are compared with float32; model.model.dtype'
      f' is {config.model.dtype}'
    )
