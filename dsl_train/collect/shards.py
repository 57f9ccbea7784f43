"""A collection from beginning to end: part by part, resumable at any moment, one process per folder.

`collection.json` says what is being collected; a part is there once both its files are; `manifest.json` comes last.
How a text is collected is the collector's business.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dsl_train import provenance, schema, traces
from dsl_train.collect import folder as folders
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.prompts import Prompt, read_prompts
from dsl_train.collect.text import CollectedText, Collector, Reject, Request
from dsl_train.loading import Pair, check_folder, load_pair, load_tokenizer
from dsl_train.records import DslError
from dsl_train.traces import Counts, TraceSequence

METHODS: dict[str, Callable[[Pair, CollectConfig], Collector]] = {
    "hindsight": HindsightCollector,
    "oracle": OracleCollector,
}
Answer = CollectedText | Reject


@dataclass(frozen=True)
class Collection:
    """A complete trace folder."""

    folder: Path
    counts: Counts
    rejects: tuple[dict[str, str], ...]
    """Prompts put aside: `prompt_id` and `reason`."""
    seconds: float
    """Of this run; parts found complete took none."""
    rows_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": str(self.folder),
            **asdict(self.counts),
            "acceptance_rate": self.counts.acceptance_rate,
            "num_rejects": len(self.rejects),
            "seconds": self.seconds,
            "rows_per_second": self.rows_per_second,
        }


def collect(config: CollectConfig) -> Collection:
    """Collect what `config.output` still lacks.

    Raises DslError for bad input, a folder in use or of another collection, a full disk (finished parts stay), or if
    no prompt at all could be used.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    for name, role in ((config.target, "target"), (config.draft, "draft")):
        check_folder(name, role)
    tokenizer = load_tokenizer(config.target)
    prompts = read_prompts(config.prompts, config.column, config.num_prompts, tokenizer, config.split)
    pair = load_pair(config.target, config.draft, config.dtype, config.device)
    with folders.locked(Path(config.output)):
        folders.begin(Path(config.output), _described(config, pair, prompts))
        return _collect_parts(Path(config.output), config, pair, prompts)


def _collect_parts(folder: Path, config: CollectConfig, pair: Pair, prompts: Sequence[Prompt]) -> Collection:
    collector, done = METHODS[config.method](pair, config), traces.completed_parts(folder)
    counts = sum((traces.part_counts(folder, part) for part in done), Counts())
    progress = _Progress(len(prompts), counts)
    with progress.bar:
        for part, first in enumerate(range(0, len(prompts), config.part_size)):
            chunk = prompts[first : first + config.part_size]
            if part in done:
                progress.advance(len(chunk), Counts())
                continue
            (folder / traces.MANIFEST).unlink(missing_ok=True)
            requests = [Request(tuple(p.encode(pair.tokenizer)), _seed(config.seed, p)) for p in chunk]
            answers: list[Answer] = []
            for answer in collector.collect(requests):
                answers.append(answer)
                progress.advance(1, Counts.of(answer.rows, 1) if isinstance(answer, CollectedText) else Counts())
            _write_part(folder, config, part, chunk, requests, answers)
    rejects = folders.read_rejects(folder)
    if not progress.counts.num_sequences:
        raise DslError(f"none of the {len(prompts)} prompts could be used; the first: {rejects[0]['reason']}")
    collection = Collection(folder, progress.counts, tuple(rejects), progress.seconds, progress.rows_per_second)
    if not (folder / traces.MANIFEST).is_file():
        traces.write_manifest(folder, {**_described(config, pair, prompts), **_outcome(config, collection)})
    return collection


def _write_part(
    folder: Path,
    config: CollectConfig,
    part: int,
    chunk: Sequence[Prompt],
    requests: Sequence[Request],
    answers: Sequence[Answer],
) -> None:
    sequences, rows, rejects = [], [], []
    for i, (prompt, request, answer) in enumerate(zip(chunk, requests, answers, strict=True)):
        if isinstance(answer, Reject):
            rejects.append({"prompt_id": prompt.prompt_id, "reason": answer.reason})
            continue
        sequence_id = part * config.part_size + i
        sequences.append(_sequence(sequence_id, prompt, request, answer, config))
        rows.append({"sequence_id": np.full(len(answer.rows["index"]), sequence_id), **answer.rows})
    try:
        folders.write_rejects(folder, part, rejects)
        traces.write_part(folder, part, traces.join_rows(rows), sequences)
    except OSError as error:
        raise DslError(
            f"part {part} could not be written to {folder} ({error}); the parts before it are safe: "
            "make room and run the same command again"
        ) from error


def _sequence(
    sequence_id: int, prompt: Prompt, request: Request, answer: CollectedText, config: CollectConfig
) -> TraceSequence:
    return TraceSequence(
        sequence_id=sequence_id,
        prompt_id=prompt.prompt_id,
        prompt_token_ids=np.array(request.prompt_token_ids, np.int32),
        response_token_ids=np.array(answer.response_token_ids, np.int32),
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        finish_reason=answer.finish_reason,
    )


def _seed(seed: int, prompt: Prompt) -> int:
    """63 bits of the run's seed and the prompt, the same in any order and any part."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt.prompt_id}".encode()).digest()[:8], "big") >> 1


def _described(config: CollectConfig, pair: Pair, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What is collected: all that decides which rows come out."""
    ids = hashlib.sha256(" ".join(prompt.prompt_id for prompt in prompts).encode()).hexdigest()[:16]
    return {
        "config": asdict(config),
        "pair": pair.describe(),
        "prompts": {"number": len(prompts), "hash": ids},
        "schema": {"version": schema.SCHEMA_VERSION, "fingerprint": schema.fingerprint()},
    }


def _outcome(config: CollectConfig, collection: Collection) -> dict[str, Any]:
    return {
        "method": config.method,
        "sampling": {**asdict(config.sampling), "max_new_tokens": config.max_new_tokens, "seed": config.seed},
        "counts": {**asdict(collection.counts), "acceptance_rate": collection.counts.acceptance_rate},
        "rejects": list(collection.rejects[:100]),
        "num_rejects": len(collection.rejects),
        "last_run": {"seconds": collection.seconds, "rows_per_second": collection.rows_per_second},
        "versions": provenance.software_versions(),
        "argv": provenance.command_line(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


class _Progress:
    """A bar on stderr, and the running totals it shows."""

    def __init__(self, num_prompts: int, counts: Counts) -> None:
        self.counts, self._found_rows, self._began = counts, counts.num_rows, time.perf_counter()
        columns = (
            TextColumn("collecting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts, {task.fields[rows_per_second]:,.0f} rows/s, {task.fields[acceptance]:.0%} accepted"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True))
        self._task = self.bar.add_task("", total=num_prompts, rows_per_second=0.0, acceptance=counts.acceptance_rate)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def rows_per_second(self) -> float:
        return (self.counts.num_rows - self._found_rows) / self.seconds

    def advance(self, num_prompts: int, counts: Counts) -> None:
        self.counts += counts
        rate, acceptance = self.rows_per_second, self.counts.acceptance_rate
        self.bar.update(self._task, advance=num_prompts, rows_per_second=rate, acceptance=acceptance)
