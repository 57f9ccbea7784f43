"""Make the trained draft small: ``python -m dsl_train.reference.smollm2.export --draft DIR --output DIR``.

Matrices in float8 (e4m3), which transformers reads into whatever precision it is asked for; the rest in bfloat16. The
tokenizer is the target's, and stays with it.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from dsl_train.base import files

log = logging.getLogger(__name__)


@dataclass
class ExportRun:
    """Write a draft of `distill.py` in the precision in which it is kept."""

    draft: Path
    """Folder of the draft in float32."""
    output: Path = Path("checkpoints/smollm2/draft")
    """Folder that receives it."""


def export(run: ExportRun) -> int:
    """Returns the size of the weights [bytes]."""
    tensors = load_file(run.draft / "model.safetensors")
    small = {
        name: tensor.to(torch.float8_e4m3fn if tensor.ndim == 2 else torch.bfloat16).contiguous()
        for name, tensor in tensors.items()
    }
    content = save(small, {"format": "pt"})
    run.output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.draft / "generation_config.json", run.output / "generation_config.json")
    config = json.loads((run.draft / "config.json").read_text("utf-8"))
    files.write_json(run.output / "config.json", {**config, "dtype": "bfloat16"})
    files.write_bytes(run.output / "model.safetensors", content)
    log.info("wrote %s: %.1f MB", run.output, len(content) / 1e6)
    return len(content)


def main() -> None:
    from jsonargparse import CLI

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export(CLI(ExportRun, as_positional=False))


if __name__ == "__main__":
    main()
