"""Writes one version after another to a target until it is killed."""

import itertools
import sys

from tests.faults import models

if __name__ == '__main__':
  target, first = sys.argv[1:]
  print('ready', flush=True)
  for version in itertools.count(int(first)):
    models.write(target, version)
