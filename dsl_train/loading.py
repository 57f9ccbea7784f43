"""A target and a draft from folders or the Hub, checked to belong together, and who they are.

Knows transformers' loading; knows no cache, policy or file of ours.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dsl_train.records import DslError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NOT_IDENTITY = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype")
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class ModelIdentity:
    """Which model it is: what traces and predictors record of each half of their pair."""

    id: str
    """As it was named by the user: folder or Hub id."""
    revision: str | None
    """Commit on the Hub; of a folder, a hash of its weight files."""
    architecture: str
    vocab_size: int
    config_hash: str
    """16 hex digits over the configuration, names and precision left out."""
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Pair:
    """Both models in eval mode on one device, with logits over one vocabulary."""

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target_identity: ModelIdentity
    draft_identity: ModelIdentity

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text: the target's generation configuration, else its tokenizer's."""
        configured = getattr(self.target.generation_config, "eos_token_id", None)
        found = self.tokenizer.eos_token_id if configured is None else configured
        return frozenset(found if isinstance(found, list) else [] if found is None else [found])

    def describe(self) -> dict[str, dict[str, Any]]:
        """`{"target": …, "draft": …}` for manifests and artifacts."""
        return {"target": self.target_identity.to_dict(), "draft": self.draft_identity.to_dict()}


def load_pair(target: str, draft: str, dtype: str = "auto", device: str = "auto") -> Pair:
    """Load both models. `device` auto is CUDA if there is one; `dtype` auto is float32 on the CPU, else bfloat16.

    Raises DslError for a missing, foreign or damaged folder and for two different vocabularies.
    """
    place = resolve_device(device)
    precision = DTYPES[("float32" if place.type == "cpu" else "bfloat16") if dtype == "auto" else dtype]
    target_model, draft_model = (
        load_model(name, role, precision, place) for name, role in ((target, "target"), (draft, "draft"))
    )
    identities = [describe_model(model, name) for model, name in ((target_model, target), (draft_model, draft))]
    tokenizer = load_tokenizer(target)
    _check_same_vocabulary(tokenizer, target, draft)
    _share_width(target_model, draft_model, len(tokenizer), target, draft)
    return Pair(target_model, draft_model, tokenizer, *identities)


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA if there is one, else the CPU. Raises DslError for a device that this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DslError(f"device {device!r} cannot be used ({_first_line(error)}); try --device cpu") from error
    return torch.device(device)


def load_model(name: str, role: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """One causal language model in eval mode; `role` (target, draft) is for messages."""
    check_folder(name, role)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        damaged = isinstance(error, SafetensorError)
        reason = "has a damaged weights file" if damaged else _unreadable(name, "a causal language model")
        raise DslError(
            f"{role} {name} {reason} ({_first_line(error)}); download or save it again, "
            "or give a folder written by save_pretrained or a Hub id"
        ) from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise DslError(
            f"{role} {name} lacks {len(missing)} of its weights, {missing[0]} first; download or save it again"
        )
    return model.to(device).eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Raises DslError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise DslError(
            f"{name} {_unreadable(name, 'a folder with a tokenizer')} ({_first_line(error)}); check the name, "
            f"or save a tokenizer beside the model with tokenizer.save_pretrained({name!r})"
        ) from error


def describe_model(model: PreTrainedModel, name: str) -> ModelIdentity:
    """Who a loaded model is; `name` is the folder or Hub id it came from."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_IDENTITY}
    text = json.dumps(config, sort_keys=True, default=str)
    return ModelIdentity(
        id=name,
        revision=_weights_hash(Path(name)) if Path(name).is_dir() else getattr(model.config, "_commit_hash", None),
        architecture=type(model).__name__,
        vocab_size=model.config.get_text_config().vocab_size,
        config_hash=hashlib.sha256(text.encode()).hexdigest()[:16],
        dtype=str(model.dtype).removeprefix("torch."),
    )


@contextmanager
def library_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Set the model's own generation settings aside: nothing but what `generate` is given then applies."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def check_folder(name: str, role: str) -> None:
    """Raises DslError if `name` is a folder without a model or, not being one, cannot be a Hub id either."""
    folder = Path(name)
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DslError(f"{role} folder {name} has no config.json; give a folder written by save_pretrained")
    if not folder.is_dir() and (looks_local or folder.exists()):
        raise DslError(f"{role} folder {name} does not exist; check the path, or give a model's Hub id")


def _unreadable(name: str, wanted: str) -> str:
    return f"is not {wanted}" if Path(name).is_dir() else f"is neither {wanted} here nor one readable from the Hub"


def _check_same_vocabulary(tokenizer: PreTrainedTokenizerBase, target: str, draft: str) -> None:
    """A draft without a tokenizer of its own is taken at its word."""
    folder = Path(draft)
    if folder.is_dir() and not (any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))):
        return
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(draft).get_vocab()
    if ours == theirs:
        return
    ours_by_id, theirs_by_id = ({index: token for token, index in vocab.items()} for vocab in (ours, theirs))
    first = min(i for i in ours_by_id.keys() | theirs_by_id.keys() if ours_by_id.get(i) != theirs_by_id.get(i))
    raise DslError(
        f"target {target} and draft {draft} have different vocabularies: {len(ours)} and {len(theirs)} tokens, "
        f"id {first} is {ours_by_id.get(first)!r} and {theirs_by_id.get(first)!r}; choose a draft of the same family"
    )


def _share_width(target: PreTrainedModel, draft: PreTrainedModel, num_tokens: int, *names: str) -> None:
    """Cut the wider model's logits to the narrower one's: a family pads one vocabulary differently by size."""
    widths = [model.config.get_text_config().vocab_size for model in (target, draft)]
    if min(widths) < num_tokens and widths[0] != widths[1]:
        raise DslError(
            f"target {names[0]} and draft {names[1]} have different vocabularies: {widths[0]} and {widths[1]} logits "
            f"for {num_tokens} tokens; choose a draft of the same family"
        )
    for model, width in zip((target, draft), widths, strict=True):
        if width > min(widths):
            model.resize_token_embeddings(min(widths))


def _weights_hash(folder: Path) -> str:
    """16 hex digits over name, size and both ends of every weights file: quick, and tells checkpoints apart."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        for piece in _ends(file):
            digest.update(piece)
    return digest.hexdigest()[:16]


def _ends(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        yield stream.read(_SAMPLE_BYTES)
        stream.seek(max(0, file.stat().st_size - _SAMPLE_BYTES))
        yield stream.read(_SAMPLE_BYTES)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
