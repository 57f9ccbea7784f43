"""What reading several tokens at once does to recurrent models: `python benchmarks/recurrent.py`, ten minutes.

Tiny models of random weights, of tests/families. Each reads one text of 300 tokens as a verification would, five tokens
at a time, and as plain decoding does, one at a time: the skew is the largest difference between their logits, in
nats, and the share of positions whose most likely token differs. Then how many forwards and tokens a round takes with
drafts that agree more or less, since what was accepted before a rejection is read again. Then what keeping the states
takes of a round, in a model of a size that somebody would draft for. At last the promise itself: texts of 400 tokens
with four drafts, which agree never, sometimes, often and always, against the target's own `generate`, in float64.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, logging

from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.policies.registry import make_policy
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.state import StateDecoder, _copies

NAMES = ("Qwen3_5", "Qwen3Next", "KimiLinear", "Mamba2", "NemotronH", "FalconH1", "Zaya")
PROMPT, END, BLOCK = 20, 300, 5
REPEATS = 30
_SHAPE = {"vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 12, "head_dim": 64, "num_key_value_heads": 2}
#: About the size of the reference target, with the proportions of the released models.
SIZED: dict[str, dict[str, Any]] = {
    "Qwen3Next": _SHAPE
    | {
        "num_attention_heads": 4,
        "intermediate_size": 704,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "mlp_only_layers": list(range(12)),
    },
    "Mamba2": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "num_hidden_layers": 12,
        "num_heads": 8,
        "head_dim": 64,
        "n_groups": 1,
    },
}


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


def keeping() -> Iterator[str]:
    """A copy of all states beside the forward over a block of five tokens, after texts of two lengths."""
    for family, changes in SIZED.items():
        model = getattr(transformers, f"{family}ForCausalLM")(
            getattr(transformers, f"{family}Config")(**changes)
        ).eval()
        runner = CachedModel(model)
        state = runner._decoder
        assert isinstance(state, StateDecoder)
        for length in (100, 1000):
            runner.reset()
            tokens = torch.randint(1, 4000, (length,), generator=torch.Generator().manual_seed(0)).tolist()
            runner.logits(tokens, keep=1)
            tokens += tokens[:BLOCK]
            forwards, copies = [], []
            for _ in range(REPEATS):
                began = time.perf_counter()
                runner.logits(tokens, keep=BLOCK)
                forwards.append(time.perf_counter() - began)
                began = time.perf_counter()
                kept = list(_copies(state._inner.cache))
                copies.append(time.perf_counter() - began)
                runner.truncate(len(tokens) - BLOCK)
            size = sum(copied.tensor.nbytes for copied in kept)
            forward, copying = median(forwards), median(copies)
            yield (
                f"| {family} | {model.num_parameters() / 1e6:.1f} M | {length} | {size / 1024:.0f} | "
                f"{1e3 * forward:.1f} | {1e6 * copying:.0f} | {100 * copying / forward:.2f} % |"
            )


def texts() -> Iterator[str]:
    from test_recurrent import ALWAYS, FOLDING, NEVER, OFTEN, SOMETIMES, make, noisy, own_text, prompt_of

    for family in FOLDING:
        target, cells = make(family.name), []
        expected = own_text(target, prompt_of(3), 400)
        for noise in (NEVER, SOMETIMES, OFTEN, ALWAYS):
            engine = SpeculativeEngine(CachedModel(target), CachedModel(noisy(target, noise)), make_policy("static:4"))
            result = engine.generate(prompt_of(3), 400)
            accepted = sum(r.num_accepted for r in result.rounds) / sum(len(r.drafted) for r in result.rounds)
            departs = next(
                (i for i, pair in enumerate(zip(result.token_ids, expected, strict=True)) if len(set(pair)) > 1), None
            )
            cells.append(f"{100 * accepted:.0f} %{'' if departs is None else f', departs at token {departs}'}")
        yield f"| {family.name} | {' | '.join(cells)} |"


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    logging.set_verbosity_error()
    print("| model | float32: skew | flipped | bfloat16: skew | flipped |\n| --- | --- | --- | --- | --- |")
    for line in skews():
        print(line, flush=True)
    print("\n| accepted | target forwards a round | tokens read | of them new |\n| --- | --- | --- | --- |")
    for line in rereading():
        print(line, flush=True)
    print("\n| model | parameters | text | states [KiB] | a block [ms] | a copy [us] | share |\n|" + 7 * " --- |")
    for line in keeping():
        print(line, flush=True)
    print("\n| accepted, with a draft that agrees | never | sometimes | often | always |\n|" + 5 * " --- |")
    for line in texts():
        print(line, flush=True)


if __name__ == "__main__":
    main()
