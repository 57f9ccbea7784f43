"""What collecting costs and whether it may be trusted: speed, memory, bfloat16, and predictors trained on the traces.

    python benchmarks/collection.py speed memory skew training --output runs/reference/collection.json

speed: rows a second of the sequential oracle, of the same through transformers' own forward, of hindsight with the
target generating, and with its responses from a log; the same prompts for all, taken in turns, every row counted.
memory: peak of a process that collects few prompts and many. skew: primitives in bfloat16 from the parallel forward and
from one token at a time, as live; what a predictor makes of both. training: predictors from hindsight and from oracle
traces of the same prompts, on rows that the oracle collected from others. Prints a table and writes JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dsl_train.base import files
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.prompts import read_prompts
from dsl_train.collect.text import CollectedText, Collector, Reject, Request
from dsl_train.features import vector as features
from dsl_train.pair.loading import load_pair
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel
from dsl_train.traces import decisions
from dsl_train.traces.store import Traces, TraceSequence, join_rows, open_traces
from dsl_train.train import metrics

REFERENCE = Path("checkpoints/reference")
DRAFT_COLUMNS = ("entropy", *(f"log_prob_{i}" for i in range(1, features.TOP + 1)), "token_log_prob")
TARGET_COLUMNS = ("target_entropy", "target_top_prob")


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    parts = {"speed": speed, "memory": memory, "skew": skew, "training": training}
    results = {}
    for name in options.parts:
        results[name], lines = parts[name](options)
        print("\n".join([f"## {name}", "", *lines, ""]), flush=True)
    origin = {
        "versions": files.software_versions(),
        "command": files.command_line(),
        "threads": torch.get_num_threads(),
    }
    if options.output:
        files.write_json(options.output, {**results, **origin})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("speed", "memory", "skew", "training"))
    parser.add_argument("--target", default=str(REFERENCE / "target"))
    parser.add_argument("--draft", default=str(REFERENCE / "draft"))
    parser.add_argument("--predictor", help="folder of a predictor; default: the draft's dsl folder")
    parser.add_argument("--prompts", default="data/prompts/heldout_train.jsonl")
    parser.add_argument("--test_prompts", default="data/prompts/heldout_test.jsonl")
    parser.add_argument("--num_prompts", type=int, default=48, help="of speed")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=CollectConfig.batch_size)
    parser.add_argument("--memory_prompts", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--memory_tokens", type=int, default=32, help="new tokens of memory")
    parser.add_argument("--skew_prompts", type=int, default=32)
    parser.add_argument("--train_prompts", type=int, default=160)
    parser.add_argument("--live_prompts", type=int, default=64, help="test prompts that the oracle collects live")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args()


def speed(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    pair, config = load_pair(options.target, options.draft, "float32"), config_of(options)
    prompts = read_prompts(options.prompts, None, options.num_prompts, pair.tokenizer)
    asked = [Request(tuple(p.encode(pair.tokenizer)), seed, config.sampling) for seed, p in enumerate(prompts)]
    oracle, hindsight = OracleCollector(pair, config), HindsightCollector(pair, config)
    with through_transformers(pair.target), through_transformers(pair.draft):
        library = OracleCollector(pair, config)
    sums: dict[str, np.ndarray] = {}  # rows, seconds, seconds of CPU
    texts: dict[str, list[CollectedText]] = {}
    for first in range(0, len(asked), config.batch_size):
        group = asked[first : first + config.batch_size]
        brought = group
        for name, collector in (
            ("oracle", oracle),
            ("oracle through transformers", library),
            ("hindsight, generating", hindsight),
            ("hindsight, from a log", hindsight),
        ):
            found, seconds = timed(collector, brought if name == "hindsight, from a log" else group)
            brought = [replace(r, response_token_ids=t.response_token_ids) for r, t in zip(group, found, strict=True)]
            texts.setdefault(name, []).extend(found)
            sums[name] = np.add(sums.get(name, np.zeros(3)), (sum(len(text.rows["index"]) for text in found), *seconds))
    rates = {name: rows / seconds for name, (rows, seconds, _) in sums.items()}
    table = ["| | rows | rows/s | times the oracle | through transformers |", "|---|---|---|---|---|"]
    table += [
        f"| {name} | {sums[name][0]:,.0f} | {rate:,.0f} | {rate / rates['oracle']:.1f} | "
        f"{rate / rates['oracle through transformers']:.1f} |"
        for name, rate in rates.items()
    ]
    keys = ("rows", "seconds", "cpu_seconds")
    measured = {name: {**dict(zip(keys, sums[name], strict=True)), "rows_per_second": rates[name]} for name in sums}
    prompt_tokens = sum(len(request.prompt_token_ids) for request in asked)
    return {"prompts": len(asked), "prompt_tokens": prompt_tokens, "methods": measured}, table


def timed(collector: Collector, requests: Sequence[Request]) -> tuple[list[CollectedText], tuple[float, float]]:
    """What was collected, and how long it took: by the clock and by the processor [s]."""
    began, busy = time.perf_counter(), time.process_time()
    answers = list(collector.collect(requests))
    return used(answers), (time.perf_counter() - began, time.process_time() - busy)


def used(answers: Sequence[CollectedText | Reject]) -> list[CollectedText]:
    refused = [answer.reason for answer in answers if isinstance(answer, Reject)]
    if refused:
        raise SystemExit(f"{len(refused)} of {len(answers)} texts were put aside; the first: {refused[0]}")
    return [answer for answer in answers if isinstance(answer, CollectedText)]


@contextmanager
def through_transformers(model: PreTrainedModel) -> Iterator[None]:
    """Have the model's own forward called, as for any model that somebody listens to."""
    handle = model.get_output_embeddings().register_forward_hook(lambda *_: None)
    yield
    handle.remove()


