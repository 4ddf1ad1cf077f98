"""Tasks on non-negative integers."""

import functools
import math

import jax
import jax.numpy as jnp

from arithmetic.tasks import digitwise
from arithmetic.tasks.base import ALPHABET
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import Operands
from arithmetic.tasks.base import Task


def _two(level: int) -> tuple[int, int]:
  return level, level


def _same_width(operands: Operands, extra: int = 0) -> tuple[jax.Array, ...]:
  width = max(x.values.shape[-1] for x in operands) + extra
  return tuple(digitwise.pad(x.values, width) for x in operands)


def _larger_first(operands: Operands) -> Operands:
  """Swaps the operands where the first is the smaller number."""
  a, b = operands
  swap = digitwise.less(*_same_width(operands))

  def pick(x: Digits, y: Digits) -> Digits:
    return Digits(
      jnp.where(swap[..., None], y.values, x.values),
      jnp.where(swap, y.length, x.length),
    )

  return pick(a, b), pick(b, a)


def _positive_divisor(operands: Operands) -> Operands:
  """Replaces a divisor of zero by nine, so that all nine are possible."""
  a, b = operands
  return a, Digits(jnp.where(b.values == 0, 9, b.values), b.length)


def _nonzero_divisor(operands: Operands) -> Operands:
  """The same for divisors of any number of digits."""
  a, b = operands
  zero = jnp.all(b.values == 0, axis=-1)
  return a, Digits(b.values.at[..., 0].add(jnp.where(zero, 9, 0)), b.length)


def _add(operands: Operands) -> Digits:
  columns = _same_width(operands, extra=1)
  return digitwise.strip(digitwise.carry(functools.reduce(jnp.add, columns)))


def _subtract(operands: Operands) -> Digits:
  a, b = _same_width(operands)
  return digitwise.strip(digitwise.carry(a - b))


def _subtract_signed(operands: Operands) -> Digits:
  difference = _subtract(_larger_first(operands))
  return digitwise.signed(difference, digitwise.less(*_same_width(operands)))


def _subtract_modular(operands: Operands) -> Digits:
  a, b = _same_width(operands)
  difference = Digits(digitwise.carry(a - b), operands[0].length)
  return digitwise.strip(difference.masked().values)


def product_columns(operands: Operands) -> jax.Array:
  """The products of digits in each column of a long multiplication.

  Args:
    operands: Two numbers of shape [batch].

  Returns:
    i32[batch, width], the sum of `a_i b_j` for each `i + j`.

  Examples:
    >>> from arithmetic import tasks
    >>> pair = tasks.from_strings(['99']), tasks.from_strings(['81'])
    >>> product_columns(pair).tolist()
    [[9, 81, 72, 0]]
  """
  a, b = operands
  width = a.values.shape[-1] + b.values.shape[-1]
  columns = jnp.zeros((*a.length.shape, width), jnp.int32)
  for i in range(b.values.shape[-1]):
    partial = a.values * b.values[..., i, None]
    columns = columns.at[..., i : i + a.values.shape[-1]].add(partial)
  return columns


def running_columns(operands: Operands) -> jax.Array:
  """The same with the carry from the column before: `ĉ_k`.

  `ĉ_k` is the sum of `a_i b_j` for `i + j = k`, and of `⌊ĉ_(k-1) / 10⌋`; its
  last digit is the digit of the product.

  Args:
    operands: Two numbers of shape [batch].

  Returns:
    i32[batch, width].

  Examples:
    >>> from arithmetic import tasks
    >>> pair = tasks.from_strings(['99']), tasks.from_strings(['81'])
    >>> running_columns(pair).tolist()  # 99 * 81 = 8019
    [[9, 81, 80, 8]]

  References:
    Bai et al., Why Can't Transformers Learn Multiplication?
    Reverse-Engineering Reveals Long-Range Dependency Pitfalls, 2025,
    arXiv:2510.00184.
  """
  return digitwise.totals(product_columns(operands))


def _multiply(operands: Operands) -> Digits:
  return digitwise.strip(digitwise.carry(product_columns(operands)))


def _quotient(operands: Operands) -> Digits:
  a, b = operands
  return digitwise.strip(digitwise.divide(a.values, b.values[..., 0])[0])


def _remainder(operands: Operands) -> Digits:
  a, b = operands
  remainder = digitwise.divide(a.values, b.values[..., 0])[1]
  return digitwise.from_integer(remainder, 1)


