"""Merges of checkpoints: this program, mergekit and the floor, in turns.

Every run is a whole process, from start to exit, on the same files. Inputs are
read before each run, so that all find them in the cache if they fit there, and
outputs are deleted after it. The floor is a program that reads every input and
writes as many bytes as the output has, and does nothing else.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import os
from pathlib import Path
import shutil
import statistics
import sys
import tempfile
from typing import Any

import yaml

from experiments.benchmarks import floor
from experiments.benchmarks import processes
from experiments.benchmarks import synthetic
from experiments.benchmarks import turns as turns_lib
from experiments.runtime import config as config_lib
from experiments.runtime import errors
from third_party.peers import client

_ROOT = Path(__file__).parents[2]
_OURS, _PEER, _FLOOR = 'arithmerge', 'mergekit', 'floor'
_ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'HF_HUB_OFFLINE': '1',
  'PYTHONWARNINGS': '',
  # Nobody's sources are compiled anew in every run.
  'PYTHONDONTWRITEBYTECODE': '',
}
_SHARDS = 100
_CASE = ('size', 'experts', 'method')


@dataclasses.dataclass(frozen=True)
class Method:
  """One row of the table, as a recipe both know.

  Attributes:
    parameters: Of the recipe.
    each: Parameters of every expert.
    base: Whether the base is named as such.
    listed: Whether the base is one of the models, as slerp wants it.
    most: At most how many experts it takes.
  """

  parameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
  each: Mapping[str, float] = dataclasses.field(default_factory=dict)
  base: bool = True
  listed: bool = False
  most: int | None = None


METHODS: Mapping[str, Method] = {
  'linear': Method(each={'weight': 1.0}, base=False),
  'task_arithmetic': Method(each={'weight': 0.3}),
  'ties': Method(each={'weight': 1.0, 'density': 0.2}),
  'dare_ties': Method(each={'weight': 1.0, 'density': 0.5}),
  'dare_linear': Method(each={'weight': 0.3, 'density': 0.5}),
  'della': Method(each={'weight': 1.0, 'density': 0.7, 'epsilon': 0.1}),
  'breadcrumbs': Method(each={'weight': 0.3, 'density': 0.9, 'gamma': 0.01}),
  'slerp': Method(parameters={'t': 0.5}, listed=True, most=1),
  'model_stock': Method(),
}


def recipe(name: str, models: Sequence[Path]) -> tuple[str, list[Path]]:
  """Returns a recipe and the models that a merge by it reads.

  Args:
    name: Of `METHODS`.
    models: The base, then experts.
  """
  method = METHODS[name]
  base, *experts = models
  experts = experts[: method.most]
  listed = [base, *experts] if method.listed else experts
  content: dict[str, Any] = {
    'merge_method': name,
    'models': [
      {'model': str(model)}
      | ({'parameters': dict(method.each)} if method.each else {})
      for model in listed
    ],
    'dtype': 'bfloat16',
  }
  if method.base:
    content['base_model'] = str(base)
  if method.parameters:
    content['parameters'] = dict(method.parameters)
  inputs = [base, *experts] if method.base else experts
  return yaml.safe_dump(content, sort_keys=False), inputs


# From a recipe, a name for the output and the files it reads, to a command.
Program = Callable[[Path, Path, Sequence[Path]], Sequence[str]]


def run(
  *,
  size: str,
  experts: Sequence[int],
  names: Sequence[str],
  repeats: int,
  workdir: str,
  peer: str,
  ours_only: bool,
) -> None:
  """Prints a row for each method and program, and writes the tables.

  Args:
    size: Of `synthetic.SIZES`.
    experts: How many, one after the other.
    names: Of `METHODS`; all if none.
    repeats: Turns.
    workdir: For models, which stay, and outputs, which do not.
    peer: The command `mergekit-yaml`, or the environment it is in; by default
      where `make peers` installs it.
    ours_only: Whether to leave the peer out.
  """
  config_lib.choose('size', size, synthetic.SIZES)
  for name in names:
    config_lib.choose('method', name, METHODS)
  peer = '' if ours_only else _find_peer(peer)
  folder = Path(workdir or Path(tempfile.gettempdir(), 'arithmerge-bench'))
  folder.mkdir(parents=True, exist_ok=True)
  programs = _programs(folder, peer)
  models = synthetic.models(folder / 'models', size, max(experts))
  report = Report(folder)
  report.say(_machine(models[0], folder, repeats))
  for line in _start(programs, folder, repeats):
    report.say(line)
  report.head()
  for count in experts:
    for name in names or METHODS:
      costs = race(name, models[: count + 1], programs, folder, repeats)
      read = sum(map(_bytes, _files(recipe(name, models[: count + 1])[1])))
      report.add((size, str(count), name), costs, read)
  print(f'\n{report.markdown} and {report.raw}')


def race(
  name: str,
  models: Sequence[Path],
  programs: Mapping[str, Program],
  folder: Path,
  repeats: int,
) -> dict[str, list[processes.Cost]]:
  """Lets all programs do one merge in turns.

  Args:
    name: Of `METHODS`.
    models: The base, then experts.
    programs: By name.
    folder: For recipes and outputs.
    repeats: Turns.

  Returns:
    What each turn took, by name of the program; a program that fails has no
    further turn.
  """
  text, inputs = recipe(name, models)
  path = folder / f'{name}.yml'
  path.write_text(text)
  read = _files(inputs)
  costs: dict[str, list[processes.Cost]] = {each: [] for each in programs}
  for _ in range(repeats):
    for each, program in programs.items():
      if costs[each] and costs[each][-1].status:
        continue
      out = folder / 'out'
      _delete(out)
      os.sync()  # What earlier runs wrote is not written during this one.
      for file in read:
        floor.read(file)
      try:
        costs[each].append(
          processes.measure(
            program(path, out, read), folder=_ROOT, environment=_ENVIRONMENT
          )
        )
      finally:
        _delete(out)
  return costs


def _files(models: Iterable[Path]) -> list[Path]:
  return [each for model in models for each in model.glob('*.safetensors')]


def _bytes(file: Path) -> int:
  return file.stat().st_size


class Report:
  """Prints rows as they come, and keeps the files up to date.

  Attributes:
    markdown: The table with medians and ranges.
    raw: Every run, as CSV.
  """

  def __init__(self, folder: Path):
    """Starts both files anew."""
    self.markdown = folder / 'table.md'
    self.raw = folder / 'table.csv'
    self.markdown.write_text('')
    with self.raw.open('w', newline='') as file:
      csv.writer(file).writerow(
        (*_CASE, 'program', 'turn', 'input_bytes', *processes.Cost._fields[:-1])
      )

  def say(self, *lines: str) -> None:
    """Adds lines, to the page and to what is printed."""
    text = '\n'.join(lines)
    print(text, flush=True)
    with self.markdown.open('a') as file:
      file.write(f'{text}\n')

  def head(self) -> None:
    """Begins the table."""
    costs = ('wall, s', 'CPU, s', 'GB/s', 'anonymous, MB')
    ratios = ('x mergekit, wall', 'CPU', 'x floor, wall', 'CPU')
    columns = (*_CASE, 'program', *costs, *ratios)
    self.say('', f'| {" | ".join(columns)} |')
    self.say('| :- | -: | :- | :- ' + '| -: ' * (len(columns) - 4) + '|')

  def add(
    self,
    case: tuple[str, str, str],
    costs: Mapping[str, Sequence[processes.Cost]],
    read: int,
  ) -> None:
    """Adds the rows of a case.

    Args:
      case: Size, experts, method.
      costs: Of each program.
      read: Bytes of the inputs.
    """
    with self.raw.open('a', newline='') as file:
      for program, turns in costs.items():
        for number, cost in enumerate(turns):
          csv.writer(file).writerow([*case, program, number, read, *cost[:-1]])
    for program, turns in costs.items():
      failed = next((cost for cost in turns if cost.status), None)
      if failed or not turns:
        said = failed.said.splitlines()[-1:] if failed else []
        cells = [f'status {failed.status}' if failed else '', *[''] * 7]
        self.say(f'| {" | ".join((*case, program, *cells))} |')
        print(*said, file=sys.stderr)
        continue
      walls = [cost.wall for cost in turns]
      cells = [
        turns_lib.spread(walls),
        turns_lib.spread([cost.cpu for cost in turns]),
        f'{read / statistics.median(walls) / 1e9:.2f}',
        f'{statistics.median(cost.anonymous for cost in turns) / 1e6:.0f}',
      ]
      for other, invert in ((_PEER, True), (_FLOOR, False)):
        for field in ('wall', 'cpu'):
          cells.append(
            ''
            if program == other
            else _ratio(turns, costs.get(other, ()), field, invert=invert)
          )
      self.say(f'| {" | ".join((*case, program, *cells))} |')


def _ratio(
  turns: Sequence[processes.Cost],
  others: Sequence[processes.Cost],
  field: str,
  *,
  invert: bool,
) -> str:
  """The median of ratios within a turn; empty unless both went well."""
  if not others or any(cost.status for cost in others):
    return ''
  pairs = [
    (getattr(ours, field), getattr(theirs, field))
    for ours, theirs in zip(turns, others, strict=True)
  ]
  ratios = [b / a if invert else a / b for a, b in pairs if a and b]
  return turns_lib.spread(ratios) if ratios else ''


def _programs(folder: Path, peer: str) -> dict[str, Program]:
  """The programs, in the order of a turn."""
  ours = [sys.executable, '-m', 'experiments.merge']
  least, _ = floor.command(folder)
  programs: dict[str, Program] = {
    _OURS: lambda path, out, _: [*ours, str(path), str(out), '--seed=0']
  }
  if peer:
    # The models have no tokenizer, and a card wants the network.
    options = ['--no-copy-tokenizer', '--no-write-model-card']
    options += ['--random-seed=0', '--quiet']
    programs[_PEER] = lambda path, out, _: [peer, str(path), str(out), *options]
  programs[_FLOOR] = lambda _, out, read: [*least, str(out), *map(str, read)]
  return programs


def _find_peer(peer: str) -> str:
  """The peer's program, or nothing if it is not installed."""
  if not peer:
    path = client.python_of(_PEER).parent / 'mergekit-yaml'
    return str(path) if path.exists() else ''
  path = Path(peer)
  path = path / 'bin' / 'mergekit-yaml' if path.is_dir() else path
  if not path.exists():
    raise errors.UsageError(f'--peer: there is no {path}; see make peers')
  return str(path.absolute())


