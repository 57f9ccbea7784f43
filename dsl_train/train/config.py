"""The options of `dsl-train`. Standard library only."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsl_train.features import entries

#: Prices of a draft token, in target steps, for which the stop rule is solved.
C_GRID = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.17, 0.22, 0.3, 0.4, 0.55, 0.75, 1.0)
_NOT_IDENTITY = ("output", "ship_to", "export_only", "overwrite")


@dataclass(frozen=True)
class TrainConfig:
    """Train a predictor on traces and write it as an artifact folder."""

    traces: list[Path]
    """Trace folders of one pair, written by dsl-collect."""
    output: Path
    """Folder for predictor.onnx, config.json and README.md; logs and checkpoint go to its `training` folder."""
    features: str = "all"
    """`all`, `core`, or a comma-separated list of features and groups."""
    ship_to: Path | None = None
    """Draft model folder that gets a copy in its `dsl` folder, where generation looks first."""
    max_lookahead: int = 16
    """Most tokens a round may draft."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    epochs: int = 8
    """Passes over the training rows; the network of the epoch with the least validation loss is kept."""
    batch_size: int = 2048
    """Rows per optimiser step; smaller for small traces, so that an epoch has at least 20 steps."""
    learning_rate: float = 5e-3
    """Peak of the learning-rate cycle."""
    seed: int = 0
    """Seed of the split by prompt, the initial weights and the order of rows."""
    export_only: bool = False
    """Skip the training: calibrate, measure and export the best checkpoint in `output` again."""
    overwrite: bool = False
    """Replace a predictor of another configuration in `output`."""

    def __post_init__(self) -> None:
        if not self.traces:
            raise ValueError("traces is empty; name at least one folder that dsl-collect wrote")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}; give one positive width per hidden layer, such as 64 64")
        for name in ("max_lookahead", "epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} but must be positive")
        entries.select(self.features)

    @property
    def names(self) -> tuple[str, ...]:
        """The chosen features in schema order."""
        return entries.select(self.features)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, which is YAML that `--config` reads."""
        values = dataclasses.asdict(self)
        values["traces"] = [str(folder) for folder in self.traces]
        values["output"], values["ship_to"] = str(self.output), self.ship_to and str(self.ship_to)
        return {**values, "hidden": list(self.hidden)}

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that decides which predictor comes out."""
        return {key: value for key, value in self.to_dict().items() if key not in _NOT_IDENTITY}
