"""Forward passes in float64, one token and one head at a time.

Written from the papers and from what the fields of a config mean; they call
nothing of what they test.
"""

import math

import numpy as np


def draw(shapes, seed=0):
  """Weights of a size at which every part shows in the outputs."""
  rng = np.random.default_rng(seed)
  found = {}
  for name, shape in shapes.items():
    noise = rng.standard_normal(shape)
    if len(shape) > 1 and 'embed' not in name and 'wte' not in name:
      noise *= 1.5 / math.sqrt(np.prod(shape[1:]))
    elif 'norm' in name or 'ln_' in name:
      noise = name.endswith('weight') + 0.2 * noise
    found[name] = np.asarray(noise, np.float32)
  return found


def softmax(x):
  y = np.exp(x - np.max(x))
  return y / y.sum()


def layer_norm(weights, name, x, epsilon):
  y = (x - x.mean()) / math.sqrt(x.var() + epsilon)
  return y * weights[f'{name}.weight'] + weights[f'{name}.bias']


def rms_norm(weights, name, x, epsilon):
  y = x / math.sqrt((x**2).mean() + epsilon)
  return y * weights[f'{name}.weight']


def dense(weights, name, x):
  return weights[f'{name}.weight'] @ x + weights.get(f'{name}.bias', 0)


def quick_gelu(x):
  return x / (1 + np.exp(-1.702 * x))


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x):
  inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  return x * (1 + np.tanh(inner)) / 2


def silu(x):
  return x / (1 + np.exp(-x))


def attend(queries, keys, values, seen, heads, key_heads):
  """Rows of `queries` see the rows of `keys` that `seen(i, j)` names."""
  width = queries.shape[1] // heads
  out = np.zeros_like(queries)
  for i in range(len(queries)):
    rows = [j for j in range(len(keys)) if seen(i, j)]
    for head in range(heads):
      group = head * key_heads // heads
      mine = slice(head * width, (head + 1) * width)
      theirs = slice(group * width, (group + 1) * width)
      scores = [queries[i, mine] @ keys[j, theirs] for j in rows]
      weights = softmax(np.array(scores) / math.sqrt(width))
      for weight, j in zip(weights, rows, strict=True):
        out[i, mine] += weight * values[j, theirs]
  return out


def gpt2(weights, line, *, layers, heads, epsilon=1e-5, prefix='transformer.'):
  """Logits `[length, vocabulary]` of a line without padding."""
  w = {k.removeprefix(prefix): np.float64(x) for k, x in weights.items()}

  def conv(name, x):
    return x @ w[f'{name}.weight'] + w[f'{name}.bias']

  xs = [w['wte.weight'][t] + w['wpe.weight'][i] for i, t in enumerate(line)]
  for layer in range(layers):
    block = f'h.{layer}'
    packed = np.stack(
      [
        conv(f'{block}.attn.c_attn', layer_norm(w, f'{block}.ln_1', x, epsilon))
        for x in xs
      ]
    )
    q, k, v = np.split(packed, 3, axis=1)
    mixed = attend(q, k, v, lambda i, j: j <= i, heads, heads)
    for i in range(len(xs)):
      x = xs[i] + conv(f'{block}.attn.c_proj', mixed[i])
      y = conv(f'{block}.mlp.c_fc', layer_norm(w, f'{block}.ln_2', x, epsilon))
      xs[i] = x + conv(f'{block}.mlp.c_proj', gelu_tanh(y))
  head = w.get('lm_head.weight', w['wte.weight'])
  return np.stack([head @ layer_norm(w, 'ln_f', x, epsilon) for x in xs])


