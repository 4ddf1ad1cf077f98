"""Work on the device, work in Python, and the formats as papers print them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import layouts
from arithmetic import scratchpads
from arithmetic import tasks
from tests.arithmetic import lines

TASKS = {'+': tasks.addition, '-': tasks.signed_subtraction}
TASKS['*'] = tasks.long_multiplication
CASES = [
  (name, operator)
  for name, scratchpad in scratchpads.ALL.items()
  for operator in scratchpad.operators
  if scratchpad.operands == 2
]
# Pairs whose lengths differ, that carry to the end, and that are zero.
PAIRS = [
  ('128', '367'),
  ('199', '949'),
  ('29', '510'),
  ('510', '29'),
  ('5', '96'),
  ('100', '3'),
  ('999', '1'),
  ('0', '0'),
  ('7', '700'),
  ('941', '940'),
]


def _listed(number):
  return str([int(x) for x in str(number)]).replace(' ', '')


def _columns(operator, a, b):
  """From integers alone: every column's digits, carry, value and outcome."""
  n, sign = max(len(a), len(b)), 1 if operator == '+' else -1
  for i in range(n):
    low = 10**i
    carry = (int(a) % low + sign * (int(b) % low)) // low
    x, y = int(a) // low % 10, int(b) // low % 10
    total = x + sign * y + carry
    borrows = total < 0 and i < n - 1
    value = total + 10 * borrows
    yield i, x, y, carry, borrows, value, total // 10


def simplified(operator, a, b):
  """The literal format, for `a+b` or `a-b`."""
  text = f'Input:\n{a}{operator}{b}\nTarget:\n'
  rows, digits = [], []
  for _, _, _, _, _, value, carried in _columns(operator, a, b):
    digits.insert(0, value % 10 if operator == '+' else value)
    rows.append(f'A->{digits[0]} , C->{carried}')
  if operator == '-':
    head = digits[0] * 10 ** (len(digits) - 1)
    rows.append(f'{head}+{int(a) - int(b) - head}={int(a) - int(b)}')
    return f'{text}{chr(10).join(rows)}.\n{int(a) - int(b)}$'
  return f'{text}{chr(10).join(rows)}.\n{int(a) + int(b)}$'


def detailed(operator, a, b):
  """The literal format, for all three operators."""
  text = f'Input:\n{a}{operator}{b}\nTarget:\n<scratch>\n'
  for x in (a, b):
    text += f'{_listed(x)} has {len(x)} digits.\n'
  if operator == '*':
    total, rows = 0, []
    for i, d in enumerate(reversed(b)):
      part = int(a) * int(d)
      rows.append(
        f'{_listed(a)} * {d} , A={_listed(part)} , k={10**i} ,'
        f' B={_listed(part * 10**i)} ,'
        f' C={total}+{part * 10**i}={total + part * 10**i}'
      )
      total += part * 10**i
    text += '\n'.join(rows)
  else:
    digits = []
    for i, x, y, carry, borrows, value, carried in _columns(operator, a, b):
      digit = value % 10 if operator == '+' else value
      text += (
        f'{_listed(a[: max(0, len(a) - i)])} {operator}'
        f' {_listed(b[: max(0, len(b) - i)])} ,'
        f' A={str(digits).replace(" ", "")} , C={carry} ,'
        f' {x}{operator}{y}{operator}{abs(carry)}{"+10" * borrows}={value} ,'
        f' A->{digit} , C->{carried}\n'
      )
      digits.insert(0, digit)
      last = carried
    text += f'[] {operator} [] , A={str(digits).replace(" ", "")}'
    total = int(a) + int(b) if operator == '+' else int(a) - int(b)
    if operator == '+':
      text += f' C={last}'
    else:
      head = digits[0] * 10 ** (len(digits) - 1)
      text += f'\n{head}+{total - head}={total}'
  answer = ('-' if total < 0 else '') + ' '.join(str(abs(total)))
  return f'{text} , END\n</scratch>\n{answer}$'


def products(operator, a, b):
  """The literal format, least significant digit first."""
  total, text = 0, f'{a[::-1]}{operator}{b[::-1]}||'
  for i, d in enumerate(reversed(b)):
    part, width = int(a) * int(d) * 10**i, len(a) + 1 + i
    total += part
    text += ('+' if i else '') + f'{part:0{width}d}'[::-1]
    if 0 < i < len(b) - 1:
      text += '(' + f'{total:0{width}d}'[::-1] + ')'
  return f'{text}####{str(int(a) * int(b))[::-1]}$'


LITERAL = {'simplified': simplified, 'detailed': detailed, 'products': products}


