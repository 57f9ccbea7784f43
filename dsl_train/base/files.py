"""Where a file came from, and files that are whole or absent. Standard library only."""

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Of this package; pyproject.toml says the same.
__version__ = "0.1.0"
_PACKAGES = (
    "dsl-train",
    "torch",
    "transformers",
    "numpy",
    "pyarrow",
    "lightning",
    "scikit-learn",
    "onnx",
    "onnxruntime",
)
_NUMBERS = re.compile(r"\[\n([-+.\w,\s]+)\]")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in `path`'s folder (made if missing) that becomes `path` when the block ends without an error.

    The bytes are on disk before the rename: a reader sees the old file or the whole new one, after a crash too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
        if os.name == "posix":
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write the file atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write one indented JSON document atomically, a list of numbers on one line."""
    document = json.dumps(content, indent=2, ensure_ascii=False)
    write_text(path, _NUMBERS.sub(lambda listed: f"[{' '.join(listed[1].split())}]", document) + "\n")


def software_versions() -> dict[str, str]:
    """Versions of Python, of the platform and of those of our dependencies that are installed."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def command_line() -> list[str]:
    """This process's arguments, the program reduced to its name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
