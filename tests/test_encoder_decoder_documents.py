"""The snippets of docs/encoder_decoders.md run as they stand; speech and sampled texts too go as far as a predictor."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_encoder_decoder_pairs import T5, TEXTS, WHISPER, arguments, clip, save_pair, write_lines
from transformers import WhisperFeatureExtractor

import dsl_train
from dsl_train.cli.collect import main as collect
from dsl_train.loop.engine import autoregressive
from dsl_train.pair.loading import load_pair
from dsl_train.pair.prompt import begin, encode_audio, runner_of
from dsl_train.traces.store import open_traces
from dsl_train.train.config import TrainConfig
from dsl_train.train.fit import fit

PAGE = (Path(__file__).parent.parent / "docs" / "encoder_decoders.md").read_text("utf-8")
SPEECH = {"max_source_positions": 50, "max_target_positions": 256}
#: Depth-0 columns that do not depend on what the draft happened to draw.
OF_THE_TEXT = ("accept_prob", "agreement", "entropy", "log_prob_1", "log_prob_5", "target_entropy", "text_token_id")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where the page's names are folders."""
    root = tmp_path_factory.mktemp("home")
    sizes = {T5: {"max_position_embeddings": 512}, WHISPER: SPEECH}
    names = {T5: ("t5-large", "t5-small"), WHISPER: ("openai/whisper-medium", "openai/whisper-tiny")}
    for family, (target, draft) in names.items():
        folders = save_pair(root / family.model, family, **sizes[family])
        for role, name in (("target", target), ("draft", draft)):
            shutil.copytree(folders[role], root / name)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(root / "openai" / "whisper-medium")
    return root


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)


def train(target: str, draft: str, prompts: list[dict], home: Path, **options) -> Path:
    """Collect and ship; returns the traces."""
    traces = home / f"traces-{Path(draft).name}"
    given = {"target": target, "draft": draft, "prompts": write_lines(home / "prompts.jsonl", prompts)}
    assert collect(arguments(given, output=traces, max_new_tokens=12, tail_length=4, **options)) == 0
    fit(TrainConfig([traces], home / f"run-{Path(draft).name}", ship_to=Path(draft), hidden=(8,), epochs=2))
    return traces


@pytest.mark.filterwarnings("ignore")  # of Whisper's own generate
def test_the_pages_snippet_writes_the_targets_text_with_predictors_trained_for_text_and_speech(home):
    train("t5-large", "t5-small", [{"prompt": text} for text in TEXTS], home)
    clips = [{"audio": {"array": (clip(i) * (i + 1) / 8).tolist(), "sampling_rate": 16_000}} for i in range(8)]
    spoken = train("openai/whisper-medium", "openai/whisper-tiny", clips, home)
    assert len(open_traces([spoken]).sequences) == 8
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    text_line, speech_line = snippet.strip().splitlines()
    known = {"dsl_train": dsl_train, "samples": clip(2)}
    exec(text_line, known)
    pair = load_pair("t5-large", "t5-small", device="cpu")
    prompt = pair.tokenizer("translate English to German: The house is old.", return_tensors="pt")["input_ids"]
    own = pair.target.generate(prompt, max_new_tokens=128, do_sample=False)[0].tolist()
    assert [*known["result"].result.prompt_token_ids, *known["result"].result.token_ids] == own
    exec(speech_line, known)
    pair = load_pair("openai/whisper-medium", "openai/whisper-tiny", device="cpu")
    runner = runner_of(pair.target)
    start = begin(encode_audio(pair, clip(2)), runner)
    alone = autoregressive(runner, start, 128, eos_token_ids=pair.eos_token_ids)
    assert known["result"].result.token_ids == alone.token_ids


def test_hindsight_labels_sampled_answers_as_the_oracle_does(home):
    given = {"target": "t5-large", "draft": "t5-small", "temperature": 0.8, "max_new_tokens": 12}
    texts = [{"prompt": text} for text in TEXTS[:8]]
    prompts = write_lines(home / "sampled.jsonl", texts)
    assert collect(arguments(given, prompts=prompts, method="oracle", output=home / "oracle")) == 0
    oracle = open_traces([home / "oracle"])
    answers = [sequence.response_token_ids.tolist() for sequence in oracle.sequences]
    log = [{**text, "response_token_ids": answer} for text, answer in zip(texts, answers, strict=True)]
    assert collect(arguments(given, responses=write_lines(home / "log.jsonl", log), output=home / "given")) == 0
    hindsight = open_traces([home / "given"])
    for name in OF_THE_TEXT:
        found, expected = (traces.rows[name][traces.rows["depth"] == 0] for traces in (hindsight, oracle))
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=name)
    assert 0 < oracle.rows["accepted"].sum() < len(oracle.rows["accepted"])
