"""Files that are whole or absent, digests that tell whether they still are, and the software that wrote them.

Standard library only.
"""

import hashlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Of this package; pyproject.toml says the same.
__version__ = "0.2.0"
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
#: Key of a sealed document: the digest of everything else in it.
SEAL = "content_sha256"
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


def sha256(path: Path) -> str:
    """Digest of a file's content, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document with the digest of its content, which `broken_seal` compares."""
    return {**content, SEAL: _content_digest(content)}


def broken_seal(document: Mapping[str, Any]) -> str | None:
    """What is wrong with a document that was changed after it was sealed; None if it is intact or never was sealed."""
    if SEAL not in document:
        return None
    recorded, found = document[SEAL], _content_digest(document)
    return None if recorded == found else f"{SEAL} is {recorded}, but the content gives {found}"


def software_versions() -> dict[str, str]:
    """Versions of Python, of the platform and of our installed dependencies."""
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


def _content_digest(document: Mapping[str, Any]) -> str:
    content = json.loads(json.dumps({key: value for key, value in document.items() if key != SEAL}))  # as it is read
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
