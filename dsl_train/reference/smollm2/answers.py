"""Gather the target's own answers: ``python -m dsl_train.reference.smollm2.answers --target DIR --output DIR``.

Wave after wave of prompts is answered together; each wave is one file, written whole, so the command can be stopped at
any time and goes on where it was.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import AutoTokenizer, LlamaForCausalLM

from dsl_train.base import files
from dsl_train.reference.smollm2.prompts import KINDS, PromptMaker
from dsl_train.reference.smollm2.teacher import Teacher, answer

#: Waves of these kinds are half as large, their prompts twice as long and more.
_LONG = ("summary", "reading", "turns")


@dataclass
class AnswerRun:
    """Gather answers of the target."""

    target: Path
    """Folder of the target."""
    output: Path
    """Folder that receives one file a wave."""
    code: Path = Path("data/prompts/heldout_train.jsonl")
    """JSON lines with `prompt`: excerpts of programs."""
    minutes: float = 240.0
    """No wave is begun after so long."""
    waves: int = 1000
    """Waves in all; those on disk are not made again."""
    batch_size: int = 64
    """Texts a wave."""
    max_new_tokens: int = 192
    """Tokens an answer, its end included."""
    greedy_share: float = 0.67
    """Waves answered greedily; the others at temperature 0.8."""
    dtype: str = "float32"
    """Precision of the target; bfloat16 is quicker on a GPU."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Of the prompts and of what is drawn."""


def gather(run: AnswerRun) -> None:
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every length
    model = LlamaForCausalLM.from_pretrained(run.target, dtype=getattr(torch, run.dtype))
    model.to(run.device)  # type: ignore[arg-type]  # transformers wraps it
    tokenizer = AutoTokenizer.from_pretrained(run.target)
    teacher = Teacher(model)
    run.output.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * run.minutes
    for wave in range(run.waves):
        path = run.output / f"wave-{run.seed:04}-{wave:05}.safetensors"
        if time.monotonic() > ends:
            break
        if path.exists():
            continue
        choice = random.Random(run.seed * 100_003 + wave)
        kind = KINDS[wave % len(KINDS)]
        temperature = 0.0 if choice.random() < run.greedy_share else 0.8
        maker = PromptMaker(teacher, tokenizer, run.code, choice)
        prompts = maker.make(kind, run.batch_size // 2 if kind in _LONG else run.batch_size)
        seed = choice.randrange(1 << 30)
        answers = answer(teacher, prompts, run.max_new_tokens, temperature, tokenizer.eos_token_id, seed)
        files.write_bytes(path, pack(prompts, answers, kind, temperature))


def pack(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], kind: str, temperature: float) -> bytes:
    """One wave: all token ids in a row, and lengths."""
    tensors = {}
    for name, texts in (("prompt", prompts), ("answer", answers)):
        ids = [token_id for text in texts for token_id in text]
        tensors[f"{name}_ids"] = torch.tensor(ids, dtype=torch.int32)
        tensors[f"{name}_lengths"] = torch.tensor([len(text) for text in texts], dtype=torch.int32)
    return save(tensors, {"kind": kind, "temperature": str(temperature)})


def main() -> None:
    from jsonargparse import CLI

    gather(CLI(AnswerRun, as_positional=False))


if __name__ == "__main__":
    main()
