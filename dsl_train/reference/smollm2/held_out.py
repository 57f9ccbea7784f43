"""Write the answers that no draft was trained on as responses for `dsl-collect --responses`:
``python -m dsl_train.reference.smollm2.held_out --target DIR --answers DIR --output DIR``.

`greedy.jsonl` and `sampled.jsonl` have one row a text, in an order that does not go by kind, so that the first rows of
either are a sample of it.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from dsl_train.base import files
from dsl_train.reference.smollm2.texts import Text, is_held_out, read_conversations, read_wave

#: Of the answers that are not greedy.
TEMPERATURE = 0.8


@dataclass
class HeldOutRun:
    """Write held-out answers of the target as responses for dsl-collect."""

    target: Path
    """Folder of the target, for its tokenizer."""
    answers: Path
    """Folder of `answers.py`'s files."""
    output: Path
    """Folder that receives greedy.jsonl and sampled.jsonl."""
    conversations: Path | None = None
    """The file that `distill.py` was given; what it did not train on is held out too."""
    seed: int = 0
    """Of the order."""


def held_out_texts(run: HeldOutRun) -> list[Text]:
    """Held-out texts whose prompt, which a template may have made twice, is no prompt of a training text either."""
    waves = [read_wave(path) for path in sorted(run.answers.glob("wave-*.safetensors"))]
    numbered = [numbered for wave in waves for numbered in enumerate(wave)]
    trained = {tuple(text.prompt_ids) for number, text in numbered if not is_held_out(number)}
    texts = [text for number, text in numbered if is_held_out(number) and tuple(text.prompt_ids) not in trained]
    if run.conversations is not None:
        texts += read_conversations(run.conversations, AutoTokenizer.from_pretrained(run.target))[1::2]
    random.Random(run.seed).shuffle(texts)
    return texts


def write(texts: Sequence[Text], path: Path) -> int:
    """Write the rows atomically; returns how many tokens the answers have."""
    rows = [
        {
            "prompt_token_ids": text.prompt_ids,
            "response_token_ids": text.answer_ids,
            "temperature": 0.0 if text.greedy else TEMPERATURE,
            "kind": text.kind,
        }
        for text in texts
    ]
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return sum(len(text.answer_ids) for text in texts)


def main() -> None:
    from jsonargparse import CLI

    run = CLI(HeldOutRun, as_positional=False)
    texts = held_out_texts(run)
    for name, greedy in (("greedy", True), ("sampled", False)):
        chosen = [text for text in texts if text.greedy == greedy]
        tokens = write(chosen, run.output / f"{name}.jsonl")
        print(f"{run.output / name}.jsonl: {len(chosen):,} answers, {tokens:,} tokens")


if __name__ == "__main__":
    main()
