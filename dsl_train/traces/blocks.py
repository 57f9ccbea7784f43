"""What is expected to be kept of blocks, from the ratios that traces record: arithmetic on columns.

The gain of one more draft after i of them is the expectation of w(i + 1), with w(0) = 1 and
w(i) = min(1, w(i - 1) * target/draft). Given the drafts so far this is the sum over the vocabulary of
min(w(i) * target, draft), a concave curve in w(i), of which traces record some points. Letters: N decisions, S starts,
M trace rows.
"""

import numpy as np

from dsl_train.base.schema import GAIN_WEIGHTS
from dsl_train.traces.decisions import Decisions

_POINTS = np.array([0.0, *GAIN_WEIGHTS, 1.0])


def draft_rows(decisions: Decisions, starts: np.ndarray, position: int) -> np.ndarray:
    """Trace row of the draft number `position` (from 0) of each of `starts`; -1 after the end of the recorded tail."""
    run = decisions.run[starts].astype(np.int64)
    on_text = decisions.row[starts + np.minimum(position, np.maximum(run - 1, 0))]
    rejected, beyond = decisions.rejected[starts], position - run
    known = (rejected >= 0) & (beyond <= decisions.num_after[starts])
    return np.where(beyond < 0, on_text, np.where(known, rejected + beyond, -1))


def soft_survival(decisions: Decisions) -> np.ndarray:
    """[N] float32: survival with the last random draw averaged out: the sum of min(target, draft) of the next token on
    the text, 0 after a rejected one; of blocks the sum of min(w * target, draft), w being the weight of what is
    drafted. It has the same mean as `survival` given any features, and less noise."""
    of_start = np.repeat(np.arange(len(decisions.run)), decisions.num_decisions)
    on_text = np.flatnonzero(decisions.position <= decisions.run[of_start])
    soft = np.zeros(len(decisions), dtype=np.float32)
    rows = decisions.row[of_start[on_text] + decisions.position[on_text]]
    soft[on_text] = decisions.traces.rows["accept_prob"][rows]
    return weighed(decisions, soft)


def weighed(decisions: Decisions, by_token: np.ndarray, foresees: bool = False) -> np.ndarray:
    """[N] what is expected to be kept: `by_token`, but the `expected_weights` where rounds are judged by block."""
    by_block = decisions.by_block[decisions.sequence]
    return np.where(by_block, expected_weights(decisions, foresees), by_token) if by_block.any() else by_token


def expected_weights(decisions: Decisions, foresees: bool = False) -> np.ndarray:
    """[N] float32: E[w] of all drafts before a decision and the next one, given those before; `foresees`: given the
    next one, too, where it is recorded. NaN for rounds that are not judged by block."""
    rows = decisions.traces.rows
    curve = np.stack([rows[name] for name in (*_names(), "accept_prob")], axis=-1).astype(np.float64)  # [M, points - 1]
    counts, found = decisions.num_decisions, np.full(len(decisions), np.nan)
    weights = np.ones(len(decisions.run))  # [S] w of the drafts so far
    is_block = decisions.by_block[decisions.start_sequence]
    for position in range(int(counts.max(initial=0))):
        starts = np.flatnonzero((counts > position) & is_block)
        drafts = draft_rows(decisions, starts, position)
        # What comes after the last token kept has one distribution, whatever is drafted from it.
        on_text = decisions.row[np.minimum(starts + position, len(decisions.row) - 1)]
        described = np.where(position <= decisions.run[starts], on_text, drafts)
        after = np.minimum(1.0, weights[starts] * np.exp(rows["log_ratio"][drafts].astype(np.float64)))
        expected = _on_curve(curve[described], weights[starts])
        if foresees:
            expected = np.where(drafts >= 0, after, expected)
        found[decisions.offsets[starts] + position] = expected
        weights[starts] = np.where(drafts >= 0, after, expected)
    return found.astype(np.float32)


def _names() -> list[str]:
    return [f"gain_{i}" for i in range(1, len(GAIN_WEIGHTS) + 1)]


def _on_curve(curve: np.ndarray, weights: np.ndarray) -> np.ndarray:  # [n, points - 1], [n] -> [n]
    """Interpolated linearly between the points; it begins at (0, 0)."""
    values = np.concatenate([np.zeros((len(curve), 1)), curve], axis=1)
    right = np.clip(np.searchsorted(_POINTS, weights), 1, len(_POINTS) - 1)
    left, which = right - 1, np.arange(len(curve))
    share = (weights - _POINTS[left]) / (_POINTS[right] - _POINTS[left])
    interpolated: np.ndarray = values[which, left] + share * (values[which, right] - values[which, left])
    return interpolated
