"""Gathered answers as training texts. Letters: B texts, T their padded length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open


@dataclass(frozen=True)
class Text:
    """A prompt and the target's answer."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    kind: str
    temperature: float

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
    return [
        Text(tuple(prompt.tolist()), tuple(answer.tolist()), about["kind"], float(about["temperature"]))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def read_waves(folder: Path) -> list[Text]:
    """The texts of all waves of a folder."""
    return [text for path in sorted(folder.glob("wave-*.safetensors")) for text in read_wave(path)]


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
    """Inputs [B, T] (what follows a text is never seen by it) and which places predict an answer's token."""
    longest = max(text.length for text in texts)
    rows = [[*text.prompt_ids, *text.answer_ids[:-1]] + [0] * (longest - text.length) for text in texts]
    starts, ends = (
        torch.tensor(counts)[:, None]
        for counts in ([len(text.prompt_ids) - 1 for text in texts], [text.length for text in texts])
    )
    places = torch.arange(longest)
    return torch.tensor(rows), (places >= starts) & (places < ends)
