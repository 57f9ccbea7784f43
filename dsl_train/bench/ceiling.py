"""The ceiling under sampling: a policy that knows the true acceptance probabilities, but not the coins.

`ceiling` decides after k drafts by the exact survival: min(1, target/draft) of each token drafted so far times
sum(min(target, draft)) of the next, before that one is drawn. No predictor that answers the loop's question can know
more. `clairvoyant` also sees min(1, target/draft) of the tokens that it has yet to draw, so it knows where to stop
before it begins: no policy can do that, and none that does not see the coins is faster.

Where rounds are judged by block, both know the weights w instead (`traces/blocks.py`): `ceiling` the expectation of w
given all tokens drafted so far, `clairvoyant` also the ratio of the next one.

Token by token, both know this wherever the traces do: up to and with the first rejected draft. After it the target has
not been run; there they know the draft's own distribution, and take the mean acceptance that goes with its largest
probability on the text. When greedy, acceptance is certain: both are the `oracle`.

Letters: N decisions, S starts, M trace rows.
"""

import numpy as np

from dsl_train.base.cost import Price
from dsl_train.replay.rounds import ReplayResult, replay_survival, solve_thresholds
from dsl_train.traces.blocks import draft_rows, weighed
from dsl_train.traces.decisions import Decisions

CEILINGS = ("ceiling", "clairvoyant")
_BINS = 20


def replay_ceiling(decisions: Decisions, name: str, price: Price) -> ReplayResult:
    """Rounds of one of CEILINGS, with the threshold that is best on these very decisions."""
    survival = known_survival(decisions, foresees=name == "clairvoyant")
    return replay_survival(decisions, survival, solve_thresholds(decisions, survival, [price])[0])


def known_survival(decisions: Decisions, foresees: bool = False) -> np.ndarray:
    """[N] P(all tokens drafted and the next one are kept); `foresees`: the next one is known, too."""
    return weighed(decisions, _known_by_token(decisions, foresees), foresees)


def _known_by_token(decisions: Decisions, foresees: bool) -> np.ndarray:
    ratio, prob, mean = _acceptances(decisions)
    coming = ratio if foresees else prob
    survival = np.empty(len(decisions))
    reached = np.ones(len(decisions.run))  # [S] product over the drafts so far
    counts = decisions.num_decisions
    for position in range(int(counts.max(initial=0))):
        starts = np.flatnonzero(counts > position)
        rows = draft_rows(decisions, starts, position)
        known = rows >= 0
        survival[decisions.offsets[starts] + position] = reached[starts] * np.where(known, coming[rows], mean)
        reached[starts] *= np.where(known, ratio[rows], mean)
    return survival


def _acceptances(decisions: Decisions) -> tuple[np.ndarray, np.ndarray, float]:
    """[M] acceptance of the drafted token and of whatever is drafted; their mean on the text."""
    rows = decisions.traces.rows
    on_text = rows["depth"] == 0
    prob = rows["accept_prob"].astype(np.float64)
    bins = np.clip((np.exp(rows["log_prob_1"]) * _BINS).astype(np.int64), 0, _BINS - 1)
    sums, sizes = (np.bincount(bins[on_text], weights, _BINS) for weights in (prob[on_text], None))
    mean = float(prob[on_text].mean())
    estimate = np.where(sizes > 0, sums / np.maximum(sizes, 1), mean)[bins]
    ratio = rows["accept_ratio"].astype(np.float64)
    return np.where(on_text, ratio, estimate), np.where(on_text, prob, estimate), mean