def test_formats_as_they_are_printed():
  assert simplified('+', '128', '367') == (
    'Input:\n128+367\nTarget:\nA->5 , C->1\nA->9 , C->0\nA->4 , C->0.\n495$'
  )
  assert detailed('-', '128', '367').endswith(
    '[1,2] - [3,6] , A=[1] , C=0 , 2-6-0+10=6 , A->6 , C->-1\n'
    '[1] - [3] , A=[6,1] , C=-1 , 1-3-1=-3 , A->-3 , C->-1\n'
    '[] - [] , A=[-3,6,1]\n-300+61=-239 , END\n</scratch>\n-2 3 9$'
  )
  assert detailed('+', '199', '949').endswith(
    '[1] + [9] , A=[4,8] , C=1 , 1+9+1=11 , A->1 , C->1\n'
    '[] + [] , A=[1,4,8] C=1 , END\n</scratch>\n1 1 4 8$'
  )
  assert detailed('*', '128', '367').endswith(
    '[1,2,8] * 3 , A=[3,8,4] , k=100 , B=[3,8,4,0,0] ,'
    ' C=8576+38400=46976 , END\n</scratch>\n4 6 9 7 6$'
  )
  assert products('*', '3719', '3349') == (
    '9173*9433||17433+067841(132281)+0075111(1397921)+00075111####13945421$'
  )


@pytest.mark.parametrize(('name', 'operator'), CASES)
def test_text_is_the_literal_format(name, operator):
  rng = np.random.default_rng(0)
  drawn = [
    tuple(str(rng.integers(0, 10**n)) for n in rng.integers(1, 7, 2))
    for _ in range(200)
  ]
  layout, task = layouts.get(name), TASKS[operator]
  for a, b in PAIRS + drawn:
    written = ''.join(layout.text(task, (a, b), level=6))
    assert written == LITERAL[name](operator, a, b)


# A program of all steps of a detailed scratchpad compiles for seconds.
QUICK = [('simplified', '-'), ('products', '*')]


@pytest.mark.parametrize(
  ('name', 'operator'),
  [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in CASES
  ],
)
def test_device_work_is_python_work(name, operator):
  layout, task = layouts.get(name), TASKS[operator]
  tokenizer = lines.tokenizer_of(layout)
  operands = tuple(tasks.from_strings(x) for x in zip(*PAIRS, strict=True))
  write = jax.jit(
    functools.partial(layout.write, task, tokenizer=tokenizer, level=3)
  )
  batch = write(operands)
  for i, problem in enumerate(PAIRS):
    prompt, completion = layout.text(task, problem, level=3)
    written = tokenizer.decode(batch.tokens[i])
    assert written.rstrip() == prompt + completion
    trained = tokenizer.decode(batch.tokens[i][batch.answer[i]])
    scored = tokenizer.decode(batch.tokens[i][batch.scored[i]])
    assert trained == completion
    assert completion.endswith(scored)
    assert layout.read(task, scored) == task.solve(problem)
    assert layout.read(task, completion) == task.solve(problem)


def test_work_is_removed_from_its_first_character_on():
  layout, task = layouts.get('products'), tasks.long_multiplication
  tokenizer = lines.tokenizer_of(layout)
  operands = tuple(tasks.from_strings(['834']) for _ in range(2))
  write = jax.jit(
    lambda removed: layout.write(
      task, operands, tokenizer=tokenizer, level=3, removed=removed
    )
  )
  prompt, completion = layout.text(task, ('834', '834'), level=3)
  work, mark, answer = completion.rpartition('####')
  for removed in (0, 1, 7, len(work), len(work) + 4, 1000):
    batch = write(jnp.asarray(removed))
    written = tokenizer.decode(batch.tokens[0]).rstrip()
    assert written == prompt + (work + mark)[removed:] + answer
    scored = tokenizer.decode(batch.tokens[0][batch.scored[0]])
    assert scored == answer


def test_lengths_of_subsequences():
  layout, task = layouts.get('lengths'), tasks.longest_increasing
  written = layout.text(task, ('310241',), level=3)
  assert written == ('I310241=', '1,1,1,2,3,2|3$')
  tokenizer = lines.tokenizer_of(layout)
  lines.check_lines(layout, task, tokenizer)


def test_scratchpads_refuse_other_tasks():
  layout = layouts.get('products')
  with pytest.raises(
    ValueError, match=r'the operator \* and 2 .* got addition'
  ):
    layout.length(tasks.addition, 2)
  with pytest.raises(ValueError, match="did you mean 'detailed'"):
    layouts.Layout(scratchpad='detail')
