"""The snippets of docs/transformers.md run as they stand, and write the target's own text."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from families.zoo import ENCODER_DECODERS, make_pair
from hub_stand_in import StandIn
from huggingface_hub import constants
from test_hf_tokenizers import shuffled
from tiny_predictor import write_predictor
from transformers import pipeline

from dsl_train.pair.hub import fetch_predictor
from dsl_train.pair.loading import load_pair
from dsl_train.train.artifact import write_loader

SECTIONS = dict(
    re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)",
        (Path(__file__).parent.parent / "docs" / "transformers.md").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
PROMPT = "def main("


@pytest.fixture(scope="module")
def names(pair_folders, tmp_path_factory):
    """What the page takes for granted."""
    folder = tmp_path_factory.mktemp("shipped") / "draft"
    shutil.copytree(pair_folders.draft, folder)
    (folder / "dsl").mkdir()
    pair = load_pair(pair_folders.target, str(folder), "float32", "cpu")
    write_loader(write_predictor(folder / "dsl", pair))
    seq2seq = dict(zip(("seq2seq_target", "seq2seq_draft"), make_pair(ENCODER_DECODERS[0]), strict=True))
    return {
        "target": pair.target,
        "draft": pair.draft,
        "target_folder": pair_folders.target,
        "draft_folder": str(folder),
        "inputs": dict(pair.tokenizer(PROMPT, return_tensors="pt")),
        "tokenizer": make_tokenizer(),
        **dict(zip(("other_draft", "other_tokenizer"), shuffled(pair.target), strict=True)),
        "encoder_inputs": torch.tensor([[5, 6, 7]]),
        "decoder_start_ids": [1],
        **seq2seq,
    }


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Profiles, the Hub's cache and copied code belong to the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("dsl_train.pair.hub.HfApi", StandIn(tmp_path))
    fetch_predictor.cache_clear()


def run(section: str, names: dict) -> list[dict]:
    """The names after each snippet of a section."""
    found = [title for title in SECTIONS if title.startswith(section)]
    assert len(found) == 1, f"{section}: {list(SECTIONS)}"
    results, known = [], {"dsl_train": __import__("dsl_train"), **names}
    for snippet in re.findall(r"```python\n(.*?)```", SECTIONS[found[0]], re.DOTALL):
        exec(snippet, known)
        results.append(dict(known))
    return results


@pytest.fixture(scope="module")
def alone(names):
    return names["target"].generate(**names["inputs"], max_new_tokens=32)[0].tolist()


def test_every_snippet_of_the_page_is_run_here():
    assert [title.partition(".")[0] for title in SECTIONS] == [*"123456", "Encoder-decoders without `generate`"]
    assert {title: text.count("```python") for title, text in SECTIONS.items() if "```python" not in text} == {}


def test_one_call_writes_the_targets_text(names, alone):
    (after,) = run("1.", names)
    assert list(after["result"].result.token_ids) == alone[names["inputs"]["input_ids"].shape[1] :]


@pytest.mark.parametrize("section", ["2.", "3.", "4.", "6."])
def test_generate_writes_the_targets_text(names, alone, section):
    texts = [after["text"][0].tolist() for after in run(section, names)]
    assert texts[0] == alone
    for text in texts[1:]:  # up to a stop string
        assert alone[: len(text)] == text


def test_pipelines_write_the_targets_text(names):
    both, one = (after["texts"] for after in run("5.", names))
    plain = pipeline("text-generation", model=names["target"], tokenizer=names["tokenizer"])
    expected = plain([PROMPT, "import "], max_new_tokens=32, do_sample=False)
    assert both == expected
    assert one == expected[0]


def test_encoder_decoders_run_without_generate(names):
    (after,) = run("Encoder-decoders", names)
    assert after["result"].num_tokens > 0
