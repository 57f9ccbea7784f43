"""What the predictor answers where it could be guessed: the tables of `guess.py`, from traces.

Letters: N decisions, Q sequences, P pairs of a guess and its answer, B bins, M answers kept.
"""

import numpy as np

from dsl_train.base.guess import GuessTable
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.replay.rounds import replay_survival, start_numbers
from dsl_train.traces.decisions import Decisions

BINS, ANSWERS = 16, 12
_DIGITS = 4


def fit_guesses(decisions: Decisions, survival: np.ndarray, threshold: float) -> tuple[GuessTable, ...]:
    """One table for each temperature, from the rounds that the policy makes at a usual threshold; `survival` [N] is the
    predictor's."""
    rounds = replay_survival(decisions, survival, threshold)
    met = np.zeros(len(decisions.run), dtype=bool)
    met[start_numbers(decisions, rounds)] = True
    temperatures = np.array([round(float(text.temperature), 6) for text in decisions.sequences])  # [Q]
    of_decision = np.where(np.repeat(met, decisions.num_decisions), temperatures[decisions.sequence], np.nan)
    tables = []
    for temperature in sorted(set(temperatures.tolist())):
        chosen = of_decision == temperature
        guesses, answers = guessed(decisions.features[chosen], decisions.position[chosen], survival[chosen])
        first = survival[chosen & (decisions.position == 0)]
        if len(guesses) >= BINS * ANSWERS:
            tables.append(_table(temperature, guesses, answers, first))
    return tuple(tables)


def guessed(features: np.ndarray, position: np.ndarray, survival: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[P], [P]: guesses from the answer one and two drafts before and from the block's beginning, with the answers.
    The decisions of a start follow one another."""
    probs = np.exp(features[:, FEATURE_NAMES.index("token_log_prob")].astype(np.float64))
    block_probs = np.exp(features[:, FEATURE_NAMES.index("block_log_prob")].astype(np.float64))
    one, two = (np.flatnonzero(position >= depth) for depth in (1, 2))
    guesses = (block_probs[one], survival[one - 1] * probs[one], survival[two - 2] * probs[two - 1] * probs[two])
    return np.concatenate(guesses), np.concatenate([survival[one], survival[one], survival[two]])


def _table(temperature: float, guesses: np.ndarray, answers: np.ndarray, first: np.ndarray) -> GuessTable:
    edges = np.arange(1, BINS) / BINS
    bins = np.searchsorted(edges, guesses, side="right")
    in_bins = [answers[bins == number] for number in range(BINS)]
    kept = [_quantiles(own if len(own) else answers) for own in in_bins]
    return GuessTable(temperature, tuple(edges.tolist()), tuple(kept), _quantiles(first))


def _quantiles(answers: np.ndarray) -> tuple[float, ...]:
    return tuple(np.quantile(answers, (np.arange(ANSWERS) + 0.5) / ANSWERS).round(_DIGITS).tolist())
