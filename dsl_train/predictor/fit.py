"""`dsl-train` from Python: traces in, artifact folder out.

    traces -> decisions -> split by prompt -> train -> calibrate -> threshold table -> metrics -> ONNX, config, card

Letters: N decisions, F features.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsl_train import decisions, schema
from dsl_train.decisions import Decisions
from dsl_train.predictor import artifact, metrics
from dsl_train.predictor.config import C_GRID, TrainConfig
from dsl_train.predictor.data import SPLITS, Split, TraceDataModule
from dsl_train.predictor.network import SurvivalNetwork
from dsl_train.predictor.runtime import ThresholdTable
from dsl_train.predictor.trainer import load_best, one_thread, train
from dsl_train.replay import replay_static, replay_survival, solve_thresholds
from dsl_train.traces import open_traces
from dsl_train.tuning import tune_static

#: Prices at which the held-out replay is reported [target steps].
REPORTED_C = (0.05, 0.1, 0.2, 0.4)
_PARITY_ROWS = 4096


@dataclass(frozen=True)
class TrainResult:
    output: Path
    shipped: Path | None
    """The draft's `dsl` folder, if it got a copy."""
    num_rows: int
    epochs: int | None
    """Run; None if only exported."""
    seconds: float
    metrics: dict[str, Any]
    """As in config.json."""
    threshold_table: ThresholdTable

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "shipped": self.shipped and str(self.shipped),
            "num_rows": self.num_rows,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "threshold_table": {"c_eff": self.threshold_table.c_eff, "threshold": self.threshold_table.threshold},
        }


def fit(config: TrainConfig) -> TrainResult:
    """Train a predictor, or only export it. Raises DslError, before any work if something is in the way."""
    began = time.perf_counter()
    artifact.check_output(config)
    if config.ship_to:
        artifact.check_ship_to(config.ship_to)
    traces = open_traces(config.traces)
    if config.ship_to:
        artifact.check_ship_to(config.ship_to, traces.pair)
    all_decisions = decisions.build(traces, config.max_lookahead)
    data = TraceDataModule(all_decisions, all_decisions.prompt_ids, config.names, config.batch_size, config.seed)
    with one_thread():
        network, epochs = _best_network(config, data)
        _calibrate(network, data)
        survival = _survival(network, data.features)
    table = _solve(all_decisions, data, survival)
    measured = _measure(all_decisions, data, survival, table)
    rows = data.part("test")[0][:_PARITY_ROWS]
    described = artifact.write_artifact(config.output, network, config.names, rows, table, measured, all_decisions)
    return TrainResult(
        output=config.output,
        shipped=artifact.ship(config.output, config.ship_to) if config.ship_to else None,
        num_rows=len(all_decisions),
        epochs=epochs,
        seconds=time.perf_counter() - began,
        metrics=described["metrics"],
        threshold_table=table,
    )


def _best_network(config: TrainConfig, data: TraceDataModule) -> tuple[SurvivalNetwork, int | None]:
    if config.export_only:
        return load_best(config.output / artifact.TRAINING, config).network, None
    partial = artifact.training_folder(config.output)
    module, epochs = train(config, data, partial)
    artifact.keep_training(config, partial)
    return module.network, epochs


@torch.no_grad()
def _calibrate(network: SurvivalNetwork, data: TraceDataModule) -> None:
    features, labels = data.part("val")
    network.calibrate(*metrics.platt(network(features).numpy(), labels.numpy()))


@torch.no_grad()
def _survival(network: SurvivalNetwork, features: torch.Tensor) -> np.ndarray:
    return torch.cat([network.survival(part) for part in features.split(65_536)]).numpy()


def _solve(all_decisions: Decisions, data: TraceDataModule, survival: np.ndarray) -> ThresholdTable:
    chosen, estimates = _select(all_decisions, data, "train", survival)
    return ThresholdTable(C_GRID, tuple(solve_thresholds(chosen, estimates, C_GRID)))


def _measure(
    all_decisions: Decisions, data: TraceDataModule, survival: np.ndarray, table: ThresholdTable
) -> dict[str, Any]:
    """Test metrics of the predictor and of its floor, and both stop rules replayed on the held-out prompts."""
    rows, train_rows = data.rows["test"], data.rows["train"]
    labels, position = all_decisions.survival, all_decisions.position
    core = [schema.FEATURE_NAMES.index(name) for name in schema.CORE]
    train_core, test_core = (all_decisions.features[part][:, core] for part in (train_rows, rows))
    floor = metrics.logistic_floor(train_core, labels[train_rows], test_core)
    prompts = np.asarray(all_decisions.prompt_ids)
    return {
        "test": metrics.evaluate(survival[rows], labels[rows], position[rows]),
        "floor": metrics.evaluate(floor, labels[rows], position[rows]),
        "replay": _replay(all_decisions, data, survival, table),
        "num_rows": {split: len(data.rows[split]) for split in SPLITS},
        "num_prompts": {
            split: len(set(prompts[data.split_of_sequence == code].tolist())) for code, split in enumerate(SPLITS)
        },
    }


def _replay(
    all_decisions: Decisions, data: TraceDataModule, survival: np.ndarray, table: ThresholdTable
) -> list[dict[str, Any]]:
    """Tokens per target step on held-out prompts, next to the static lookahead that was best in training."""
    test, estimates = _select(all_decisions, data, "test", survival)
    statics = tune_static(_select(all_decisions, data, "train", survival)[0], REPORTED_C)
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
            }
        )
    return reported


def _select(
    all_decisions: Decisions, data: TraceDataModule, split: Split, survival: np.ndarray
) -> tuple[Decisions, np.ndarray]:
    """Decisions of one split and their survival."""
    keep = data.split_of_sequence == SPLITS.index(split)
    return all_decisions.select(keep), survival[data.rows[split]]
