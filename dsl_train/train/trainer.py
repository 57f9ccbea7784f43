"""Runs Lightning: best checkpoint, loggers, progress on stderr. Knows neither traces nor artifacts."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from dsl_train.base.records import DslError, first_line
from dsl_train.train.config import TrainConfig
from dsl_train.train.data import TraceDataModule
from dsl_train.train.module import StopClassifier

BEST = "best"
_MIN_STEPS = 20  # an epoch has at least this many


class EpochLines(Callback):
    """One line an epoch on stderr, where no progress bar can be drawn."""

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            loss = trainer.callback_metrics["val_loss"].item()
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: val_loss {loss:.4f}", file=sys.stderr)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread of torch: so small a network gains nothing from more, and loses much when the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(config: TrainConfig, data: TraceDataModule, folder: Path) -> tuple[StopClassifier, int]:
    """Train on `data` and return the best model, uncalibrated, and the epochs run; logs and `best.ckpt` in `folder`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hide its notes on features and devices
    lightning.seed_everything(config.seed, verbose=False)
    data.batch_size = max(1, min(config.batch_size, len(data.rows["train"]) // _MIN_STEPS))
    module = StopClassifier(config.names, config.hidden, config.learning_rate)
    module.network.standardise(data.part("train")[0])
    checkpoint = ModelCheckpoint(folder, BEST, monitor="val_loss", save_weights_only=True, enable_version_counter=False)
    terminal = sys.stderr.isatty()
    progress: list[Callback] = [RichProgressBar(console_kwargs={"stderr": True})] if terminal else [EpochLines()]
    trainer = lightning.Trainer(
        accelerator="cpu",  # so small a network is no faster on a GPU
        devices=1,
        max_epochs=config.epochs,
        callbacks=[checkpoint, *progress],  # no early stopping: the last epochs of the cycle gain the most
        logger=[CSVLogger(folder, name="", version=""), TensorBoardLogger(folder, name="", version="")],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=_MIN_STEPS,
    )
    with warnings.catch_warnings():
        _silence_housekeeping()
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit as stopped:  # how Lightning ends on Ctrl-C
            raise KeyboardInterrupt from stopped
    return load_best(folder, config), trainer.current_epoch


def load_best(folder: Path, config: TrainConfig) -> StopClassifier:
    """The best checkpoint in `folder`. Raises DslError if it is missing, damaged or of other features."""
    path = folder / f"{BEST}.ckpt"
    if not path.is_file():
        raise DslError(f"{path} does not exist, so there is nothing to export; run dsl-train without --export_only")
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        module = StopClassifier(**saved["hyper_parameters"])
        module.load_state_dict(saved["state_dict"])
    except Exception as error:  # torch has no class of its own for a damaged file
        raise DslError(f"{path} is damaged ({first_line(error)}); run dsl-train without --export_only") from error
    names = saved["hyper_parameters"]["names"]
    if tuple(names) != config.names:
        raise DslError(
            f"{path} was trained on {len(names)} features ({', '.join(names)}), the configuration chooses "
            f"{len(config.names)} ({', '.join(config.names)}); run dsl-train without --export_only"
        )
    return module.eval()


def _silence_housekeeping() -> None:
    """Ignore notices about Lightning's own dependencies and about our log folder, which nothing here can change."""
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory .* exists and is not empty.*")
