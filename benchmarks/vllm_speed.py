"""vLLM with and without our lookahead: tokens per second at several batch sizes, turn by turn.

    make .venv-vllm/.ready smollm2
    .venv-vllm/bin/python benchmarks/vllm_speed.py --target runs/smollm2/target --draft checkpoints/smollm2/draft \
        --prompts data/prompts/chat_test.jsonl --num_prompts 48 --output runs/vllm.json

Contenders: `none` is vLLM without speculation, `ngram` its own prompt lookup, `static:K` its own constant lookahead
with the same draft, and any other name a policy of ours (`learned`, `confidence:0.4,16`, ...). Each has an engine in a
process of its own, as it is served; they take turns on the same group of prompts in an order that changes. Greedy,
float32: all must say the same, and differences are counted. Intervals are bootstrapped by group and paired.
(No module may be called vllm.py here: it would hide the package.)
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dsl_train.bench.statistics import Rates, draws, ratio

#: In the environment that `make .venv-vllm/.ready` makes; vLLM warns of what speculation costs on CPUs without it.
OPENMP = Path(sys.prefix) / "lib/libiomp5.so"
LARGEST_STATIC = 8


def main() -> None:
    options = parse()
    with_intel_openmp()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    prompts = read_prompts(options.prompts, options.num_prompts)
    engines = {name: start(name, options) for name in options.policies}
    rows = [measure(engines, prompts, size, options) for size in options.batch_sizes]
    result = {"options": vars(options), "sizes": rows}
    for row in rows:
        show(row)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1, default=str))


def parse() -> argparse.Namespace:
    statics = [f"static:{lookahead}" for lookahead in range(1, LARGEST_STATIC + 1)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--num_prompts", type=int, default=16)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--policies", nargs="+", default=["none", "ngram", *statics, "learned"])
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--max_model_len", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--eager", action="store_true", help="no compilation: starts quicker, steps are slower")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def with_intel_openmp() -> None:
    """Start again with Intel's OpenMP loaded first, where there is one."""
    loaded = os.environ.get("LD_PRELOAD", "")
    if OPENMP.exists() and "libiomp5" not in loaded:
        preload = {"LD_PRELOAD": ":".join(filter(None, [str(OPENMP), loaded]))}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | preload)


def read_prompts(path: Path, number: int) -> list[dict[str, Any]]:
    """Lines with a `prompt`, or with the `turns` of a chat, of which the first is asked; spread over the file."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    number = min(number, len(lines))
    return [lines[i * len(lines) // number] for i in range(number)]


def start(name: str, options: argparse.Namespace) -> Any:
    """An engine for one contender."""
    from vllm import LLM

    ours = name not in ("none", "ngram") and not name.startswith("static:")
    os.environ["DSL_TRAIN"] = "on" if ours else "off"
    os.environ["DSL_TRAIN_POLICY"] = name if ours else "learned"
    spec: dict[str, Any] | None = {"method": "draft_model", "model": options.draft, "num_speculative_tokens": 16}
    if name == "none":
        spec = None
    elif name == "ngram":
        spec = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    elif name.startswith("static:") and spec:
        spec["num_speculative_tokens"] = int(name.removeprefix("static:"))
    print(f"starting {name}", file=sys.stderr)
    return LLM(
        options.target,
        dtype=options.dtype,
        enforce_eager=options.eager,
        max_model_len=options.max_model_len,
        max_num_seqs=max(options.batch_sizes),
        speculative_config=spec,
        disable_log_stats=False,
        enable_prefix_caching=False,  # each group is asked several times
        seed=0,
    )


def measure(
    engines: dict[str, Any], prompts: list[dict[str, Any]], size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One batch size: every group of `size` prompts, by every contender, in turn."""
    groups = [prompts[i : i + size] for i in range(0, len(prompts) - size + 1, size)] or [(prompts * size)[:size]]
    shuffle = random.Random(size)
    seconds = {name: np.zeros(len(groups)) for name in engines}
    tokens = {name: np.zeros(len(groups)) for name in engines}
    answers: dict[tuple[int, str], list[tuple[int, ...]]] = {}
    drafted = {name: np.zeros(3) for name in engines}
    for name in engines:
        ask(engines[name], groups[0], options)  # not counted: the first steps of a size are slow
    for repeat in range(options.repeats):
        for number, group in enumerate(groups):
            for name in shuffle.sample(sorted(engines), len(engines)):
                before, began = drafting_counts(engines[name]), time.perf_counter()
                said = ask(engines[name], group, options)
                seconds[name][number] += time.perf_counter() - began
                drafted[name] += drafting_counts(engines[name]) - before
                tokens[name][number] += sum(map(len, said))
                answers[number, name] = said
        print(f"batch size {size}: turn {repeat + 1} of {options.repeats}", file=sys.stderr)
    first = next(iter(engines))
    rates = {name: Rates(tokens[name], seconds[name]) for name in engines}
    drawn = draws(len(groups))
    return {
        "batch_size": size,
        "num_groups": len(groups),
        "contenders": {
            name: {
                "tokens_per_second": float(tokens[name].sum() / seconds[name].sum()),
                "milliseconds_per_token": float(1e3 * size * seconds[name].sum() / tokens[name].sum()),
                "over_first": ratio(rates[name], rates[first], drawn).to_dict(),
                **of_drafts(*drafted[name].tolist()),
                "num_different_answers": sum(
                    one != other
                    for number in range(len(groups))
                    for one, other in zip(answers[number, name], answers[number, first], strict=True)
                ),
            }
            for name in engines
        },
    }


def ask(engine: Any, group: list[dict[str, Any]], options: argparse.Namespace) -> list[tuple[int, ...]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=options.max_new_tokens)
    if "turns" in group[0]:
        chats = [[{"role": "user", "content": prompt["turns"][0]}] for prompt in group]
        done = engine.chat(chats, params, use_tqdm=False)
    else:
        done = engine.generate([prompt["prompt"] for prompt in group], params, use_tqdm=False)
    return [tuple(answer.outputs[0].token_ids) for answer in done]


def drafting_counts(engine: Any) -> np.ndarray:
    """vLLM's own counters of this engine: rounds that drafted something, tokens drafted, tokens accepted, [3]. Only the
    engine made last has them among the process's metrics, so they are read where it counts."""
    for logger in engine.llm_engine.logger_manager.stat_loggers:
        counts = getattr(logger, "spec_decoding_prom", None)
        if counts is not None and counts.spec_decoding_enabled:
            wanted = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
            by_engine = [getattr(counts, f"counter_spec_decode_{name}") for name in wanted]
            return np.array([counter[0]._value.get() for counter in by_engine])
    return np.zeros(3)


def of_drafts(rounds: float, drafted: float, accepted: float) -> dict[str, float]:
    return {
        "drafted_per_draft": drafted / rounds if rounds else 0.0,
        "accepted_share": accepted / drafted if drafted else 0.0,
    }


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['batch_size']} at once, {row['num_groups']} groups")
    titles = ("tokens/s", "ms/token", "drafted", "accepted", "differ")
    print(f"{'':14}", *(f"{title:>9}" for title in titles), "  over the first [95 %]")
    for name, each in row["contenders"].items():
        numbers = (each["tokens_per_second"], each["milliseconds_per_token"], each["drafted_per_draft"])
        print(f"{name:14}", *(f"{number:9.1f}" for number in numbers), end=" ")
        print(f"{each['accepted_share']:9.0%} {each['num_different_answers']:9d}", end="   ")
        print("{estimate:.2f} [{lower:.2f}, {upper:.2f}]".format(**each["over_first"]))


if __name__ == "__main__":
    main()