def rotated(x, position, width, theta):
  """Rotates channels `i` and `i + width / 2` of each head of a row."""
  out = np.array(x)
  for start in range(0, len(x), width):
    for i in range(width // 2):
      angle = position * theta ** (-2 * i / width)
      a, b = x[start + i], x[start + i + width // 2]
      out[start + i] = a * math.cos(angle) - b * math.sin(angle)
      out[start + i + width // 2] = b * math.cos(angle) + a * math.sin(angle)
  return out


def llama(weights, line, *, layers, heads, key_heads, width, theta, windows):
  """Logits `[length, vocabulary]` of a line without padding."""
  w = {k: np.float64(x) for k, x in weights.items()}
  epsilon = 1e-6
  xs = [w['model.embed_tokens.weight'][t] for t in line]
  for layer, window in zip(range(layers), windows, strict=True):
    block = f'model.layers.{layer}'
    normed = [rms_norm(w, f'{block}.input_layernorm', x, epsilon) for x in xs]
    q, k, v = (
      np.stack([dense(w, f'{block}.self_attn.{n}_proj', x) for x in normed])
      for n in 'qkv'
    )
    q, k = (
      np.stack([rotated(x, i, width, theta) for i, x in enumerate(rows)])
      for rows in (q, k)
    )

    def seen(i, j, window=window):
      return j <= i and (window is None or i - j < window)

    mixed = attend(q, k, v, seen, heads, key_heads)
    for i in range(len(xs)):
      x = xs[i] + dense(w, f'{block}.self_attn.o_proj', mixed[i])
      y = rms_norm(w, f'{block}.post_attention_layernorm', x, epsilon)
      gate = silu(dense(w, f'{block}.mlp.gate_proj', y))
      up = dense(w, f'{block}.mlp.up_proj', y)
      xs[i] = x + dense(w, f'{block}.mlp.down_proj', gate * up)
  head = w.get('lm_head.weight', w['model.embed_tokens.weight'])
  return np.stack([head @ rms_norm(w, 'model.norm', x, epsilon) for x in xs])


def _encode(w, prefix, xs, layers, heads, seen, activation):
  for layer in range(layers):
    block = f'{prefix}encoder.layers.{layer}'
    normed = [layer_norm(w, f'{block}.layer_norm1', x, 1e-5) for x in xs]
    q, k, v = (
      np.stack([dense(w, f'{block}.self_attn.{n}_proj', x) for x in normed])
      for n in 'qkv'
    )
    mixed = attend(q, k, v, seen, heads, heads)
    for i in range(len(xs)):
      x = xs[i] + dense(w, f'{block}.self_attn.out_proj', mixed[i])
      y = dense(
        w, f'{block}.mlp.fc1', layer_norm(w, f'{block}.layer_norm2', x, 1e-5)
      )
      xs[i] = x + dense(w, f'{block}.mlp.fc2', activation(y))
  return xs


def image_features(weights, image, *, patch, layers, heads, activation):
  """Projected features of one image `[channels, height, width]`."""
  w = {k: np.float64(x) for k, x in weights.items()}
  prefix = 'vision_model.'
  xs = [w[f'{prefix}embeddings.class_embedding']]
  kernel = w[f'{prefix}embeddings.patch_embedding.weight']
  side = image.shape[1] // patch
  for row in range(side):
    for column in range(side):
      top, left = row * patch, column * patch
      part = image[:, top : top + patch, left : left + patch]
      xs.append((kernel * part[None]).sum((1, 2, 3)))
  places = w[f'{prefix}embeddings.position_embedding.weight']
  xs = [
    layer_norm(w, f'{prefix}pre_layrnorm', x + place, 1e-5)
    for x, place in zip(xs, places, strict=True)
  ]
  xs = _encode(w, prefix, xs, layers, heads, lambda i, j: True, activation)
  pooled = layer_norm(w, f'{prefix}post_layernorm', xs[0], 1e-5)
  return w['visual_projection.weight'] @ pooled


def text_features(weights, line, end, *, layers, heads, activation):
  """Projected features of one line, taken at column `end`."""
  w = {k: np.float64(x) for k, x in weights.items()}
  prefix = 'text_model.'
  xs = [
    w[f'{prefix}embeddings.token_embedding.weight'][token]
    + w[f'{prefix}embeddings.position_embedding.weight'][i]
    for i, token in enumerate(line)
  ]
  xs = _encode(w, prefix, xs, layers, heads, lambda i, j: j <= i, activation)
  pooled = layer_norm(w, f'{prefix}final_layer_norm', xs[end], 1e-5)
  return w['text_projection.weight'] @ pooled
