"""The tools around a merge, held to safetensors, Orbax and NumPy."""

import json
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
from orbax import checkpoint as ocp
import pytest
from safetensors import numpy as safetensors

from experiments import checkpoint as binary
from experiments.checkpoints import command
from experiments.checkpoints import opening
from experiments.checkpoints import tools
from experiments.runtime import cli
from experiments.runtime import errors
from tests.experiments.checkpoints import tiny
from third_party import problems

_ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def models(tmp_path):
  """A base, two experts of it, and one that is none."""
  base = tiny.tensors()
  everyone = {
    'base': base,
    'math': tiny.nudged(base, 0.05, 1),
    'code': tiny.nudged(base, 0.1, 2),
    'alien': tiny.tensors(9),
  }
  for name, model in everyone.items():
    tiny.save(tmp_path / name, model)
  return everyone


def _load(directory):
  found = {}
  for path in pathlib.Path(directory).glob('*.safetensors'):
    found |= safetensors.load_file(path)
  return found


def _same(found, expected):
  return found.keys() == expected.keys() and all(
    found[path].dtype == x.dtype
    and found[path].shape == x.shape
    and found[path].tobytes() == np.ascontiguousarray(x).tobytes()
    for path, x in expected.items()
  )


def _flat(model):
  return np.concatenate(
    [model[path].astype(np.float64).ravel() for path in sorted(model)]
  )


def _paths(folder, *names):
  return [str(folder / name) for name in names]


def _problems(call, *arguments, **options):
  with pytest.raises(problems.ProblemError) as caught:
    call(*arguments, **options)
  return caught.value


