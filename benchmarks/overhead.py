"""What generation costs besides its forwards: the overhead ledger.

    python benchmarks/overhead.py split    where each microsecond of a token goes
    python benchmarks/overhead.py length   the same by text length: what is not attention must not grow
    python benchmarks/overhead.py step     features and predictor of one draft token, by vocabulary

Prints a table; with --output, a JSON file too. `split` and `length` watch the loop's functions from outside, which
itself costs about a microsecond a call; the first line says how much slower that made the whole. So the share of what
is not a forward comes from runs in which forwards alone are watched.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ledger import FORWARDS, OTHERS, Ledger

from dsl_train.api.speculator import Speculator
from dsl_train.base import files
from dsl_train.base.policy import Policy
from dsl_train.base.sampling import Sampling
from dsl_train.collect.prompts import read_prompts
from dsl_train.loop.drafter import Drafter
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.loop.text import Text, view_for
from dsl_train.pair.loading import load_pair
from dsl_train.policies.registry import make_policy
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel

REFERENCE = Path("checkpoints/reference")
VOCABULARIES = (4096, 8192, 32_768, 151_936)
BLOCK = 8  # draft tokens of a timed block
BIN = 250  # tokens of text in a row of `length`


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = {"split": split, "length": by_length, "step": by_vocabulary}[args.mode](args)
    if args.output:
        described = {"argv": vars(args), "versions": files.software_versions(), "result": result}
        files.write_json(Path(args.output), described)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("split", "length", "step"))
    parser.add_argument("--target", default=str(REFERENCE / "target"))
    parser.add_argument("--draft", default=str(REFERENCE / "draft"))
    parser.add_argument("--predictor", help="folder of a predictor; default: the draft's dsl folder")
    parser.add_argument("--policy", default="learned")
    parser.add_argument("--prompts", default="data/prompts/heldout_test.jsonl")
    parser.add_argument("--num_prompts", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3, help="of each prompt the fastest counts")
    parser.add_argument("--max_length", type=int, default=2000, help="text length that `length` goes to")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", help="JSON file")
    return parser.parse_args()


def split(args: argparse.Namespace) -> dict[str, Any]:
    """Microseconds per token and share of the time, by account."""
    speculator, prompts = opened(args)
    engine = engine_of(speculator, args, speculator.pair.eos_token_ids)
    ledger, rough = Ledger(), Ledger()
    num_tokens, seconds = 0, 0.0
    for seed, prompt in enumerate(prompts):
        runs = [engine.generate(prompt, args.max_new_tokens, seed) for _ in range(args.repeats + 1)][1:]
        num_tokens, seconds = num_tokens + runs[0].num_tokens, seconds + min(run.seconds for run in runs)
        for total, closely in ((ledger, True), (rough, False)):
            ledgers = []
            for _ in range(args.repeats):
                ledgers.append(Ledger())
                with ledgers[-1].watching(speculator, closely):
                    engine.generate(prompt, args.max_new_tokens, seed)
            total += min(ledgers, key=lambda ledger: ledger.seconds.total())
    slower = ledger.seconds.total() / seconds - 1
    print(f"{num_tokens} tokens, {num_tokens / seconds:.0f} tokens/s; {100 * slower:+.0f} % while watched")
    rows = {name: account(ledger, name, num_tokens) for name in (*FORWARDS, *OTHERS)}
    for name, row in rows.items():
        print(f"{name:16}{row['us_per_token']:9.1f} us{100 * row['share']:7.1f} %{row['calls_per_token']:8.2f} calls")
    print(f"{'not a forward':16}{'':12}{100 * (1 - rough.share_of_forwards):7.1f} %")
    return {
        "tokens_per_second": num_tokens / seconds,
        "slower_while_watched": slower,
        "accounts": rows,
        "share_of_forwards": rough.share_of_forwards,
    }


def account(ledger: Ledger, name: str, num_tokens: int) -> dict[str, float]:
    return {
        "us_per_token": 1e6 * ledger.seconds[name] / num_tokens,
        "share": ledger.seconds[name] / ledger.seconds.total(),
        "calls_per_token": ledger.calls[name] / num_tokens,
    }


def by_length(args: argparse.Namespace) -> list[dict[str, float]]:
    """Microseconds per token by length of the text, forwards apart from all else."""
    speculator, prompts = opened(args)
    engine = engine_of(speculator, args, ())
    bins: dict[int, np.ndarray] = {}  # first length -> tokens, seconds in forwards, other seconds
    for prompt in prompts:
        ledger, seen = Ledger(), np.zeros(3)
        began = time.perf_counter()
        text = engine.begin(prompt, args.max_length - len(prompt))
        with ledger.watching(speculator):
            for finished in engine.rounds(text):
                forwards = sum(ledger.seconds[name] for name in FORWARDS)
                length = finished.start + len(finished.committed)
                now = np.array([length, forwards, time.perf_counter() - began - forwards])
                if seen[0]:  # not the prefill
                    bins[length // BIN * BIN] = bins.get(length // BIN * BIN, np.zeros(3)) + now - seen
                seen = now
    rows = []
    print("text length   tokens   forwards   other   [us per token]")
    for first, (tokens, forwards, other) in sorted(bins.items()):
        numbers = {"forward_us": 1e6 * forwards / tokens, "other_us": 1e6 * other / tokens}
        rows.append({"length": first, "tokens": tokens, **numbers})
        print(f"{first:5}-{first + BIN - 1:<6}{tokens:8.0f}{rows[-1]['forward_us']:11.0f}{rows[-1]['other_us']:8.0f}")
    return rows


class Recorded(CachedModel):
    """Gives the same logits at once; `between` runs first, as a forward would."""

    def __init__(self, vocab_size: int, between: Callable[[], object]) -> None:
        self.device, self.context, self.between = torch.device("cpu"), 1 << 20, between
        self.row = 3 * torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0))

    def reset(self) -> None: ...

    def truncate(self, length: int) -> None: ...

    def logits(self, token_ids: Sequence[int], keep: int) -> torch.Tensor:
        self.between()
        return self.row


@torch.inference_mode()
def by_vocabulary(args: argparse.Namespace) -> list[dict[str, float]]:
    """Microseconds of features and predictor per draft token: a block that asks less one that does not.

    Twice: at a stretch, and with 16 MB of weights read before each token, as a forward would, which empties the
    caches. Then the reading itself is part of both blocks.
    """
    predictor = Predictor.load(args.predictor or Path(args.draft) / "dsl")
    weights, vector = torch.randn(16384, 256), torch.randn(256)
    rows = []
    print("vocabulary   at a stretch   after a forward   [us per draft token]")
    for vocab_size in VOCABULARIES:
        row = {"vocabulary": vocab_size}
        for name, between in (("warm_us", lambda: None), ("cold_us", lambda: torch.mv(weights, vector))):
            draft = Recorded(vocab_size, between)
            asking, silent = make_policy("learned", predictor, -1.0), make_policy(f"static:{BLOCK}")
            timers = [block_timer(draft, policy) for policy in (asking, silent)]
            pairs = [[timer() for timer in timers] for _ in range(400)]
            row[name] = 1e6 * median(with_predictor - without for with_predictor, without in pairs)
        rows.append(row)
        print(f"{vocab_size:10}{row['warm_us']:15.1f}{row['cold_us']:18.1f}")
    return rows


def block_timer(draft: Recorded, policy: Policy) -> Callable[[], float]:
    """Drafts a block and returns the seconds per token."""
    prompt = list(range(1, 129))
    sampling = Sampling()
    view = view_for(policy, prompt, sampling)
    text = Text.begin(prompt, 128, draft.context, frozenset(), torch.Generator(), view)
    drafter = Drafter(draft, policy, sampling)

    def seconds_per_token() -> float:
        began = time.perf_counter()
        block = drafter.draft_block(text, BLOCK)
        return (time.perf_counter() - began) / len(block.token_ids)

    return seconds_per_token


def opened(args: argparse.Namespace) -> tuple[Speculator, list[list[int]]]:
    pair = load_pair(args.target, args.draft)
    prompts = read_prompts(args.prompts, None, args.num_prompts, pair.tokenizer)
    predictor = Predictor.load(args.predictor or Path(args.draft) / "dsl")
    return Speculator(pair, args.policy, predictor), [prompt.encode(pair.tokenizer) for prompt in prompts]


def engine_of(speculator: Speculator, args: argparse.Namespace, eos_token_ids: Sequence[int]) -> SpeculativeEngine:
    sampling = Sampling(args.temperature)
    return SpeculativeEngine(speculator.target, speculator.draft, speculator.policy, sampling, eos_token_ids)


if __name__ == "__main__":
    main()
