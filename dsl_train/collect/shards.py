"""A collection from beginning to end: part by part, resumable at any moment, one writer per folder.

`collection.json` says what is being collected; a part is there once both its files are; `manifest.json` comes last.
How a text is collected is the collector's business, where it is collected the executor's.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dsl_train.base import files
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect import folder as folders
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.draft_temperature import drafted_at, estimate_temperatures, given_temperatures
from dsl_train.collect.plan import Plan, make_plan
from dsl_train.collect.tasks import Rejected
from dsl_train.collect.worker import FinishedPart, Parts, collect_here
from dsl_train.traces import store
from dsl_train.traces.store import Counts


@dataclass(frozen=True)
class Collection:
    """A complete trace folder."""

    folder: Path
    traces: Path
    """What dsl-train is pointed at: the folder, or that of all shards."""
    counts: Counts
    rejected: tuple[Rejected, ...]
    """Rows and texts put aside, from this and earlier runs."""
    seconds: float
    """Of this run; parts found complete took none."""
    rows_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": str(self.folder),
            **asdict(self.counts),
            "acceptance_rate": self.counts.acceptance_rate,
            "num_rejects": len(self.rejected),
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second,
        }


def collect(config: CollectConfig) -> Collection:
    """Collect what `config.output` still lacks.

    Raises DslError for bad input, a folder in use or of another collection, a full disk (finished parts stay), or if
    no text at all could be used.
    """
    plan = make_plan(config)
    with folders.locked(plan.folder):
        folders.begin(plan.folder, plan.describe(), plan.inputs)
        return _collect_parts(plan)


def _collect_parts(plan: Plan) -> Collection:
    folder, parts = plan.folder, plan.parts
    found = folders.sound_parts(folder)
    left = {part: tasks for part, tasks in parts.items() if part not in found}
    if left:
        (folder / store.MANIFEST).unlink(missing_ok=True)
    folders.write_rejects(folder, folders.ON_READING, plan.inputs.rejected)
    temperatures = _draft_temperatures(plan)
    arriving = _execute(plan.config, {part: [drafted_at(task, temperatures) for task in left[part]] for part in left})
    progress = _Progress(len(plan.inputs.tasks), sum(found.values(), Counts()))
    with progress.bar:
        progress.advance(sum(len(parts[part]) for part in found), Counts())
        for finished in arriving:
            _write(folder, finished)
            progress.advance(finished.num_tasks, finished.counts)
    rejected = folders.read_rejects(folder)
    if not progress.counts.num_sequences and plan.shard.number == 1:
        raise DslError(f"none of the {len(plan.inputs.tasks)} texts could be used; the first: {rejected[0].reason}")
    where = (folder, Path(plan.config.output))
    collection = Collection(*where, progress.counts, tuple(rejected), progress.seconds, progress.rows_per_second)
    if not (folder / store.MANIFEST).is_file():
        store.write_manifest(folder, {**plan.describe(), **_outcome(plan.config, collection, temperatures)})
    return collection


def _draft_temperatures(plan: Plan) -> dict[float, float]:
    """Target temperature -> the draft's: as given, or as estimated by the run that began the folder."""
    if plan.config.draft_temperature != "auto":
        return given_temperatures(plan.config, plan.inputs.tasks)
    found = folders.read_draft_temperatures(plan.folder)
    if found is None:
        found = estimate_temperatures(plan.config, plan.inputs.tasks)
        folders.write_draft_temperatures(plan.folder, found)
    return found


def _execute(config: CollectConfig, parts: Parts) -> Iterator[FinishedPart]:
    """In any order."""
    if config.executor == "local":
        return collect_here(config, parts)
    from dsl_train.collect.ray import collect_by_actors

    return collect_by_actors(config, parts)


def _write(folder: Path, finished: FinishedPart) -> None:
    """The part's own files last: it is complete with all that belongs to it."""
    try:
        folders.write_rejects(folder, folders.part_name(finished.part), finished.rejected)
        if finished.cost:
            folders.write_cost(folder, finished.cost)
        store.write_part(folder, finished.part, finished.rows, finished.sequences)
    except OSError as error:
        raise DslError(
            f"part {finished.part} could not be written to {folder} ({error}); the parts before it are safe: "
            "make room and run the same command again"
        ) from error


def _outcome(config: CollectConfig, collection: Collection, temperatures: dict[float, float]) -> dict[str, Any]:
    return {
        "method": config.method,
        "sampling": {**_given(config.sampling), "max_new_tokens": config.max_new_tokens, "seed": config.seed},
        "counts": {**asdict(collection.counts), "acceptance_rate": collection.counts.acceptance_rate},
        "draft_temperature": {f"{target:g}": draft for target, draft in temperatures.items()},
        "cost": folders.read_cost(collection.folder),
        "num_rejects": len(collection.rejected),
        "rejects_by_reason": folders.count_by_reason(collection.rejected),
        "last_run": {"seconds": collection.seconds, "rows_per_second": collection.rows_per_second},
        "versions": files.software_versions(),
        "argv": files.command_line(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _given(sampling: Sampling) -> dict[str, Any]:
    return {name: value for name, value in asdict(sampling).items() if value is not None}


class _Progress:
    """A bar on stderr, and the running totals it shows."""

    def __init__(self, num_texts: int, counts: Counts) -> None:
        self.counts, self._found_rows, self._began = counts, counts.num_rows, time.perf_counter()
        columns = (
            TextColumn("collecting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("texts, {task.fields[rows_per_second]:,.0f} rows/s, {task.fields[acceptance]:.0%} accepted"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True))
        self._task = self.bar.add_task("", total=num_texts, rows_per_second=0.0, acceptance=counts.acceptance_rate)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def rows_per_second(self) -> float:
        return (self.counts.num_rows - self._found_rows) / self.seconds

    def advance(self, num_texts: int, counts: Counts) -> None:
        self.counts += counts
        rate, acceptance = self.rows_per_second, self.counts.acceptance_rate
        self.bar.update(self._task, advance=num_texts, rows_per_second=rate, acceptance=acceptance)
