"""The target's exact law of a text's first tokens, cut into cells, and a one-sample test of drawn texts against it.

Losslessness under sampling is a statement about a law, so it is tested as one: the cells' probabilities come from the
target's own distributions, not from a second sample. Letters: C cells, N drawn texts, V vocabulary.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2

from dsl_train.base.sampling import Sampling
from dsl_train.runners.cached import CachedModel

#: Fewest texts that a cell must expect. Cochran's rule asks for 5; at 10 the approximation still holds far out in the
#: tail, where a run of many tests decides (nominal 1e-3 is 1.4e-3 in simulation, nominal 1e-4 is 1.5e-4 to 2e-4).
MIN_EXPECTED = 10.0
#: Chance of seeing a bias of the size that :attr:`Fit.detectable` states.
POWER = 0.9
_IMPOSSIBLE = -1


@dataclass(frozen=True, eq=False)
class Distribution:
    """Probabilities of cells that every text falls into exactly one of, by its longest prefix that names a cell."""

    cells: Mapping[tuple[int, ...], int]
    """Prefix -> number of its cell, or -1 for texts that cannot occur; several rare prefixes may share a cell."""
    probs: np.ndarray
    """[C] float64, sum 1"""

    def count(self, texts: Iterable[Sequence[int]]) -> tuple[np.ndarray, int]:
        """Texts by cell, [C] int64, and how many are impossible."""
        counts, impossible = np.zeros(len(self.probs), dtype=np.int64), 0
        for text in texts:
            cell = next(self.cells[prefix] for prefix in _prefixes(text) if prefix in self.cells)
            if cell == _IMPOSSIBLE:
                impossible += 1
            else:
                counts[cell] += 1
        return counts, impossible


@torch.inference_mode()
def exact_distribution(
    target: CachedModel,
    prompt_token_ids: Sequence[int],
    sampling: Sampling,
    eos_token_ids: Collection[int],
    num_tokens: int,
    num_draws: int,
) -> Distribution:
    """The law of the first `num_tokens` after the prompt, as fine as `num_draws` texts can fill its cells.

    A prefix expected often enough to split is followed by its likely tokens, each a prefix of its own; what is left
    of it is a cell. A text that has ended is not followed.
    """
    min_prob = MIN_EXPECTED / num_draws
    cells: dict[tuple[int, ...], float] = {}
    open_prefixes: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while open_prefixes:
        prefix, prob = open_prefixes.pop()
        if len(prefix) == num_tokens or prob < 2 * min_prob or (prefix and prefix[-1] in eos_token_ids):
            cells[prefix] = prob
            continue
        target.reset()
        logits = target.logits([*prompt_token_ids, *prefix], keep=1)  # [1, V]
        joint = prob * sampling.probs(logits)[0].double()  # [V]
        likely = joint >= min_prob
        open_prefixes += [((*prefix, int(token)), float(joint[token])) for token in likely.nonzero()]
        cells[prefix] = float(joint[~likely].sum())
    return _pool(cells, min_prob)


def _pool(cells: Mapping[tuple[int, ...], float], min_prob: float) -> Distribution:
    """Cells too rare to stand alone share one, and join the rarest other cell if even together they are too rare."""
    large = sorted((prefix for prefix, prob in cells.items() if prob >= min_prob), key=lambda prefix: cells[prefix])
    probs = [cells[prefix] for prefix in large]
    numbers = {prefix: number for number, prefix in enumerate(large)}
    rare = sum(prob for prob in cells.values() if prob < min_prob)
    if rare >= min_prob:
        probs.append(rare)
    else:
        probs[0] += rare
    shared = len(probs) - 1 if rare >= min_prob else 0
    for prefix, prob in cells.items():
        numbers.setdefault(prefix, shared if prob > 0 else _IMPOSSIBLE)
    array = np.array(probs)
    return Distribution(numbers, array / array.sum())


@dataclass(frozen=True)
class Fit:
    """Pearson's chi-square test of drawn texts against a law."""

    num_draws: int
    num_cells: int
    statistic: float
    p_value: float
    """Chance of a statistic at least so large if the law is right; 0 if a text occurred that cannot."""
    detectable: float
    """Any bias that moves this much probability between cells would have been seen with a chance of POWER."""


def fit(law: Distribution, texts: Sequence[Sequence[int]], level: float) -> Fit:
    """Test at a false-alarm rate of `level`, which only `detectable` depends on."""
    counts, impossible = law.count(texts)
    num_draws, num_cells = len(texts), len(law.probs)
    smallest = detectable_bias(num_cells, num_draws, level)
    if impossible:
        return Fit(num_draws, num_cells, float("inf"), 0.0, smallest)
    expected = num_draws * law.probs
    statistic = float(((counts - expected) ** 2 / expected).sum())
    p_value = float(chi2.sf(statistic, num_cells - 1)) if num_cells > 1 else 1.0
    return Fit(num_draws, num_cells, statistic, p_value, smallest)


def detectable_bias(num_cells: int, num_draws: int, level: float) -> float:
    """Smallest total variation distance over the cells that the test at `level` sees with a chance of POWER, wherever
    it lies; 1 if none is.

    A distance d adds at least 4 * N * d**2 to the statistic's noncentrality (Cauchy-Schwarz).
    """
    freedom = num_cells - 1
    if freedom == 0:
        return 1.0
    critical = chi2.isf(level, freedom)
    shift = brentq(lambda added: ncx2.sf(critical, freedom, added) - POWER, 0.0, 10.0 * critical)
    return float(min(1.0, (shift / num_draws) ** 0.5 / 2))


def _prefixes(text: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """The longest first."""
    return (tuple(text[:length]) for length in range(len(text), -1, -1))