def _divide_long(operands: Operands) -> tuple[Digits | str, ...]:
  a, b = operands
  quotient, rest = digitwise.divide_long(a.values, b.values)
  return digitwise.strip(quotient), 'r', digitwise.strip(rest)


def _square_root(operands: Operands) -> Digits:
  (a,) = operands
  values = digitwise.pad(a.values, a.values.shape[-1] + a.values.shape[-1] % 2)
  return digitwise.strip(digitwise.square_root(values))


def _square_root_of_decimal(operands: Operands) -> Digits:
  digits, places = digitwise.without_point(operands[0])
  # The root of n / 10^p to p places is the root of n 10^p, of 2p + 1 digits.
  values = digitwise.pad(digits.values, 2 * digits.values.shape[-1])
  source = digitwise.column(values) - places[:, None]
  shifted = jnp.where(
    source >= 0,
    jnp.take_along_axis(values, jnp.maximum(source, 0), axis=-1),
    0,
  )
  root = Digits(digitwise.square_root(shifted), places + 1)
  return digitwise.with_point(root, places)


def _solve_square_root_of_decimal(x: tuple[str, ...]) -> str:
  whole, _, places = x[0].partition('.')
  root = str(math.isqrt(int(whole + places) * 10 ** len(places)))
  return f'{root[: -len(places)]}.{root[-len(places) :]}'


def _decimal_point(operands: Operands) -> Operands:
  """Makes the second digit of a number a point."""
  (a,) = operands
  place = digitwise.column(a.values)
  point = place == a.length[:, None] - 2
  return (Digits(jnp.where(point, ALPHABET.index('.'), a.values), a.length),)


def _successor(operands: Operands) -> Digits:
  (a,) = _same_width(operands, extra=1)
  return digitwise.strip(digitwise.carry(a.at[..., 0].add(1)))


def _pick_number(larger: bool):
  def compute(operands: Operands) -> Digits:
    a, b = _same_width(operands)
    take_b = (digitwise.less(a, b) == larger)[..., None]
    return digitwise.strip(jnp.where(take_b, b, a))

  return compute


def _compare(operands: Operands) -> Digits:
  a, b = _same_width(operands)
  code = jnp.where(
    digitwise.less(a, b), 0, jnp.where(digitwise.less(b, a), 2, 1)
  )
  return digitwise.from_integer(code, 1)


def _solve_compare(x: tuple[str, ...]) -> str:
  a, b = map(int, x)
  return str((a > b) - (a < b) + 1)


addition = Task(
  name='addition',
  symbol='+',
  widths=_two,
  answer_width=lambda level: level + 1,
  compute=_add,
  solve=lambda x: str(int(x[0]) + int(x[1])),
)


def addition_of(count: int, *, name: str, symbol: str) -> Task:
  """The task of adding several numbers.

  Args:
    count: How many.
    name: The task's name.
    symbol: The task's symbol in prefix notation; in infix notation it is `+`.

  Returns:
    The task.

  Examples:
    >>> addition_of(4, name='addition_of_four', symbol='4').solve(
    ...   ('7', '8', '9', '10')
    ... )
    '34'
  """
  return Task(
    name=name,
    symbol=symbol,
    operator='+',
    widths=lambda level: (level,) * count,
    answer_width=lambda level: len(str(count * (10**level - 1))),
    compute=_add,
    solve=lambda x: str(sum(map(int, x))),
  )


addition_of_three = addition_of(3, name='addition_of_three', symbol='A')

subtraction = Task(
  name='subtraction',
  symbol='-',
  widths=_two,
  answer_width=lambda level: level,
  prepare=_larger_first,
  compute=_subtract,
  solve=lambda x: str(int(x[0]) - int(x[1])),
)

signed_subtraction = Task(
  name='signed_subtraction',
  symbol='B',
  operator='-',
  alphabet='-',
  widths=_two,
  answer_width=lambda level: level + 1,
  compute=_subtract_signed,
  solve=lambda x: str(int(x[0]) - int(x[1])),
)

modular_subtraction = Task(
  name='modular_subtraction',
  symbol='M',
  widths=_two,
  answer_width=lambda level: level,
  compute=_subtract_modular,
  solve=lambda x: str((int(x[0]) - int(x[1])) % 10 ** len(x[0])),
)

