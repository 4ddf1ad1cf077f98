"""How a decoder knows where a token stands.

An id scheme gives every token an integer (`ids.py`); an encoding makes of the
integers vectors that are added to embeddings, rotations of queries and keys
(`encodings.py`), or terms that are added to attention scores (`biases.py`).
`Positions` names one of each, so that they compose as papers combine them.
"""

from arithmetic.positions import biases as biases
from arithmetic.positions import ids as ids
from arithmetic.positions.encodings import rotate as rotate
from arithmetic.positions.encodings import sinusoidal as sinusoidal
from arithmetic.positions.ids import Classes as Classes
from arithmetic.positions.scheme import Attention as Attention
from arithmetic.positions.scheme import get as get
from arithmetic.positions.scheme import Ids as Ids
from arithmetic.positions.scheme import Places as Places
from arithmetic.positions.scheme import places as places
from arithmetic.positions.scheme import Positions as Positions
from arithmetic.positions.scheme import Vectors as Vectors
from arithmetic.positions.scheme import WORDS as WORDS
