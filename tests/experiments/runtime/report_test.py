"""A report holds everything it shows and nothing it was not given."""

import base64
from html import parser
import re

import numpy as np
import pytest

from experiments.runtime import plots
from experiments.runtime import report
from experiments.runtime import tables

_VOID = {'meta', 'img'}


class _Page(parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.open = []
    self.tags = []
    self.text = ''

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


_EVIL = '<script>alert("1")</script> & \'x\''


@pytest.fixture(scope='module')
def png():
  return plots.to_png(plots.matrix(np.eye(3), 'abc'))


@pytest.fixture
def page(png):
  table = tables.Table(_EVIL, [tables.Column(name=_EVIL)], notes=[_EVIL])
  table.add_row(table.add_group(_EVIL, ranked=True), _EVIL, {_EVIL: 0.5})
  made = report.Report(_EVIL, _EVIL)
  made.add_section(_EVIL, f'{_EVIL}\n\nsecond')
  made.add_list([_EVIL])
  made.add_code(_EVIL)
  made.add_facts({_EVIL: _EVIL})
  made.add_section('Figures')
  made.add_table(table)
  made.add_figure(png, _EVIL)
  return made


def test_it_is_closed_and_everything_is_escaped(page):
  parsed = _Page()
  parsed.feed(page.to_html())
  assert parsed.open == []
  assert 'script' not in {tag for tag, _ in parsed.tags}
  assert parsed.text.count(_EVIL) == 17


def test_it_asks_nobody_for_anything(page):
  text = re.sub(r'base64,[^"]*', 'base64,', page.to_html())
  assert not re.search(r'https?:|//[a-z]|url\(|@import|<link', text)
  parsed = _Page()
  parsed.feed(text)
  for _, attributes in parsed.tags:
    assert attributes.get('src', 'data:').startswith('data:')
    assert attributes.get('href', '#').startswith('#')
  assert "default-src 'none'" in text


def test_pictures_are_inside_whole(page, png):
  (data,) = re.findall(r'base64,([^"]*)"', page.to_html())
  assert base64.b64decode(data) == png


def test_links_lead_to_sections(page):
  text = page.to_html()
  for number in range(2):
    assert f'<a href="#s{number}">' in text
    assert f'<h2 id="s{number}">' in text


def test_only_pictures_are_pictures():
  with pytest.raises(ValueError, match='expected the bytes of a PNG'):
    report.Report('t').add_figure(b'GIF89a', 'c')


def test_saves_what_it_shows(page, tmp_path):
  assert page.save(tmp_path / 'r.html').read_text() == page.to_html()
