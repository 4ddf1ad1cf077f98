"""What a decoder is like, and what it is for."""

import dataclasses
from typing import Any
from typing import get_args
from typing import Literal

from arithmetic import positions as position_schemes

Dtype = Literal['float32', 'bfloat16']
Norm = Literal['rms', 'layer']
NormPlace = Literal['pre', 'post', 'both']
Activation = Literal['gelu', 'relu', 'swiglu', 'geglu']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """What a decoder is like, whatever it reads.

  Attributes:
    layers: Blocks of attention and a two-layer perceptron.
    heads: Attention heads; they divide the width.
    width: Features of the residual stream.
    hidden_ratio: Hidden features of the perceptron, as a multiple of width.
    positions: How a token knows its place: a name, such as `learned` or
      `abacus+fire`, or `positions.Positions`; `positions.get` reads names.
    dtype: What activations are computed in; parameters are float32, and so
      are norms, attention weights and logits.
    norm: `rms`, or `layer`, which also subtracts the mean and adds a bias.
    norm_place: Norms come `pre`, before attention and perceptron; `post`, after
      their result is added to the stream, so that there is none at the end; or
      on `both` sides of them, inside the residual branch.
    activation: Of the perceptron. `swiglu` and `geglu` multiply by the sigmoid
      linear, or Gaussian error linear, unit of a second projection, `gate`.
    biases: Whether linear layers have biases.
    tied: Whether logits are products with the embedding, divided by the root
      of the width, for there is no other matrix.
    dropout: The share of embeddings, attention weights and results of
      attention and perceptron that is dropped in training.
    loops: How often the blocks are gone through.
    inject: Whether the embedding is added before each loop: h = blocks(h + e)
      from h = 0. Else the embedding is where the first loop begins.

  Raises:
    ValueError: For a misspelt choice or sizes that do not fit together.

  Examples:
    >>> shape = Shape(layers=1, positions='rotary')
    >>> shape.reading(vocabulary_size=16, max_length=8).positions
    'rotary'
  """

  layers: int = 2
  heads: int = 4
  width: int = 128
  hidden_ratio: int = 4
  positions: str | position_schemes.Positions = 'learned'
  dtype: Dtype = 'float32'
  norm: Norm = 'rms'
  norm_place: NormPlace = 'pre'
  activation: Activation = 'gelu'
  biases: bool = True
  tied: bool = False
  dropout: float = 0.0
  loops: int = 1
  inject: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f'{field.name} is at least 1, got {value}')
    if self.width % self.heads:
      raise ValueError(
        f'heads divide the width: {self.width} features cannot be shared by'
        f' {self.heads} heads'
      )
    for name, options in (
      ('dtype', Dtype),
      ('norm', Norm),
      ('norm_place', NormPlace),
      ('activation', Activation),
    ):
      if getattr(self, name) not in get_args(options):
        raise ValueError(
          f'{name} is one of {", ".join(get_args(options))}, got'
          f' {getattr(self, name)!r}'
        )
    if not 0 <= self.dropout < 1:
      raise ValueError(f'dropout is in [0, 1), got {self.dropout}')
    paired = {'sinusoidal': self.width, 'rotary': self.head_width}
    for name in (self.scheme.vectors, self.scheme.attention):
      if paired.get(name, 0) % 2:
        raise ValueError(
          f'{name} positions come in pairs of features; width {paired[name]}'
          ' is odd'
        )

  @property
  def head_width(self) -> int:
    """Features of a query."""
    return self.width // self.heads

  @property
  def scheme(self) -> position_schemes.Positions:
    """What `positions` means."""
    return position_schemes.get(self.positions)

  def reading(self, **fields: Any) -> 'Config':
    """The decoder of this shape for some lines.

    Args:
      **fields: Those that `Config` adds, and others to change.

    Returns:
      Its configuration.
    """
    own = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(Shape)
    }
    return Config(**own | fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Shape):
  """A decoder: its shape, and the lines that it is for.

  Attributes:
    vocabulary_size: How many tokens there are.
    max_length: The longest line, in tokens.
    classes: What the tokens are, for positions that look at them.

  Raises:
    ValueError: For a misspelt choice or sizes that do not fit together.
  """

  vocabulary_size: int
  max_length: int
  classes: position_schemes.Classes | None = None

  def __post_init__(self):
    super().__post_init__()
    self.scheme.check(self.max_length, self.classes)
    if self.classes is not None:
      equals = () if self.classes.equals is None else (self.classes.equals,)
      largest = max(*self.classes.digits, *self.classes.anchors, *equals)
      if largest >= self.vocabulary_size:
        raise ValueError(
          f'classes name token {largest} of a vocabulary of'
          f' {self.vocabulary_size}'
        )
