"""The functions of I-ViT and gemmlowp in Python's integers and fractions."""

from fractions import Fraction
import math

LARGEST = 2**31 - 1


def rescaled(x, multiplier, shift):
  """One rounding, to nearest even."""
  return round(Fraction(x * multiplier, 2**shift))


def clipped(x, bits):
  return max(-(2 ** (bits - 1)), min(x, 2 ** (bits - 1) - 1))


def doubling_high_product(a, b):
  if a == b == -(2**31):
    return LARGEST
  nudge = 2**30 if a * b >= 0 else 1 - 2**30
  return math.trunc(Fraction(a * b + nudge, 2**31))


def rounding_shift(x, n):
  mask = 2**n - 1
  return (x >> n) + ((x & mask) > (mask >> 1) + (x < 0))


def gemmlowp(x, multiplier, shift):
  if shift < 31:
    left = 31 - shift
    x = max(-(2**31) >> left, min(x, LARGEST >> left)) << left
  high = doubling_high_product(x, multiplier)
  return rounding_shift(high, max(shift - 31, 0))


def exponential(x, unit, terms):
  zero = -unit
  x = x + x // 2 - x // 16
  x = max(x, terms * zero)
  whole = x // zero
  rest = x - whole * zero
  return math.floor((Fraction(rest, 2) - zero) * 2 ** (terms - whole))


def softmax(row, unit, bits=8, terms=15):
  e = [exponential(x - max(row), unit, terms) for x in row]
  factor = LARGEST // min(sum(e), LARGEST)
  return [each * factor // 2 ** (32 - bits) for each in e]


def gelu(row, unit, maximum, bits=8, terms=23):
  found = []
  for x in row:
    peak = max(0, *row) if maximum == 'row' else max(0, x)
    first = exponential(x - peak, unit, terms)
    second = exponential(-peak, unit, terms)
    factor = LARGEST // min(first + second, LARGEST)
    found.append(x * (first * factor // 2 ** (32 - bits)))
  return found


def newton(x, steps):
  k = 2**16
  for _ in range(steps):
    k = (k + x // k) // 2
  return k


def norm(row, centred=True, root=math.isqrt, bias=None):
  mean = round(Fraction(sum(row), len(row))) if centred else 0
  y = [x - mean for x in row]
  deviation = max(1, root(sum(each * each for each in y)))
  z = [each * (LARGEST // deviation) // 2 for each in y]
  return [a + b for a, b in zip(z, bias or [0] * len(z), strict=True)]
