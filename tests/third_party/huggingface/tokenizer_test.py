"""Vocabularies as they are on disk."""

import json
import os

import pytest

from third_party import problems
from third_party.huggingface import layout
from third_party.huggingface import sentencepiece
from third_party.huggingface import tokenizer

BPE = {
  'model': {'type': 'BPE', 'vocab': {'a': 0, 'b': 1, 'ab': 2}, 'merges': []},
  'added_tokens': [
    {'id': 3, 'content': '<s>', 'special': True, 'normalized': False},
    {'id': 0, 'content': 'a', 'lstrip': True},
  ],
}


def _directory(path, files):
  path.mkdir(exist_ok=True)
  for name, content in files.items():
    raw = isinstance(content, bytes)
    (path / name).write_bytes(content if raw else json.dumps(content).encode())
  return layout.Directory(path, 'model')


def _varint(value):
  out = b''
  while value > 127:
    out += bytes([value & 127 | 128])
    value >>= 7
  return out + bytes([value])


def _field(number, content):
  return _varint(number << 3 | 2) + _varint(len(content)) + content


def _pieces(texts):
  """A SentencePiece model with scores, kinds and settings, by hand."""
  model = b''
  for text in texts:
    score = _varint(2 << 3 | 5) + b'\0\0\x80\xbf'
    kind = _varint(3 << 3) + _varint(6)
    model += _field(1, _field(1, text.encode()) + score + kind)
  return model + _field(
    2, _field(3, b'unigram') + _varint(9 << 3) + b'\x96\x01'
  )


def test_a_tokenizer_in_one_file(tmp_path):
  read = tokenizer.read(_directory(tmp_path, {'tokenizer.json': BPE}))
  assert read.tokens == {'a': 0, 'b': 1, 'ab': 2, '<s>': 3}
  assert read.added == {
    '<s>': tokenizer.Added('<s>', normalized=False, special=True),
    'a': tokenizer.Added('a', lstrip=True),
  }


@pytest.mark.parametrize(
  ('model', 'tokens'),
  [
    (
      {'type': 'WordPiece', 'vocab': {'[UNK]': 0, 'x': 5}},
      {'[UNK]': 0, 'x': 5},
    ),
    (
      {'type': 'Unigram', 'vocab': [['<unk>', 0.0], ['▁a', -1.5], ['b', -2]]},
      {'<unk>': 0, '▁a': 1, 'b': 2},
    ),
  ],
)
def test_kinds_of_models(tmp_path, model, tokens):
  files = {'tokenizer.json': {'model': model}}
  assert tokenizer.read(_directory(tmp_path, files)).tokens == tokens


def test_what_other_files_add(tmp_path):
  files = {
    'tokenizer.json': BPE,
    'added_tokens.json': {'<t>': 4},
    'tokenizer_config.json': {
      'added_tokens_decoder': {
        '3': {'content': '<s>', 'special': False},
        '5': {'content': '<u>', 'single_word': True},
      },
      'eos_token': {'content': '</s>'},
      'bos_token': '<s>',
      'unk_token': None,
    },
    'special_tokens_map.json': {
      'pad_token': '[PAD]',
      'additional_special_tokens': ['</s>', '<v>'],
    },
  }
  read = tokenizer.read(_directory(tmp_path, files))
  assert read.tokens == {
    **{'a': 0, 'b': 1, 'ab': 2, '<s>': 3, '<t>': 4, '<u>': 5},
    **{'</s>': 6, '[PAD]': 7, '<v>': 8},
  }
  assert read.added['<s>'].special
  assert read.added['<u>'].single_word


def test_vocab_and_pieces(tmp_path):
  plain = _directory(tmp_path / 'plain', {'vocab.json': {'a': 1, 'b': 0}})
  assert tokenizer.read(plain).tokens == {'a': 1, 'b': 0}
  texts = ['<unk>', '▁hello', 'ß' * 100, '<0x0A>']
  pieces = _directory(
    tmp_path / 'pieces',
    {'tokenizer.model': _pieces(texts), 'added_tokens.json': {'<x>': 4}},
  )
  assert list(tokenizer.read(pieces).tokens) == [*texts[::-1], '<x>']
  assert tokenizer.read(pieces).tokens['▁hello'] == 1


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'\x0a',
    b'\x0a\x7f',
    b'\x0a\x02\x0a\x05',
    b'\x0a\x00',
    b'\xff' * 20,
    b'\x0b\x00',
    b'IQ== 0\nIg== 1\n',
    _field(1, _field(1, b'\xff\xfe')),
  ],
)
def test_pieces_that_are_not_sound(tmp_path, content):
  directory = _directory(tmp_path, {'tokenizer.model': content})
  with pytest.raises(problems.ProblemError, match='not a SentencePiece model'):
    tokenizer.read(directory)


