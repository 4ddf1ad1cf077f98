"""Makes tiny Llamas with tokenizers and merges them; runs in a peer's process.

Arguments are a folder and a task, standard input is JSON. `make` takes recipes
by name and merges each to `out/NAME`. `describe` writes what the tokenizers in
folders of the given names do, and which of the given families are tied.
"""

import json
import pathlib
import sys

import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
import torch
import transformers

TEXTS = {
  'base': ['<unk>', '<s>', 'a', 'b', 'c', 'ab', 'abc'],
  'x': ['<unk>', '<s>', 'b', 'c', 'a', 'bc', 'ca'],
  'y': ['<unk>', '<s>', 'a', 'b', 'c', 'bc', 'd'],
}
MERGES = {
  'base': [('a', 'b'), ('ab', 'c')],
  'x': [('b', 'c'), ('c', 'a')],
  'y': [('b', 'c')],
}
ADDED = {'base': [], 'x': ['<|im_start|>', '<x>'], 'y': ['<|im_start|>', '<y>']}


def make(root):
  """Writes the models, with tokens in other rows and tokens of their own."""
  for i, (name, texts) in enumerate(TEXTS.items()):
    tokenizer = tokenizers.Tokenizer(
      models.BPE(
        vocab={text: j for j, text in enumerate(texts)},
        merges=MERGES[name],
        unk_token='<unk>',
      )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizer, unk_token='<unk>', bos_token='<s>'
    )
    fast.add_special_tokens({'additional_special_tokens': ADDED[name]})
    fast.save_pretrained(root / name)
    torch.manual_seed(i)
    config = transformers.LlamaConfig(
      vocab_size=len(fast),
      hidden_size=8,
      intermediate_size=16,
      num_hidden_layers=1,
      num_attention_heads=2,
      num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(root / name)


def merge(root, recipes):
  """Merges by recipes, each to `out/NAME`."""
  from mergekit import config
  from mergekit import merge
  from mergekit import options

  for name, recipe in recipes.items():
    merge.run_merge(
      config.MergeConfiguration.model_validate(recipe),
      str(root / 'out' / name),
      options.MergeOptions(write_model_card=False, quiet=True),
    )


def describe(folder):
  """Returns what the tokenizer in a folder does."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  messages = [
    {'role': role, 'content': f'{role} says'}
    for role in ('system', 'user', 'assistant', 'user')
  ]
  rendered = None
  if tokenizer.chat_template:
    rendered = tokenizer.apply_chat_template(
      messages,
      tokenize=False,
      add_generation_prompt=True,
      bos_token='<s>',
      eos_token='</s>',
    )
  text = 'abc <x> <|im_start|>ab bc <y>'
  return {
    'vocabulary': tokenizer.get_vocab(),
    'tokens': tokenizer.convert_ids_to_tokens(tokenizer.encode(text)),
    'special': sorted(tokenizer.all_special_tokens),
    'template': tokenizer.chat_template,
    'rendered': rendered,
  }


def are_tied(families):
  """Returns those families whose configs are tied by default."""
  return [
    family
    for family in families
    if transformers.CONFIG_MAPPING[family]().tie_word_embeddings
  ]


if __name__ == '__main__':
  folder, task = pathlib.Path(sys.argv[1]), sys.argv[2]
  if task == 'make':
    make(folder)
    merge(folder, json.load(sys.stdin))
  else:
    asked = json.load(sys.stdin)
    found = {name: describe(folder / name) for name in asked['names']}
    found['tied'] = are_tied(asked['families'])
    (folder / 'described.json').write_text(json.dumps(found))
