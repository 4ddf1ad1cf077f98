"""Makes a `uv.lock` that names versions and no address: run by `make lock`.

Where a package is downloaded from is the business of the machine that installs
it, which may have a mirror. uv accepts such a lock for `uv lock --check` and
`uv export --frozen`, which writes the `requirements.lock` that is installed.
"""

from pathlib import Path
import re
import sys

path = Path(sys.argv[1])
text = path.read_text(encoding='utf-8')
text = re.sub(r'^sdist = .*\n', '', text, flags=re.MULTILINE)
text = re.sub(r'^wheels = \[\n(    .*\n)*\]\n', '', text, flags=re.MULTILINE)
text = re.sub(r'registry = "[^"]*"', 'registry = "."', text)
if 'http' in text:
  sys.exit(f'{path} still holds an address; adapt this script to the new uv')
path.write_text(text, encoding='utf-8')