def test_pieces_cut_anywhere_are_refused_or_fewer():
  whole = _pieces(['a', 'bc', 'def'])
  texts = ['a', 'bc', 'def']
  for cut in range(len(whole)):
    try:
      found = sentencepiece.pieces(whole[:cut])
    except ValueError:
      continue
    assert found == texts[: len(found)]


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('tokenizer.json', b'{', 'not valid JSON'),
    ('tokenizer.json', b'[1]', 'expected a JSON object'),
    ('tokenizer.json', b'{"a":' * 9000, 'nested too deeply'),
    ('tokenizer.json', {}, 'expected a vocabulary at model.vocab'),
    ('tokenizer.json', {'model': {'vocab': [1]}}, 'expected a vocabulary'),
    (
      'tokenizer.json',
      {'model': {'vocab': {'a': -1}}},
      'a row of the embedding',
    ),
    ('tokenizer.json', {'model': {'vocab': {'a': 1.5}}}, 'got 1.5'),
    ('tokenizer.json', {'model': {'vocab': {'a': True}}}, 'got True'),
    (
      'tokenizer.json',
      {'model': {'vocab': {'a': 2**30}}},
      'a row of the embed',
    ),
    (
      'tokenizer.json',
      {'model': {'vocab': {}}, 'added_tokens': ['x']},
      "a token that is added, got 'x'",
    ),
    ('vocab.json', b'{"a": 0, "a": 1}', "the key 'a' twice"),
    ('spiece.model', b'\0', 'is of a kind that is not read'),
    ('config.json', {}, 'has no tokenizer'),
  ],
)
def test_files_that_are_not_sound(tmp_path, name, content, message):
  directory = _directory(tmp_path, {name: content})
  with pytest.raises(problems.ProblemError) as caught:
    tokenizer.read(directory)
  assert message in str(caught.value)
  assert 'model' in str(caught.value)
  assert caught.value.status == problems.Kind.INPUT


@pytest.mark.parametrize(
  'decoder', [['x'], {'x': {'content': 'a'}}, {'1': {'content': 2}}]
)
def test_decoders_that_are_not_sound(tmp_path, decoder):
  files = {
    'tokenizer.json': BPE,
    'tokenizer_config.json': {'added_tokens_decoder': decoder},
  }
  with pytest.raises(problems.ProblemError, match=r'tokenizer_config\.json'):
    tokenizer.read(_directory(tmp_path, files))


def test_no_file_outside_of_the_directory_is_read(tmp_path):
  secret = tmp_path / 'secret.json'
  secret.write_text(json.dumps(BPE))
  directory = tmp_path / 'model'
  directory.mkdir()
  os.symlink(secret, directory / 'tokenizer.json')
  where = layout.Directory(directory, 'model')
  with pytest.raises(problems.ProblemError, match='leaves the model directory'):
    tokenizer.fingerprint(where)


def test_fingerprints_tell_vocabularies_apart(tmp_path):
  base = {
    'tokenizer.json': BPE,
    'tokenizer_config.json': {'chat_template': 'x'},
  }
  other = {'tokenizer_config.json': {'chat_template': 'y'}}
  more = {'special_tokens_map.json': {'pad_token': '[PAD]'}}
  first, second, third, fourth = (
    tokenizer.fingerprint(_directory(tmp_path / str(i), files))
    for i, files in enumerate([base, base | other, base | more, {}])
  )
  assert first == second != third
  assert fourth is None


@pytest.mark.parametrize(
  'files',
  [
    {'tokenizer.json': BPE},
    {
      'tokenizer.json': BPE,
      'tokenizer_config.json': {'added_tokens_decoder': {}, 'bos_token': '<s>'},
      'added_tokens.json': {'<s>': 3},
    },
    {'vocab.json': {'a': 0, 'b': 1}, 'merges.txt': b'a b\n'},
    {'tokenizer.model': _pieces(['a', 'b'])},
  ],
)
def test_tokens_that_are_written_are_read(tmp_path, files):
  directory = _directory(tmp_path, files)
  before = tokenizer.read(directory)
  new = [(8, tokenizer.Added('<8>', special=True)), (7, tokenizer.Added('ü'))]
  after = tokenizer.read(
    _directory(tmp_path, tokenizer.extended(directory, new))
  )
  assert after.tokens == {**before.tokens, '<8>': 8, 'ü': 7}
  assert all(
    after.added[token.content].content == token.content for _, token in new
  )
  if 'tokenizer.model' not in files:
    assert after.added['<8>'].special or 'vocab.json' in files