def _run(module, *arguments):
  return subprocess.run(
    [sys.executable, '-m', module, *map(str, arguments)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_arguments_go_to_their_names():
  names = ['BASE', 'EXPERT...', 'OUT']
  assert cli.match(['a', 'b', 'c'], names) == ['a', ['b'], 'c']
  assert cli.match(['a', 'b', 'c', 'd'], names) == ['a', ['b', 'c'], 'd']
  assert cli.match(['a', 'b', 'c'], ['X', 'Y...']) == ['a', ['b', 'c']]
  with pytest.raises(errors.UsageError, match='missing OUT; expected BASE'):
    cli.match(['a', 'b'], names)
  with pytest.raises(errors.UsageError, match='missing EXPERT;'):
    cli.match(['a'], ['BASE', 'EXPERT...'])
  with pytest.raises(errors.UsageError, match="unexpected argument 'b'"):
    cli.match(['a', 'b'], ['X'])


def test_every_command_is_a_tool():
  for name, (arguments, own) in binary.COMMANDS.items():
    code = getattr(tools, name).__code__
    positional = code.co_varnames[: code.co_argcount]
    assert len(positional) == len(arguments)
    keywords = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
    kinds = [each for kind in tools._SETTINGS.values() for each in kind]
    extra = kinds if name == 'extract' else []
    assert {*own} == {*keywords, *extra}


@pytest.mark.usefixtures('models')
def test_doctor_tells_sound_models_from_others(tmp_path):
  sound = tools.doctor(str(tmp_path / 'base'))
  assert sound.status == 0
  assert sound.content['checks']
  model = tiny.tensors()
  model['lm_head.weight'][3, 2] = np.nan
  tiny.save(tmp_path / 'broken', model)
  broken = tools.doctor(str(tmp_path / 'broken'))
  assert broken.status == 3
  assert 'lm_head.weight' in broken.text
  assert json.loads(json.dumps(broken.content))['status'] == 3
  assert tools.doctor(str(tmp_path / 'broken'), values=False).status == 0


def test_kinship_finds_the_foreign_one_and_writes_a_page(tmp_path, models):
  base, math, alien = _paths(tmp_path, 'base', 'math', 'alien')
  out = tmp_path / 'page'
  found = tools.kinship(base, [math, f'other={alien}'], out=str(out))
  assert found.status == 4
  assert found.content['verdicts'] == ('kin', 'foreign')
  for name, norm in zip(
    ('math', 'alien'), found.content['relative_norms'], strict=True
  ):
    change = _flat(models[name]) - _flat(models['base'])
    expected = np.linalg.norm(change) / np.linalg.norm(_flat(models['base']))
    np.testing.assert_allclose(norm, expected, rtol=1e-5)
  written = json.loads((out / 'kinship.json').read_text())
  assert written['experts'] == ['math', 'other']
  assert (out / 'kinship.txt').read_text() == f'{found.text}\n'
  assert 'Foreign, as it seems: other' in (out / 'kinship.html').read_text()
  for name in ('changes', 'cosines'):
    assert (out / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  assert tools.kinship(base, [math]).status == 0
  again = _problems(tools.kinship, base, [math], out=str(out))
  assert again.status == 2


@pytest.mark.parametrize('family', ['llama', 'gpt2'])
def test_an_adapter_of_the_rank_of_a_change_is_the_change(tmp_path, family):
  # GPT-2 stores [in, out], and is often saved without its first name.
  path, module = {
    'llama': ('model.layers.0.mlp.up_proj.weight',) * 2,
    'gpt2': ('h.0.mlp.c_fc.weight', 'transformer.h.0.mlp.c_fc.weight'),
  }[family]
  rng = np.random.default_rng(0)
  start = rng.normal(size=(40, 24)).astype(np.float32)
  change = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 24))
  end = start + change.astype(np.float32)
  config = {'model_type': family}
  for name, leaf in (('base', start), ('math', end)):
    tiny.save(tmp_path / name, {path: leaf, 'bias': leaf[0] * 0}, config)
  base, math, out = _paths(tmp_path, 'base', 'math', 'lora')
  made = tools.extract(base, [math], out, rank=2)
  assert made.content['tensors'][path]['kept'] == 'low rank'
  factors = _load(out)
  name = f'base_model.model.{module.removesuffix(".weight")}.lora'
  a, b = (factors[f'{name}_{each}.weight'] for each in 'AB')
  said = json.loads((tmp_path / 'lora/adapter_config.json').read_text())
  assert said['base_model_name_or_path'] == base
  assert said['lora_alpha'] == said['r'] == len(a) == 2
  # PEFT turns the product for layers that store [in, out].
  found = (b @ a).T if family == 'gpt2' else b @ a
  np.testing.assert_allclose(found, change, rtol=1e-4, atol=1e-4)
  assert _problems(tools.extract, base, [math], out).status == 2


@pytest.mark.parametrize('kind', ['4bit', '8bit'])
def test_what_was_extracted_is_restored(tmp_path, models, kind):
  base, math, code = _paths(tmp_path, 'base', 'math', 'code')
  bundle, out = _paths(tmp_path, 'experts.safetensors', 'restored')
  made = tools.extract(base, [math, f'py={code}'], bundle, kind=kind)
  assert made.content['bytes'] == pathlib.Path(bundle).stat().st_size
  done = tools.restore(base, bundle, 'py', out)
  assert done.content['verification']['status'] == 0
  found = _load(out)
  change = _flat(models['code']) - _flat(models['base'])
  lost = np.linalg.norm(_flat(models['code']) - _flat(found))
  # Rounding to bfloat16 comes on top of what the codec loses.
  error = made.content['errors']['py']
  rounding = 2**-9 * np.linalg.norm(_flat(found))
  assert lost <= error * np.linalg.norm(change) * 1.01 + rounding
  for name in ('config.json', 'tokenizer.json'):
    assert (pathlib.Path(out) / name).read_bytes() == (
      pathlib.Path(base) / name
    ).read_bytes()
  assert "'python'" in str(
    _problems(tools.restore, base, bundle, 'python', str(tmp_path / 'x'))
  )
  other = _problems(tools.restore, math, bundle, 'py', str(tmp_path / 'x'))
  assert other.status == 4
  assert not (tmp_path / 'x').exists()


def test_to_orbax_and_back_is_the_same_bit_for_bit(tmp_path, models):
  base, middle, end = _paths(tmp_path, 'base', 'orbax', 'back')
  tools.convert(base, middle)
  with ocp.PyTreeCheckpointer() as checkpointer:
    assert _same(checkpointer.restore(middle), models['base'])
  done = tools.convert(middle, end, shard_size='2kB')
  assert done.content['format'] == 'huggingface'
  assert _same(_load(end), models['base'])
  assert len(list(pathlib.Path(end).glob('*.safetensors'))) > 1
  for name in ('config.json', 'tokenizer.json'):
    first, last = (pathlib.Path(each) / name for each in (base, end))
    assert first.read_bytes() == last.read_bytes()
  assert _problems(tools.convert, base, middle).status == 2


def test_small_pieces_and_values_that_are_not_finite(tmp_path, monkeypatch):
  monkeypatch.setattr(tools.copying, '_PIECE', 64)
  tree = {
    'blocks': [
      {'w': np.arange(35, dtype=np.float32).reshape(5, 7)},
      {'w': np.arange(300).astype(ml_dtypes.bfloat16)},
    ],
    'step': np.array(7, np.int32),
    'nan': np.array([np.nan, 1.0, -np.inf]),
  }
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'tree', tree)
  source, out = _paths(tmp_path, 'tree', 'model')
  done = tools.convert(source, out)
  expected = {
    'blocks.0.w': tree['blocks'][0]['w'],
    'blocks.1.w': tree['blocks'][1]['w'],
    'nan': tree['nan'],
    'step': tree['step'],
  }
  assert _same(_load(out), expected)
  assert 'nan: 2 of 3 values' in done.text


