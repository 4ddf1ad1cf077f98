"""Merges with coefficients by depth, by norm or by the role of an expert."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from merging import references
from merging import routing
from merging import transform
from merging.combine import mean as means
from merging.combine import signature
from merging.deltas import depth
from merging.deltas import norm
from merging.recipes import task_vectors

Selector = Callable[[str], bool] | str


@references.cited
def lines(
  inner: transform.MergeTransform,
  beta: float | jax.Array,
  alpha: float | jax.Array | None = None,
  *,
  blocks: depth.Blocks = depth.BLOCKS,
  outputs: Selector | None = None,
) -> transform.MergeTransform:
  r"""Scales a merge less in shallow blocks and more in deep ones (LiNeS).

      delta = (alpha + beta l / (L - 1)) inner delta

  in block `l` of `L`; in leaves outside the blocks, and in a model of one
  block, `alpha delta`. By default, as in the paper,

      alpha = (1 / T) |sum_t tau_t|_1 / |inner delta|_1

  over the whole model, for `T` experts: 1 / T for a sum of task vectors, more
  for merges that drop a part of them. A coefficient within `inner` is cancelled
  in alpha and not in beta: give it none.

  Args:
    inner: Any merge, such as `total()` or `ties(combine='sum')`.
    beta: How much more the last block gets than the first, in place of the
      merge's own coefficient: 0.1, 0.2, ..., 1 are tried with task arithmetic,
      up to 1.5 with TIES.
    alpha: Factor of the first block. For one expert the paper takes
      `beta = 1 - alpha`.
    blocks: How a path tells the block: a regular expression to find in it, with
      one group for the number, such as `r'blocks/(\d+)/'`, or
      `path -> number or None`. Where layers are stacked in one leaf,
      `unstacked(lines(..., blocks=r'/(\d+)$'), pattern)` tells them apart. The
      authors' code looks for `.0.`, `.1.` and so on, and so misplaces leaves
      whose name has another number first.
    outputs: Which leaves outside the blocks get `alpha + beta`, such as the
      head; by default none, as in the authors' code.

  Returns:
    The merge. Its `init` raises `ValueError` as that of `scale_by_depth`.

  Examples:
    >>> import merging
    >>> base = {f'blocks_{i}': {'w': jnp.zeros(())} for i in range(3)}
    >>> experts = dict.fromkeys('ab', jax.tree.map(jnp.ones_like, base))
    >>> merged = merging.merge(lines(merging.total(), 0.5), base, experts)
    >>> jax.tree.leaves(jax.tree.map(float, merged))
    [1.0, 1.5, 2.0]

  References:
    Ke Wang, Nikolaos Dimitriadis, Alessandro Favero, Guillermo Ortiz-Jimenez,
    François Fleuret, Pascal Frossard. "LiNeS: Post-training Layer Scaling
    Prevents Forgetting and Enhances Model Merging". ICLR 2025.
    arXiv:2410.17146.
  """
  made = transform.chain(
    inner, depth.scale_by_depth(alpha, beta, blocks=blocks, outputs=outputs)
  )
  if alpha is not None:
    return made
  norms = depth.match_average_norm(inner)
  return made._replace(observers=(*made.observers, norms), **transform.WHOLE)


@references.cited
def layer_swap(
  outer: str,
  middle: str,
  *,
  lower: int = 5,
  upper: int = 2,
  lower_transition: int = 1,
  upper_transition: int = 1,
  weight: float | jax.Array = 0.5,
  others: float | jax.Array = 1.0,
  blocks: depth.Blocks = depth.BLOCKS,
) -> transform.MergeTransform:
  """Takes the first and last blocks of one expert, the middle of another.

  A language expert changes mostly the blocks next to the tokens, one for
  mathematics those between. From the bottom, with `w` of the outer expert and
  `1 - w` of the middle one:

      w = 1 in `lower` blocks, `weight` in `lower_transition` blocks, 0 in the
      middle, `weight` in `upper_transition` blocks, 1 in `upper` blocks

  The counts are those of the paper for 32 blocks, as other sources report them;
  neither the paper's weights in the transitions nor what it does with leaves
  outside the blocks could be verified. Here a transition is the mean, and an
  embedding and a head are those of the outer expert.

  Args:
    outer: Name of the expert for both ends, in the paper that of a language.
    middle: Name of the expert for the middle, in the paper that of mathematics.
    lower: Number of first blocks.
    upper: Number of last blocks.
    lower_transition: Number of blocks between the first ones and the middle.
    upper_transition: Number of blocks between the middle and the last ones.
    weight: Weight of the outer expert in the transitions, in [0, 1].
    others: Weight of the outer expert in leaves outside the blocks.
    blocks: See `lines`.

  Returns:
    The merge of exactly these two. Its `init` raises `ValueError` if the model
    has fewer blocks than the ends and transitions take.

  Raises:
    ValueError: The experts are one, or a number of blocks is negative.

  Examples:
    >>> import merging
    >>> base = {f'blocks_{i}': jnp.zeros(()) for i in range(5)}
    >>> experts = {
    ...   'swahili': jax.tree.map(lambda x: x + 10, base),
    ...   'math': jax.tree.map(lambda x: x + 20, base),
    ... }
    >>> transform = layer_swap('swahili', 'math', lower=1, upper=1)
    >>> merged = merging.merge(transform, base, experts)
    >>> jax.tree.leaves(jax.tree.map(float, merged))
    [10.0, 15.0, 20.0, 15.0, 10.0]

  References:
    Lucas Bandarkar, Benjamin Muller, Pritish Yuvraj, Rui Hou, Nayan Singhal,
    Hongjiang Lv, Bing Liu. "Layer Swapping for Zero-Shot Cross-Lingual Transfer
    in Large Language Models". ICLR 2025. arXiv:2410.01335.
  """
  if outer == middle:
    raise ValueError(f'layer_swap: expected two experts, got {outer!r} twice')
  counts = (lower, lower_transition, upper_transition, upper)
  if min(counts) < 0:
    raise ValueError(
      'layer_swap: the numbers of lower, lower transition, upper transition '
      f'and upper blocks are {counts}, expected none below 0'
    )

  def weights(blocks):
    rest = blocks - sum(counts)
    if rest < 0:
      raise ValueError(
        f'layer_swap: {lower} lower, {upper} upper and '
        f'{lower_transition + upper_transition} transition blocks are more '
        f'than the {blocks} of the model; take fewer of each'
      )
    zones = np.repeat(
      np.arange(5), [lower, lower_transition, rest, upper_transition, upper]
    )
    between = jnp.asarray(weight, jnp.float32)
    one, zero = jnp.ones_like(between), jnp.zeros_like(between)
    of_outer = jnp.stack([one, between, zero, between, one])[zones]
    return {outer: of_outer, middle: 1 - of_outer}

  elsewhere = {outer: others, middle: 1 - others}
  return transform.chain(
    depth.weigh_blocks(weights, elsewhere, blocks=blocks), means.total()
  )


@references.cited
def metagpt() -> transform.MergeTransform:
  """Adds task vectors by their shares of all squared norms (MetaGPT).

      theta = theta_0 + sum_t w_t tau_t,   w_t = |tau_t|^2 / sum_k |tau_k|^2

  In closed form what bounds the mean loss best, for models that are linear near
  the base and task vectors that are orthogonal. Experts that moved little count
  for next to nothing; with equal norms it is the average. TIES or DARE may come
  first: `chain(drop_and_rescale(0.45, key=key), metagpt())`.

  Returns:
    The merge, `chain(weigh_by_norm(), total())`.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([1.0, 0.0])},
    ...   'code': {'w': jnp.array([0.0, 3.0])},
    ... }
    >>> merged = merging.merge(metagpt(), {'w': jnp.zeros(2)}, experts)
    >>> [round(float(x), 3) for x in merged['w']]
    [0.1, 2.7]

  References:
    Yuyan Zhou, Liang Song, Bingning Wang, Weipeng Chen. "MetaGPT: Merging Large
    Language Models Using Model Exclusive Task Arithmetic". EMNLP 2024.
    arXiv:2406.11385.
  """
  return transform.chain(norm.weigh_by_norm(), means.total())


@references.cited
def reasoning_vector(
  target: str,
  reinforced: str,
  supervised: str,
  scale: float | jax.Array = 1.0,
  *,
  leaves: Selector = '',
) -> transform.MergeTransform:
  """Adds to a model what reinforcement learning added to another.

      theta = theta_target + scale (theta_reinforced - theta_supervised)

  The two were trained on the same data from the same parameters, one by
  reinforcement learning, so that their difference is what it taught. All three
  share architecture and vocabulary; the base of the merge may be any of them or
  what they come from.

  Args:
    target: Name of the expert to give reasoning to.
    reinforced: Name of the expert from reinforcement learning.
    supervised: Name of the expert from supervised fine-tuning.
    scale: The scaling coefficient; the paper's is 1, and -1 takes reasoning
      away.
    leaves: Which leaves the vector is added to, a regular expression to find in
      the path, or `path -> bool`; all by default, as in the paper. The others
      are those of the target.

  Returns:
    The merge of exactly these three.

  Raises:
    ValueError: The experts are not three.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'instruct': {'w': jnp.array([1.0])},
    ...   'grpo': {'w': jnp.array([7.0])},
    ...   'sft': {'w': jnp.array([4.0])},
    ... }
    >>> transform = reasoning_vector('instruct', 'grpo', 'sft')
    >>> merging.merge(transform, {'w': jnp.zeros(1)}, experts)['w'].tolist()
    [4.0]

  References:
    Mohammad Zbeeb, Hasan Abed Al Kader Hammoud, Bernard Ghanem. "Reasoning
    Vectors: Transferring Chain-of-Thought Capabilities via Task Arithmetic".
    2025. arXiv:2509.01363.
  """
  names = (target, reinforced, supervised)
  if len(set(names)) < 3:
    raise ValueError(f'reasoning_vector: expected three experts, got {names}')

  def with_scale(factor):
    weights = {target: 1.0, reinforced: factor, supervised: -factor}
    return task_vectors.task_arithmetic(weights)

  return routing.masked(with_scale(scale), leaves, with_scale(0.0))


@references.cited
def robust_signature(
  clean: str,
  scale: float | jax.Array = 1.0,
  *,
  leaves: Selector,
  norms: Selector | None = None,
) -> transform.MergeTransform:
  """Patches a clean expert with robustness from others (robust signatures).

  Experts of one architecture, trained on corrupted data, differ from one
  trained on clean data mostly in shallow layers. With `N` robust experts and
  `tau_c` of the clean one, in each chosen leaf

      v_t = tau_t - <tau_t, tau_c> / <tau_c, tau_c> tau_c
      theta = theta_clean + (scale / N) sum_t v_t

  The authors' code multiplies by `scale / N` twice, which for one corruption
  and a scale of 1 is the same; `scale**2 / N` here gives its numbers.

  Args:
    clean: Name of the clean expert; all others are robust.
    scale: The strength of the patch, 1 by default.
    leaves: Which leaves to patch, a regular expression to find in the path or
      `path -> bool`; for the paper's first 7 convolutions of a VGG-16 something
      like `'conv_[0-6]/'`. All others are those of the clean expert.
    norms: Which leaves are the mean of the robust experts instead, as in the
      authors' code all of batch normalisation; none by default. (For ResNets
      the authors estimate statistics anew, on corrupted data.)

  Returns:
    The merge. Its `init` raises `ValueError` if the clean expert is missing or
    alone, or `leaves` or `norms` selects nothing.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'clean': {'conv_0': jnp.array([2.0, 0.0]), 'head': jnp.ones(1)},
    ...   'fog': {'conv_0': jnp.array([5.0, 1.0]), 'head': jnp.zeros(1)},
    ... }
    >>> base = jax.tree.map(jnp.zeros_like, experts['fog'])
    >>> transform = robust_signature('clean', leaves='conv_[0-6]')
    >>> merged = merging.merge(transform, base, experts)
    >>> merged['conv_0'].tolist(), merged['head'].tolist()
    ([2.0, 1.0], [1.0])

  References:
    Ruisi Cai, Zhenyu Zhang, Zhangyang Wang. "Robust Weight Signatures: Gaining
    Robustness as Easy as Patching Weights?". ICML 2023. arXiv:2302.12480.
  """
  patch = routing.masked(
    signature.add_signature(clean, scale), leaves, signature.keep_clean(clean)
  )
  if norms is None:
    return patch
  return routing.masked(signature.average_robust(clean), norms, patch)
