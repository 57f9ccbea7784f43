"""A seeded sample of `benchmarks/damage.py`: no damaged file ends in a traceback or in another answer unnoticed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "damage.py"
NAMES = [
    *("draft model.safetensors", "draft config.json", "train.yaml"),
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


@pytest.mark.parametrize("kind", ["flipped", "zeroed", "truncated", "swapped"])
def test_every_kind_of_damage_changes_the_content(script, kind):
    content, rng = bytes(range(200)), np.random.default_rng(0)
    damaged = [script.damage(content, kind, rng) for _ in range(20)]
    assert content not in damaged
    assert all(len(one) == len(content) for one in damaged) == (kind != "truncated")
