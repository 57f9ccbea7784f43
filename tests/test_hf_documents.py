"""The snippets of docs/transformers.md run as they stand."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from families.zoo import ENCODER_DECODERS, make_pair
from tiny_predictor import write_predictor

from dsl_train.loading import load_pair

SNIPPETS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parent.parent / "docs" / "transformers.md").read_text("utf-8"), re.DOTALL
)


@pytest.fixture(scope="module")
def names(pair_folders, tmp_path_factory):
    """What the page takes for granted."""
    folder = tmp_path_factory.mktemp("shipped") / "draft"
    shutil.copytree(pair_folders.draft, folder)
    (folder / "dsl").mkdir()
    pair = load_pair(pair_folders.target, str(folder), "float32", "cpu")
    write_predictor(folder / "dsl", pair)
    seq2seq = dict(zip(("seq2seq_target", "seq2seq_draft"), make_pair(ENCODER_DECODERS[0]), strict=True))
    more = {"encoder_inputs": torch.tensor([[5, 6, 7]]), "decoder_start_ids": [1], "tokenizer": make_tokenizer()}
    return {
        "target": pair.target,
        "draft": pair.draft,
        "inputs": {"input_ids": torch.tensor([[9, 8, 7]])},
        **seq2seq,
        **more,
    }


def test_every_snippet_runs_and_the_texts_are_the_targets(names, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inputs = names["inputs"] | {"attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    names = names | {"inputs": inputs}
    alone = names["target"].generate(**inputs, max_new_tokens=32).tolist()
    texts = []
    for snippet in SNIPPETS:
        exec(snippet, names)
        texts.append(names["text"].tolist())
    assert len(SNIPPETS) == 4
    assert texts[0] == texts[2] == alone
    assert alone[0][: len(texts[1][0])] == texts[1][0]
    assert names["result"].num_tokens > 0
