"""Positions and the decoder in slow NumPy: one line, one head at a time."""

import jax
import numpy as np


def runs(line, digits):
  """The numbers of a line, as lists of places."""
  found = []
  for place, token in enumerate(line):
    if token not in digits:
      continue
    if place and line[place - 1] in digits:
      found[-1].append(place)
    else:
      found.append([place])
  return found


def abacus(line, classes, offset=0):
  ids = [0] * len(line)
  for number in runs(line, classes.digits):
    for index, place in enumerate(number):
      ids[place] = index + 1 + offset
  for place, token in enumerate(line):
    if token in classes.anchors:
      ids[place] = offset
  return ids


def coupled(line, classes, operand_order, start=1):
  line = list(line)
  equals = line.index(classes.equals)
  ids = [start if token in classes.anchors else 0 for token in line]
  for number in runs(line, classes.digits):
    step = -1 if operand_order == 'plain' and number[0] < equals else 1
    for weight, place in enumerate(number[::step]):
      ids[place] = start + 1 + weight
  return ids


def bias(scheme, p, heads, h, i, j):
  """What is added to the score of head h for ids i of a query, j of a key."""
  d = float(i - j)
  match scheme.attention:
    case 'alibi':
      return -d / 2 ** (8 * (h + 1) / heads)
    case 't5':
      half = scheme.buckets // 2
      if d < half:
        return p['table'][int(d), h]
      if d >= scheme.max_distance:
        return p['table'][-1, h]
      far = np.log(d / half) / np.log(scheme.max_distance / half)
      return p['table'][half + int(np.floor(far * half)), h]
    case 'kerple_log':
      scale, rate = max(p['scale'][h], 0.01), max(p['rate'][h], 0.01)
      return -scale * np.log(1 + rate * d)
    case 'kerple_power':
      scale, power = max(p['scale'][h], 0.01), max(p['power'][h], 0.01)
      return -scale * d ** min(power, 2.0)
    case 'fire':
      c, limit = abs(p['scale']), abs(p['threshold'] * scheme.threshold)
      ratio = np.log(c * d + 1) / np.log(c * max(i, limit) + 1)
      hidden = ratio * p['hidden_kernel'][0] + p['hidden_bias']
      output = np.maximum(hidden, 0) @ p['output_kernel'] + p['output_bias']
      return output[h]
  return 0.0


def decoder(params, tokens, config, places, loops=None):
  """The logits of lines, in float64."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  lines = []
  for b, line in enumerate(np.asarray(tokens)):
    vector_ids = [np.asarray(ids)[b % len(ids)] for ids in places.vectors]
    ids = np.asarray(places.attention)[b % len(places.attention)]
    e = p['embedding']['embedding'][line]
    for s, stream in enumerate(vector_ids):
      e = e + _vectors(p, config, stream, s)
    x = np.zeros_like(e) if config.inject else e
    for _ in range(loops or config.loops):
      x = x + e if config.inject else x
      for layer in range(config.layers):
        x = _block(p, x, config, ids, p[f'blocks_{layer}'])
    if config.norm_place != 'post':
      x = _norm(x, p['norm'], config)
    if config.tied:
      lines.append(x @ p['embedding']['embedding'].T / np.sqrt(config.width))
    else:
      lines.append(x @ p['unembedding']['kernel'])
  return np.stack(lines)


def _vectors(p, config, ids, stream):
  n, d = len(ids), config.width
  match config.scheme.vectors:
    case 'learned':
      return p[f'positions_{stream}' if stream else 'positions'][ids]
    case 'sinusoidal':
      angle = ids[:, None] / 10_000 ** (2 * np.arange(d // 2)[None] / d)
      return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(n, d)
  return np.zeros((n, d))


def _norm(x, p, config):
  if config.norm == 'layer':
    x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
  return x * p['scale'] + p.get('bias', 0.0)


def _dense(x, p):
  return x @ p['kernel'] + p.get('bias', 0.0)


def _gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _block(p, x, config, ids, block):
  def branch(x, name, function):
    if config.norm_place == 'post':
      return _norm(x + function(x), block[f'{name}_norm'], config)
    y = function(_norm(x, block[f'{name}_norm'], config))
    if config.norm_place == 'both':
      y = _norm(y, block[f'{name}_post_norm'], config)
    return x + y

  def perceptron(y):
    up = _dense(y, block['up'])
    match config.activation:
      case 'gelu':
        up = _gelu(up)
      case 'relu':
        up = np.maximum(up, 0)
      case 'swiglu':
        gate = _dense(y, block['gate'])
        up = gate / (1 + np.exp(-gate)) * up
      case 'geglu':
        up = _gelu(_dense(y, block['gate'])) * up
    return _dense(up, block['down'])

  def attention(y):
    return _attention(p, y, config, ids, block['attention'])

  return branch(branch(x, 'attention', attention), 'perceptron', perceptron)


def _attention(p, x, config, ids, attention):
  n, d = x.shape
  head = d // config.heads
  q, k, v = np.split(_dense(x, attention['query_key_value']), 3, axis=-1)
  scheme = config.scheme
  of_bias = p.get('bias', {}) if scheme.shared else attention.get('bias', {})
  mixed = np.zeros_like(x)
  for h in range(config.heads):
    part = slice(h * head, (h + 1) * head)
    queries, keys = q[:, part].copy(), k[:, part].copy()
    if scheme.attention == 'rotary':
      for vectors in (queries, keys):
        for i in range(n):
          for j in range(head // 2):
            turn = np.exp(1j * ids[i] * scheme.base ** (-2 * j / head))
            turn *= complex(vectors[i, 2 * j], vectors[i, 2 * j + 1])
            vectors[i, 2 * j : 2 * j + 2] = turn.real, turn.imag
    for i in range(n):
      scores = queries[i] @ keys[: i + 1].T / np.sqrt(head)
      scores += [
        bias(scheme, of_bias, config.heads, h, ids[i], ids[j])
        for j in range(i + 1)
      ]
      weights = np.exp(scores - scores.max())
      mixed[i, part] = weights / weights.sum() @ v[: i + 1, part]
  return _dense(mixed, attention['output'])
