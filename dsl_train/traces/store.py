"""Trace folders: written part by part, opened as columns.

    collection.json          resolved configuration, written first
    rows/part-00000.parquet  one row per draft prediction (`schema.ROW_COLUMNS`)
    sequences/part-00000.parquet   one row per text (`schema.SEQUENCE_COLUMNS`); renamed last: its part is complete
    manifest.json            written last: the folder is complete

Knows folders and columns; knows no model, no policy and no feature.
"""

import json
import operator
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsl_train.base import files, schema
from dsl_train.base.records import DslError
from dsl_train.traces.parquet import Rows, as_lists, check_digest, hint, read_table, write_table

MANIFEST, COLLECTION = "manifest.json", "collection.json"
#: Key of the manifest: digest of each Parquet file. Manifests of older versions have none.
DIGESTS = "sha256"
_VERSIONS = (schema.TRACE_VERSION, schema.BLOCK_TRACE_VERSION)


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
    def by_block(self) -> np.ndarray:
        """[sequences] bool: whether rounds of that text were judged by block (`schema.BLOCK_COLUMNS`)."""
        found = np.zeros(len(self.sequences), bool)
        if "kept" in self.rows:
            found[self.rows["sequence_id"][self.rows["kept"] >= 0]] = True
        return found

    @property
    def pair(self) -> dict[str, Any]:
        """`target` and `draft`, each as `identity.ModelIdentity` describes it; the same in every folder."""
        return self.manifests[0]["pair"]


def write_part(folder: Path, part: int, rows: Rows, sequences: Sequence[TraceSequence]) -> None:
    """Write one part atomically; it is complete once its sequences file has its name."""
    columns = {name: [getattr(sequence, name) for sequence in sequences] for name in schema.SEQUENCE_COLUMNS}
    rows_name, sequences_name = _part_names(part)
    of_blocks = {name: kind for name, kind in schema.BLOCK_COLUMNS.items() if name in rows}
    write_table(folder / rows_name, rows, schema.ROW_COLUMNS | of_blocks)
    write_table(folder / sequences_name, columns, schema.SEQUENCE_COLUMNS)


def completed_parts(folder: Path) -> list[int]:
    """Numbers of the parts whose sequences file exists, in rising order."""
    return sorted(int(file.stem.removeprefix("part-")) for file in (folder / "sequences").glob("part-*.parquet"))


