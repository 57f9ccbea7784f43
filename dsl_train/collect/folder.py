"""The trace folder while it is being filled: whose turn it is, what is being collected, what was put aside."""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsl_train import provenance, traces
from dsl_train.records import DslError

#: Options that change where or how fast, not which rows; models and prompts are compared by content.
_NOT_COMPARED = (
    *("target", "draft", "prompts", "output", "column", "split", "num_prompts"),
    *("dtype", "num_threads", "batch_size"),
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


def begin(folder: Path, collection: dict[str, Any]) -> None:
    """Write `collection.json`, or check that the folder holds the same collection.

    Raises DslError naming the first difference and both values.
    """
    path = folder / traces.COLLECTION
    if not path.is_file():
        if traces.completed_parts(folder):
            raise DslError(f"{folder} has parts but no {path.name}; choose another folder with --output")
        provenance.write_json(path, collection)
        return
    try:
        existing = _compared(json.loads(path.read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise DslError(f"{path} is damaged ({error!r}); choose another folder with --output") from error
    wanted = _compared(json.loads(json.dumps(collection)))
    for name in existing | wanted:
        if existing.get(name) != wanted.get(name):
            raise DslError(
                f"{folder} holds another collection: its {name} is {existing.get(name)!r}, now {wanted.get(name)!r}; "
                "repeat the command that began it, or choose another folder with --output"
            )


def write_rejects(folder: Path, part: int, rejects: Sequence[dict[str, str]]) -> None:
    """Record prompts put aside in a part; before the part itself, so that a complete part has them."""
    path = folder / "rejects" / f"part-{part:05d}.json"
    if rejects:
        provenance.write_json(path, list(rejects))
    else:
        path.unlink(missing_ok=True)


def read_rejects(folder: Path) -> list[dict[str, str]]:
    """All of them, in order."""
    return [reject for file in sorted((folder / "rejects").glob("*.json")) for reject in json.loads(file.read_text())]


def _compared(collection: dict[str, Any]) -> dict[str, Any]:
    models = {
        f"{role}'s {key}": value
        for role, identity in collection["pair"].items()
        for key, value in identity.items()
        if key != "id"
    }
    config = {name: value for name, value in collection["config"].items() if name not in _NOT_COMPARED}
    prompts = {f"prompts' {key}": value for key, value in collection["prompts"].items()}
    return {**models, **prompts, **config, "schema": collection["schema"]}
