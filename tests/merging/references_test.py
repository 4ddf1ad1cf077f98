"""Citations, read from the docstrings of what a merge is made of."""

import re

import jax
import pytest

import merging
from merging import references
from merging import transform
from tests.merging import table


def keys(made):
  return re.findall(r'@\w+\{(\w+),', merging.citations(made))


@pytest.mark.parametrize('case', table.MERGES, ids=lambda case: case.name)
def test_every_source_names_its_papers(case):
  for source in case.make().sources:
    found = references.references_of(source)
    assert found, source
    for each in found:
      assert each.arxiv
      assert 2000 < each.year < 2100
      assert all(' ' in author for author in each.authors)


def test_a_composition_cites_each_paper_once():
  inner = merging.partition(
    {'a': merging.ties(), 'b': merging.average()}, lambda path: path
  )
  made = merging.dare(0.5, inner, key=jax.random.key(0))
  assert keys(made) == [
    'yu2024language',
    'yadav2023ties',
    'wortsman2022model',
  ]
  assert keys(merging.masked(merging.ties(), '.')) == ['yadav2023ties']


def test_nothing_to_cite():
  assert merging.citations(merging.identity()) == ''


def test_the_entry():
  assert merging.citations(merging.weighted_mean()) == (
    '@inproceedings{matena2022merging,\n'
    '  title = {{Merging Models with Fisher-Weighted Averaging}},\n'
    '  author = {Michael Matena and Colin Raffel},\n'
    '  booktitle = {NeurIPS},\n'
    '  year = {2022},\n'
    '  eprint = {2111.09832},\n'
    '  archivePrefix = {arXiv}\n'
    '}'
  )


def test_a_preprint_and_several_references():
  @references.cited
  def method():
    """One line.

    References:
      Ada B. Lovelace. "A note". 1843.
      Emmy Noether, Paul Erdős. "Rings: on
      two lines". 2021. arXiv:2101.00001.
    """
    return transform.identity()

  text = merging.citations(method())
  assert text.startswith('@misc{lovelace1843a,\n')
  assert 'title = {{Rings: on two lines}}' in text
  assert 'author = {Emmy Noether and Paul Erdős}' in text


def test_a_malformed_reference_is_an_error():
  @references.cited
  def method():
    """One line.

    References:
      Someone, "Something", 2024.
    """
    return transform.identity()

  with pytest.raises(ValueError, match=r'method: expected a reference of the'):
    merging.citations(method())
