"""The two lock files say the same, and name no address."""

from pathlib import Path
import re
import tomllib

_ROOT = Path(__file__).parents[2]
_UV = (_ROOT / 'uv.lock').read_text(encoding='utf-8')
_PIP = (_ROOT / 'requirements.lock').read_text(encoding='utf-8')


def test_both_locks_name_the_same_pins():
  packages = tomllib.loads(_UV)['package']
  locked = {
    (package['name'], package['version'])
    for package in packages
    if package['name'] != 'arithmerge'
  }
  pins = re.findall(r'^([a-z0-9-]+)==(\S+)(?: ; .+)?$', _PIP, re.MULTILINE)
  assert len(pins) == len(_PIP.splitlines())
  assert set(pins) == locked


def test_locks_name_no_address():
  assert 'http' not in _UV
  assert 'http' not in _PIP


def test_what_the_project_needs_is_locked():
  project = tomllib.loads((_ROOT / 'pyproject.toml').read_text('utf-8'))
  needs = project['project']['dependencies']
  needs = needs + project['dependency-groups']['dev']
  names = {re.split('[<>=~! ;[]', need)[0].lower() for need in needs}
  assert names <= set(re.findall(r'^([^=]+)==', _PIP, re.MULTILINE))
