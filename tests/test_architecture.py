"""Imports point down, heavy dependencies have one door, serving is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dsl_train"

LAYERS = (
    {"schema", "provenance", "cost", "guess", "records"},
    {
        "features",
        "feature_view",
        "sampling",
        "policies.base",
        "copies",
        "kv_cache",
        "decoder",
        "compiled",
        "compiled_call",
        "compiled_step",
    },
    {
        "verify",
        "runner",
        "padded",
        "packed",
        "ragged",
        "policies",
        "starts",
        "traces",
        "decisions",
        "predictor.runtime",
        "predictor.light",
        "hub",
        "loading",
        "model_identity",
        "vocabulary",
        "encoder_decoder",
        "encoded_texts",
        "inputs",
        "hf.families",
        "hf.bundle",
        "text_stream",
    },
    {"drafter", "engine", "batch_drafter", "batch_engine", "walk", "replay", "acceptance", "tuning", "predictor"},
    {
        "profile",
        "serving",
        "timing",
        "batch_profile",
        "collect",
        "bench",
        "evidence",
        "statistics",
        "reference",
        "api",
        "hf",
    },
    {"report"},
    {"cli"},
)
DOORS = {
    "lightning": {"predictor"},
    "pyarrow": {"traces"},
    "datasets": {"traces", "collect.sources"},
    "onnxruntime": {"predictor.runtime"},
    "onnx": {"predictor"},
    "huggingface_hub": {"hub"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "jsonargparse": {"cli", "reference"},
    "ray": {"collect.ray"},
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


def layer(module: str) -> int:
    """The layer whose longest name covers the module."""
    fits = [(len(name), number) for number, names in enumerate(LAYERS) for name in names if within(module, {name})]
    assert fits, f"{module} has no layer: add it to LAYERS"
    return max(fits)[1]


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_its_own_layer_or_below(module):
    known = modules()
    internal = {name.removeprefix("dsl_train.") for name in imports(known[module]) if name.startswith("dsl_train.")}
    above = {name for name in internal & set(known) if layer(name) > layer(module)}
    assert not above, f"{module} (layer {layer(module)}) imports upward: {above}"


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
import dsl_train.api, dsl_train.engine, dsl_train.policies.learned, dsl_train.policies.factory
import dsl_train.predictor.runtime, dsl_train.hf.attach, dsl_train.hf.decoding
own = [name for name, module in sys.modules.items() if name.startswith('dsl_train')]
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout.strip().splitlines()[-1]))
    bare = f"import sys, torch, transformers.generation; print([name for name in {heavy} if name in sys.modules])"
    before = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True)
    assert loaded <= set(ast.literal_eval(before.stdout.strip().splitlines()[-1]))
