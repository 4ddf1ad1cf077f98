"""YAML of unknown origin: what is read, and what is refused with its line."""

import time

import pytest
import yaml

from third_party import problems
from third_party import strict_yaml


def lines(text):
  with pytest.raises(problems.ProblemError) as caught:
    strict_yaml.load(text, file='r.yml')
  assert caught.value.status == 2
  return str(caught.value).splitlines()


def test_as_pyyaml():
  text = """
# A comment.
plain: text with spaces
quoted: "yes"
literal: |
  two
  lines
numbers: [1, -2.5, .5, 1.0e+3]
switch: on
nothing:
nested: {a: [{b: c}], "d e": ~}
"""
  assert strict_yaml.load(text).plain() == yaml.safe_load(text)


def test_windows_and_byte_order_mark():
  text = '\ufeffa: 1\r\nb:\r\n- x\r\n- y\r\n'
  for given in (text, text.encode()):
    root = strict_yaml.load(given)
    assert root.plain() == {'a': 1, 'b': ['x', 'y']}
    assert root.mapping()['b'].items()[1].line == 4


@pytest.mark.parametrize(
  'text',
  [
    'a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}',
    'a: &x {b: 1, c: 2}\ne: &y {b: 4, f: 5}\nd: {c: 3, <<: [*x, *y]}',
    'a: &x {b: 1}\ne: &y {<<: *x, c: ~}\nd: {<<: *y}',
    'a: &x {b: &z [1, 2]}\nd: [*z, {<<: *x}, *z]',
  ],
)
def test_anchors_as_pyyaml(text):
  assert strict_yaml.load(text).plain() == yaml.safe_load(text)


def test_what_aliases_stand_for():
  text = 'a: &x 1\nb: {c: [&y 2, 3]}\nd: &z 4\ne: [*x, *y]'
  fields = strict_yaml.load(text).mapping()
  repeated = [key for key, node in fields.items() if node.is_repeated]
  assert repeated == ['a', 'b', 'e']


def test_merged_keys_keep_their_lines():
  text = 'a: &x {b: 1}\nd:\n  <<: *x\n  c: 2'
  node = strict_yaml.load(text, file='r.yml').mapping()['d']
  with pytest.raises(problems.ProblemError) as caught:
    node.mapping(('c',), hints={'b': 'move it'})
  assert str(caught.value) == "r.yml:1 / d: unknown key 'b'; move it"


def test_places():
  root = strict_yaml.load('a:\n  b: [1,\n   x]\n', file='r.yml')
  node = root.mapping()['a'].mapping()['b'].items()[1]
  assert (node.line, node.column, node.path) == (3, 4, 'a.b[1]')
  assert str(node.problem('is odd')) == 'r.yml:3 / a.b[1]: is odd'


@pytest.mark.parametrize(
  ('text', 'told'),
  [
    ('a: 1\nb: 2\na: 3', "r.yml:3: the key 'a' is here again, after line 1"),
    ('a: 1\n---\nb: 2', 'r.yml:2: a second document begins'),
    ('a:\n\t- b', 'r.yml:2: a tab indents'),
    ('a: [1, 2', 'r.yml:1: is not YAML'),
    ('a: b: c', 'r.yml:1: is not YAML'),
    ('1: a', "r.yml:1: expected a key that is text, got '1'"),
    ('? [a]\n: b', 'r.yml:1: expected a key that is text, got a collection'),
    ('a: {<<: b}', 'r.yml:1 / a: expected what `<<` names as lines of'),
    ('a: {<<: [{b: 1}, 2]}', 'r.yml:1 / a[1]: expected what `<<` names'),
    ('a: &x {b: 1}\nc: {<<: *x, b: 2, b: 3}', "r.yml:2 / c: the key 'b'"),
    ('a: !!python/object/apply:os.system [ls]', 'has the tag'),
    ('a: !mine 1', 'r.yml:1 / a: has the tag'),
    ('a: &x [1, *x]', 'an alias is a part of itself'),
    ('a: *x', 'undefined alias'),
    ('', 'r.yml:1: is empty'),
    ('a: \x00', 'is not YAML'),
    (b'a: \xff', 'r.yml:1: is not UTF-8'),
    ('[' * 60, 'r.yml:1: is nested more than 50 deep'),
    ('- ' * 60 + 'a', 'is nested more than 50 deep'),
    ('a' * 1_000_001, 'is 1,000,001 bytes long'),
  ],
)
def test_refused(text, told):
  (line,) = lines(text)
  assert told in line


def test_all_equal_keys_at_once():
  assert len(lines('a: 1\na: 2\nb: 1\nb: 2')) == 2


def test_alias_bomb_is_refused_at_once():
  text = 'a0: &a0 [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]\n' for i in range(1, 10)
  )
  start = time.monotonic()
  (line,) = lines(text)
  assert 'more than 100,000 values' in line
  assert time.monotonic() - start < 2


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('1e-3', 1e-3),
    ('-1E+2', -100.0),
    ('.5', 0.5),
    ('5.', 5.0),
    ('"0.25"', 0.25),
    ('0', 0.0),
  ],
)
def test_numbers(text, value):
  assert strict_yaml.load(text).number() == value


@pytest.mark.parametrize(
  'text', ['.nan', '-.inf', '1:30', '0x10', '010', '1_000', 'x', 'yes', '1e999']
)
def test_no_numbers(text):
  with pytest.raises(problems.ProblemError, match='expected a'):
    strict_yaml.load(text).number()


@pytest.mark.parametrize(
  ('read', 'text', 'told'),
  [
    ('string', 'no', "YAML reads 'no' as a truth value; put it in quotes"),
    ('string', '3', "YAML reads '3' as a number; put it in quotes"),
    ('string', '{}', 'expected text, got a mapping'),
    ('string', '~', 'expected text, got nothing'),
    ('boolean', '2', "expected true or false, got '2'"),
    ('integer', '1.5', "expected an integer, got '1.5'"),
    ('items', '[]', 'expected a list, got an empty list'),
    ('items', 'x', "expected a list, each after a dash, got 'x'"),
    ('mapping', '[1]', 'expected a mapping as lines of `key: value`'),
  ],
)
def test_getters_refuse(read, text, told):
  with pytest.raises(problems.ProblemError) as caught:
    getattr(strict_yaml.load(text), read)()
  assert told in str(caught.value)


def test_ranges():
  node = strict_yaml.load('1.5', file='r.yml')
  with pytest.raises(problems.ProblemError) as caught:
    node.number(0, 1, 'take less')
  told = 'r.yml:1: expected a number from 0 to 1, got 1.5; take less'
  assert str(caught.value) == told
  with pytest.raises(problems.ProblemError, match='expected 2 or more, got 1'):
    strict_yaml.load('1').integer(2)


def test_unknown_keys():
  root = strict_yaml.load('alpha: 1\nbeta: 2\ngama: 3', file='r.yml')
  with pytest.raises(problems.ProblemError) as caught:
    root.mapping(('alpha', 'gamma'), of='a thing')
  first, second = str(caught.value).splitlines()
  assert first.startswith("r.yml:2: unknown key 'beta'")
  assert "r.yml:3: unknown key 'gama'; did you mean 'gamma'?" in second


def test_other_errors_pass_through_a_collector():
  found = problems.Collector()
  with pytest.raises(KeyError), found:
    raise KeyError('x')
  found.check()
