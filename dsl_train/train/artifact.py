"""Writes the artifact folder: predictor.onnx, README.md, custom_generate and, last, config.json; protects and ships it.

Knows files; knows no training. `predictor/runtime.py` reads what this module writes.
"""

import json
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from dsl_train.base import files, schema
from dsl_train.base.records import DslError
from dsl_train.features import entries
from dsl_train.predictor.runtime import (
    CARD,
    CONFIG,
    FORMAT_VERSION,
    ONNX,
    ONNX_DIGEST,
    SHIPPED,
    Predictor,
    ThresholdTable,
    read_config,
)
from dsl_train.traces.decisions import Decisions
from dsl_train.train.card import card
from dsl_train.train.config import TrainConfig
from dsl_train.train.export import export_onnx
from dsl_train.train.network import SurvivalNetwork

TRAINING = "training"
#: Subfolder whose code transformers runs (`custom_generate=`), and what must be installed for it.
LOADER, REQUIREMENTS = "custom_generate", "dsl-train>=0.2\n"
_LOADER_SOURCE = Path(__file__).parent.parent / "hf" / "loader.py"
_TRAIN_CONFIG = "config.json"


def write_artifact(
    output: Path,
    network: SurvivalNetwork,
    names: tuple[str, ...],
    rows: torch.Tensor,
    table: ThresholdTable,
    metrics: Mapping[str, Any],
    decisions: Decisions,
) -> dict[str, Any]:
    """Write all files, each atomically, and open the result once. Returns config.json's content.

    `rows` [n, F] are real raw features for the parity check. Whoever reads the folder meanwhile is told that its files
    do not belong together, and never sees half a file.
    """
    difference = export_onnx(network, names, rows, output / ONNX)
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        ONNX_DIGEST: files.sha256(output / ONNX),
        "schema": {"version": schema.SCHEMA_VERSION, "names": list(names), "fingerprint": entries.fingerprint(names)},
        "pair": decisions.traces.pair,
        "threshold_table": {"c_eff": list(table.c_eff), "threshold": list(table.threshold)},
        "max_lookahead": decisions.max_lookahead,
        "sampling": _sampling_range(decisions),
        "draft_sampling": decisions.draft_sampling,
        "draft_temperature": decisions.draft_temperatures,
        "verification": decisions.verification,
        "metrics": {**metrics, "onnx_difference": difference, "onnx_bytes": (output / ONNX).stat().st_size},
        "cost": decisions.traces.manifests[0].get("cost"),
        "versions": {name: value for name, value in files.software_versions().items() if name != "platform"},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    files.write_text(output / CARD, card(config))
    write_loader(output)
    files.write_json(output / CONFIG, files.sealed(config))
    Predictor.load(output)
    return config


def write_loader(artifact: Path) -> None:
    """Write the file that transformers runs and its requirements; remove other modules found there."""
    folder = artifact / LOADER
    for stale in {path.name for path in folder.glob("*.py")} - {"generate.py"}:
        (folder / stale).unlink()
    files.write_text(folder / "requirements.txt", REQUIREMENTS)
    files.write_text(folder / "generate.py", _LOADER_SOURCE.read_text(encoding="utf-8"))


def check_output(config: TrainConfig) -> None:
    """Before any work, refuse an output folder in which something would be lost: a foreign config.json, such as a
    model's, or a predictor of another configuration unless `overwrite`."""
    output = config.output
    if output.exists() and not output.is_dir():
        raise DslError(f"output {output} is a file; name a folder for the predictor")
    if not (output / CONFIG).exists():
        return
    _check_is_predictor(output, "choose another --output")
    if config.overwrite:
        return
    if not (output / TRAINING / _TRAIN_CONFIG).is_file():
        raise DslError(
            f"output {output} holds a predictor without the configuration it was trained with ({TRAINING}/"
            f"{_TRAIN_CONFIG}); choose another --output, or replace it with --overwrite"
        )
    before = _read_json(output / TRAINING / _TRAIN_CONFIG)
    wanted = config.identity()
    changes = [f"{key} {before.get(key)!r}, now {wanted[key]!r}" for key in wanted if before.get(key) != wanted[key]]
    if changes:
        raise DslError(
            f"output {output} holds a predictor of another configuration ({'; '.join(changes)}); "
            f"choose another --output, or replace it with --overwrite"
        )


def check_ship_to(draft: Path, pair: Mapping[str, Any] | None = None) -> None:
    """Refuse a folder that holds no model, one of another vocabulary than the pair's draft, or a foreign `dsl`."""
    path = draft / "config.json"
    if not path.is_file():
        raise DslError(f"cannot ship to {draft}: it holds no config.json; name the draft model's own folder")
    if (draft / SHIPPED / CONFIG).exists():
        _check_is_predictor(draft / SHIPPED, "move it away")
    if pair is None:
        return
    vocab_size = _read_json(path).get("vocab_size")
    trained = pair["draft"]["vocab_size"]
    if vocab_size not in (None, trained):
        raise DslError(
            f"cannot ship to {draft}: its vocabulary has {vocab_size} tokens, that of the traced draft "
            f"({pair['draft']['id']}) {trained}; name the folder of the draft the traces were collected with"
        )


def ship(output: Path, draft: Path) -> Path:
    """Copy predictor and card to the draft's `dsl` folder, config.json last, with the code that runs them."""
    folder = draft / SHIPPED
    write_loader(folder)
    for name in (ONNX, CARD, CONFIG):
        files.write_bytes(folder / name, (output / name).read_bytes())
    return folder


def training_folder(output: Path) -> Path:
    """An empty folder for logs and checkpoints, which :func:`keep_training` renames to `training`."""
    partial = output / f"{TRAINING}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def keep_training(config: TrainConfig, partial: Path) -> None:
    """Move the folder of a finished training to its place and add the resolved configuration."""
    origin = {"argv": files.command_line(), "versions": files.software_versions()}
    files.write_json(partial / "files.json", origin)
    files.write_json(partial / _TRAIN_CONFIG, config.to_dict())
    final = config.output / TRAINING
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def _check_is_predictor(folder: Path, advice: str) -> None:
    try:
        read_config(folder)
    except DslError as error:
        raise DslError(f"{folder / CONFIG} was not written by this dsl-train and is kept; {advice}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DslError(f"{path} is damaged ({error}); restore it, or choose another folder") from error
    return content if isinstance(content, dict) else {}


def _sampling_range(decisions: Decisions) -> dict[str, list[float]]:
    sequences = decisions.sequences
    return {
        "temperatures": sorted({round(float(sequence.temperature), 6) for sequence in sequences}),
        "top_k": sorted({int(sequence.top_k) for sequence in sequences}),
        "top_p": sorted({round(float(sequence.top_p), 6) for sequence in sequences}),
    }
