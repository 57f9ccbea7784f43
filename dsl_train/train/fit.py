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

from dsl_train.predictor.runtime import ThresholdTable
from dsl_train.replay.rounds import solve_thresholds
from dsl_train.traces import decisions
from dsl_train.traces.decisions import Decisions
from dsl_train.traces.store import open_traces
from dsl_train.train import artifact, metrics
from dsl_train.train.config import C_GRID, TrainConfig
from dsl_train.train.data import SPLITS, TraceDataModule
from dsl_train.train.measure import measure
from dsl_train.train.network import POSITIONS, SurvivalNetwork
from dsl_train.train.trainer import load_best, one_thread, train

_PARITY_ROWS = 4096


@dataclass(frozen=True)
class TrainResult:
    output: Path
    shipped: Path | None
    """The draft's `dsl` folder, if it got a copy."""
    num_rows: int
    epochs: int | None
    """Epochs run; None if only exported."""
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
    _ = all_decisions.verification  # before any work, refuse texts judged both ways
    data = TraceDataModule(all_decisions, all_decisions.prompt_ids, config.names, config.batch_size, config.seed)
    with one_thread():
        network, epochs = _best_network(config, data)
        _calibrate(network, data, all_decisions)
        survival = _survival(network, data.features)
    known, estimates = _trained_on(all_decisions, data, survival)
    # One threshold table for all temperatures: survival is a probability at each of them, and the rate falls slowly on
    # both sides of the best threshold (docs/study.md)
    table = ThresholdTable(C_GRID, tuple(solve_thresholds(known, estimates, C_GRID)))
    measured = measure(all_decisions, data, survival, table)
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
def _calibrate(network: SurvivalNetwork, data: TraceDataModule, all_decisions: Decisions) -> None:
    """Fit one slope, and a shift for each position that the network can tell apart, on the validation prompts."""
    rows = data.rows["val"]
    logits, labels = network(data.part("val")[0]).numpy(), all_decisions.survival[rows]
    weight = all_decisions.weight[rows]
    slope, shift = metrics.platt(logits, labels, weight)
    last = POSITIONS - 1 if network.sees_position else 0
    position = np.minimum(all_decisions.position[rows], last)
    by_position = metrics.position_shifts(slope * logits + shift, labels, position, POSITIONS, weight)
    network.calibrate(slope, shift + by_position)


@torch.no_grad()
def _survival(network: SurvivalNetwork, features: torch.Tensor) -> np.ndarray:
    return torch.cat([network.survival(part) for part in features.split(65_536)]).numpy()


def _trained_on(all_decisions: Decisions, data: TraceDataModule, survival: np.ndarray) -> tuple[Decisions, np.ndarray]:
    """The decisions of the training prompts whose replay is exact, and their survival."""
    keep = all_decisions.replayable(data.split_of_sequence == SPLITS.index("train"))
    return all_decisions.select(keep), survival[keep[all_decisions.sequence]]