def memory(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Prompts are different: the file's, over and over, each behind a comment with its number."""
    prompts = [json.loads(line)["prompt"] for line in Path(options.prompts).read_text("utf-8").splitlines()]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number in options.memory_prompts:
            file, output = Path(folder, f"{number}.jsonl"), Path(folder, f"traces-{number}")
            lines = (json.dumps({"prompt": f"# {i}\n{prompts[i % len(prompts)]}"}) for i in range(number))
            file.write_text("\n".join(lines), "utf-8")
            peak = peak_memory([*collect_command(options, file, output), f"--max_new_tokens={options.memory_tokens}"])
            results.append({"prompts": number, "rows": len(open_traces([output])), "peak_bytes": peak})
    table = [f"{options.memory_tokens} new tokens", "", "| prompts | rows | peak memory |", "|---|---|---|"]
    table += [f"| {row['prompts']:,} | {row['rows']:,} | {row['peak_bytes'] / 1e6:,.0f} MB |" for row in results]
    return {"new_tokens": options.memory_tokens, "runs": results}, table


def peak_memory(command: Sequence[str]) -> int:
    """Resident bytes of the process at its largest."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode} of {' '.join(command)}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def skew(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The live target says the texts, one token at a time; both ways of reading them share the labels."""
    pair, config = load_pair(options.target, options.draft, "bfloat16"), config_of(options)
    prompts = read_prompts(options.test_prompts, None, options.skew_prompts, pair.tokenizer)
    target, draft = CachedModel(pair.target), CachedModel(pair.draft)
    requests, target_rows = [], []
    for seed, prompt in enumerate(prompts):
        said, primitives = speak(target, prompt.encode(pair.tokenizer), options.max_new_tokens, pair.eos_token_ids)
        request = Request(tuple(prompt.encode(pair.tokenizer)), seed, config.sampling, tuple(said))
        requests.append(request)
        target_rows.append(primitives)
    texts = used(list(HindsightCollector(pair, config).collect(requests)))
    live = [live_rows(draft, *one) for one in zip(requests, texts, target_rows, strict=True)]
    parallel = traces_of(requests, [text.rows for text in texts])
    one_step = traces_of(requests, live)
    differences = {
        name: difference(parallel.rows[name], one_step.rows[name]) for name in (*DRAFT_COLUMNS, *TARGET_COLUMNS)
    }
    predictor = Predictor.load(options.predictor or Path(options.draft) / "dsl")
    made = [decisions.build(traces, predictor.max_lookahead) for traces in (parallel, one_step)]
    survival = [predictor.survival_batch(each.features) for each in made]
    differences["survival"] = difference(*survival)
    labels, position = made[0].survival, made[0].position
    auc = {
        name: metrics.evaluate(estimate, labels, position)["auc"]
        for name, estimate in zip(("parallel", "one_step"), survival, strict=True)
    }
    table = ["| | median | 99 % | largest |", "|---|---|---|---|"]
    table += [f"| {name} | {d['median']:.2g} | {d['p99']:.2g} | {d['max']:.2g} |" for name, d in differences.items()]
    table += ["", f"AUC {auc['parallel']:.4f} on parallel features, {auc['one_step']:.4f} one token at a time"]
    return {"texts": len(texts), "decisions": len(labels), "differences": differences, "auc": auc}, table


def speak(
    target: CachedModel, prompt: Sequence[int], max_new_tokens: int, ends: frozenset[int]
) -> tuple[list[int], np.ndarray]:
    """The target's greedy response and its primitives [T, 2]."""
    target.reset()
    said: list[int] = []
    rows = []
    while len(said) < max_new_tokens and not (said and said[-1] in ends):
        logits = target.logits([*prompt, *said], keep=1)
        said.append(int(logits.argmax()))
        rows.append(features.target_primitives(logits).numpy())
    return said, np.concatenate(rows)


def live_rows(draft: CachedModel, request: Request, text: CollectedText, target_rows: np.ndarray) -> dict[str, Any]:
    """A text's rows with the primitives of a draft that went through them one token at a time, as `target_rows`'
    target did."""
    committed = [*request.prompt_token_ids, *text.response_token_ids]
    index, depth, token_ids = (text.rows[name].tolist() for name in ("index", "depth", "token_id"))
    draft.reset()
    drafted: list[int] = []
    primitives = []
    for i, d, token_id in zip(index, depth, token_ids, strict=True):
        draft.truncate(i - 1 + d)
        drafted = [*drafted[:d], token_id]
        logits = draft.logits([*committed[:i], *drafted[:d]], keep=1)
        primitives.append(features.draft_primitives(logits, torch.tensor([token_id])).numpy())
    columns = dict(zip(DRAFT_COLUMNS, np.concatenate(primitives).T, strict=True))
    on_text = np.array(depth) == 0
    for name, values in zip(TARGET_COLUMNS, target_rows.T, strict=True):
        columns[name] = text.rows[name].copy()
        columns[name][on_text] = values
    return {**text.rows, **columns}


def traces_of(requests: Sequence[Request], rows: Sequence[dict[str, Any]]) -> Traces:
    numbered = [{"sequence_id": np.full(len(part["index"]), i), **part} for i, part in enumerate(rows)]
    sequences = tuple(
        TraceSequence(
            i, str(i), np.array(request.prompt_token_ids), np.array(request.response_token_ids), 0.0, 0, 1.0, "length"
        )
        for i, request in enumerate(requests)
    )
    return Traces(join_rows(numbered), sequences, ())


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    apart = np.abs(first - second)
    median, high, largest = np.nanquantile(apart, [0.5, 0.99, 1.0]).tolist()
    return {"median": median, "p99": high, "max": largest}


def training(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Each predictor by `dsl-train` as it comes, from the same prompts."""
    auc = {}
    with tempfile.TemporaryDirectory() as folder:
        live = Path(folder, "live")
        collect(options, options.test_prompts, live, "oracle", options.live_prompts)
        for method in ("hindsight", "oracle"):
            traces, output = Path(folder, method), Path(folder, f"{method}-predictor")
            collect(options, options.prompts, traces, method, options.train_prompts)
            run("dsl_train.cli.train", "--traces", str(traces), "--output", str(output))
            predictor = Predictor.load(output)
            met = decisions.build(open_traces([live]), predictor.max_lookahead)
            auc[method] = metrics.evaluate(predictor.survival_batch(met.features), met.survival, met.position)["auc"]
    numbers = {"train_prompts": options.train_prompts, "live_prompts": options.live_prompts, "decisions": len(met)}
    table = ["| trained on | AUC on live rows |", "|---|---|", *(f"| {name} | {auc[name]:.4f} |" for name in auc)]
    return {**numbers, "auc": auc}, table


def collect(options: argparse.Namespace, prompts: str, output: Path, method: str, number: int) -> None:
    command = collect_command(options, prompts, output)
    limits = (f"--num_prompts={number}", f"--max_new_tokens={options.max_new_tokens}")
    run(*command[2:], f"--method={method}", *limits)


def collect_command(options: argparse.Namespace, prompts: str | Path, output: Path) -> list[str]:
    told = {"target": options.target, "draft": options.draft, "prompts": prompts, "output": output}
    threads = [f"--num_threads={options.threads}"] if options.threads else []
    named = [f"--{name}={value}" for name, value in told.items()]
    return [sys.executable, "-m", "dsl_train.cli.collect", *named, *threads]


def run(module: str, *argv: str) -> None:
    subprocess.run([sys.executable, "-m", module, *argv], check=True, stdout=subprocess.DEVNULL)


def config_of(options: argparse.Namespace) -> CollectConfig:
    return CollectConfig(
        options.target,
        options.draft,
        output="",
        prompts=options.prompts,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
    )


if __name__ == "__main__":
    main()
