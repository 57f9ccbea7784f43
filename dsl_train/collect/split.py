"""Which share of a collection this process takes: as given, or from the environment of torchrun, srun or an array job.

Knows environment variables; starts no process.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dsl_train.base.records import DslError
from dsl_train.traces import store


@dataclass(frozen=True)
class Shard:
    """One of `number` shares, numbered from 0."""

    index: int = 0
    number: int = 1

    def takes(self, position: int) -> bool:
        """Whether the input number `position` is in it; inputs go to the shards in turn."""
        return position % self.number == self.index

    def folder(self, output: Path) -> Path:
        """Its own trace folder; a collection that is not split is its output folder itself."""
        return output if self.number == 1 else store.shard_folder(output, self.index, self.number)


def shard_of(num_shards: int | None, shard_index: int | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """As given; else from WORLD_SIZE and RANK (torchrun), else of the srun step and the array job together.

    Raises DslError if that gives no shard.
    """
    if num_shards is not None:
        return _checked(shard_index or 0, num_shards, "--num_shards and --shard_index")
    if "WORLD_SIZE" in environment:
        return _checked(_get(environment, "RANK"), _get(environment, "WORLD_SIZE"), "RANK and WORLD_SIZE")
    index, number = 0, 1
    if "SLURM_ARRAY_TASK_COUNT" in environment:
        step = _get(environment, "SLURM_ARRAY_TASK_STEP", 1)
        index = (_get(environment, "SLURM_ARRAY_TASK_ID") - _get(environment, "SLURM_ARRAY_TASK_MIN")) // step
        number = _get(environment, "SLURM_ARRAY_TASK_COUNT")
    if "SLURM_STEP_NUM_TASKS" in environment:  # set by srun alone: a batch script by itself is one process
        tasks = _get(environment, "SLURM_STEP_NUM_TASKS")
        index, number = index * tasks + _get(environment, "SLURM_PROCID"), number * tasks
    return _checked(index, number, "the SLURM_ variables")


def local_device(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """`auto` with several GPUs in sight becomes this process's own, by LOCAL_RANK or SLURM_LOCALID."""
    count = torch.cuda.device_count()
    name = next((name for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in environment), None)
    return device if device != "auto" or count < 2 or name is None else f"cuda:{_get(environment, name) % count}"


def _get(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, default)
    try:
        return int(text)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DslError(f"{name} is {text!r}, not a number; give --num_shards and --shard_index") from error


def _checked(index: int, number: int, source: str) -> Shard:
    if not 0 <= index < number:
        raise DslError(
            f"{source} say shard {index} of {number}, which is not one of 0 to {number - 1}; "
            "give --num_shards and --shard_index"
        )
    return Shard(index, number)
