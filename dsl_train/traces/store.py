"""Trace folders: written part by part, opened as columns. The only door to pyarrow.

    collection.json          resolved configuration, written first
    rows/part-00000.parquet  one row per draft prediction (`schema.ROW_COLUMNS`)
    sequences/part-00000.parquet   one row per text (`schema.SEQUENCE_COLUMNS`); renamed last: its part is complete
    manifest.json            written last: the folder is complete

Knows files and columns; knows no model, no policy and no feature.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dsl_train.base import files, schema
from dsl_train.base.records import DslError

MANIFEST, COLLECTION = "manifest.json", "collection.json"
_TYPES = {"bool": pa.bool_(), "string": pa.string(), "list<int32>": pa.list_(pa.int32())}
_RECORDS_AT_ONCE = 256
Rows = dict[str, np.ndarray]
"""Column name -> [N], as in `schema.ROW_COLUMNS`."""


@dataclass(frozen=True, eq=False)
class TraceSequence:
    """One text: a row of `schema.SEQUENCE_COLUMNS`."""

    sequence_id: int
    prompt_id: str
    prompt_token_ids: np.ndarray
    """[P] int32"""
    response_token_ids: np.ndarray
    """[T - P] int32"""
    temperature: float
    top_k: int
    top_p: float
    finish_reason: str
    """`eos` or `length`"""


@dataclass(frozen=True, eq=False)
class Traces:
    """All rows of one or several folders, sorted by (sequence_id, index, depth)."""

    rows: Rows
    sequences: tuple[TraceSequence, ...]
    """`sequences[i].sequence_id == i`"""
    manifests: tuple[dict[str, Any], ...]
    """One per folder."""

    def __len__(self) -> int:
        return len(self.rows["index"])

    @property
    def pair(self) -> dict[str, Any]:
        """`target` and `draft`, each as `loading.ModelIdentity` describes it; the same in every folder."""
        return self.manifests[0]["pair"]


def write_part(folder: Path, part: int, rows: Rows, sequences: Sequence[TraceSequence]) -> None:
    """Write one part atomically; it is complete once its sequences file has its name."""
    columns = {name: [getattr(sequence, name) for sequence in sequences] for name in schema.SEQUENCE_COLUMNS}
    _write(_part_file(folder, "rows", part), rows, schema.ROW_COLUMNS)
    _write(_part_file(folder, "sequences", part), columns, schema.SEQUENCE_COLUMNS)


def completed_parts(folder: Path) -> list[int]:
    """Numbers of the parts whose sequences file is there, rising."""
    return sorted(int(file.stem.removeprefix("part-")) for file in (folder / "sequences").glob("part-*.parquet"))


@dataclass(frozen=True)
class Counts:
    """What parts hold, as numbers that can be added."""

    num_sequences: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    """Rows of depth 0: response tokens."""
    num_accepted: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, rows: Rows, num_sequences: int) -> "Counts":
        depth, accepted = rows["depth"], rows["accepted"]
        return cls(num_sequences, len(depth), int(np.sum(depth == 0)), int(np.sum(accepted)))

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted / self.num_tokens if self.num_tokens else 0.0


def part_counts(folder: Path, part: int) -> Counts:
    """Counts of a complete part. Raises DslError if it is damaged."""
    rows = _read(_part_file(folder, "rows", part), ("depth", "accepted"))
    sequences = _read(_part_file(folder, "sequences", part), ("sequence_id",))
    return Counts.of({name: rows[name].to_numpy() for name in ("depth", "accepted")}, len(sequences))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Declare the folder complete. Adds the schema and the list of parts to what the collector says."""
    described = {"version": schema.TRACE_VERSION}
    files.write_json(folder / MANIFEST, {"schema": described, "parts": completed_parts(folder), **manifest})


def shard_folder(parent: Path, index: int, number: int) -> Path:
    """Where shard `index` of `number` is collected; a trace folder of its own."""
    return parent / f"shard-{index:05d}-of-{number:05d}"


def open_traces(folders: Sequence[Path]) -> Traces:
    """Read complete folders of one pair, sequences numbered densely from 0 in the order of folders. A folder of shards
    stands for all of them.

    Raises DslError for a missing, unfinished or damaged folder, another schema, or folders of different pairs.
    """
    if not folders:
        raise DslError("no trace folder given; name at least one that dsl-collect wrote")
    folders = [shard for folder in folders for shard in _shards_in(Path(folder))]
    manifests = [_read_manifest(Path(folder)) for folder in folders]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        _check_same_pair(Path(folders[0]), manifests[0], Path(folder), manifest)
    parts: list[Rows] = []
    sequences: list[TraceSequence] = []
    for folder, manifest in zip(folders, manifests, strict=True):
        for part in manifest["parts"]:
            part_rows, part_sequences = _read_part(Path(folder), part, first_id=len(sequences))
            parts.append(part_rows)
            sequences.extend(part_sequences)
    if not sequences:
        raise DslError(f"no sequences in {', '.join(map(str, folders))}; collect with dsl-collect and more prompts")
    return Traces(_sorted(join_rows(parts)), tuple(sequences), tuple(manifests))


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Columns of all parts one after the other; typed and empty if there are none."""
    if not parts:
        return {name: np.empty(0, kind) for name, kind in schema.ROW_COLUMNS.items()}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of any Parquet file, as dictionaries; read piece by piece."""
    try:
        for batch in pq.ParquetFile(path).iter_batches(_RECORDS_AT_ONCE):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DslError(f"{path} is not a whole Parquet file ({error}); {_again(path)}") from error


