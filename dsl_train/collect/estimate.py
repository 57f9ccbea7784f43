"""`--dry_run`: what a collection would do, and what it would cost by one measured batch. Writes nothing that stays."""

import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dsl_train.base.records import DslError
from dsl_train.collect import folder as folders
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.draft_temperature import drafted_at, given_temperatures
from dsl_train.collect.plan import make_plan
from dsl_train.collect.worker import FinishedPart, Worker
from dsl_train.traces import store


@dataclass(frozen=True)
class Estimate:
    """Of one shard; what is left of it is extrapolated from its first texts."""

    folder: Path
    shard: int
    num_shards: int
    num_texts: int
    """To collect in this shard."""
    num_texts_of_all: int
    """In all shards."""
    num_rejects: int
    """Rows of this shard put aside on reading."""
    num_parts: int
    num_parts_done: int
    num_measured: int
    """Texts of the measured batch."""
    measured_seconds: float
    num_tokens: int
    """Response tokens of all texts of the shard."""
    num_rows: int
    disk_bytes: int
    seconds_left: float
    """Loading and finished parts left out; divided among the actors, if there are several."""
    peak_memory_bytes: int
    """Of this process, models included; on a GPU, of the GPU."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def estimate(config: CollectConfig) -> Estimate:
    """Load the pair, collect one batch of what is left, forget it.

    Raises DslError for whatever `collect` would refuse, and if none of the batch's texts can be used.
    """
    plan = make_plan(config)
    changed = folders.check(plan.folder, plan.describe(), plan.inputs)
    done = [part for part in store.completed_parts(plan.folder) if part != changed]
    tasks = plan.inputs.tasks
    left = [task for part, tasks_of_part in plan.parts.items() if part not in done for task in tasks_of_part]
    first = (left or tasks)[: config.batch_size]
    temperatures = given_temperatures(config, first)
    worker = Worker(plan.config)
    began = time.perf_counter()
    batch = worker.collect_part(0, [drafted_at(task, temperatures) for task in first])
    seconds = time.perf_counter() - began
    if not batch.sequences:
        raise DslError(
            f"none of the first {batch.num_tasks} texts could be used; the first: {batch.rejected[0].reason}"
        )
    scale = len(tasks) / batch.num_tasks
    return Estimate(
        folder=plan.folder,
        shard=plan.shard.index,
        num_shards=plan.shard.number,
        num_texts=len(tasks),
        num_texts_of_all=plan.inputs.num_tasks,
        num_rejects=len(plan.inputs.rejected),
        num_parts=len(plan.parts),
        num_parts_done=len(done),
        num_measured=batch.num_tasks,
        measured_seconds=seconds,
        num_tokens=round(batch.counts.num_tokens * scale),
        num_rows=round(batch.counts.num_rows * scale),
        disk_bytes=round(_size(batch) * scale),
        seconds_left=seconds / batch.num_tasks * len(left) / config.num_actors,
        peak_memory_bytes=_peak_memory(worker.pair.target.device),
    )


def _size(batch: FinishedPart) -> int:
    with tempfile.TemporaryDirectory() as folder:
        store.write_part(Path(folder), batch.part, batch.rows, batch.sequences)
        return sum(file.stat().st_size for file in Path(folder).glob("*/*"))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