def test_an_orbax_model_knows_when_its_files_change(tmp_path):
  tree = {'a': {'b': np.ones(3, np.float32)}, 'note': 'text'}
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'tree', tree)
  model = opening.open_directory(tmp_path / 'tree', name='mine')
  assert list(model.specs) == ['a.b']
  assert model.size == 12
  assert 'note' in str(model.problems)
  model.check_unchanged()
  again = opening.open_directory(tmp_path / 'tree')
  assert model.fingerprint() == again.fingerprint()
  about = tmp_path / 'tree/_METADATA'
  about.write_bytes(about.read_bytes() + b' ')
  assert 'mine / _METADATA: changed' in str(_problems(model.check_unchanged))
  about.unlink()
  assert 'mine / _METADATA: is gone' in str(_problems(model.check_unchanged))
  # What says that it was a checkpoint of Orbax says what is wrong with it.
  error = _problems(opening.open_directory, tmp_path / 'tree', name='mine')
  assert error.status == 3
  assert 'Orbax' in str(error)


def test_damage_on_the_disk_is_found_before_publishing(
  tmp_path, models, monkeypatch
):
  del models
  base, orbax, out = _paths(tmp_path, 'base', 'orbax', 'out')
  tools.convert(base, orbax)
  whole = tools.copying._copy_side_files

  def broken(model, directory):
    (path,) = directory.glob('*.safetensors')
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    whole(model, directory)

  monkeypatch.setattr(tools.copying, '_copy_side_files', broken)
  error = _problems(tools.convert, orbax, out)
  assert error.status == 6
  assert 'the bytes on the disk are others than were written' in str(error)
  assert not list(tmp_path.glob('*out*'))


def test_an_old_conversion_is_replaced_if_asked_for(tmp_path, models):
  base, math, out = _paths(tmp_path, 'base', 'math', 'orbax')
  tools.convert(base, out)
  assert _problems(tools.convert, math, out).status == 2
  tools.convert(math, out, overwrite=True)
  with ocp.PyTreeCheckpointer() as checkpointer:
    assert _same(checkpointer.restore(out), models['math'])


def test_what_does_not_fit_is_refused_before_any_work(tmp_path, models):
  del models
  base, math, code = _paths(tmp_path, 'base', 'math', 'code')
  out = str(tmp_path / 'out')
  for call, words in (
    (lambda: tools.extract(base, [math, code], out), 'expected one expert'),
    (lambda: tools.extract(base, [math], out, kind='tall', rank=3), '--rank'),
    (
      lambda: tools.extract(base, [math], out, kind='4bit', group=3),
      'even number',
    ),
    (
      lambda: tools.extract(base, [math], out, energy=0.5, method='sketch'),
      '--rank',
    ),
    (lambda: tools.kinship(base, [math, math]), 'already'),
    (lambda: tools.convert(base, out, max_memory='much'), 'a size'),
  ):
    with pytest.raises(errors.UsageError, match=words):
      call()
  small = _problems(tools.convert, base, out, max_memory='1MB')
  assert small.status == 5
  gone = _problems(tools.kinship, base, ['/nowhere', str(tmp_path / 'no')])
  assert len(gone.problems) == 2
  inside = _problems(tools.convert, base, f'{base}/orbax')
  assert inside.status == 2
  file = tmp_path / 'notes.txt'
  file.write_text('mine')
  for overwrite in (False, True):
    error = _problems(
      tools.extract,
      base,
      [math],
      str(file),
      kind='8bit',
      overwrite=overwrite,
    )
    assert error.status == 2
  assert file.read_text() == 'mine'
  assert {each.name for each in tmp_path.iterdir()} == {
    *('base', 'math', 'code', 'alien', 'notes.txt')
  }


