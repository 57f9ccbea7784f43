"""The proof script on small traces: every rule is there, tuned on one side, told of the other."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from synthetic_traces import PAIR, write_traces
from tiny_predictor import write_predictor

from dsl_train.base.cost import CostProfile
from dsl_train.replay.tuning import AS_PUBLISHED

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "proof.py"
COST = CostProfile(0.2, 1.0, 0.05, predictor=0.02, round_overhead=0.1, target_steps=(1.0, 1.2, 1.25, 1.3))
TUNED = {"static", "confidence", "kangaroo", "svip", "cumulative", "logistic", "adaedl", "draft-verify"}
TUNED |= {"specdec++", "specdec++:draft"}


@pytest.fixture(scope="module")
def proof():
    spec = importlib.util.spec_from_file_location("proof", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["proof"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["proof"]


@pytest.fixture(scope="module")
def document(proof, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proof")
    train, test = (write_traces(folder / name, num_prompts=8, seed=seed) for name, seed in (("train", 0), ("test", 1)))
    (folder / "predictor").mkdir()
    write_predictor(folder / "predictor", SimpleNamespace(describe=lambda: PAIR))
    (folder / "cost.json").write_text(json.dumps(COST.to_dict()))
    words = ["--predictor", folder / "predictor", "--cost", folder / "cost.json", "--c", "0.1"]
    proof.main([*map(str, [*words, "--output", folder / "out", "--contest", "greedy", train, test])])
    return folder / "out"


def test_every_rule_is_tuned_and_told_at_every_price(document):
    contests = json.loads((document / "proof.json").read_text())["contests"]
    assert [held["measured"] for held in contests] == [True, False]
    assert contests[0]["c"] == pytest.approx(COST.c_eff)
    for held in contests:
        rules = [row["rule"] for row in held["rows"]]
        assert set(rules) == {*TUNED, *AS_PUBLISHED, "learned", "learned, corrected", "oracle", "oracle+"}
        assert held["num_prompts"] == 8
        rates = {row["rule"]: row["rate"]["estimate"] for row in held["rows"]}
        assert rates["oracle"] == max(rates.values())
        assert held["gap_to_ceiling"] is None  # greedy


def test_the_best_threshold_found_by_brute_force_adds_what_is_told(document):
    for held in json.loads((document / "proof.json").read_text())["contests"]:
        assert held["brute_gain"] >= -1e-9
        assert held["measured"] or held["threshold"] == 0.5  # of the tiny predictor, at every price


def test_the_tables_are_readable(document):
    text = (document / "proof.md").read_text()
    assert text.count("\n## greedy, c = ") == 2
    assert "specdec++:" in text
    assert str(document) not in text  # files and fitted weights are left out
    assert "gap to oracle+ closed" in text
