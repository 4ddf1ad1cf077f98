"""Refusing quantised models, whose numbers are codes and cannot be averaged."""

from collections.abc import Iterable
from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from merging import patterns
from third_party import problems
from third_party.huggingface import layout
from third_party.huggingface import safetensors

# What GPTQ, AWQ, bitsandbytes, compressed-tensors, MXFP4, HQQ, Quanto and
# TorchAO call their codes. Integers of other names are buffers.
_CODES = re.compile(
  r'(^|[._])(weight|weight_packed|qweight|qzeros|qdata|W_q|_data|blocks|codes)$'
)
_REMEDY = 'use the unquantised model, or dequantise it first'


def check(
  directory: layout.Directory,
  config: Mapping[str, Any],
  tensors: Iterable[safetensors.Tensor],
) -> tuple[list[problems.Problem], list[problems.Problem]]:
  """Looks for signs of quantisation.

  A tensor is quantised if it is of an 8-bit floating-point type, or of integers
  under a name that quantisers use. Where `config.json` says that the model is
  quantised, any matrix of integers is. Some models were saved in full precision
  with the settings by which they were once quantised on loading; that is
  doubtful and no more.

  Args:
    directory: Of the model.
    config: What `config.json` says.
    tensors: Of the model.

  Returns:
    What is wrong, and what is doubtful.
  """
  settings = config.get('quantization_config') or config.get(
    'compression_config'
  )
  codes = [
    tensor for tensor in tensors if _is_code(tensor, settings is not None)
  ]
  named = ''
  if settings is not None:
    method = settings.get('quant_method') if isinstance(settings, dict) else ''
    named = f' by {safetensors.shown(str(method))}' if method else ''
  if codes:
    shown = patterns.listing((tensor.name for tensor in codes), limit=3)
    problem = directory.problem(
      (),
      f'is quantised{named}: expected numbers, {shown} of {_listing(codes)} '
      'are codes',
      _REMEDY,
    )
    return [problem], []
  if settings is not None:
    problem = directory.problem(
      ('config.json',),
      f'says that the model is quantised{named}, but no tensor is',
      'remove quantization_config',
    )
    return [], [problem]
  return [], []


def _is_code(tensor: safetensors.Tensor, settings: bool) -> bool:
  dtype = tensor.dtype
  if dtype.kind in 'iu':
    matrix = len(tensor.shape) >= 2
    return (settings and matrix) or bool(_CODES.search(tensor.name))
  floats = dtype.itemsize == 1 and dtype != np.bool_
  return floats


def _listing(codes: list[safetensors.Tensor]) -> str:
  return ', '.join(sorted({str(tensor.dtype) for tensor in codes}))
