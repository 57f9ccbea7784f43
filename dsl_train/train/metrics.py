"""How good survival estimates are on any rows, the floor that they must beat, and calibration.

Letters: N rows. `survival` is the estimate in (0, 1), `labels` the truth in {0, 1}.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_NUM_BINS = 15
_FLOOR_ROWS = 100_000
_CLIP = 1e-6
#: Strength of the penalty on the shift of a position: it weighs as much as this many rows with p * (1 - p) = 1.
_DOUBT = 100.0


def evaluate(survival: np.ndarray, labels: np.ndarray, position: np.ndarray) -> dict[str, Any]:
    """AUC, log loss, Brier score and ECE of all rows, and AUC and ECE at each position. All arguments [N].

    AUC is None where only one class occurs.
    """
    by_position = []
    for value in np.unique(position):
        rows = position == value
        by_position.append(
            {
                "position": int(value),
                "num_rows": int(rows.sum()),
                "survival_rate": float(labels[rows].mean()),
                "auc": _auc(survival[rows], labels[rows]),
                "ece": calibration_error(survival[rows], labels[rows]),
            }
        )
    clipped = np.clip(survival.astype(np.float64), _CLIP, 1 - _CLIP)
    return {
        "num_rows": len(labels),
        "survival_rate": float(labels.mean()),
        "auc": _auc(survival, labels),
        "log_loss": float(log_loss(labels, clipped, labels=[0, 1])),
        "brier": float(brier_score_loss(labels, clipped, pos_label=1)),
        "ece": calibration_error(survival, labels),
        "by_position": by_position,
    }


def calibration_error(survival: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error over bins of equal width: mean |estimate - frequency|, weighted by rows."""
    bins = np.minimum((survival * _NUM_BINS).astype(int), _NUM_BINS - 1)
    gaps = np.bincount(bins, weights=survival.astype(np.float64) - labels, minlength=_NUM_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def platt(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Slope and shift that make sigmoid(slope * logit + shift) fit the labels; (1, 0) if that would not be rising."""
    if labels.min() == labels.max():
        return 1.0, 0.0
    model = LogisticRegression(C=1e4).fit(logits[:, None].astype(np.float64), labels, weights)
    slope, shift = float(model.coef_[0, 0]), float(model.intercept_[0])
    return (slope, shift) if slope > 0 else (1.0, 0.0)


def position_shifts(
    logits: np.ndarray,
    labels: np.ndarray,
    position: np.ndarray,
    num_positions: int,
    weights: np.ndarray | float = 1.0,
) -> np.ndarray:
    """[num_positions] what to add to the logits [N] so that every position is right on average; nearly 0 for a position
    with few rows. `position` [N] is below `num_positions`."""

    def loss(shifts: np.ndarray) -> tuple[float, np.ndarray]:
        """Cross-entropy with a penalty on the shifts, and its gradient."""
        shifted = logits + shifts[position]
        value = (weights * (np.logaddexp(0.0, shifted) - labels * shifted)).sum() + _DOUBT / 2 * (shifts**2).sum()
        return value, np.bincount(position, weights * (expit(shifted) - labels), num_positions) + _DOUBT * shifts

    return minimize(loss, np.zeros(num_positions), jac=True, method="BFGS").x


def logistic_floor(train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int = 0) -> np.ndarray:
    """Survival [N of test] by logistic regression on `train` [n, features]: what any network has to beat."""
    if labels.min() == labels.max():
        return np.full(len(test), float(labels.mean()))
    rows = np.random.default_rng(seed).permutation(len(labels))[:_FLOOR_ROWS]
    if labels[rows].min() == labels[rows].max():
        rows = np.arange(len(labels))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(train[rows], labels[rows])
    return model.predict_proba(test)[:, 1]


def _auc(survival: np.ndarray, labels: np.ndarray) -> float | None:
    return float(roc_auc_score(labels, survival)) if labels.min() != labels.max() else None
