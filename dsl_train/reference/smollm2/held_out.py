"""Write answers to prompts that no draft was trained on as responses for `dsl-collect --responses`:
``python -m dsl_train.reference.smollm2.held_out --answers DIR --held_out DIR --output DIR``.

`greedy.jsonl` and `sampled.jsonl` have one row a text, in an order that does not go by kind, so that the first rows of
either are a sample of it.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsl_train.base import files
from dsl_train.reference.smollm2.texts import Text, read_waves


@dataclass
class HeldOutRun:
    """Write held-out answers of the target as responses for dsl-collect."""

    answers: Path
    """Folder of the answers that `distill.py` was given."""
    held_out: Path
    """Folder of answers gathered with another seed, in float32."""
    output: Path
    """Folder that receives greedy.jsonl and sampled.jsonl."""
    seed: int = 0
    """Of the order."""


def held_out_texts(run: HeldOutRun) -> list[Text]:
    """Held-out texts whose prompt, which a template may have made twice, is no prompt of a training text."""
    trained = {text.prompt_ids for text in read_waves(run.answers)}
    texts = [text for text in read_waves(run.held_out) if text.prompt_ids not in trained]
    random.Random(run.seed).shuffle(texts)
    return texts


def write(texts: Sequence[Text], path: Path) -> int:
    """Write the rows atomically; returns how many tokens the answers have."""
    rows = [
        {
            "prompt_token_ids": text.prompt_ids,
            "response_token_ids": text.answer_ids,
            "temperature": text.temperature,
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
        chosen = [text for text in texts if (text.temperature == 0.0) == greedy]
        tokens = write(chosen, run.output / f"{name}.jsonl")
        print(f"{run.output / name}.jsonl: {len(chosen):,} answers, {tokens:,} tokens")


if __name__ == "__main__":
    main()
