"""The acceptance model of `specdec++`, fitted on reached draft tokens of traces.

    decision at position   1                    2                    3
    describes draft        1                    2                    3
    reached                always               draft 1 accepted     drafts 1 and 2 accepted
    label                  draft 1 accepted     draft 2 accepted     draft 3 accepted

Knows decisions and scikit-learn; knows no replay and loads no model. Letters: N decisions.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.policies.specdec import AcceptanceModel, inputs_of
from dsl_train.traces.decisions import Decisions

HIDDEN, EPOCHS, MAX_ROWS = 64, 12, 300_000


def fit_acceptance(decisions: Decisions, seed: int = 0, names: Sequence[str] = FEATURE_NAMES) -> AcceptanceModel:
    """Fit on the features `names` of at most MAX_ROWS reached draft tokens, drawn at random.

    The cross-entropy has no class weights, because tuning the threshold has the same effect.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    run = np.repeat(decisions.run, decisions.num_decisions)
    reached = np.flatnonzero((decisions.position >= 1) & (decisions.position <= run + 1))
    rows = np.random.default_rng(seed).permutation(reached)[:MAX_ROWS]
    inputs, accepted = inputs_of(decisions.features[rows]), decisions.position[rows] <= run[rows]
    mean, spread = inputs.mean(0), inputs.std(0)
    scale = np.where(spread > 1e-6, spread, 1.0)
    used = np.isin(FEATURE_NAMES, names)
    batch_size = min(1024, len(rows))
    network = MLPClassifier(
        (HIDDEN,), batch_size=batch_size, learning_rate_init=2e-3, max_iter=EPOCHS, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed on purpose
        network.fit(used * (inputs - mean) / scale, accepted)
    (hidden_weights, output_weights), (hidden_bias, output_bias) = network.coefs_, network.intercepts_
    return AcceptanceModel(
        mean, scale, used[:, None] * hidden_weights, hidden_bias, output_weights[:, 0], float(output_bias[0])
    )


def acceptance_products(decisions: Decisions, model: AcceptanceModel) -> np.ndarray:
    """[N] product of the predicted acceptances of all drafts before each decision; 1 before the first."""
    logs = np.where(decisions.position == 0, 0.0, np.log(model.probs(decisions.features)))
    sums = np.cumsum(logs)
    before = np.append(0.0, sums)[decisions.offsets[:-1]]  # of each start's first decision
    return np.exp(sums - np.repeat(before, decisions.num_decisions))
