"""The papers that the laboratory asks again: what they claim and report."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from experiments.laboratory import results as results_lib
from experiments.laboratory import studies

Results = results_lib.Results


def _length(results: Results) -> list[str]:
  """How far each row gets beyond what it was trained on."""
  sentences = []
  config = results.config
  longest = len(config.training.level_weights)
  if config.levels[-1] <= longest:
    return studies.compare(results)
  for row in results.rows:
    last = [
      max(
        (
          level
          for level, share in zip(config.levels, seed, strict=True)
          if share >= 0.9
        ),
        default=0,
      )
      for seed in row.exact
    ]
    inside = results_lib.percent(studies.trained(row))
    outside = results_lib.percent(studies.beyond(row))
    sentences.append(
      f'{row.name}: {inside} up to {longest} digits, {outside} beyond;'
      f' nine of ten answers are right up to {_listed(last)} digits, by seed.'
    )
  best = max(results.rows, key=lambda row: studies.beyond(row).mean())
  plain = results.named('learned')
  if plain is not None and plain is not best:
    gain = studies.beyond(best) - studies.beyond(plain)
    sentences.append(
      studies.verdict(
        f'Beyond training, {best.name} goes further than learned', gain
      )
    )
  return sentences


def _listed(numbers: Sequence[int]) -> str:
  return ', '.join(map(str, numbers))


def _derivations(results: Results) -> list[str]:
  """Whether the row with a derivation beats every direct one."""
  steps = [row for row in results.rows if row.name.startswith('derivation')]
  direct = [row for row in results.rows if row.name.startswith('direct')]
  if not steps or not direct:
    return studies.compare(results)
  written = min(steps, key=lambda row: row.variant.config.model.layers)
  best = max(direct, key=lambda row: studies.trained(row).mean())
  gain = studies.trained(written) - studies.trained(best)
  return [
    studies.verdict(f'{written.name} is better than {best.name}', gain),
    *studies.compare(results),
  ]


def _horizons(results: Results) -> list[str]:
  """How long each row goes without an error, and what errors do to it."""
  sentences = []
  if not results.turns:
    return studies.compare(results)
  for row in results.rows:
    turn = row.turns[:, 0].mean(axis=1)
    sentences.append(
      f'{row.name}: {results_lib.percent(turn)} of the turns are right after'
      ' the true ones, and half of the problems have no error up to turn'
      f' {_between(row.horizon, results.turns)} (by seed);'
      f' {_constant(turn, results.turns)}.'
    )
  clean = [
    row for row in results.rows if not row.variant.config.training.errors
  ]
  wide = max(
    clean, key=lambda row: row.variant.config.model.width, default=None
  )
  for row in clean:
    if wide is not None and row is not wide:
      sentences.append(
        studies.verdict(
          f'{wide.name} goes on for longer than {row.name}',
          wide.horizon - row.horizon,
          unit='turns',
          scale=1,
        )
      )
  for row in results.rows:
    if row.late.shape[1] > 1:
      share = results.config.histories[-1]
      sentences.append(
        studies.verdict(
          f'{row.name} is worse after a history that is wrong in'
          f' {100 * share:g} % of its states',
          row.late[:, 0] - row.late[:, -1],
        )
      )
  return sentences


def _products(results: Results) -> list[str]:
  """Which digits of products are learned, and by what."""
  direct = results.named('direct')
  sentences = []
  for row in results.rows:
    ends = row.places[:, [0, -2]].mean(axis=1)
    sentences.append(
      f'{row.name}: {results_lib.percent(ends)} of the first and last digits'
      f' are right, {results_lib.percent(row.middle)} of those between, and'
      f' {results_lib.percent(studies.trained(row))} of the products.'
    )
  if direct is None:
    return sentences
  sentences.append(
    studies.verdict(
      'Learned directly, the digits between are worse than the ends',
      direct.places[:, [0, -2]].mean(axis=1) - direct.middle,
    )
  )
  for row in results.rows:
    if row is not direct:
      sentences.append(
        studies.verdict(
          f'{row.name} learns the digits between better than direct',
          row.middle - direct.middle,
        )
      )
  return sentences


def _recursions(results: Results) -> list[str]:
  """What becomes of deep recursions that are seldom seen."""
  plain = results.named('as they come')
  every = results.named('every depth')
  levels = results.config.levels
  if plain is None or len(levels) < 2:
    return studies.compare(results)
  half = len(levels) // 2
  shallow, deep = plain.exact[:, :half], plain.exact[:, half:]
  sentences = [
    f'{row.name}: right are {results_lib.percent(row.exact[:, 0])} of the'
    f' problems of size {levels[0]} and'
    f' {results_lib.percent(row.exact[:, -1])} of those of size {levels[-1]}.'
    for row in results.rows
  ]
  sentences.append(
    studies.verdict(
      f'Learned as they come, sizes from {levels[half]} on are worse than'
      ' smaller ones',
      shallow.mean(axis=1) - deep.mean(axis=1),
    )
  )
  if every is not None:
    sentences.append(
      studies.verdict(
        'They are better where every depth is seen as often',
        every.exact[:, half:].mean(axis=1) - deep.mean(axis=1),
      )
    )
  return sentences


def _between(turns: np.ndarray, last: int) -> str:
  """Says a number of turns; `or more` if no error was waited for."""
  least, most = (f'{turn:.1f}' for turn in (turns.min(), turns.max()))
  said = least if least == most else f'{least} to {most}'
  return f'{said} or more' if turns.max() == last else said


def _constant(turn: np.ndarray, last: int) -> str:
  """Where half of the problems would be left if all turns erred alike."""
  share = float(turn.mean())
  if share >= 1:
    return 'no turn errs'
  horizon = np.log(0.5) / np.log(max(share, 1e-9))
  beyond = f', beyond the {last} that were run' if horizon > last else ''
  return f'at that rate it would be turn {horizon:.1f}{beyond}'


STUDIES: Mapping[str, studies.Study] = {
  'none': studies.Study(
    title='Laboratory',
    lead=(
      'Small transformers learn an exact task from random initial weights. Rows'
      ' differ in what is named; all else is the same, the data of a seed among'
      ' it, and its initial weights where shapes allow.'
    ),
    findings=studies.compare,
  ),
  'structural_recursion': studies.Study(
    title='Structural recursion',
    lead=(
      'Zhang et al. (2023) let transformers learn functions that are defined by'
      ' recursion on how their argument was made: the successor of a binary'
      ' number, and visiting a tree. They find shortcuts that hold for what is'
      ' frequent, and fail where the recursion goes deep, which is rare; seeing'
      ' deep ones more often repairs it.'
    ),
    findings=_recursions,
    reading=(
      'Binary numbers are written with the least significant bit first, the'
      ' constructor that was used last. The successor goes as deep as a number'
      ' begins with ones; problems of size n begin with n - 1 of them. Random'
      ' numbers, as they come, halve with every size. Of trees, the size is the'
      ' number of nodes. The code of the paper is not known to us.'
    ),
  ),
  'teaching_arithmetic': studies.Study(
    title='Teaching arithmetic to small transformers',
    lead=(
      'Lee et al. (2023) find that addition is learned from far fewer examples'
      ' if the answer is written least significant digit first, and from fewer'
      ' still with the steps written out. Here that is asked of a model of a'
      ' quarter of a million parameters, in minutes.'
    ),
    findings=studies.claims(
      studies.Claim(
        'reversed', 'plain', 'reversed is learned better than plain'
      ),
      studies.Claim(
        'scratchpad', 'plain', 'scratchpad is learned better than plain'
      ),
    ),
    reading=(
      'The paper trains 10.7 million parameters on a stream of characters, and'
      ' samples answers; here every line is a problem, only what follows the'
      ' prompt is learned, and decoding is greedy. That takes fewer examples,'
      ' so columns are not to be compared with the paper, but rows are.'
    ),
    published=studies.Published(
      values={
        'plain, 1000': 0.0039,
        'plain, 2000': 0.0174,
        'plain, 5000': 0.811,
        'plain, 10000': 0.874,
        'reversed, 1000': 0.0157,
        'reversed, 2000': 0.306,
        'reversed, 5000': 0.9983,
        'reversed, 10000': 1.0,
        'scratchpad, 1000': 0.846,
        'scratchpad, 2000': 0.997,
        'scratchpad, 5000': 1.0,
        'scratchpad, 10000': 1.0,
      },
      source=(
        'Published: 3-digit addition of Lee et al., Teaching Arithmetic to'
        ' Small Transformers, 2023, arXiv:2307.03381, from the tables in their'
        ' repository: 10.7 million parameters, one seed, answers sampled at'
        ' temperature 0.8. The scratchpad is the simplified one.'
      ),
    ),
  ),
  'tokenization': studies.Study(
    title='Tokenization counts',
    lead=(
      'Singh and Strouse (2024) find that large language models add better if'
      ' digits are grouped to tokens from the right, so that a token has one'
      ' place value, than from the left. Here models are trained from scratch'
      ' with either.'
    ),
    findings=studies.claims(
      studies.Claim(
        'right to left',
        'left to right',
        'tokens counted from the right are learned better than from the left',
      ),
    ),
    reading=(
      'Grouped from the left, where a token stands in a number depends on how'
      ' many digits the number has, in the answer too.'
    ),
  ),
  'length_generalization': studies.Study(
    title='Length generalisation of addition',
    lead=(
      'Models that add numbers of as many digits as they were trained on often'
      ' fail with one more. How tokens are told where they stand decides how'
      ' far they go: positions by digit (Abacus, McLeish et al., 2024; position'
      ' coupling, Cho et al., 2024), or biases by distance (FIRE, Li et al.,'
      ' 2023, with index hints in Zhou et al., 2024).'
    ),
    findings=_length,
    reading=(
      'Lengths beyond training differ much from seed to seed, in the papers as'
      ' well; three seeds say what happens, not how often.'
    ),
  ),
  'dissecting_multiplication': studies.Study(
    title='Dissecting multiplication',
    lead=(
      'Qiu et al. (2024) take the product of a number and a digit apart: every'
      ' digit of it is a task of its own, learned in the order of difficulty,'
      ' and carries that go on are what fails. They mend it by an answer in'
      ' reverse, by depth, and by more simple problems.'
    ),
    findings=studies.claims(
      studies.Claim(
        'reversed', 'plain', 'reversed is learned better than plain'
      ),
      studies.Claim('deeper', 'plain', 'more layers learn better'),
      studies.Claim(
        'with shorter', 'plain', 'shorter problems among the others help'
      ),
    ),
    reading=(
      'The paper multiplies numbers of five digits and reports over 99.9 % with'
      ' all three remedies (from its abstract; its tables by digit, sample'
      ' counts and widths are not known to us, so no column shows them).'
    ),
  ),
  'positional_description': studies.Study(
    title='Positional description matters',
    lead=(
      'Shen et al. (2023) find that long multiplication is learned if operands'
      ' are padded to one length and the product is written in reverse, so that'
      ' a digit of one weight stands at one place.'
    ),
    findings=studies.claims(
      studies.Claim(
        'reversed', 'plain', 'the product in reverse is learned better'
      ),
      studies.Claim('padded', 'plain', 'padding is learned better'),
      studies.Claim(
        'padded and reversed', 'plain', 'both together are learned better'
      ),
      studies.Claim(
        'padded and reversed',
        'reversed',
        'padding is learned better, of products in reverse',
      ),
    ),
    reading=(
      'The paper trains some 100 million parameters on products of up to 15 by'
      ' 15 digits, where both together are near perfect up to 12 by 12 and'
      ' plain ones fail at 4 by 4 (from its abstract and public notes on it).'
    ),
  ),
  'cot_theory': studies.Study(
    title='Derivations, and depth without them',
    lead=(
      'Feng et al. (2023) show that a decoder of bounded depth cannot answer'
      ' some problems directly, however it is trained, but can if it writes a'
      ' derivation. Here it is the length of the longest increasing'
      ' subsequence: directly, with more and more layers, or after its table of'
      ' dynamic programming.'
    ),
    findings=_derivations,
    reading=(
      'The paper draws numbers up to 250, here they are digits, so that answers'
      ' are at most ten and easier to guess.'
    ),
    published=studies.Published(
      values={
        'direct, 3 layers': 0.644,
        'direct, 4 layers': 0.908,
        'direct, 5 layers': 0.959,
        'derivation, 3 layers': 0.995,
      },
      source=(
        'Published: sequences of 50 numbers up to 250, four seeds, from the'
        ' logs in the repository of Feng et al., Towards Revealing the Mystery'
        ' behind Chain of Thought, 2023, arXiv:2305.15408: 256 features, 4'
        ' heads.'
      ),
    ),
  ),
  'long_horizon': studies.Study(
    title='Long horizons',
    lead=(
      'Sinha et al. (2025) let language models add up values that they look up'
      ' by their keys, turn after turn. Turns that are nearly always right add'
      ' up to few long runs without an error; larger models go on for longer;'
      ' and models err more after a history that has errors in it, which they'
      ' call self-conditioning. Here small decoders learn that task, of a few'
      ' turns, and go on for many more.'
    ),
    findings=_horizons,
    reading=(
      'A turn is right if its state follows from the state before it, whether'
      ' or not that was right. The paper reads models that were trained on'
      ' other things, with a hundred words as keys; here the keys are the ten'
      ' digits, sums are modulo 10 or 100, and nothing but this is learned,'
      ' from histories without errors unless the row says that errors are seen.'
      ' Positions repeat in every turn (turns), so that no turn is further away'
      ' than those that were trained on. In a history with errors a wrong state'
      ' is off by 1 to 9, and later states go on from it; how the paper goes'
      ' on from one is not known to us.'
    ),
  ),
  'multiplication_auxiliary': studies.Study(
    title='Long multiplication, and what makes it learned',
    lead=(
      'Bai et al. (2025) find that a transformer does not learn to multiply'
      ' numbers of four digits from problems and answers: the digits at the'
      ' ends are learned, those between are not. It does learn it if it first'
      ' writes its work, which is then taken away piece by piece (implicit'
      ' chain of thought, Deng et al., 2024), or if two heads have to hold what'
      ' each column adds up to. Here the numbers are shorter and the decoder'
      ' much smaller.'
    ),
    findings=_products,
    reading=(
      'Products are written least significant digit first and filled with'
      ' zeros. The auxiliary loss is the squared error of a linear map without'
      ' bias from two heads of the last layer; its weight in the paper is not'
      ' known to us, nor is its code. Work is removed at even pace, and the'
      ' optimiser is not reset where it is; the paper draws how much is removed'
      ' with some noise, and resets. Shares of digits are given the true digits'
      ' before them; whole answers are what a model writes itself.'
    ),
    published=studies.Published(
      values={'direct': 0.01, 'auxiliary': 0.99, 'implicit': 1.0},
      source=(
        "Published: products of four by four digits of Bai et al., Why Can't"
        ' Transformers Learn Multiplication? Reverse-Engineering Reveals'
        ' Long-Range Dependency Pitfalls, 2025, arXiv:2510.00184: 2 layers, 4'
        ' heads, 768 features, 80,800 problems to train on; direct is about 1'
        ' percent.'
      ),
    ),
  ),
  'nupa': studies.Study(
    title='Number Cookbook',
    lead=(
      'Yang et al. (2024) train small models on many simple tasks on numbers'
      ' and find that one digit a token is learned best, and that decoders with'
      ' rotary positions fit the lengths they are trained on while those'
      ' without positions, or with ALiBi, go further.'
    ),
    findings=studies.claims(
      studies.Claim('digits', 'pairs', 'one digit a token is learned better'),
      studies.Claim('rotary', 'none', 'rotary positions are learned better'),
      studies.Claim(
        'none', 'rotary', 'without positions it goes further', beyond=True
      ),
      studies.Claim('alibi', 'rotary', 'ALiBi goes further', beyond=True),
      together=True,
    ),
    reading=(
      'The paper trains 100 million parameters and more on lengths up to 8, and'
      ' scores up to 20 digits; its tables are not known to us, so no column'
      ' shows them. Here are three of its tasks that have digits as answers:'
      ' sums, the larger of two numbers, and sums without carries.'
    ),
  ),
}
