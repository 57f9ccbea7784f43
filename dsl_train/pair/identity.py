"""The identity of a model, as traces, predictors and cached costs record it for each model of their pair."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dsl_train.pair.hub import cached_revision
from dsl_train.pair.source import adapter_base

_NOT_IDENTITY = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "quantization_config")
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class ModelIdentity:
    """Which model it is."""

    id: str
    """As the user named it: folder or Hub id."""
    revision: str | None
    """Commit on the Hub; for a folder or file, a hash of its weights; None for a model that came from neither."""
    architecture: str
    vocab_size: int
    config_hash: str
    """16 hex digits over the configuration without names and precision."""
    dtype: str
    """`float32`, `bfloat16`, …; `4bit`, `8bit` if quantized on loading"""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe_model(model: PreTrainedModel, name: str, quantization: str | None = None) -> ModelIdentity:
    """The identity of a loaded model; `name` is the folder or Hub id it came from."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_IDENTITY}
    text = json.dumps(config, sort_keys=True, default=str)
    return ModelIdentity(
        id=name,
        revision=_weights_hash(name) if Path(name).exists() else _hub_revision(model, name),
        architecture=type(model).__name__,
        vocab_size=model.config.get_text_config().vocab_size,
        config_hash=hashlib.sha256(text.encode()).hexdigest()[:16],
        dtype=quantization or str(model.dtype).removeprefix("torch."),
    )


def _hub_revision(model: PreTrainedModel, name: str) -> str | None:
    """From the configuration, where older releases of transformers put it, or else from the Hub's cache."""
    told: str | None = getattr(model.config, "_commit_hash", None)
    return told or cached_revision(name)


def _weights_hash(name: str) -> str:
    """16 hex digits over name, size and both ends of every weights file, those of an adapter's model among them: quick,
    and different for each checkpoint."""
    digest, path, base = hashlib.sha256(), Path(name), adapter_base(name)
    if base is not None:
        digest.update((_weights_hash(base) if Path(base).exists() else base).encode())
    for file in [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.bin")]):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        for piece in _ends(file):
            digest.update(piece)
    return digest.hexdigest()[:16]


def _ends(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        yield stream.read(_SAMPLE_BYTES)
        stream.seek(max(0, file.stat().st_size - _SAMPLE_BYTES))
        yield stream.read(_SAMPLE_BYTES)
