"""What reading several tokens at once does to recurrent models: `python benchmarks/recurrent.py`, a minute.

Tiny models of random weights, of tests/families. Each reads one text of 300 tokens as a verification would, five tokens
at a time, and as plain decoding does, one at a time: the skew is the largest difference between their logits, in
nats, and the share of positions whose most likely token differs. Then how many forwards and tokens a round takes with
drafts that agree more or less, since what was accepted before a rejection is read again.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, logging

from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.policies.registry import make_policy
from dsl_train.runners.cached import CachedModel

NAMES = ("Qwen3_5", "Qwen3Next", "KimiLinear", "Mamba2", "NemotronH", "FalconH1", "Zaya")
PROMPT, END, BLOCK = 20, 300, 5


def rows(model: PreTrainedModel, token_ids: list[int], block: int) -> torch.Tensor:
    """Logits after each token behind the prompt, [T, V]."""
    runner = CachedModel(model)
    runner.logits(token_ids[:PROMPT], keep=1)
    ends = range(PROMPT + block, END + 1, block)
    return torch.cat([_read(runner, token_ids[:end], block) for end in ends]).float()


def _read(runner: CachedModel, token_ids: list[int], block: int) -> torch.Tensor:
    logits = runner.logits(token_ids, keep=block)
    runner.truncate(len(token_ids))
    return logits


def skews() -> Iterator[str]:
    from families.zoo import RECURRENT

    token_ids = torch.randint(1, 48, (END,), generator=torch.Generator().manual_seed(0)).tolist()
    for family in RECURRENT:
        if family.name in NAMES:
            cells = []
            for dtype in (torch.float32, torch.bfloat16):
                model = family.make(max_position_embeddings=512).to(dtype)
                together, one_by_one = (rows(model, token_ids, block) for block in (BLOCK, 1))
                skew = (together - one_by_one).abs().max()
                flipped = (together.argmax(-1) != one_by_one.argmax(-1)).float().mean()
                cells += [f"{skew:.1e}", f"{100 * flipped:.1f} %"]
            yield f"| {family.name} | {' | '.join(cells)} |"


class Counted(CachedModel):
    """Counts its model's forwards, and the tokens that they read."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.widths: list[int] = []
        read = self._decoder._inner.logits  # type: ignore[attr-defined]

        def counted(token_ids: torch.Tensor, start: int, keep: int) -> torch.Tensor:
            self.widths.append(len(token_ids))
            logits: torch.Tensor = read(token_ids, start, keep)
            return logits

        self._decoder._inner.logits = counted  # type: ignore[attr-defined]


def rereading() -> Iterator[str]:
    from test_recurrent import make, noisy, prompt_of

    target = make("Qwen3_5", torch.float32)
    for noise in (2.0, 0.1, 0.05, 0.02, 0.0):
        runner = Counted(target)
        engine = SpeculativeEngine(runner, CachedModel(noisy(target, noise)), make_policy("static:4"))
        finished = engine.generate(prompt_of(3), 300).rounds
        accepted = sum(r.num_accepted for r in finished) / sum(len(r.drafted) for r in finished)
        widths = runner.widths[1:]  # without the prompt
        yield (
            f"| {100 * accepted:.0f} % | {len(widths) / len(finished):.3f} | {sum(widths) / len(finished):.1f} | "
            f"{sum(1 + len(r.drafted) for r in finished) / len(finished):.1f} |"
        )


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    logging.set_verbosity_error()
    print("| model | float32: skew | flipped | bfloat16: skew | flipped |\n| --- | --- | --- | --- | --- |")
    for line in skews():
        print(line, flush=True)
    print("\n| accepted | target forwards a round | tokens read | of them new |\n| --- | --- | --- | --- |")
    for line in rereading():
        print(line, flush=True)


if __name__ == "__main__":
    main()
