"""The reference pair's text: Python source that every machine installing this project already has.

Knows files and where they come from. Does not know tokens or models.

Three sources: the standard library, its test-suite, and the packages this project depends on. Modules in
:data:`HELD_OUT` (and their tests) never enter training: prompts and validation loss come from them.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: Modules whose text trains the *predictor* (prompts only; the language models never see them).
HELD_OUT_TRAIN = (
    "bisect cmd code codeop configparser copy dataclasses fileinput filecmp functools gettext glob graphlib "
    "http/cookiejar http/server json/decoder json/tool logging/handlers mimetypes netrc optparse pprint pstats random "
    "reprlib sched shelve shutil string tempfile timeit unittest/loader unittest/result urllib/parse "
    "urllib/robotparser uuid webbrowser xmlrpc/server email/message email/utils asyncio/queues "
    "concurrent/futures/process multiprocessing/pool xml/sax/saxutils"
).split()

#: Modules that nothing here is trained on: validation loss, test metrics and benchmark prompts.
HELD_OUT_TEST = (
    "calendar csv difflib fractions hashlib heapq html/parser http/cookies ipaddress json/encoder logging/config "
    "plistlib poplib queue shlex socketserver statistics tarfile textwrap tokenize unittest/suite unittest/runner "
    "urllib/request wsgiref/headers wsgiref/simple_server xmlrpc/client zipapp asyncio/locks "
    "concurrent/futures/thread multiprocessing/queues email/header xml/dom/pulldom"
).split()

HELD_OUT = (*HELD_OUT_TRAIN, *HELD_OUT_TEST)

#: Installed packages read for training, all of them dependencies of this project, all permissively licensed.
PACKAGES = tuple(
    "torch transformers sklearn numpy scipy pandas matplotlib lightning datasets rich huggingface_hub sympy "
    "networkx jinja2 aiohttp fsspec jsonargparse onnx onnxscript pip setuptools click pygments".split()
)

#: Share of training tokens drawn from each source.
SOURCE_WEIGHTS = {"library": 0.40, "tests": 0.18, "packages": 0.42}

_TABLES = ("encodings/", "pydoc_data/", "lib2to3/", "idlelib/", "__phello__", "turtledemo/")
_MAX_PACKAGE_CHARS = 4_000_000
_MAX_FILE_CHARS = 200_000


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def training_files(source: str) -> Iterator[str]:
    """Texts of one source of :data:`SOURCE_WEIGHTS`, in a fixed order, held-out modules left out."""
    if source == "packages":
        for package in PACKAGES:
            yield from _package_files(package)
        return
    root = standard_library()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        is_test = "test/" in name or "tests/" in name
        if (
            is_test == (source == "tests")
            and not is_held_out(name)
            and not name.startswith(("site-packages/", *_TABLES))
        ):
            yield from _readable(path)


def held_out_files(modules: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Text of each held-out module that this Python still has, by module name."""
    paths = {module: standard_library() / f"{module}.py" for module in modules}
    return {module: path.read_text("utf-8") for module, path in paths.items() if path.is_file()}


def is_held_out(name: str) -> bool:
    """Whether a path below the standard library is a held-out module, belongs to a held-out package or tests one."""
    stem = name.removesuffix(".py")
    if stem in HELD_OUT:
        return True
    parts = stem.removesuffix("/__init__").split("/")
    held_out_names = {module.split("/")[-1] for module in HELD_OUT}
    return any(part.removeprefix("test_") in held_out_names for part in parts if part.startswith("test_"))


def _package_files(package: str) -> Iterator[str]:
    root, used = Path(sysconfig.get_path("purelib")) / package, 0
    for path in sorted(root.rglob("*.py"), key=lambda path: (len(path.relative_to(root).parts), path.as_posix())):
        if used > _MAX_PACKAGE_CHARS:
            return
        for text in _readable(path):
            used += len(text)
            yield text


def _readable(path: Path) -> Iterator[str]:
    """The file's text unless it is empty, a table of data or not UTF-8 (a few tests are so on purpose)."""
    try:
        text = path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return
    digits = sum(char.isdigit() for char in text)
    if 200 < len(text) < _MAX_FILE_CHARS and digits < 0.15 * len(text):
        yield text
