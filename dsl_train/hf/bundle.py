"""The `custom_generate` folder of an artifact: the modules that serve, copied out of this package as they are.

transformers copies `generate.py` to a place of its own and runs it there, with the files beside it that lines of the
form `from .x import` name. So modules lie flat (`policies.base` becomes `policies_base.py`), generate.py lists them
all, and nothing but imports is rewritten: what runs is this package's code, not a second implementation.
"""

import re
from pathlib import Path

from dsl_train import provenance

ENTRY = "hf.shipped"
FOLDER = "custom_generate"
#: Compared by transformers with what is installed, before anything runs.
REQUIREMENTS = ("torch>=2.9", "transformers>=5.0", "numpy>=1.26", "onnxruntime>=1.18")
_PACKAGE = Path(__file__).parent.parent
_NAMES_IMPORTED = re.compile(r"^( *)from dsl_train\.([\w.]+) import\b", re.MULTILINE)
_MODULES_IMPORTED = re.compile(r"^( *)from dsl_train import ([\w, ]+)$", re.MULTILINE)


def write_bundle(artifact: Path) -> Path:
    """Write the folder into an artifact's, generate.py last, and remove modules of an earlier build. Returns it."""
    folder, files = artifact / FOLDER, bundle()
    for stale in {path.name for path in folder.glob("*.py")} - files.keys():
        (folder / stale).unlink()
    for name, text in files.items():
        provenance.write_text(folder / name, text)
    return folder


def bundle() -> dict[str, str]:
    """Contents by file name; the entry comes last."""
    modules = [module for module in bundled_modules() if module != ENTRY]
    files = {f"{_flat(module)}.py": _rewritten(_source(module)) for module in modules}
    listing = "".join(f"    from .{_flat(module)} import *\n" for module in modules)
    entry = _rewritten(_source(ENTRY)).replace('\n"""\n', f'\n\nThe files beside it:\n\n{listing}"""\n', 1)
    return {"requirements.txt": "\n".join(REQUIREMENTS) + "\n", **files, "generate.py": entry}


def bundled_modules() -> list[str]:
    """The entry and whatever it imports of this package, inside functions too."""
    found: list[str] = [ENTRY]
    for module in found:  # grows
        found += [name for name in _imported(_source(module)) if name not in found]
    return sorted(found)


def _imported(source: str) -> list[str]:
    together = [name for _, names in _MODULES_IMPORTED.findall(source) for name in names.split(", ")]
    return sorted({*together, *(module for _, module in _NAMES_IMPORTED.findall(source))})


def _rewritten(source: str) -> str:
    source = _NAMES_IMPORTED.sub(lambda found: f"{found[1]}from .{_flat(found[2])} import", source)
    return _MODULES_IMPORTED.sub(r"\1from . import \2", source)


def _source(module: str) -> str:
    return _path(module).read_text(encoding="utf-8")


def _path(module: str) -> Path:
    return _PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def _flat(module: str) -> str:
    return module.replace(".", "_")
