"""Imports point down, heavy dependencies have one door, serving is light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dsl_train"

#: Folders, lowest first: a module imports from its own folder and from those above it in this list.
FOLDERS = (
    "base",
    "features",
    "runners",
    "predictor",
    "costs",
    "policies",
    "loop",
    "pair",
    "traces",
    "replay",
    "train",
    "api",
    "hf",
    "vllm",
    "collect",
    "bench",
    "evidence",
    "report",
    "reference",
    "cli",
)
#: The loop is read without the rest of the house.
LOOP = {"base", "features", "runners", "policies", "loop"}
#: Folders or modules that alone import a heavy dependency.
DOORS = {
    "lightning": {"train"},
    "pyarrow": {"traces.parquet"},
    "datasets": {"collect.sources"},
    "fsspec": {"collect.sources"},
    "onnxruntime": {"predictor.runtime"},
    "onnx": {"train"},
    "huggingface_hub": {"pair.hub"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "jsonargparse": {"cli", "reference"},
    "ray": {"collect.ray"},
    "urllib3": {"collect.server"},
    "vllm": {"vllm"},
    "prometheus_client": {"vllm.statistics"},
}


def modules() -> dict[str, Path]:
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def within(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def folder(module: str) -> str:
    return module.split(".")[0]


def internal_imports(module: str) -> set[str]:
    known = modules()
    return {name.removeprefix("dsl_train.") for name in imports(known[module])} & set(known)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_its_own_folder_or_below(module):
    below = FOLDERS[: FOLDERS.index(folder(module)) + 1]
    above = {name for name in internal_imports(module) if folder(name) not in below}
    assert not above, f"{module} imports upward: {above}"


def test_contributors_are_told_the_same_list():
    guide = (PACKAGE.parent / "CONTRIBUTING.md").read_text("utf-8")
    rows = [line.split("|")[1].strip() for line in guide.splitlines() if line.startswith("| `")]
    assert tuple(row.strip("`") for row in rows) == FOLDERS


def test_the_loop_imports_nothing_but_what_it_is_made_of():
    strangers = {name for module in modules() if folder(module) == "loop" for name in internal_imports(module)}
    assert {folder(name) for name in strangers} <= LOOP


def test_no_module_imports_itself_through_others():
    graph = {module: internal_imports(module) for module in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_heavy_dependency_is_imported_only_behind_its_door(module):
    roots = {name.split(".")[0] for name in imports(modules()[module])}
    strangers = {root for root, doors in DOORS.items() if root in roots and not within(module, doors)}
    assert not strangers, f"{module} is no door to {strangers}"


def test_package_inits_hold_a_docstring_only():
    public = (PACKAGE, PACKAGE / "hf")  # with lazy names
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text("utf-8")).body
        assert ast.get_docstring(ast.Module(body, [])), f"{path} has no docstring"
        assert path.parent in public or len(body) == 1, f"{path} holds more than a docstring"


def test_generating_with_a_predictor_imports_nothing_of_training():
    heavy = ["lightning", "datasets", "pyarrow", "sklearn", "onnx", "matplotlib", "jsonargparse"]
    code = f"""
import sys
import dsl_train.api.speculator, dsl_train.policies.learned, dsl_train.policies.registry
import dsl_train.predictor.runtime, dsl_train.hf.attach, dsl_train.hf.decoding
own = [name for name, module in sys.modules.items() if name.startswith('dsl_train')]
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout.strip().splitlines()[-1]))
    bare = f"import sys, torch, transformers.generation; print([name for name in {heavy} if name in sys.modules])"
    before = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True)
    assert loaded <= set(ast.literal_eval(before.stdout.strip().splitlines()[-1]))
