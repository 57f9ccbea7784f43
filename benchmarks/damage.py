"""Damaged artifacts: each is refused in one sentence or as good as the whole one, and none ends in a traceback.

    python benchmarks/damage.py --number 10000

Writes small artifacts, damages one file of one of them at a time (bits flipped, bytes zeroed, the end cut off, two
pieces swapped) and loads it as a user does. The outcome of each is one of four:

    refused      a DslError of one line, or a usage error of the command line
    equal        the file loads and says the same as the whole one
    different    the file loads and says something else
    traceback    any other exception

`different` is allowed only where nothing could tell: artifacts of versions that recorded no digests, tokenizers, and
YAML files, which people write by hand. A damaged draft is judged by the generated text, which is the target's own with
any draft.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dsl_train.api.speculator import generate
from dsl_train.base import files, schema
from dsl_train.base.records import DslError
from dsl_train.cli.app import run
from dsl_train.features import entries
from dsl_train.pair.loading import Placement, load_model, load_tokenizer
from dsl_train.predictor.runtime import CONFIG, FORMAT_VERSION, ONNX, ONNX_DIGEST, Predictor
from dsl_train.traces import store
from dsl_train.train.config import TrainConfig
from dsl_train.train.export import export_onnx
from dsl_train.train.network import SurvivalNetwork

ROOT = Path(__file__).parent.parent
OUTCOMES = ("refused", "equal", "different", "traceback")
VOCAB_SIZE = 64
MODEL = {"id": "tiny", "revision": "one", "architecture": "LlamaForCausalLM", "vocab_size": VOCAB_SIZE}
PROMPT = [5, 9, 5, 9, 7, 11]


@dataclass(frozen=True)
class Artifact:
    """One file and what is read through it."""

    name: str
    file: Path
    load: Callable[[], Any]
    """As a user loads it; what it returns is compared with `==`."""
    may_differ: bool = False
    """Whether nothing in the artifact could tell."""


@dataclass
class Findings:
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Tracebacks, and differences where none may be."""