def test_a_bundle_is_replaced_if_asked_for(tmp_path, models):
  del models
  base, math, out = _paths(tmp_path, 'base', 'math', 'b.safetensors')
  tools.extract(base, [math], out, kind='8bit')
  assert _problems(tools.extract, base, [math], out, kind='4bit').status == 2
  tools.extract(base, [math], out, kind='4bit', overwrite=True)
  with pathlib.Path(out).open('rb') as file:
    assert b'4bit' in file.read()


_RECIPE = """
merge_method: linear
dtype: float32
models:
  - model: {0}
    parameters: {{weight: 1.0}}
  - model: {1}
    parameters: {{weight: 3.0}}
"""


def test_orbax_models_are_merged_into_orbax(tmp_path, models):
  math, code = _paths(tmp_path, 'math', 'code')
  tools.convert(code, str(tmp_path / 'orbax'))
  recipe = tmp_path / 'recipe.yml'
  recipe.write_text(_RECIPE.format(math, tmp_path / 'orbax'))
  flags = command.Flags(format='orbax', full_verify=True)
  command.merge(recipe, tmp_path / 'merged', flags)
  with ocp.PyTreeCheckpointer() as checkpointer:
    merged = checkpointer.restore(tmp_path / 'merged')
  assert merged.keys() == models['math'].keys()
  for path, leaf in merged.items():
    x, y = (models[name][path].astype(np.float64) for name in ('math', 'code'))
    np.testing.assert_allclose(leaf, (x + 3 * y) / 4, rtol=1e-6, atol=1e-7)
  report = json.loads((tmp_path / 'merged/merge_report.json').read_text())
  assert report['verification']['status'] == 0
  (check,) = (
    each
    for each in report['verification']['checks']
    if each['name'] == 'fingerprints'
  )
  assert (check['outcome'], check['on']) == ('passed', '39 tensors, read again')
  assert tools.doctor(str(tmp_path / 'merged')).status == 0
  with pytest.raises(errors.UsageError, match='--resume'):
    command.merge(
      recipe, tmp_path / 'other', command.Flags(format='orbax', resume=True)
    )


@pytest.mark.parametrize(
  ('arguments', 'status', 'words'),
  [
    ([], 2, 'missing command; choose from convert, doctor'),
    (['doktor'], 2, "did you mean 'doctor'?"),
    (['doctor', 'x', '--rank=3'], 2, '--rank is no flag of doctor'),
  ],
)
def test_arguments_are_told_in_one_line(arguments, status, words):
  done = _run('experiments.checkpoint', *arguments)
  assert (done.returncode, done.stdout) == (status, '')
  assert words in done.stderr
  assert done.stderr.count('\n') == 1


def test_the_binary_prints_json_alone_and_exits_with_the_status(
  tmp_path, models
):
  del models
  base, alien = _paths(tmp_path, 'base', 'alien')
  done = _run('experiments.checkpoint', 'kinship', base, alien, '--json')
  assert done.returncode == 4, done.stderr
  assert json.loads(done.stdout)['verdicts'] == ['foreign']
  assert done.stderr == ''


@pytest.mark.parametrize(
  ('name', 'remedy'),
  [
    ('nowhere/at/all', '; look for a misspelling'),
    ('org/none', '; download it with `hf download org/none`'),
  ],
)
def test_no_flag_is_named_that_the_tools_do_not_have(name, remedy):
  with pytest.raises(problems.ProblemError) as caught:
    tools.doctor(name)
  assert str(caught.value).endswith(remedy)