def _machine(model: Path, folder: Path, repeats: int) -> str:
  """A line on what the machine can do."""
  (file,) = model.glob('*.safetensors')
  limits = floor.limits(file, folder, repeats)
  _, language = floor.command(folder)
  load = ' '.join(f'{x:.1f}' for x in os.getloadavg())
  return (
    f'{os.cpu_count()} processors, load {load}; one thread reads'
    f' {limits.read / 1e9:.1f} GB/s from the cache, writes'
    f' {limits.write / 1e9:.1f} and copies {limits.copy / 1e9:.1f};'
    f' the floor is in {language}; {repeats} turns, median [range]'
  )


def _start(
  programs: Mapping[str, Program], folder: Path, repeats: int
) -> Iterable[str]:
  """Lines on what it costs to start, and to plan a merge of many files."""
  models = synthetic.hollow(folder / 'models', _SHARDS)
  text, read = recipe('task_arithmetic', models)
  path = folder / 'plan.yml'
  path.write_text(text)
  out = folder / 'out'
  commands = {
    f'{name} --help': [program(path, out, read)[0], '--help']
    for name, program in programs.items()
    if name == _PEER
  }
  ours = list(programs[_OURS](path, out, read))
  commands |= {
    f'{_OURS} --help': [*ours[:3], '--help'],
    f'{_OURS} --plan, base and 2 experts of {_SHARDS} files': [*ours, '--plan'],
  }
  for name, command in commands.items():
    costs = [
      processes.measure(command, folder=_ROOT, environment=_ENVIRONMENT)
      for _ in range(repeats)
    ]
    failed = next((cost for cost in costs if cost.status), None)
    if failed:
      yield f'{name}: status {failed.status}: {failed.said[-200:]}'
    else:
      wall, cpu = (
        turns_lib.spread([getattr(cost, field) for cost in costs])
        for field in ('wall', 'cpu')
      )
      yield f'{name}: {wall} s, CPU {cpu} s'


def _delete(out: Path) -> None:
  """Deletes an output, and what a failed run left beside it."""
  for path in (out, *out.parent.glob(f'.{out.name}.*')):
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
