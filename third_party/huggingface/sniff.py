"""What a file is that is not what its name says."""

_STARTS = (
  (
    b'version https://git-lfs',
    'a Git LFS pointer and not the file itself',
    'run `git lfs pull` in its directory',
  ),
  (
    b'# xet version',
    'a Xet pointer and not the file itself',
    'fetch the file with the Hugging Face client',
  ),
  (
    b'PK\x03\x04',
    'a zip archive, such as a PyTorch pickle of a newer kind',
    'convert it to safetensors',
  ),
  (b'\x80\x02', 'a PyTorch pickle', 'convert it to safetensors'),
  (b'\x80\x03', 'a pickle', 'convert it to safetensors'),
  (b'\x80\x04', 'a pickle', 'convert it to safetensors'),
  (b'\x80\x05', 'a pickle', 'convert it to safetensors'),
  (b'GGUF', 'a GGUF file', 'use the unquantised safetensors'),
  (b'\x89HDF', 'an HDF5 file', 'convert it to safetensors'),
  (b'\x93NUMPY', 'a NumPy file', 'convert it to safetensors'),
  (b'\x1f\x8b', 'a gzip archive', 'unpack it'),
  (b'{', 'JSON text, perhaps the error of a server', 'fetch it again'),
  (
    b'Entry not found',
    'the error of a server',
    'check its name and fetch it again',
  ),
  (
    b'<',
    'an HTML or XML page, perhaps the error of a server',
    'log in where access is restricted, and fetch it again',
  ),
)


def name(start: bytes) -> tuple[str, str] | None:
  """Recognises a file by its first bytes.

  Args:
    start: The first bytes; 64 are enough.

  Returns:
    What it is and what to do about it, or `None`.

  Examples:
    >>> name(b'version https://git-lfs.github.com/spec/v1')
    ('a Git LFS pointer and not the file itself',
     'run `git lfs pull` in its directory')
  """
  text = start.lstrip()
  for prefix, what, remedy in _STARTS:
    if text.startswith(prefix):
      return what, remedy
  return None