def damage(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """The content with one kind of damage; never the same content."""
    while True:
        damaged = _KINDS[kind](bytearray(content), rng)
        if damaged != content:
            return bytes(damaged)


def _flip(content: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(len(content), size=rng.integers(1, 9)):
        content[place] ^= 1 << int(rng.integers(8))
    return content


def _zero(content: bytearray, rng: np.random.Generator) -> bytearray:
    first, length = int(rng.integers(len(content))), int(rng.integers(1, 65))
    length = min(length, len(content) - first)
    content[first : first + length] = bytes(length)
    return content


def _truncate(content: bytearray, rng: np.random.Generator) -> bytearray:
    return content[: int(rng.integers(len(content)))]


def _swap(content: bytearray, rng: np.random.Generator) -> bytearray:
    length = int(rng.integers(1, max(2, min(65, len(content) // 2))))
    one, other = (slice(first, first + length) for first in rng.integers(len(content) - length, size=2).tolist())
    if abs(one.start - other.start) >= length:
        content[one], content[other] = content[other], content[one]
    return content


_KINDS = {"flipped": _flip, "zeroed": _zero, "truncated": _truncate, "swapped": _swap}


def examine(artifact: Artifact, number: int, rng: np.random.Generator) -> Findings:
    """Load `number` damaged versions of the artifact; the file is whole again afterwards."""
    findings, content, original = Findings(), artifact.file.read_bytes(), artifact.load()
    try:
        for i in range(number):
            kind = list(_KINDS)[i % len(_KINDS)]
            artifact.file.write_bytes(damage(content, kind, rng))
            outcome, detail = _outcome(artifact, original)
            findings.outcomes[outcome] += 1
            if outcome == "traceback" or (outcome == "different" and not artifact.may_differ):
                findings.wrong.append(f"{artifact.name}, {kind}, {outcome}: {detail}")
    finally:
        artifact.file.write_bytes(content)
    return findings


def _outcome(artifact: Artifact, original: Any) -> tuple[str, str]:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            loaded = artifact.load()
    except DslError as error:
        one_line = "\n" not in str(error)
        return ("refused", "") if one_line else ("traceback", f"a refusal of several lines: {error}")
    except SystemExit as stopped:
        return ("refused", "") if stopped.code == 2 else ("traceback", f"exit code {stopped.code}")
    except Exception:
        return "traceback", traceback.format_exc(limit=-4)
    return ("equal", "") if loaded == original else ("different", "")


def make_artifacts(folder: Path) -> list[Artifact]:
    """Small whole artifacts of every kind below `folder`, once as this version writes them and once without digests."""
    new, older = folder / "new", folder / "older"
    _write_predictor(new / "predictor")
    _write_traces(new / "traces")
    shutil.copytree(new, older)
    for document in (older / "predictor" / CONFIG, older / "traces" / store.MANIFEST):
        content = json.loads(document.read_text("utf-8"))
        digests = (files.SEAL, ONNX_DIGEST, store.DIGESTS)
        files.write_json(document, {key: value for key, value in content.items() if key not in digests})
    return [
        *_of_draft(folder / "draft"),
        *_of_tokenizer(folder / "tokenizer"),
        *_of_yaml(folder / "train.yaml"),
        *(artifact for age in ("new", "older") for artifact in _of_predictor(folder / age / "predictor", age)),
        *(artifact for age in ("new", "older") for artifact in _of_traces(folder / age / "traces", age)),
    ]


def _of_predictor(folder: Path, age: str) -> Iterator[Artifact]:
    vectors = np.random.default_rng(0).random((32, len(entries.FEATURE_NAMES)), dtype=np.float32)
    keys = json.loads((folder / CONFIG).read_text("utf-8")).keys() - {files.SEAL}

    def load() -> Any:
        predictor = Predictor.load(folder)
        predictor.check_pair(MODEL, MODEL)
        answers = predictor.survival_batch(vectors).tolist()
        return answers, [predictor.threshold(c) for c in (0.05, 0.2, 0.5)], {k: predictor.config.get(k) for k in keys}

    yield Artifact(f"{age} predictor {ONNX}", folder / ONNX, load, may_differ=age == "older")
    yield Artifact(f"{age} predictor {CONFIG}", folder / CONFIG, load, may_differ=age == "older")


def _of_traces(folder: Path, age: str) -> Iterator[Artifact]:
    keys = json.loads((folder / store.MANIFEST).read_text("utf-8")).keys() - {files.SEAL}

    def load() -> Any:
        traces = store.open_traces([folder])
        texts = [
            {name: np.asarray(getattr(text, name)).tolist() for name in schema.SEQUENCE_COLUMNS}
            for text in traces.sequences
        ]
        rows = {name: column.tobytes() for name, column in traces.rows.items()}
        return rows, texts, [{key: manifest.get(key) for key in keys} for manifest in traces.manifests]

    for file in ("rows/part-00000.parquet", "sequences/part-00001.parquet", store.MANIFEST):
        yield Artifact(f"{age} traces {file}", folder / file, load, may_differ=age == "older")


def _of_yaml(file: Path) -> Iterator[Artifact]:
    text = (ROOT / "configs" / "train.yaml").read_text("utf-8")
    file.write_text(f"{text}\ntraces: [traces]\noutput: predictor\n", "utf-8")

    def load() -> Any:
        found: list[TrainConfig] = []
        code = run(TrainConfig, found.append, lambda _: None, lambda _: {}, ["--config", str(file)], prog="dsl-train")
        if code:
            raise DslError("refused by the command line")
        return found[0].to_dict()

    yield Artifact("train.yaml", file, load, may_differ=True)


def _of_draft(folder: Path) -> Iterator[Artifact]:
    target, draft = _tiny_model(0), _tiny_model(1)
    draft.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "reference" / "target")
    placement = Placement(torch.float32, torch.device("cpu"))

    def load() -> Any:
        loaded = load_model(str(folder), "draft", placement)
        generated = generate(target, loaded, PROMPT, policy="static:3", tokenizer=tokenizer, max_new_tokens=10)
        return generated.result.token_ids

    for file in ("model.safetensors", "config.json"):
        yield Artifact(f"draft {file}", folder / file, load)


def _of_tokenizer(folder: Path) -> Iterator[Artifact]:
    words = {word: i for i, word in enumerate(["<unk>", "<eos>", *(f"word{i}" for i in range(40))])}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)

    def load() -> Any:
        tokenizer = load_tokenizer(str(folder))
        return tokenizer.encode("word3 word5 other"), tokenizer.decode([4, 5, 6]), sorted(tokenizer.get_vocab().items())

    for file in ("tokenizer.json", "tokenizer_config.json"):
        yield Artifact(file, folder / file, load, may_differ=True)


def _tiny_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def _write_predictor(folder: Path) -> None:
    torch.manual_seed(0)
    names, rows = entries.FEATURE_NAMES, torch.rand(64, len(entries.FEATURE_NAMES))
    network = SurvivalNetwork(names, (8,))
    network.standardise(rows)
    export_onnx(network, names, rows, folder / ONNX)
    config = {
        "format_version": FORMAT_VERSION,
        ONNX_DIGEST: files.sha256(folder / ONNX),
        "schema": {"version": schema.SCHEMA_VERSION, "names": names, "fingerprint": entries.fingerprint(names)},
        "pair": {"target": MODEL, "draft": MODEL},
        "threshold_table": {"c_eff": [0.1, 0.3], "threshold": [0.25, 0.5]},
        "max_lookahead": 8,
        "versions": files.software_versions(),
    }
    files.write_json(folder / CONFIG, files.sealed(config))


def _write_traces(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part in range(2):
        texts = [_text(2 * part + i, rng) for i in range(2)]
        store.write_part(folder, part, store.join_rows([_rows(text, rng) for text in texts]), texts)
    pair = {role: {"id": role, "revision": None, "vocab_size": VOCAB_SIZE} for role in ("target", "draft")}
    store.write_manifest(folder, {"pair": pair, "counts": {"num_sequences": 4}})


def _text(number: int, rng: np.random.Generator) -> store.TraceSequence:
    prompt, response = (rng.integers(2, VOCAB_SIZE, length).astype(np.int32) for length in (5, 20))
    return store.TraceSequence(number, f"prompt-{number}", prompt, response, 0.0, 0, 1.0, "length")


def _rows(text: store.TraceSequence, rng: np.random.Generator) -> store.Rows:
    length = len(text.response_token_ids)
    known = {
        "sequence_id": np.full(length, text.sequence_id),
        "index": 5 + np.arange(length),
        "depth": np.zeros(length),
    }
    return {name: known.get(name, rng.random(length) * 2).astype(kind) for name, kind in schema.ROW_COLUMNS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=10_000, help="damaged artifacts, over all files together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, wrong, totals = np.random.default_rng(options.seed), [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        artifacts = make_artifacts(Path(folder))
        for i, artifact in enumerate(artifacts):
            share = options.number // len(artifacts) + (i < options.number % len(artifacts))
            findings = examine(artifact, share, rng)
            totals += findings.outcomes
            wrong += findings.wrong
            counts = ", ".join(f"{findings.outcomes[outcome]} {outcome}" for outcome in OUTCOMES)
            print(f"{artifact.name:40}{counts}{'' if not artifact.may_differ else '   (may differ)'}", flush=True)
    print(f"{'all':40}{', '.join(f'{totals[outcome]} {outcome}' for outcome in OUTCOMES)}")
    for line in wrong[:20]:
        print(line)
    print(json.dumps({"number": options.number, "wrong": len(wrong), **{name: totals[name] for name in OUTCOMES}}))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
