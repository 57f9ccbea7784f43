"""Records from whatever people keep them in: JSONL, JSON, Parquet, CSV, a text file (one record), compressed or not,
here or at a URL that fsspec opens; a Hub dataset or a folder of one; standard input (`-`: JSONL or one text).

Knows files and where a record stands in them; knows no column's meaning. Streams: a file is never held as a whole,
unless its format (JSON, text) asks for it.
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from fsspec.core import OpenFile, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from dsl_train.base.records import DslError, first_line
from dsl_train.traces import parquet

_CHAT_COLUMNS = ("messages", "conversations", "turns")
#: Compressions that fsspec knows only beside a package.
_PACKAGES = {".zst": "zstandard", ".lz4": "lz4", ".snappy": "python-snappy"}
_LONGEST_FIELD = 1 << 30  # of a CSV; its reader's own limit is 131,072 characters


@dataclass(frozen=True)
class Record:
    """One row, entry or line, parsed when it is asked for: one that cannot be read spoils no other."""

    where: str
    """File and number, for messages."""
    content: Any
    """Columns by name, or a line of JSON that holds them."""

    def columns(self) -> dict[str, Any]:
        """Raises DslError if it is no object."""
        value = _parse(self.where, self.content) if isinstance(self.content, str) else self.content
        if isinstance(value, str):
            return {"text": value}
        if not isinstance(value, dict):
            raise DslError(
                f'{self.where}: a {type(value).__name__}, not an object; write for example {{"prompt": "…"}}'
            )
        return value


def read_records(source: str, split: str = "train") -> Iterator[Record]:
    """Every record, in order; nothing is read before it is asked for.

    Raises DslError for a source that is missing or, as a whole, not what it says it is.
    """
    path = Path(source)
    if source == "-":
        yield from _from_stream("standard input", sys.stdin, "")
    elif "://" in source or path.is_file():
        yield from _from_file(source)
    elif path.is_dir() or not (path.exists() or path.suffix or source.startswith((".", "/", "~"))):
        yield from _numbered(source, _from_datasets(source, split))
    else:
        raise DslError(f"{source} does not exist; give a JSONL, JSON, Parquet, CSV or text file, '-' or a Hub dataset")


def _from_datasets(name: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a Hub dataset (`id:configuration` picks a configuration) or of a folder, streamed.

    Raises DslError with the library's own reason if it cannot be read.
    """
    if find_spec("datasets") is None:
        raise DslError(
            f"{name!r} is no file, and reading it as a dataset needs datasets, which is not installed; run pip install "
            "datasets, or give a JSONL, Parquet, CSV or text file"
        )
    import datasets

    dataset, _, configuration = name.partition(":")
    try:
        yield from datasets.load_dataset(dataset, configuration or None, split=split, streaming=True)
    except Exception as error:  # whatever the network, the Hub or a damaged file raises
        what = "folder" if Path(name).is_dir() else "name"
        raise DslError(
            f"{name!r} cannot be read as a dataset, here or on the Hub, split {split!r} ({type(error).__name__}: "
            f"{error}); check the {what}, --split and the connection, or give a JSONL, Parquet, CSV or text file"
        ) from error


def _from_file(source: str) -> Iterator[Record]:
    """A file of this machine or at a URL; its suffix says how it is compressed, the suffix before it what it holds."""
    name = PurePosixPath(urlsplit(source).path if "://" in source else source)
    compression = infer_compression(name.name)
    suffix = (PurePosixPath(name.stem) if compression else name).suffix.lower()
    if suffix in _PACKAGES:
        raise DslError(
            f"{source} needs {_PACKAGES[suffix]}, which is not installed; pip install it, or unpack the file"
        )
    try:
        file_system, path = url_to_fs(source) if "://" in source else (LocalFileSystem(), source)
        with OpenFile(file_system, path, compression=compression) as stream:
            if suffix == ".parquet":
                yield from _numbered(source, parquet.read_records(stream, source))
            else:
                text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="" if suffix == ".csv" else None)
                yield from _from_stream(source, text, suffix)
    except DslError:
        raise
    except Exception as error:  # whatever a file system, a network or a decompressor raises
        raise DslError(
            f"{source} cannot be read ({type(error).__name__}: {first_line(error)}); check its rights and the "
            "connection, or copy it again"
        ) from error


def _from_stream(source: str, stream: Iterable[str], suffix: str) -> Iterator[Record]:
    try:
        if suffix == ".csv":
            csv.field_size_limit(_LONGEST_FIELD)
            yield from _numbered(source, csv.DictReader(stream))
        else:
            yield from _from_lines(source, iter(stream), suffix)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DslError(f"{source} cannot be read as UTF-8 text ({error}); convert it") from error


def _from_lines(source: str, lines: Iterator[str], suffix: str) -> Iterator[Record]:
    """Without a telling suffix it is JSONL if the first line is a JSON object."""
    head: list[str] = []  # up to the first line that is not blank
    while not "".join(head[-1:]).strip() and (line := next(lines, None)) is not None:
        head.append(line)
    everything = chain(head, lines)
    if suffix in (".jsonl", ".ndjson") or (not suffix and "".join(head).lstrip().startswith('{"')):
        for number, line in enumerate(everything, start=1):
            if line.strip():
                yield Record(f"{source}, line {number}", line)
        return
    text = "".join(everything)
    if text.strip():
        yield from _from_json(source, text) if suffix == ".json" else [Record(source, {"text": text})]


def _from_json(source: str, text: str) -> Iterator[Record]:
    content = _parse(source, text)
    if isinstance(content, dict):
        lists = [
            value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        rows = lists[0] if len(lists) == 1 and not set(content) & set(_CHAT_COLUMNS) else [content]
    else:
        rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, start=1):
        yield Record(f"{source}, entry {number}", {"text": row} if isinstance(row, str) else row)


def _numbered(source: str, rows: Iterable[Any]) -> Iterator[Record]:
    return (Record(f"{source}, row {number}", row) for number, row in enumerate(rows, start=1))


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DslError(
            f'{where}: not JSON ({error}); write one object a line, for example {{"prompt": "…"}}'
        ) from error