def _part_file(folder: Path, table: str, part: int) -> Path:
    return folder / table / f"part-{part:05d}.parquet"


def _write(path: Path, columns: dict[str, Any], types: dict[str, str]) -> None:
    fields = {name: _TYPES.get(kind) or getattr(pa, kind)() for name, kind in types.items()}
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in fields.items()})
    with files.replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _read(path: Path, columns: Iterable[str] | None) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in columns or () if name not in file.schema_arrow.names]
        if missing:
            raise DslError(
                f"{path} has no column {missing[0]!r}, only {', '.join(file.schema_arrow.names)}; {_again(path)}"
            )
        return file.read(columns=None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise DslError(f"{path} is missing; {_again(path)}") from error
    except (pa.ArrowException, OSError) as error:
        raise DslError(f"{path} is not a whole Parquet file ({error}); {_again(path)}") from error


def _again(path: Path) -> str:
    if path.parent.name not in ("rows", "sequences"):
        return "write it again or give another file"
    folder = path.parent.parent
    files = f"{folder / 'rows' / path.name} and {folder / 'sequences' / path.name}"
    return f"delete {files}, then run the same dsl-collect command again"


def _shards_in(folder: Path) -> list[Path]:
    """The shards collected below a folder, in order; itself if there are none. Raises DslError if any is missing."""
    found = sorted(folder.glob("shard-*-of-*"))
    if not found or (folder / MANIFEST).is_file():
        return [folder]
    numbers = {int(path.name.rpartition("-")[2]) for path in found}
    expected = [shard_folder(folder, index, max(numbers)) for index in range(max(numbers))]
    missing = [path.name for path in expected if path not in found]
    if len(numbers) > 1 or missing:
        wrong = f"lacks {', '.join(missing)}" if len(numbers) == 1 else f"holds shards of {sorted(numbers)} at once"
        raise DslError(f"{folder} {wrong}; collect all shards of one number, or name the folders one by one")
    return expected


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise DslError(f"trace folder {folder} does not exist; collect it with dsl-collect --output {folder}")
    path = folder / MANIFEST
    if not path.is_file():
        started = (folder / COLLECTION).is_file()
        reason = (
            "unfinished: run the same dsl-collect command again to complete it" if started else "not a trace folder"
        )
        raise DslError(f"{folder} has no {MANIFEST}; it is {reason}")
    try:
        manifest = json.loads(path.read_text())
        found = manifest["schema"]["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DslError(
            f"{path} is damaged ({error!r}); delete it and run the same dsl-collect command again"
        ) from error
    if found != schema.TRACE_VERSION:
        raise DslError(
            f"{folder} holds traces of version {found}, but version {schema.TRACE_VERSION} is read here; collect "
            "again, or use the dsl-train version that wrote it"
        )
    return manifest


def _check_same_pair(first: Path, expected: dict[str, Any], folder: Path, found: dict[str, Any]) -> None:
    for role in ("target", "draft"):
        one, other = expected["pair"][role], found["pair"][role]
        for key in ("vocab_size", "architecture", "config_hash", "revision"):
            if one[key] != other[key]:
                raise DslError(
                    f"{first} and {folder} come from different {role} models: {key} {one[key]} ({one['id']}) and "
                    f"{other[key]} ({other['id']}); train one predictor for each pair"
                )


def _read_part(folder: Path, part: int, first_id: int) -> tuple[Rows, list[TraceSequence]]:
    """Rows and sequences of one part, sequences numbered from `first_id`."""
    file = _part_file(folder, "sequences", part)
    table = _read(file, schema.SEQUENCE_COLUMNS).sort_by("sequence_id")
    columns: dict[str, Any] = {name: table[name].to_pylist() for name in schema.SEQUENCE_COLUMNS}
    columns |= {name: _lists(table[name]) for name in ("prompt_token_ids", "response_token_ids")}
    old_ids, new_ids = np.array(columns["sequence_id"], np.int64), range(first_id, first_id + len(table))
    columns["sequence_id"] = new_ids
    sequences = [TraceSequence(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    rows_file = _part_file(folder, "rows", part)
    row_table = _read(rows_file, schema.ROW_COLUMNS)
    rows = {name: row_table[name].to_numpy() for name in schema.ROW_COLUMNS}
    positions = np.searchsorted(old_ids, rows["sequence_id"])
    if not np.array_equal(old_ids[np.minimum(positions, len(old_ids) - 1)], rows["sequence_id"]):
        raise DslError(f"{rows_file} has rows of sequences that {file} does not list; {_again(file)}")
    rows["sequence_id"] = first_id + positions
    return rows, sequences


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    combined = column.combine_chunks()
    offsets = combined.offsets.to_numpy()
    return np.split(combined.values.to_numpy(), offsets[1:-1]) if len(combined) else []


def _sorted(rows: Rows) -> Rows:
    order_key = (rows["sequence_id"] << 40) | (rows["index"].astype(np.int64) << 16) | rows["depth"]
    if np.all(order_key[1:] > order_key[:-1]):
        return rows
    order = np.argsort(order_key, kind="stable")
    return {name: column[order] for name, column in rows.items()}
