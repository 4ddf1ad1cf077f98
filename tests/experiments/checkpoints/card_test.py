"""A card says what was done, and no name in it can say more."""

import json
import re

import pytest
import yaml

from experiments.checkpoints import card as card_lib
from experiments.checkpoints import findings
import merging
from third_party import problems

EVIL = [
  'a"\n---\nlicense: evil\n# Heading',
  '`code` ``more`` | cell | <script>alert(1)</script>',
  '[link](https://example.com) ![x](https://example.com/x.png)',
  '\x1b[2J\u202egnp.exe\ud800',
  '---\n```\n~~~',
  'www.example.com',
  '`',
]
RECIPE = """\
merge_method: ties
models:
- model: org/math  # `ticks` and ```` more
"""


def _result(**options):
  options = {
    'name': 'math-code',
    'recipe': RECIPE,
    'method': 'ties',
    'models': (
      card_lib.MergedModel(name='base', role='base', hub_id='org/base'),
      card_lib.MergedModel(
        name='org/math',
        role='expert',
        hub_id='org/math',
        files={'model.safetensors': {'size': 9, 'sha256': 'ab' * 32}},
        size=1_100_000_000,
        tensors=1234,
      ),
    ),
    **options,
  }
  return card_lib.MergeResult(**options)


def _split(card):
  """The front matter, and the rest."""
  opened, front, rest = re.split(r'(?m)^---$', card, maxsplit=2)
  assert opened == ''
  return yaml.safe_load(front), rest


def _outside_code(markdown):
  """What is left when blocks and spans of code are gone."""
  lines, fence = [], ''
  for line in markdown.split('\n'):
    ticks = re.match('`{3,}', line)
    if fence:
      fence = '' if line.rstrip() == fence else fence
    elif ticks:
      fence = ticks[0]
    else:
      lines.append(line)
  assert not fence
  spans = re.compile(r'(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)')
  return '\n'.join(spans.sub('CODE', line) for line in lines)


def test_card_front_matter_and_sections():
  front, rest = _split(card_lib.card(_result()))
  assert front == {
    'base_model': ['org/base', 'org/math'],
    'base_model_relation': 'merge',
    'library_name': 'transformers',
    'tags': ['merge', 'arithmerge'],
  }
  assert re.findall(r'(?m)^## (.*)$', rest) == [
    'Merge Method',
    'Models Merged',
    'Configuration',
    'Reproduction',
    'Verification',
  ]
  assert '| `org/math` | expert | 1,234 | 1.1 GB | 1 | `abababababab` |' in rest


def test_card_holds_the_recipe_as_it_was():
  _, rest = _split(card_lib.card(_result()))
  assert f'`````yaml\n{RECIPE}`````\n' in rest


def test_card_cites_the_papers():
  references = card_lib.references_in(merging.ties())
  _, rest = _split(card_lib.card(_result(references=references)))
  assert '(https://arxiv.org/abs/2306.01708)' in rest
  assert 'Prateek Yadav' in rest


def test_card_reproduction():
  result = _result(
    seed=7,
    dtype='bfloat16',
    versions={'jax': '0.10.2'},
    timings={'merge': 12.345},
    bytes_read=2_200_000_000,
    bytes_written=1_100_000_000,
    peak_memory=512_000_000,
    notes=['Two | notes.'],
  )
  _, rest = _split(card_lib.card(result))
  assert 'python -m experiments.merge merge_recipe.yml OUT --seed=7\n' in rest
  for name, value in {
    'seed': '7',
    'dtype': 'bfloat16',
    'read': '2.2 GB',
    'written': '1.1 GB',
    'peak memory': '512 MB',
    'merge': '12.3 s',
    'jax': '0.10.2',
  }.items():
    assert f'| `{name}` | `{value}` |' in rest
  assert '- Two &#124; notes.' in rest


