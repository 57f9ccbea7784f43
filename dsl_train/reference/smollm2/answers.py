"""Gather the target's own answers: ``python -m dsl_train.reference.smollm2.answers --target DIR --output DIR``.

Wave after wave of prompts is answered together; each wave is one file, written whole, so the command can be stopped at
any time and goes on where it was. Every tenth prompt is held out: no draft is trained on it.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from dsl_train.base import files
from dsl_train.reference.smollm2.prompts import KINDS, PromptMaker, chat_ids
from dsl_train.reference.smollm2.teacher import Answers, Teacher, answer

_USER, _END = "<|im_start|>user\n", "<|im_end|>"


@dataclass
class AnswerRun:
    """Gather answers of the target with the log-probabilities of its most likely tokens."""

    target: Path
    """Folder of the target."""
    output: Path
    """Folder that receives one file a wave."""
    passages: Path
    """JSON lines with `response` (token ids): texts of the target, from which longer prompts are made."""
    code: Path = Path("data/prompts/heldout_train.jsonl")
    """JSON lines with `prompt`: excerpts of programs."""
    waves: int = 1000
    """Waves in all; those on disk are not made again."""
    batch_size: int = 64
    """Texts a wave; long prompts take half of it."""
    max_new_tokens: int = 160
    """Tokens an answer, its end included."""
    num_labels: int = 24
    """Most likely tokens kept at each place."""
    greedy_share: float = 0.67
    """Waves answered greedily; the others at temperature 0.8."""
    seed: int = 0
    """Of wave 0; the others follow."""


def gather(run: AnswerRun) -> None:
    model = LlamaForCausalLM.from_pretrained(run.target, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run.target)
    teacher = Teacher(model)
    passages = [str(tokenizer.decode(row["response"], skip_special_tokens=True)) for row in _rows(run.passages)]
    code = [row["prompt"] for row in _rows(run.code)]
    run.output.mkdir(parents=True, exist_ok=True)
    for wave in range(run.waves):
        path = run.output / f"wave-{run.seed:04}-{wave:05}.safetensors"
        if path.exists():
            continue
        choice = random.Random(run.seed * 100_003 + wave)
        kind = choice.choices(list(KINDS), list(KINDS.values()))[0]
        temperature = 0.0 if choice.random() < run.greedy_share else 0.8
        maker = PromptMaker(passages, code, choice.randint(0, 1 << 30))
        prompts = _prompts(run, teacher, tokenizer, kind, maker, choice)
        generator = torch.Generator().manual_seed(choice.randint(0, 1 << 30))
        answers = answer(
            teacher, prompts, run.max_new_tokens, temperature, tokenizer.eos_token_id, run.num_labels, generator
        )
        files.write_bytes(path, pack(prompts, answers, kind, temperature))


def _prompts(
    run: AnswerRun,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    maker: PromptMaker,
    choice: random.Random,
) -> list[list[int]]:
    count = run.batch_size // 2 if kind in ("summary", "reading") else run.batch_size
    if kind != "chat":
        return [chat_ids(tokenizer, maker.make(kind)) for _ in range(count)]
    opening = chat_ids(tokenizer, "")
    opening = opening[: len(opening) - len(tokenizer.encode(f"{_END}\n<|im_start|>assistant\n"))]
    generator = torch.Generator().manual_seed(choice.randint(0, 1 << 30))
    found = answer(teacher, [opening] * count, 48, 1.0, tokenizer.eos_token_id, 1, generator)
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in found.token_ids]
    return [chat_ids(tokenizer, text or "Hello!") for text in texts]


def pack(prompts: Sequence[Sequence[int]], answers: Answers, kind: str, temperature: float) -> bytes:
    """One wave: all token ids in a row, lengths, and the labels of the answers' places."""
    tensors = {
        "prompt_ids": torch.tensor([token_id for ids in prompts for token_id in ids], dtype=torch.int32),
        "prompt_lengths": torch.tensor([len(ids) for ids in prompts], dtype=torch.int32),
        "answer_ids": torch.tensor([token_id for ids in answers.token_ids for token_id in ids], dtype=torch.int32),
        "answer_lengths": torch.tensor([len(ids) for ids in answers.token_ids], dtype=torch.int32),
        "top_ids": torch.cat(answers.top_ids).to(torch.int32),
        "top_log_probs": torch.cat(answers.top_log_probs).to(torch.float16),
    }
    return save(tensors, {"kind": kind, "temperature": str(temperature)})


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def main() -> None:
    from jsonargparse import CLI

    torch.set_num_threads(1)
    gather(CLI(AnswerRun, as_positional=False))


if __name__ == "__main__":
    main()
