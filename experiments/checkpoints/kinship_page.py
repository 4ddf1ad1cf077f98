"""Kinship of experts as pictures, and as a page that holds all of it."""

from collections.abc import Mapping
import json
import os
from pathlib import Path

import numpy as np

from experiments.checkpoints import kinship as kinship_lib
from experiments.checkpoints import text
from experiments.runtime import files
from experiments.runtime import plots
from experiments.runtime import report as report_lib


def figures(kinship: kinship_lib.Kinship) -> dict[str, bytes]:
  """Returns pictures as PNG, by name."""
  found = kinship.diagnosis
  norms = np.where(np.isfinite(found.block_norms), found.block_norms, np.nan)
  experts = [_label(name) for name in found.experts]
  drawn = {
    'changes': plots.heatmap(
      norms,
      [_label(block) for block in found.blocks],
      experts,
      title='Change by block',
      label='% of the length of the base',
      digits=1,
      limits=None,
    )
  }
  if len(experts) > 1:
    drawn['cosines'] = plots.matrix(
      found.cosines, experts, title='Cosine of task vectors'
    )
  return {name: plots.to_png(figure) for name, figure in drawn.items()}


def page(
  kinship: kinship_lib.Kinship, pictures: Mapping[str, bytes]
) -> report_lib.Report:
  """Returns a page of the summary and of what `figures` returned."""
  count = len(kinship.verdicts)
  kin = (
    f'Foreign, as it seems: {", ".join(map(text.clean, kinship.foreign))}, of '
    f'{text.plural(count, "expert")}.'
    if kinship.foreign
    else f'{text.plural(count, "expert")}, of which none seems foreign.'
  )
  made = report_lib.Report(
    'Are these experts of this base?',
    f'{kin} {text.plural(len(kinship.leaf_norms), "tensor")} compared, '
    f'{kinship.share} entries.',
  )
  made.add_section('Warnings')
  made.add_list(kinship.warnings or ('None.',))
  made.add_section('Experts')
  made.add_code(kinship.table())
  captions = {
    'changes': 'Length of each change over that of the base, by block. '
    'Fine-tuning moves by a few per cent, or some tens.',
    'cosines': 'Cosine of task vectors: near 1, experts learnt the same or '
    'share another base; near 0, they learnt different things.',
  }
  for name, png in pictures.items():
    made.add_section(name.capitalize())
    made.add_figure(png, captions[name])
  if kinship.skipped:
    made.add_section('Not compared')
    made.add_list([f'{path}: {why}' for path, why in kinship.skipped.items()])
  return made


def write(
  kinship: kinship_lib.Kinship, directory: str | os.PathLike[str]
) -> Path:
  """Writes `kinship.json`, `kinship.html` and the pictures.

  Args:
    kinship: The findings.
    directory: Where to; made if missing.

  Returns:
    The path of the page.
  """
  directory = Path(directory)
  content = json.dumps(kinship.to_dict(), indent=2, allow_nan=False)
  files.write(directory / 'kinship.json', content + '\n')
  pictures = figures(kinship)
  for name, png in pictures.items():
    files.write(directory / f'{name}.png', png)
  return page(kinship, pictures).save(directory / 'kinship.html')


def _label(name: str) -> str:
  """A name that the font has the letters of, and that is no formula."""
  shown = text.clean(name).encode('ascii', 'replace').decode()
  return shown.replace('$', '\\$')
