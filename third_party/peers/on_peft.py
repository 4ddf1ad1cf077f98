"""Makes adapters with PEFT and merges them, or loads those of others.

Run in mergekit's environment, which has PEFT:

    python on_peft.py make FOLDER
    python on_peft.py load FOLDER

`make` writes `FOLDER/<case>/{base,adapter,merged}`: a tiny random model, an
adapter of it with random weights, and the tensors after `merge_and_unload`.
`load` applies each `FOLDER/<case>/adapter` to its `base` with PEFT and writes
`merged` beside them.
"""

import os
import pathlib
import sys

os.environ['HF_HUB_OFFLINE'] = '1'

import peft
import torch
import transformers


def llama(**options):
  """A Llama of two layers; its head has weights of its own."""
  config = transformers.LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=False,
    **options,
  )
  return transformers.LlamaForCausalLM(config)


def gpt2():
  """A GPT-2 of two layers, whose `Conv1D` stores `[in, out]`."""
  config = transformers.GPT2Config(
    vocab_size=32,
    n_positions=8,
    n_embd=16,
    n_layer=2,
    n_head=2,
    bos_token_id=0,
    eos_token_id=0,
  )
  return transformers.GPT2LMHeadModel(config)


def vision():
  """A CLIP tower, which begins with a convolution."""
  config = transformers.CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
  )
  return transformers.CLIPVisionModel(config)


def cases():
  """Models and configs by the name of the case."""
  lora = peft.LoraConfig
  attention = ['q_proj', 'v_proj']
  return {
    'plain': (llama, lora(r=4, lora_alpha=6, target_modules=attention)),
    'pattern': (
      llama,
      lora(
        r=4,
        lora_alpha=6,
        target_modules=r'.*\.(q_proj|up_proj|down_proj)',
        rank_pattern={'q_proj': 2, r'layers\.1.*(up|down)_proj': 3},
        alpha_pattern={r'model.layers.0.*': 5, 'up_proj': 7},
      ),
    ),
    'rslora': (
      llama,
      lora(r=4, target_modules=attention, use_rslora=True),
    ),
    'dora': (
      llama,
      lora(r=4, target_modules=[*attention, 'embed_tokens'], use_dora=True),
    ),
    'embedding': (
      llama,
      lora(r=2, target_modules=['embed_tokens', 'lm_head', 'o_proj']),
    ),
    'saved': (
      llama,
      lora(
        r=2,
        target_modules=attention,
        modules_to_save=['lm_head', 'model.norm', 'embed_tokens'],
      ),
    ),
    'bias_lora': (
      lambda: llama(attention_bias=True),
      lora(r=2, target_modules=attention, bias='lora_only'),
    ),
    'bias_all': (
      lambda: llama(attention_bias=True),
      lora(r=2, target_modules=attention, bias='all'),
    ),
    'layers': (
      llama,
      lora(
        r=2,
        target_modules=attention,
        exclude_modules=['v_proj'],
        layers_to_transform=[1],
        layers_pattern='layers',
      ),
    ),
    'conv1d': (
      gpt2,
      lora(r=2, target_modules=['c_attn', 'attn.c_proj', 'c_fc']),
    ),
    'tied': (gpt2, lora(r=2, target_modules=['lm_head', 'wpe'])),
    'conv1d_dora': (
      gpt2,
      lora(r=2, target_modules=['c_attn', 'attn.c_proj'], use_dora=True),
    ),
    'factor_bias': (
      gpt2,
      lora(r=2, target_modules=['c_attn', 'mlp.c_proj'], lora_bias=True),
    ),
    'convolution': (
      vision,
      lora(r=3, target_modules=['patch_embedding', 'q_proj'], use_dora=True),
    ),
    'lokr': (
      llama,
      peft.LoKrConfig(
        r=2,
        alpha=3,
        target_modules=['q_proj', 'up_proj'],
        decompose_both=True,
        rank_pattern={'up_proj': 3},
      ),
    ),
    'lokr_whole': (
      llama,
      peft.LoKrConfig(r=8, alpha=3, target_modules=['q_proj', 'up_proj']),
    ),
    'half': (
      lambda: llama().to(torch.bfloat16),
      lora(r=4, target_modules=attention, use_rslora=True),
    ),
  }


def make(folder):
  """Writes all cases."""
  for name, (model, config) in cases().items():
    torch.manual_seed(0)
    base = model()
    base.save_pretrained(folder / name / 'base')
    adapted = peft.get_peft_model(base, config)
    with torch.no_grad():
      for parameter in adapted.parameters():
        if parameter.requires_grad:
          parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(folder / name / 'adapter')
    # In float32, so that one rounding is not the difference looked for.
    save(adapted.float().merge_and_unload(), folder / name / 'merged')
    print(name)


def load(folder):
  """Applies adapters that somebody else wrote."""
  for case in sorted(folder.iterdir()):
    base = transformers.AutoModelForCausalLM.from_pretrained(
      case / 'base', dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(base, case / 'adapter')
    save(model.merge_and_unload(), case / 'merged')
    print(case.name)


def save(model, folder):
  """Writes all tensors of a model, by the names of its checkpoint."""
  folder.mkdir(parents=True, exist_ok=True)
  model.save_pretrained(folder)


if __name__ == '__main__':
  {'make': make, 'load': load}[sys.argv[1]](pathlib.Path(sys.argv[2]))