def remove_part(folder: Path, part: int) -> None:
    """It is no longer complete once the first of its files is gone."""
    for name in reversed(_part_names(part)):
        (folder / name).unlink(missing_ok=True)


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
    rows_name, sequences_name = _part_names(part)
    rows = read_table(folder / rows_name, ("depth", "accepted"))
    sequences = read_table(folder / sequences_name, ("sequence_id",))
    return Counts.of({name: rows[name].to_numpy() for name in ("depth", "accepted")}, len(sequences))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Declare the folder complete. Adds the schema, the list of parts and their digests to what the collector says."""
    parts = completed_parts(folder)
    described = {
        "schema": {"version": schema.TRACE_VERSION},
        "parts": parts,
        DIGESTS: {name: files.sha256(folder / name) for part in parts for name in _part_names(part)},
    }
    files.write_json(folder / MANIFEST, files.sealed({**described, **manifest}))


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
    by_block = any(_is_by_block(manifest) for manifest in manifests)
    parts: list[Rows] = []
    sequences: list[TraceSequence] = []
    for folder, manifest in zip(folders, manifests, strict=True):
        for part in manifest["parts"]:
            for name in _part_names(part):
                if name in manifest.get(DIGESTS, {}):
                    check_digest(Path(folder) / name, manifest[DIGESTS][name])
            part_rows, part_sequences = _read_part(Path(folder), part, len(sequences), _is_by_block(manifest))
            if by_block and not _is_by_block(manifest):
                part_rows |= _not_by_block(len(part_rows["index"]))
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


def _part_names(part: int) -> tuple[str, str]:
    """Its files in the folder: rows, sequences."""
    return f"rows/part-{part:05d}.parquet", f"sequences/part-{part:05d}.parquet"


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
        if found in _VERSIONS:
            _check_form(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise DslError(
            f"{path} is damaged ({error!r}); delete it and run the same dsl-collect command again"
        ) from error
    if found not in _VERSIONS:
        raise DslError(
            f"{folder} holds traces of version {found}, but version {schema.BLOCK_TRACE_VERSION} and "
            "older are read here; collect again, or use the dsl-train version that wrote it"
        )
    lost = DIGESTS in manifest and files.SEAL not in manifest  # they are written together
    broken = f"{files.SEAL} is missing" if lost else files.broken_seal(manifest)
    if broken:
        raise DslError(
            f"{path} is damaged or was edited ({broken}); delete it and run the same dsl-collect command again, or "
            f"delete the keys {files.SEAL} and {DIGESTS} to keep an edit"
        )
    return manifest


def _check_form(manifest: dict[str, Any]) -> None:
    """Raises KeyError or TypeError for a manifest that lacks what is read from it."""
    for part in manifest["parts"]:
        operator.index(part)
    optional = (manifest.get(key, {}) for key in ("counts", "config", "sampling", DIGESTS))
    for mapping in (manifest["pair"]["target"], manifest["pair"]["draft"], *optional):
        dict(mapping)


def _check_same_pair(first: Path, expected: dict[str, Any], folder: Path, found: dict[str, Any]) -> None:
    for role in ("target", "draft"):
        one, other = expected["pair"][role], found["pair"][role]
        for key in ("vocab_size", "architecture", "config_hash", "revision"):
            if one.get(key) != other.get(key):
                raise DslError(
                    f"{first} and {folder} come from different {role} models: {key} {one.get(key)} ({one.get('id')}) "
                    f"and {other.get(key)} ({other.get('id')}); train one predictor for each pair"
                )


def _is_by_block(manifest: dict[str, Any]) -> bool:
    return bool(manifest["schema"]["version"] == schema.BLOCK_TRACE_VERSION)


def _not_by_block(count: int) -> Rows:
    """BLOCK_COLUMNS of rows that have none."""
    kinds = {name: np.dtype(kind) for name, kind in schema.BLOCK_COLUMNS.items()}
    return {name: np.full(count, np.nan if kind.kind == "f" else -1, kind) for name, kind in kinds.items()}


def _read_part(folder: Path, part: int, first_id: int, by_block: bool) -> tuple[Rows, list[TraceSequence]]:
    """Rows and sequences of one part, sequences numbered from `first_id`."""
    rows_file, file = (folder / name for name in _part_names(part))
    table = read_table(file, schema.SEQUENCE_COLUMNS).sort_by("sequence_id")
    columns: dict[str, Any] = {name: table[name].to_pylist() for name in schema.SEQUENCE_COLUMNS}
    columns |= {name: as_lists(table[name]) for name in ("prompt_token_ids", "response_token_ids")}
    old_ids, new_ids = np.array(columns["sequence_id"], np.int64), range(first_id, first_id + len(table))
    columns["sequence_id"] = new_ids
    sequences = [TraceSequence(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    names = [*schema.ROW_COLUMNS, *(schema.BLOCK_COLUMNS if by_block and len(table) else ())]
    row_table = read_table(rows_file, names)
    rows = {name: row_table[name].to_numpy() for name in names}
    if by_block and not len(table):
        rows |= _not_by_block(0)
    positions = np.searchsorted(old_ids, rows["sequence_id"])
    if not np.isin(rows["sequence_id"], old_ids).all():
        raise DslError(f"{rows_file} has rows of sequences that {file} does not list; {hint(file)}")
    rows["sequence_id"] = first_id + positions
    return rows, sequences


def _sorted(rows: Rows) -> Rows:
    order_key = (rows["sequence_id"] << 40) | (rows["index"].astype(np.int64) << 16) | rows["depth"]
    if np.all(order_key[1:] > order_key[:-1]):
        return rows
    order = np.argsort(order_key, kind="stable")
    return {name: column[order] for name, column in rows.items()}
