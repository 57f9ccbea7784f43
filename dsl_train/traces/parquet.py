"""Parquet files: written whole, read whole or refused. The only door to pyarrow."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dsl_train.base import files
from dsl_train.base.records import DslError, first_line

Rows = dict[str, np.ndarray]
"""Column name -> [N], as in `schema.ROW_COLUMNS`."""
_TYPES = {"bool": pa.bool_(), "string": pa.string(), "list<int32>": pa.list_(pa.int32())}
_RECORDS_AT_ONCE = 256
#: What pyarrow raises for a damaged file.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError)


def write_table(path: Path, columns: dict[str, Any], types: dict[str, str]) -> None:
    """Write the file atomically; `types` is column name -> type, as in `schema.ROW_COLUMNS`."""
    fields = {name: _TYPES.get(kind) or getattr(pa, kind)() for name, kind in types.items()}
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in fields.items()})
    with files.replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, columns: Iterable[str]) -> pa.Table:
    """The wanted columns. Raises DslError for a file that is missing, damaged or without one of them."""
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise DslError(
                f"{path} has no column {missing[0]!r}, only {', '.join(file.schema_arrow.names)}; {hint(path)}"
            )
        return file.read(columns=list(columns))
    except FileNotFoundError as error:
        raise DslError(f"{path} is missing; {hint(path)}") from error
    except _UNREADABLE as error:
        raise DslError(f"{path} is not a whole Parquet file ({first_line(error)}); {hint(path)}") from error


def check_digest(path: Path, recorded: str) -> None:
    """Raises DslError for a file that is not the one that was written; a missing one is left to `read_table`."""
    found = files.sha256(path) if path.is_file() else recorded
    if found != recorded:
        raise DslError(
            f"{path} is not a whole Parquet file (sha256 {found}, but {recorded} was recorded); {hint(path)}"
        )


def hint(path: Path) -> str:
    """What to do about a file that cannot be read."""
    if path.parent.name not in ("rows", "sequences"):
        return "write it again or give another file"
    folder = path.parent.parent
    both = f"{folder / 'rows' / path.name} and {folder / 'sequences' / path.name}"
    return f"delete {both}, then run the same dsl-collect command again"


def read_records(stream: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """Rows of any Parquet file, opened for reading, as dictionaries; read piece by piece. `name` is for messages."""
    try:
        for batch in pq.ParquetFile(stream).iter_batches(_RECORDS_AT_ONCE):
            yield from batch.to_pylist()
    except _UNREADABLE as error:
        raise DslError(f"{name} is not a whole Parquet file ({first_line(error)}); {hint(Path(name))}") from error


def as_lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A column of lists as one array for each row."""
    combined = column.combine_chunks()
    offsets = combined.offsets.to_numpy()
    return np.split(combined.values.to_numpy(), offsets[1:-1]) if len(combined) else []