def test_card_verification():
  problem = problems.Problem(problems.Kind.VERIFY, ('w',), 'has `NaN`')
  checks = (
    findings.Check('finite', '3 values', (problem,)),
    findings.Check('format', '1 header'),
  )
  found = findings.Findings(model='m', checks=checks)
  _, rest = _split(card_lib.card(_result(verification=found)))
  assert '| finite | failed | `3 values` |' in rest
  assert '| format | passed | `1 header` |' in rest
  assert '- error: ``w: has `NaN` ``' not in rest
  assert '- error: ``w: has `NaN```' not in rest
  assert '`` w: has `NaN` ``' in rest


@pytest.mark.parametrize('name', EVIL)
def test_card_names_do_no_harm(name):
  check = findings.Check(name, name, ran=False)
  models = [
    card_lib.MergedModel(
      name=name, role='base', files={name: {'sha256': name}}
    ),
    card_lib.MergedModel(name=name, role='expert', hub_id=name),
  ]
  result = _result(
    name=name,
    recipe=f'model: x\n{name}\n',
    method=name,
    description=name,
    models=models,
    versions={name: name},
    timings={name: 1.0},
    dtype=name,
    library=name,
    notes=[name],
    verification=findings.Findings(model=name, checks=(check,)),
  )
  text = card_lib.card(result)
  text.encode()
  front, rest = _split(text)
  assert front['base_model'] == [name]
  assert set(front) == {
    'base_model',
    'base_model_relation',
    'library_name',
    'tags',
  }
  shown = _outside_code(rest)
  assert re.findall(r'(?m)^#+ (.*)$', shown) == [
    'CODE',
    'Merge Method',
    'Models Merged',
    'Configuration',
    'Reproduction',
    'Verification',
  ]
  assert not re.search(
    r'[<>\[\]`~]|://|www\.|[\x00-\x09\x0b-\x1f\u202e]', shown
  )
  widths = {
    len(re.findall(r'(?<!\\)\|', line))
    for line in rest.split('\n')
    if line.startswith('| ')
  }
  assert widths <= {3, 4, 7}  # Of tables of two, three and six columns.


def test_card_fences_cannot_be_broken_out_of():
  for ticks in range(8):
    recipe = f'a\n{"`" * ticks}\n# Heading\n'
    text = card_lib.card(_result(recipe=recipe))
    assert 'Heading' not in _outside_code(_split(text)[1])


def test_write_files(tmp_path):
  result = _result(recipe_file='mergekit_config.yml', seed=3)
  paths = card_lib.write(tmp_path, result)
  names = ['README.md', 'merge_report.json', 'mergekit_config.yml']
  assert sorted(path.name for path in paths) == names
  assert (tmp_path / 'mergekit_config.yml').read_text() == RECIPE
  content = json.loads((tmp_path / 'merge_report.json').read_text())
  assert content['seed'] == 3
  assert content['models'][1]['files'] == {
    'model.safetensors': {'size': 9, 'sha256': 'ab' * 32}
  }
  assert content['verification'] is None


@pytest.mark.parametrize('name', EVIL)
def test_write_any_name(tmp_path, name):
  recipe = f'# {name}\n'
  card_lib.write(tmp_path, _result(name=name, recipe=recipe))
  content = json.loads((tmp_path / 'merge_report.json').read_text())
  assert content['name'] == name
  assert (tmp_path / 'merge_recipe.yml').stat().st_size


def test_recipe_files_have_one_of_two_names():
  with pytest.raises(ValueError, match=r"got '\.\./x'"):
    _result(recipe_file='../x')


@pytest.mark.parametrize(
  ('name', 'plausible'),
  [
    ('Qwen/Qwen2-0.5B', True),
    ('org/a_b.c-1', True),
    ('gpt2', False),  # As likely the name of a directory.
    ('/data/org/model', False),
    ('./org/model', False),
    ('../model', False),
    ('org/..', False),
    ('org/a--b', False),
    ('org/model\nlicense: evil', False),
    ('org/мodel', False),
    ('a/b/c', False),
    ('', False),
  ],
)
def test_hub_id(name, plausible):
  assert card_lib.hub_id(name) == (name if plausible else '')


def test_hub_id_is_none_of_a_directory_that_is_there(tmp_path, monkeypatch):
  (tmp_path / 'models' / 'math').mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert card_lib.hub_id('models/math') == ''
  assert card_lib.hub_id('models/code') == 'models/code'
