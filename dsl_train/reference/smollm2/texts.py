"""Gathered answers as training texts. Letters: T places of an answer, K labels a place."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from dsl_train.reference.smollm2.prompts import chat_ids

#: One text in so many is held out from the draft's training.
HELD_OUT = 10


@dataclass(frozen=True, eq=False)
class Text:
    """A prompt and its answer; labels are what the target thought of each place of the answer."""

    prompt_ids: list[int]
    answer_ids: list[int]  # [T]
    top_ids: torch.Tensor  # [T, K] int32, most likely first
    top_log_probs: torch.Tensor  # [T, K] float16
    kind: str
    greedy: bool

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids) - 1


def read_wave(path: Path) -> list[Text]:
    """The texts of one file that `answers.py` wrote, in order."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    prompts, answers = (
        tensors[f"{part}_ids"].split(tensors[f"{part}_lengths"].tolist()) for part in ("prompt", "answer")
    )
    lengths = tensors["answer_lengths"].tolist()
    labels = zip(tensors["top_ids"].split(lengths), tensors["top_log_probs"].split(lengths), strict=True)
    return [
        Text(prompt.tolist(), answer.tolist(), ids, log_probs, about["kind"], float(about["temperature"]) == 0.0)
        for prompt, answer, (ids, log_probs) in zip(prompts, answers, labels, strict=True)
    ]


def is_held_out(number: int) -> bool:
    return number % HELD_OUT == HELD_OUT - 1


def read_conversations(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Text]:
    """JSON lines of `prompt`, `response` (token ids) and `greedy`; the only label of a place is what was said there."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        Text(
            chat_ids(tokenizer, row["prompt"]),
            row["response"],
            torch.tensor(row["response"])[:, None],
            torch.zeros(len(row["response"]), 1),
            "conversation",
            row["greedy"],
        )
        for row in rows
        if row["response"]
    ]


def batches(texts: Sequence[Text], max_tokens: int) -> Iterator[list[Text]]:
    """Texts of similar length together, at most `max_tokens` padded tokens a batch."""
    batch: list[Text] = []
    for text in sorted(texts, key=lambda text: text.length):
        if batch and text.length * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def padded(texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [B, longest] (what follows a text is never seen by it) and which places predict an answer's token."""
    longest = max(text.length for text in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    predicts = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : text.length] = torch.tensor([*text.prompt_ids, *text.answer_ids[:-1]])
        predicts[row, len(text.prompt_ids) - 1 : text.length] = True
    return ids, predicts
