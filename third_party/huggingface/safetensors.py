"""safetensors files: any piece of any tensor, from any thread."""

from collections.abc import Iterable
import os
from typing import Any

import numpy as np

from third_party import problems
from third_party.huggingface import descriptors
from third_party.huggingface import headers
from third_party.huggingface import json_files

DTYPES = headers.DTYPES
Header = headers.Header
Tensor = headers.Tensor
shown = headers.shown


def read_header(path: str | os.PathLike[str], *, model: str = '') -> Header:
  """Reads and checks the header of a file, and no tensor.

  Args:
    path: The file.
    model: Name of the model for problems, which else name the path.

  Returns:
    The header.

  Raises:
    problems.ProblemError: With all that is wrong with the file.

  Examples:
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...   try:
    ...     read_header(file.name, model='math')
    ...   except problems.ProblemError as error:
    ...     print(str(error).partition(': ')[2])
    is empty (0 bytes); the download is incomplete: fetch it again
  """
  path = os.fspath(path)
  where = (model, os.path.basename(path)) if model else (path,)
  return File(path, where=where).header


class File:
  """A safetensors file, of which any piece can be read from any thread.

  Nothing is mapped into memory: a file that shrinks while it is read is an
  error here, and the death of the process there.

  Attributes:
    header: What the file says of itself.
    place: The file and what it was when it was opened.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    where: Iterable[str] = (),
    pool: descriptors.Descriptors | None = None,
  ):
    """Reads and checks the header.

    Args:
      path: The file.
      where: What problems name: the model and the file; by default the path.
      pool: Keeper of descriptors, to share it with other files.

    Raises:
      problems.ProblemError: With all that is wrong with the file.
    """
    path = os.fspath(path)
    where = tuple(where) or (path,)
    fd = json_files.open_file(path, where)
    try:
      identity = descriptors.Identity.of(os.fstat(fd))
      self.header = headers.read(fd, identity.size, where)
    finally:
      os.close(fd)
    self.place = descriptors.Place(os.path.abspath(path), where, identity)
    self._pool = pool or descriptors.Descriptors()

  def read(self, name: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with the entries `[start, start + out.size)` of a tensor.

    The bytes go from the system's cache to `out`, and nowhere else.

    Args:
      name: Of the tensor.
      start: First entry, in the order of a C array.
      out: `[size]`, contiguous, of the dtype of the tensor.

    Raises:
      problems.ProblemError: The file changed, cannot be read, or has a BOOL
        that is neither 0 nor 1.
      ValueError: `out` does not fit.
    """
    tensor = self.header.tensors[name]
    where = (*self.place.where, shown(name))
    _check_out(tensor, start, out)
    data = out.view(np.uint8)
    offset = self.header.data_start + tensor.start
    with self._pool.borrow(self.place) as fd:
      offset += start * tensor.dtype.itemsize
      json_files.fill(fd, offset, data.data, where)
    if tensor.dtype == np.bool_ and data.size and data.max() > 1:
      at = int(np.argmax(data > 1))
      raise problems.refuse(
        problems.Kind.INPUT,
        where,
        f'expected a BOOL of 0 or 1 as entry {start + at}, got {data[at]}',
        'fetch it again',
      )

  def fingerprint(self) -> dict[str, Any]:
    """Returns what tells this file from another without reading tensors.

    Returns:
      Its `size`, the `header_sha256`, and when it was `modified` in
      nanoseconds: a model trained anew differs in that alone.
    """
    return {
      'size': self.header.size,
      'header_sha256': self.header.sha256,
      'modified': self.place.identity.modified,
    }

  def array(self, name: str) -> np.ndarray:
    """Reads a whole tensor.

    Args:
      name: Of the tensor.

    Returns:
      A new array of its shape and dtype.

    Raises:
      problems.ProblemError: As `read` does.
    """
    tensor = self.header.tensors[name]
    out = np.empty(tensor.size, tensor.dtype)
    self.read(name, 0, out)
    return out.reshape(tensor.shape)


def _check_out(tensor: Tensor, start: int, out: np.ndarray) -> None:
  if out.ndim != 1 or not out.flags.c_contiguous or out.dtype != tensor.dtype:
    raise ValueError(
      f'{shown(tensor.name)}: expected a contiguous {tensor.dtype}[size] to '
      f'read into, got {out.dtype}{list(out.shape)}'
    )
  if start < 0 or start + out.size > tensor.size:
    raise ValueError(
      f'{shown(tensor.name)}: expected entries of [0, {tensor.size}), got '
      f'[{start}, {start + out.size})'
    )
