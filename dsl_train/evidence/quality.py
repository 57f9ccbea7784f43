"""How good the survival estimate is: calibrated overall and by position, and sharper than what the draft says itself.

Letters: N decisions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import auc, roc_curve

from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.traces.decisions import Decisions
from dsl_train.train.metrics import calibration_error

NUM_BINS = 10
#: First and last position of each panel; None: to the end.
POSITIONS: tuple[tuple[int, int | None], ...] = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, None))
_CURVE_POINTS = 200

#: Signal -> what it means, and its sign: +1 where more promises survival.
SIGNALS: dict[str, tuple[str, int]] = {
    "token_log_prob": ("probability of the drafted token (transformers' confidence)", 1),
    "top_prob": ("largest draft probability (Kangaroo, vLLM)", 1),
    "margin": ("lead of the draft's first choice over its second", 1),
    "entropy": ("entropy of the draft distribution (SVIP, AdaEDL)", -1),
    "block_log_prob": ("product of the block's draft probabilities (EAGLE-2)", 1),
    "min_top_prob": ("smallest top probability in the block", 1),
    "agreement_mean": ("how well draft and target agreed on the text so far", 1),
    "copy_length": ("length of the repetition the text is in", 1),
}


@dataclass(frozen=True)
class ReliabilityBin:
    survival: float
    """Mean estimate."""
    frequency: float
    """How often it came true."""
    count: int


@dataclass(frozen=True)
class Reliability:
    first_position: int
    last_position: int | None
    """None: to the end."""
    bins: tuple[ReliabilityBin, ...]
    """Of equal width, empty ones left out."""
    calibration_error: float
    """Mean distance of estimate and frequency."""
    num_decisions: int


@dataclass(frozen=True)
class Signal:
    """A receiver operating characteristic over the decisions at position 1 and later."""

    name: str
    meaning: str
    auc: float | None
    """None where only one outcome occurs."""
    false_positive_rate: tuple[float, ...]
    true_positive_rate: tuple[float, ...]


def reliability(survival: np.ndarray, decisions: Decisions) -> tuple[Reliability, ...]:
    """Overall, then for each of POSITIONS that occurs. `survival` is [N]."""
    spans = ((0, None), *POSITIONS)
    diagrams = []
    for first, last in spans:
        rows = (decisions.position >= first) & (decisions.position <= (np.inf if last is None else last))
        if rows.any():
            diagrams.append(_diagram(survival[rows], decisions.survival[rows], first, last))
    return tuple(diagrams)


def signals(survival: np.ndarray, decisions: Decisions) -> tuple[Signal, ...]:
    """The estimate and everything it competes with, the best first. `survival` is [N]."""
    drafted = decisions.position > 0
    labels = decisions.survival[drafted]
    own = _signal("survival", "the predictor's estimate", survival[drafted], labels)
    others = [
        _signal(name, meaning, sign * _values(decisions, name)[drafted], labels)
        for name, (meaning, sign) in SIGNALS.items()
    ]
    return (own, *sorted(others, key=lambda signal: -(signal.auc or 0.0)))


def _values(decisions: Decisions, name: str) -> np.ndarray:
    """[N] a feature, or a column of the token drafted last."""
    if name in FEATURE_NAMES:
        return decisions.features[:, FEATURE_NAMES.index(name)]
    return decisions.drafted(name)


def _diagram(survival: np.ndarray, labels: np.ndarray, first: int, last: int | None) -> Reliability:
    number = np.minimum((survival * NUM_BINS).astype(int), NUM_BINS - 1)
    total: Callable[..., np.ndarray] = lambda weights=None: np.bincount(number, weights, NUM_BINS)  # noqa: E731
    counts = total()
    full = np.flatnonzero(counts)
    means, shares = (total(values.astype(np.float64))[full] / counts[full] for values in (survival, labels))
    bins = map(ReliabilityBin, means.tolist(), shares.tolist(), counts[full].tolist())
    return Reliability(first, last, tuple(bins), calibration_error(survival, labels), len(labels))


def _signal(name: str, meaning: str, values: np.ndarray, labels: np.ndarray) -> Signal:
    if labels.all() or not labels.any():  # or no label at all
        return Signal(name, meaning, None, (), ())
    false, true, _ = roc_curve(labels, values, drop_intermediate=False)
    shown = np.unique(np.searchsorted(false + true, np.linspace(0, 2, _CURVE_POINTS)).clip(max=len(true) - 1))
    return Signal(name, meaning, float(auc(false, true)), tuple(false[shown].tolist()), tuple(true[shown].tolist()))
