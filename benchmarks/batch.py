"""Tokens per second of whole batches: transformers' padded `generate`, our target alone, and drafting for the batch.

    python benchmarks/batch.py --target checkpoints/reference/target --draft checkpoints/reference/draft \\
        --prompts data/prompts/heldout_test.jsonl --output runs/batch

Every contender continues the same prompts in batches of 1, 4, 8 and 16, in turn; the median repeat counts. Greedy
outputs are compared token by token with those of the target alone. Prints a table and writes batch.json.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import GenerationConfig

from dsl_train import provenance
from dsl_train.api import Speculator
from dsl_train.batch_engine import autoregressive_batch
from dsl_train.collect.prompts import read_prompts
from dsl_train.loading import Pair, library_defaults, load_pair
from dsl_train.records import AcceptanceStats, Round

TRANSFORMERS, ALONE = "transformers", "autoregressive"
Prompts = Sequence[Sequence[int]]
Outputs = tuple[list[tuple[int, ...]], list[Round]]
"""Response token ids of each prompt, and all rounds."""


@dataclass(frozen=True)
class Row:
    contender: str
    batch_size: int
    tokens_per_second: float
    """Of the median repeat, prompts included."""
    speedup: float
    """Over transformers' batched `generate`."""
    mean_lookahead: float
    """Drafts of a text per round."""
    tokens_per_round: float
    """Of one text; 0 where nothing is drafted at all."""
    equal: bool
    """Every output is that of the target alone at batch size 1."""


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(arguments.num_threads)
    pair = load_pair(arguments.target, arguments.draft, "float32", "cpu")
    read = read_prompts(arguments.prompts, None, arguments.num_prompts, pair.tokenizer)
    prompts = [prompt.encode(pair.tokenizer) for prompt in read]
    rows: list[Row] = []
    expected = [_alone(pair, arguments.max_new_tokens)([prompt])[0][0] for prompt in prompts]
    for batch_size in arguments.batch_sizes:
        contenders = _contenders(pair, batch_size, arguments)
        rows += measure(contenders, prompts, expected, batch_size, arguments.repeats)
        for row in rows[-len(contenders) :]:
            print(_line(row), flush=True)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    origin = {"versions": provenance.software_versions(), "command": provenance.command_line()}
    settings = {name: getattr(arguments, name) for name in ("num_prompts", "max_new_tokens", "num_threads", "repeats")}
    provenance.write_json(folder / "batch.json", {"rows": [asdict(row) for row in rows], **settings, **origin})


def measure(
    contenders: dict[str, Callable[[Prompts], Outputs]],
    prompts: Prompts,
    expected: Sequence[tuple[int, ...]],
    batch_size: int,
    repeats: int,
) -> Iterator[Row]:
    """All contenders in turn, `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    outputs: dict[str, Outputs] = {}
    for _ in range(repeats):
        for name, generate in contenders.items():
            began = time.perf_counter()
            parts = [generate(prompts[first : first + batch_size]) for first in range(0, len(prompts), batch_size)]
            seconds[name].append(time.perf_counter() - began)
            outputs[name] = [text for texts, _ in parts for text in texts], [r for _, rounds in parts for r in rounds]
    base = median(seconds[TRANSFORMERS])
    for name, (texts, rounds) in outputs.items():
        stats = AcceptanceStats.of(rounds)
        yield Row(
            contender=name,
            batch_size=batch_size,
            tokens_per_second=sum(map(len, texts)) / median(seconds[name]),
            speedup=base / median(seconds[name]),
            mean_lookahead=stats.num_draft_tokens / max(1, stats.num_spec_steps),
            tokens_per_round=stats.mean_acceptance_length,
            equal=texts == list(expected),
        )


def _contenders(pair: Pair, batch_size: int, arguments: argparse.Namespace) -> dict[str, Callable[[Prompts], Outputs]]:
    length = arguments.max_new_tokens
    contenders = {TRANSFORMERS: _transformers(pair, length), ALONE: _alone(pair, length)}
    for spec in arguments.policies:
        contenders[spec] = _speculative(Speculator(pair, spec), batch_size, length)
    return contenders


def _speculative(speculator: Speculator, batch_size: int, max_new_tokens: int) -> Callable[[Prompts], Outputs]:
    speculator.generate_batch([[1]] * batch_size, max_new_tokens=2, batch_size=batch_size)  # measures the prices

    def generate(prompts: Prompts) -> Outputs:
        generations = speculator.generate_batch(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
        results = [generation.result for generation in generations]
        return [result.token_ids for result in results], [r for result in results for r in result.rounds]

    return generate


def _alone(pair: Pair, max_new_tokens: int) -> Callable[[Prompts], Outputs]:
    def generate(prompts: Prompts) -> Outputs:
        results = autoregressive_batch(pair.target, prompts, max_new_tokens, None, pair.eos_token_ids)
        return [result.token_ids for result in results], []

    return generate


def _transformers(pair: Pair, max_new_tokens: int) -> Callable[[Prompts], Outputs]:
    """Left padding, as its documentation asks for."""
    eos = sorted(pair.eos_token_ids)
    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=eos[0])

    def generate(prompts: Prompts) -> Outputs:
        longest = max(map(len, prompts))
        padded = torch.tensor([[eos[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with library_defaults(pair.target), torch.inference_mode():
            output = pair.target.generate(padded, attention_mask=mask, generation_config=config)  # type: ignore[operator]
        return [_until_end(text, pair.eos_token_ids) for text in output[:, longest:].tolist()], []

    return generate


def _until_end(token_ids: list[int], eos_token_ids: frozenset[int]) -> tuple[int, ...]:
    ends = (i + 1 for i, token_id in enumerate(token_ids) if token_id in eos_token_ids)
    return tuple(token_ids[: next(ends, len(token_ids))])


def _line(row: Row) -> str:
    drafting = f"{row.mean_lookahead:5.2f} drafts and {row.tokens_per_round:4.2f} tokens a round"
    speed = f"{row.tokens_per_second:7.1f} tokens/s  {row.speedup:5.2f} x"
    return (
        f"batch {row.batch_size:3d}  {row.contender:16s} {speed}  {drafting}  {'equal' if row.equal else 'DIFFERENT'}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens per second of whole batches.")
    for name in ("target", "draft", "prompts", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--policies", nargs="+", default=["static:2", "static:4", "learned"])
    parser.add_argument("--num_prompts", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
