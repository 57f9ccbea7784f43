"""The trace folder while it is being filled: whose turn it is, what is being collected, what was put aside.

rejects/reading.jsonl      rows that could not be used, with file, row and reason
rejects/part-00000.jsonl   texts of a part that could not be labelled
cost.json                  what the pair's steps cost where it was collected
draft_temperature.json     at which temperature the draft draws for each of the target's, once it is estimated
"""

import fcntl
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsl_train.base import files
from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.collect.tasks import Inputs, Rejected
from dsl_train.traces import store
from dsl_train.traces.store import Counts

ON_READING = "reading"
_COST = "cost.json"
_DRAFT_TEMPERATURE = "draft_temperature.json"
_MOST_REASONS = 20
_NUMBER, _HASH = "prompts' number", "prompts' hash"
_log = logging.getLogger(__name__)
#: Options that change where or how fast, not which rows; models and prompts are compared by content.
_NOT_COMPARED = (
    *("target", "draft", "prompts", "responses", "output", "column", "split", "num_prompts"),
    *("server", "server_model", "server_requests"),
    *("dtype", "device", "device_map", "quantization", "num_threads", "batch_size"),
    *("num_shards", "shard_index", "executor", "num_actors", "gpus_per_actor", "dry_run"),
)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it; the lock goes with the process, however that ends. Clears what a kill left over."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise DslError(f"output folder {folder} cannot be written ({error}); choose another with --output") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DslError(
                f"another dsl-collect is writing into {folder}; wait for it, or choose another folder with --output"
            ) from error
        for leftover in folder.glob("**/.*.tmp"):
            leftover.unlink()
        yield


def begin(folder: Path, collection: dict[str, Any], inputs: Inputs) -> None:
    """Write `collection.json`, or check that the folder holds the same collection (`check`), which may grow: then its
    last part, if that was not full, is collected again."""
    path = folder / store.COLLECTION
    changed = check(folder, collection, inputs)
    if path.is_file() and _prompts_in(path) == collection["prompts"]:
        return
    (folder / store.MANIFEST).unlink(missing_ok=True)
    if changed is not None:
        store.remove_part(folder, changed)
    files.write_json(path, collection)


def check(folder: Path, collection: dict[str, Any], inputs: Inputs) -> int | None:
    """Raises DslError naming the first difference and both values, if the folder holds another collection.

    One of the first of these texts is the same collection. Returns the number of the part that it ends in and that more
    texts belong to; None if there is no such part.
    """
    path = folder / store.COLLECTION
    if not path.is_file():
        if store.completed_parts(folder):
            raise DslError(f"{folder} has parts but no {path.name}; choose another folder with --output")
        return None
    try:
        existing = _compared(json.loads(path.read_text("utf-8")))
        number, size = existing[_NUMBER], existing["part_size"]
        grows = number < len(inputs.tasks) and inputs.hash_of_first(number) == existing[_HASH]
    except (ValueError, KeyError, TypeError) as error:
        raise DslError(f"{path} is damaged ({error!r}); choose another folder with --output") from error
    wanted = _compared(json.loads(json.dumps(collection)))
    same = (_NUMBER, _HASH) if grows else ()
    for name in existing | wanted:
        if name not in same and existing.get(name) != wanted.get(name):
            raise DslError(
                f"{folder} holds another collection: its {name} is {existing.get(name)!r}, now {wanted.get(name)!r}; "
                f"{_what_then(name, number, len(inputs.tasks))}, or choose another folder with --output"
            )
    return number // size if grows and number % size else None


def _what_then(name: str, number: int, wanted: int) -> str:
    if name != _NUMBER:
        return "repeat the command that began it"
    if number > wanted:
        return f"a collection may grow but not shrink: ask for at least {number} texts with --num_prompts"
    return f"a collection may grow, but the first {number} of these texts are not those that it holds: give them first"


def _prompts_in(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))["prompts"]


def sound_parts(folder: Path) -> dict[int, Counts]:
    """Part number -> what is in it, of those complete. A damaged one costs a warning: it is collected again."""
    counts = {}
    for part in store.completed_parts(folder):
        try:
            counts[part] = store.part_counts(folder, part)
        except DslError as error:
            _log.warning("part %d will be collected again: %s", part, error)
    return counts


def part_name(part: int) -> str:
    return f"part-{part:05d}"


def write_rejects(folder: Path, name: str, rejected: Sequence[Rejected]) -> None:
    """Record what was put aside, of a part (`part_name`) or `ON_READING`; before the part itself, so that a complete
    part has it."""
    path = folder / "rejects" / f"{name}.jsonl"
    if rejected:
        lines = (json.dumps(asdict(reject), ensure_ascii=False) for reject in rejected)
        files.write_text(path, "\n".join(lines) + "\n")
    else:
        path.unlink(missing_ok=True)


def read_rejects(folder: Path) -> list[Rejected]:
    """All of them: of the parts in order, then those on reading."""
    files = sorted((folder / "rejects").glob("*.jsonl"))
    return [Rejected(**json.loads(line)) for file in files for line in file.read_text("utf-8").splitlines()]


def count_by_reason(rejected: Sequence[Rejected]) -> dict[str, int]:
    """How often each, most frequent first; reasons that differ in a number or a quoted text are one."""
    counts = Counter(re.sub(r"'[^']*'|\d[\d.,]*", "…", reject.reason) for reject in rejected)
    return dict(counts.most_common(_MOST_REASONS))


def write_cost(folder: Path, cost: CostProfile) -> None:
    """Once: whatever is measured later does not replace it."""
    if not (folder / _COST).is_file():
        files.write_json(folder / _COST, cost.to_dict())


def read_cost(folder: Path) -> dict[str, Any] | None:
    """None if no text could be collected."""
    path = folder / _COST
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def write_draft_temperatures(folder: Path, temperatures: Mapping[float, float]) -> None:
    """Target temperature -> the draft's; every run of a collection uses what the first one found."""
    files.write_json(folder / _DRAFT_TEMPERATURE, {f"{target:g}": draft for target, draft in temperatures.items()})


def read_draft_temperatures(folder: Path) -> dict[float, float] | None:
    """None if they are not estimated yet."""
    path = folder / _DRAFT_TEMPERATURE
    if not path.is_file():
        return None
    return {float(target): float(draft) for target, draft in json.loads(path.read_text("utf-8")).items()}


def _compared(collection: dict[str, Any]) -> dict[str, Any]:
    models = {
        f"{role}'s {key}": value
        for role in ("target", "draft")
        for key, value in collection["pair"][role].items()
        if key != "id"
    }
    config = {name: value for name, value in collection["config"].items() if name not in _NOT_COMPARED}
    prompts = {f"prompts' {key}": value for key, value in collection["prompts"].items()}
    return {**models, **prompts, **config, "device": collection["device"], "schema": collection["schema"]}
