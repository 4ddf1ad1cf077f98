"""When to grow."""

import math


def growth_schedule(parameters: float, flops: float) -> float:
  """Returns how many tokens to train the small model on before stacking it.

  A fit to runs of 0.4, 1.1 and 3 billion parameters,

      log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74,

  with a growth factor of 4. The paper takes `C = 6 N D` for `D` tokens in all.

  Args:
    parameters: Of the large model, `N`.
    flops: For training it, `C`.

  Returns:
    Tokens, `d`.

  Raises:
    ValueError: `parameters` is not positive, or `flops` not above 1.

  Examples:
    >>> print(f'{growth_schedule(8e9, 6 * 8e9 * 15e12):.3g}')  # Llama 3 8B.
    6.58e+09

  References:
    Wenyu Du, Tongxu Luo, Zihan Qiu, Zeyu Huang, Yikang Shen, Reynold Cheng,
    Yike Guo, Jie Fu. "Stacking Your Transformers: A Closer Look at Model Growth
    for Efficient LLM Pre-Training". NeurIPS 2024. arXiv:2405.15319.
  """
  if not parameters > 0 or not flops > 1:
    raise ValueError(
      f'growth_schedule: {parameters} parameters and {flops} FLOPs, expected '
      'parameters > 0 and flops > 1'
    )
  exponent = 0.88 * math.log10(parameters) + 163.27 / math.log10(flops) - 5.74
  return 10**exponent
