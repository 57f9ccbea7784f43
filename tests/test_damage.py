"""A seeded sample of `benchmarks/damage.py`: no damaged file ends in a traceback or in another answer unnoticed."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dsl_train.base.records import DslError

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "damage.py"
NAMES = [
    *("draft model.safetensors", "draft config.json", "tokenizer.json", "tokenizer_config.json", "train.yaml"),
    *(f"{age} predictor {file}" for age in ("new", "older") for file in ("predictor.onnx", "config.json")),
    *(
        f"{age} traces {file}"
        for age in ("new", "older")
        for file in ("rows/part-00000.parquet", "sequences/part-00001.parquet", "manifest.json")
    ),
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("damage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["damage"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["damage"]


@pytest.fixture(scope="module")
def artifacts(script, tmp_path_factory):
    return {artifact.name: artifact for artifact in script.make_artifacts(tmp_path_factory.mktemp("artifacts"))}


def test_every_artifact_is_sampled(artifacts):
    assert sorted(artifacts) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_in_one_sentence_or_as_good_as_whole(script, artifacts, name):
    findings = script.examine(artifacts[name], 16, np.random.default_rng(len(name)))
    assert findings.wrong == []
    assert sum(findings.outcomes.values()) == 16


@pytest.mark.parametrize("change", [{"num_attention_heads": 3}, {"rms_norm_eps": 1}, {"hidden_act": "none"}])
def test_a_model_configuration_that_contradicts_itself_is_refused(artifacts, change):
    file = artifacts["draft config.json"].file
    whole = file.read_text("utf-8")
    file.write_text(json.dumps({**json.loads(whole), **change}))
    try:
        with pytest.raises(DslError, match=r"draft .*download or save it again"):
            artifacts["draft config.json"].load()
    finally:
        file.write_text(whole)


def test_a_configuration_file_that_is_not_utf8_is_a_usage_error(artifacts, capsys):
    file = artifacts["train.yaml"].file
    whole = file.read_bytes()
    file.write_bytes(b"\xf1" + whole)
    try:
        with pytest.raises(SystemExit) as stopped:
            artifacts["train.yaml"].load()
    finally:
        file.write_bytes(whole)
    assert stopped.value.code == 2
    assert "--config is not a file of UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["flipped", "zeroed", "truncated", "swapped"])
def test_every_kind_of_damage_changes_the_content(script, kind):
    content, rng = bytes(range(200)), np.random.default_rng(0)
    damaged = [script.damage(content, kind, rng) for _ in range(20)]
    assert content not in damaged
    assert all(len(one) == len(content) for one in damaged) == (kind != "truncated")
