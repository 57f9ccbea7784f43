"""The folder that a benchmark writes: what was asked (`config.json`, first), `result.json`, plots."""

import json
from pathlib import Path
from typing import Any

from dsl_train.base import files
from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.bench.live import LiveResult
from dsl_train.bench.lossless import VerifyResult
from dsl_train.bench.replay import ReplayTable
from dsl_train.report import plots

CONFIG, RESULT = "config.json", "result.json"


def begin(folder: Path, config: dict[str, Any]) -> None:
    """Write down what will be measured, before it takes time. The same configuration again replaces its results.

    Raises DslError if the folder cannot be written or holds the results of another configuration.
    """
    path = folder / CONFIG
    existing = _read(path)
    for name in config if existing else ():
        if existing.get(name) != config[name]:
            raise DslError(
                f"{folder} holds another benchmark: its {name} is {existing.get(name)!r}, now {config[name]!r}; "
                "choose another folder with --output"
            )
    try:
        files.write_json(path, config)
    except OSError as error:
        raise DslError(f"output folder {folder} cannot be written ({error}); choose another with --output") from error


def finish(folder: Path, result: LiveResult | ReplayTable | CostProfile | VerifyResult) -> None:
    """Write plots, then the numbers with the software and command they come from."""
    if isinstance(result, LiveResult):
        plots.save_live(result, folder)
    elif isinstance(result, ReplayTable):
        plots.save_replay(result, folder)
    origin = {"versions": files.software_versions(), "command": files.command_line()}
    files.write_json(folder / RESULT, {**result.to_dict(), **origin})


def _read(path: Path) -> dict[str, Any]:
    """What was asked before; empty if nothing was."""
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise DslError(f"{path} is damaged ({error}); choose another folder with --output") from error
