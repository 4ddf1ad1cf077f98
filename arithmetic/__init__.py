"""Exact tasks and small transformers that learn them."""

from arithmetic import auxiliary as auxiliary
from arithmetic import constructions as constructions
from arithmetic import decoding as decoding
from arithmetic import evaluation as evaluation
from arithmetic import interpret as interpret
from arithmetic import layouts as layouts
from arithmetic import lines as lines
from arithmetic import metrics as metrics
from arithmetic import population as population
from arithmetic import positions as positions
from arithmetic import recurrent as recurrent
from arithmetic import scratchpads as scratchpads
from arithmetic import tasks as tasks
from arithmetic import tokenizers as tokenizers
from arithmetic import training as training
from arithmetic import transformer as transformer
from arithmetic.transformer import apply as apply
from arithmetic.transformer import Config as Config
from arithmetic.transformer import init as init