multiplication = Task(
  name='multiplication',
  symbol='*',
  widths=lambda level: (level, 1),
  answer_width=lambda level: level + 1,
  compute=_multiply,
  solve=lambda x: str(int(x[0]) * int(x[1])),
)

long_multiplication = Task(
  name='long_multiplication',
  symbol='X',
  operator='*',
  widths=_two,
  answer_width=lambda level: 2 * level,
  compute=_multiply,
  solve=lambda x: str(int(x[0]) * int(x[1])),
)

division = Task(
  name='division',
  symbol='/',
  widths=lambda level: (level, 1),
  answer_width=lambda level: level,
  prepare=_positive_divisor,
  compute=_quotient,
  solve=lambda x: str(int(x[0]) // int(x[1])),
)

remainder = Task(
  name='remainder',
  symbol='%',
  widths=lambda level: (level, 1),
  answer_width=lambda level: 1,
  prepare=_positive_divisor,
  compute=_remainder,
  solve=lambda x: str(int(x[0]) % int(x[1])),
)

long_division = Task(
  name='long_division',
  symbol='Q',
  operator='/',
  alphabet='r',
  widths=lambda level: (2 * level, level),
  answer_width=lambda level: (2 * level, level),
  prepare=_nonzero_divisor,
  compute=_divide_long,
  solve=lambda x: 'r'.join(map(str, divmod(*map(int, x)))),
)


def modular(operator: str, modulus: int, *, name: str, symbol: str) -> Task:
  """The task of adding, subtracting or multiplying modulo a number.

  Args:
    operator: `+`, `-` or `*`.
    modulus: Between 2 and 46340, so that a product fits 32 bits.
    name: The task's name.
    symbol: The task's symbol in prefix notation.

  Returns:
    The task.

  Raises:
    ValueError: If the operator or the modulus is none of these.

  Examples:
    >>> modular('*', 97, name='product', symbol='m').solve(('50', '2'))
    '3'
  """
  functions = {
    '+': lambda a, b: a + b,
    '-': lambda a, b: a - b,
    '*': lambda a, b: a * b,
  }
  if operator not in functions or not 2 <= modulus <= 46340:
    raise ValueError(
      'a modular task has an operator among + - * and a modulus between 2 and'
      f' 46340, got {operator!r} and {modulus}'
    )
  function, width = functions[operator], len(str(modulus - 1))

  def compute(operands: Operands) -> Digits:
    a, b = (digitwise.remainder(x.values, modulus) for x in operands)
    return digitwise.from_integer(function(a, b) % modulus, width)

  return Task(
    name=name,
    symbol=symbol,
    operator=operator,
    widths=_two,
    answer_width=lambda level: width,
    compute=compute,
    solve=lambda x: str(function(*map(int, x)) % modulus),
  )


addition_modulo_97 = modular('+', 97, name='addition_modulo_97', symbol='U')
multiplication_modulo_97 = modular(
  '*', 97, name='multiplication_modulo_97', symbol='V'
)

square_root = Task(
  name='square_root',
  symbol='^',
  widths=lambda level: (2 * level,),
  answer_width=lambda level: level,
  compute=_square_root,
  solve=lambda x: str(math.isqrt(int(x[0]))),
)

# As many decimals as the level: from 1.0 up to 9.9 at the first.
square_root_of_decimal = Task(
  name='square_root_of_decimal',
  symbol='W',
  alphabet='.',
  widths=lambda level: (level + 2,),
  answer_width=lambda level: level + 2,
  prepare=_decimal_point,
  compute=_square_root_of_decimal,
  solve=_solve_square_root_of_decimal,
)

successor = Task(
  name='successor',
  symbol='!',
  widths=lambda level: (2 * level,),
  answer_width=lambda level: 2 * level + 1,
  compute=_successor,
  solve=lambda x: str(int(x[0]) + 1),
)

maximum = Task(
  name='maximum',
  symbol='>',
  widths=_two,
  answer_width=lambda level: level,
  compute=_pick_number(larger=True),
  solve=lambda x: str(max(map(int, x))),
)

minimum = Task(
  name='minimum',
  symbol='<',
  widths=_two,
  answer_width=lambda level: level,
  compute=_pick_number(larger=False),
  solve=lambda x: str(min(map(int, x))),
)

comparison = Task(
  name='comparison',
  symbol='?',
  widths=_two,
  answer_width=lambda level: 1,
  compute=_compare,
  solve=_solve_compare,
)
