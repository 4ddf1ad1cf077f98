"""How wrong L-Mul is, by the bits of mantissa that it keeps.

    python -m experiments.reproduce --table=lmul --preset=cpu

Nothing is trained: numbers are drawn, multiplied, and compared.
"""

import dataclasses

from experiments.configs import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One run.

  Attributes:
    mantissa_bits: How many bits of a mantissa L-Mul keeps, from 1 to 23, a row
      each.
    products: Pairs of numbers that are multiplied.
    size: Of square matrices that are multiplied.
    length: Queries and keys of an attention.
    features: Of a query, a key and a value.
    seeds: Independent draws.
    seed: What they begin with.
  """

  mantissa_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 10)
  products: int = 1_000_000
  size: int = 256
  length: int = 256
  features: int = 64
  seeds: int = 3
  seed: int = 0

  def __post_init__(self):
    bits = self.mantissa_bits
    if not bits or min(bits) < 1 or max(bits) > 23:
      raise ValueError(f'mantissa_bits are one or more, from 1 to 23: {bits}')
    if sorted(set(bits)) != list(bits):
      raise ValueError(f'mantissa_bits rise: {bits}')
    checks.at_least(self, products=1, size=1, length=1, features=1, seeds=1)
    checks.seed(self)


def cpu() -> Config:
  """Two cores, a minute."""
  return Config()


def smoke() -> Config:
  """Seconds: few numbers, small matrices."""
  return Config(
    mantissa_bits=(3, 4),
    products=10_000,
    size=32,
    length=32,
    features=16,
    seeds=2,
  )


def full() -> Config:
  """More draws of everything, as large as a head of a language model."""
  return Config(
    mantissa_bits=(1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 23),
    products=16_000_000,
    size=1_024,
    length=2_048,
    features=128,
    seeds=5,
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
