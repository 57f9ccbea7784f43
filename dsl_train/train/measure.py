"""Measures a trained predictor on the prompts that it has not seen, for config.json and the card.

Knows decisions, replay and survival estimates; knows no network. Letters: N decisions, Q sequences.
"""

from typing import Any

import numpy as np

from dsl_train.features import entries
from dsl_train.predictor.runtime import ThresholdTable
from dsl_train.replay.rounds import replay_static, replay_survival
from dsl_train.replay.tuning import tune_static
from dsl_train.traces.decisions import Decisions
from dsl_train.train import metrics
from dsl_train.train.data import SPLITS, TraceDataModule

#: Prices at which the held-out replay is reported [target steps].
REPORTED_C = (0.05, 0.1, 0.2, 0.3)
#: Thresholds tried on the held-out prompts, to see how much better than the table's own one could be.
BRUTE_FORCE = tuple(i / 50 for i in range(1, 50))


def measure(decisions: Decisions, data: TraceDataModule, survival: np.ndarray, table: ThresholdTable) -> dict[str, Any]:
    """Test metrics of the predictor and of its floor, and replay on the held-out prompts; `survival` is [N].

    If the traces have several temperatures, each is also measured by itself, against the static lookahead that is best
    at it. If only some texts have all their tails, only those are measured.
    """
    sides = [data.split_of_sequence == SPLITS.index(split) for split in ("train", "test")]
    keep = np.logical_or(*(decisions.replayable(side) for side in sides))
    survival, splits = survival[keep[decisions.sequence]], data.split_of_sequence[keep]
    decisions = decisions.select(keep)
    rows, train_rows = (
        np.flatnonzero(splits[decisions.sequence] == SPLITS.index(split)) for split in ("test", "train")
    )
    labels, position = decisions.survival, decisions.position
    core = [entries.FEATURE_NAMES.index(name) for name in entries.CORE]
    train_core, test_core = (decisions.features[part][:, core] for part in (train_rows, rows))
    floor = metrics.logistic_floor(train_core, labels[train_rows], test_core)
    prompts = np.asarray(decisions.prompt_ids)
    temperatures = np.array([round(float(sequence.temperature), 6) for sequence in decisions.sequences])  # [Q]
    several = sorted(set(temperatures.tolist()))
    return {
        "test": metrics.evaluate(survival[rows], labels[rows], position[rows]),
        "floor": metrics.evaluate(floor, labels[rows], position[rows]),
        "replay": _replay(decisions, splits, survival, table),
        "by_temperature": [
            {"temperature": value, **_measure_some(decisions, temperatures == value, splits, survival, table)}
            for value in (several if len(several) > 1 else [])
        ],
        "num_rows": {split: len(data.rows[split]) for split in SPLITS},
        "num_prompts": {split: len(np.unique(prompts[splits == code])) for code, split in enumerate(SPLITS)},
    }


def _measure_some(
    decisions: Decisions, keep: np.ndarray, splits: np.ndarray, survival: np.ndarray, table: ThresholdTable
) -> dict[str, Any]:
    """The same for some sequences only; `keep` and `splits` are [Q]."""
    chosen, estimates = decisions.select(keep), survival[keep[decisions.sequence]]
    rows = np.flatnonzero(splits[keep][chosen.sequence] == SPLITS.index("test"))
    return {
        "test": metrics.evaluate(estimates[rows], chosen.survival[rows], chosen.position[rows]),
        "replay": _replay(chosen, splits[keep], estimates, table),
    }


def _replay(
    decisions: Decisions, splits: np.ndarray, survival: np.ndarray, table: ThresholdTable
) -> list[dict[str, Any]]:
    """Tokens per target step on the test prompts, compared with the static lookahead that was best in training and with
    the best threshold for these prompts."""
    is_test = splits == SPLITS.index("test")
    test, estimates = decisions.select(is_test), survival[is_test[decisions.sequence]]
    statics = tune_static(decisions.select(splits == SPLITS.index("train")), REPORTED_C)
    anywhere = [replay_survival(test, estimates, threshold) for threshold in BRUTE_FORCE]
    reported = []
    for c, static in zip(REPORTED_C, statics, strict=True):
        lookahead = int(static.spec.partition(":")[2])
        rate = replay_survival(test, estimates, table.at(c)).rate(c)
        static_rate = replay_static(test, lookahead).rate(c)
        reported.append(
            {
                "c": c,
                "threshold": table.at(c),
                "rate": rate,
                "static_lookahead": lookahead,
                "static_rate": static_rate,
                "gain": rate / static_rate - 1.0,
                "best_threshold_rate": max(result.rate(c) for result in anywhere),
            }
        )
    return reported
