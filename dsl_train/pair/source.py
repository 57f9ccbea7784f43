"""What a model's name stands for: a folder, a Hub id, a GGUF file, or an adapter of another model.

Knows which files belong to which; loads nothing.
"""

import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from transformers.utils import cached_file

from dsl_train.base.records import DslError
from dsl_train.pair.hub import is_repository
from dsl_train.predictor.runtime import ONNX, SHIPPED

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx")
_WHOLE_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` is to be given."""

    name: str
    """Folder or Hub id."""
    options: dict[str, str] = field(default_factory=dict)
    """`gguf_file`, if the model is one file of the folder."""
    adapter: str | None = None
    """Folder or Hub id of a PEFT adapter that is merged into the model."""


def find_source(name: str, role: str) -> ModelSource:
    """Raises DslError for what holds no model, saying what it is and what to give instead, and for a library that is
    missing; `role` (target, draft) is for messages."""
    path = Path(name)
    if path.is_file():
        return _of_file(path, role)
    base = adapter_base(name)
    if base is not None:
        require(("peft",), f"{role} {name} is a PEFT adapter of {base or 'another model'}, which needs")
        if not base:
            raise DslError(f"{role} {name} does not name its model; set base_model_name_or_path in its {_ADAPTER}")
        whole = find_source(base, f"model of {role} {name},")
        return ModelSource(whole.name, whole.options, name)
    if path.is_dir():
        if (path / ONNX).is_file():
            raise DslError(
                f"{role} {name} holds a predictor, not a model; give the draft's folder, and this one as its predictor"
            )
        if not (path / _CONFIG).is_file():
            raise DslError(f"{role} folder {name} has no {_CONFIG}; {_instead(path)}")
    elif path.exists() or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise DslError(f"{role} folder {name} does not exist; check the path, or give a model's Hub id")
    return ModelSource(name)


def adapter_base(name: str) -> str | None:
    """The model that `name` adapts, empty if it does not say; None if `name` is no adapter."""
    path = Path(name)
    if path.is_dir():
        whole = any(any(path.glob(pattern)) for pattern in _WHOLE_WEIGHTS)
        config: str | None = str(path / _ADAPTER) if (path / _ADAPTER).is_file() and not whole else None
    else:
        config = None if path.is_file() or _on_the_hub(name, _CONFIG) else _on_the_hub(name, _ADAPTER)
    if config is None:
        return None
    try:
        return str(json.loads(Path(config).read_text("utf-8")).get("base_model_name_or_path") or "")
    except (ValueError, AttributeError) as error:
        raise DslError(f"{config} is damaged ({error}); download or save the adapter again") from error


def tokenizer_source(name: str) -> ModelSource | None:
    """Where the tokenizer of a model is: beside it, in its GGUF file, or with the model that it adapts; None for a
    folder without one."""
    path = Path(name)
    folder = path.parent if path.is_file() else path
    if any(folder.glob("tokenizer*")) or any(folder.glob("vocab*")):
        return ModelSource(str(folder))
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(str(folder), {"gguf_file": path.name})
    base = adapter_base(name)
    return tokenizer_source(base) if base else None if path.is_dir() else ModelSource(name)


def require(libraries: tuple[str, ...], what: str, extra: str = "formats") -> None:
    """Raises DslError if one of them is not installed; `what` says who needs them."""
    missing = next((library for library in libraries if find_spec(library) is None), None)
    if missing:
        raise DslError(f"{what} {missing}, which is not installed; run pip install 'dsl-train[{extra}]'")


def _of_file(path: Path, role: str) -> ModelSource:
    if path.suffix.lower() == ".gguf":
        require(("gguf", "accelerate"), f"{role} {path} is a GGUF file, which needs")
        return ModelSource(str(path.parent), {"gguf_file": path.name})
    what = "a file of weights" if path.suffix.lower() in _WEIGHTS else "a file"
    whole = (path.parent / _CONFIG).is_file()
    instead = (
        f"give its folder, {path.parent}" if whole else f"there is no {_CONFIG} beside it; {_instead(path.parent)}"
    )
    raise DslError(f"{role} {path} is {what}, not a model's folder; {instead}")


def _instead(folder: Path) -> str:
    """What to give for a folder that is no model's."""
    files = sorted(folder.glob("*.gguf"))
    if files:
        return f"give a GGUF file of it, such as {files[0]}"
    inner = [found.parent for pattern in ("*", "snapshots/*") for found in sorted(folder.glob(f"{pattern}/{_CONFIG}"))]
    models = [found for found in inner if found.name != SHIPPED]
    return (
        f"give a model's folder in it, such as {models[-1]}" if models else "give a folder written by save_pretrained"
    )


def _on_the_hub(name: str, file: str) -> str | None:
    """Path of a repository's file in the cache; None if it has none, or cannot be reached."""
    if not is_repository(name):
        return None
    return cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
