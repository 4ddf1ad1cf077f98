"""Merges that keep the experts apart: one shared part, small parts for each.

`tall` masks a merged task vector with a bit for each parameter and expert,
`tsv` keeps a few singular vectors of each expert, `twin` adds such to merged
parameters.
"""

from merging.dynamic import tall as tall
from merging.dynamic import tsv as tsv
from merging.dynamic import twin as twin
from merging.dynamic.storage import Storage as Storage
