"""Training end to end on texts that no model wrote, and the parts it is made of."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_traces import PAIR, write_traces

from dsl_train.base.records import DslError
from dsl_train.cli.train import main
from dsl_train.features import entries
from dsl_train.predictor.runtime import Predictor, open_session
from dsl_train.traces import decisions
from dsl_train.traces.store import open_traces
from dsl_train.train import metrics
from dsl_train.train.config import TrainConfig
from dsl_train.train.data import Batches, TraceDataModule, split_by_prompt
from dsl_train.train.export import export_onnx
from dsl_train.train.fit import TrainResult, _calibrate, fit
from dsl_train.train.network import SurvivalNetwork
from dsl_train.train.trainer import load_best


@pytest.fixture(scope="module")
def trace_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_traces(tmp_path_factory.mktemp("traces"), num_prompts=30, texts_per_prompt=2)


@pytest.fixture(scope="module")
def config(trace_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    draft = tmp_path_factory.mktemp("draft")
    (draft / "config.json").write_text(json.dumps({"vocab_size": PAIR["draft"]["vocab_size"]}))
    output = tmp_path_factory.mktemp("work") / "predictor"
    return TrainConfig([trace_folder], output, ship_to=draft, max_lookahead=8, hidden=(16,), epochs=4)


@pytest.fixture(scope="module")
def trained(config: TrainConfig) -> TrainResult:
    return fit(config)


def test_training_beats_the_logistic_floor_on_held_out_prompts(trained):
    test, floor = trained.metrics["test"], trained.metrics["floor"]
    assert test["auc"] > floor["auc"] > 0.6
    assert test["log_loss"] < floor["log_loss"]
    assert [row["position"] for row in test["by_position"]] == list(range(8))


def test_the_artifact_holds_what_the_design_says_and_the_training_explains_itself(trained, config):
    described = json.loads((config.output / "config.json").read_text())
    assert described["schema"]["names"] == list(entries.FEATURE_NAMES)
    assert described["pair"] == PAIR
    assert described["sampling"] == {"temperatures": [0.0], "top_k": [0], "top_p": [1.0]}
    assert described["draft_temperature"] == {"target": [1.0], "draft": [1.0]}  # the texts are greedy
    assert described["max_lookahead"] == 8
    assert described["metrics"]["onnx_difference"] < 1e-5
    assert described["metrics"]["onnx_bytes"] < 200_000
    assert "models/target" in (config.output / "README.md").read_text()
    assert json.loads((config.output / "training" / "config.json").read_text()) == config.to_dict()
    assert (config.output / "training" / "metrics.csv").is_file()
    assert list((config.output / "training").glob("events.*"))


def test_threads_that_ask_at_once_get_their_own_answers(trained, config):
    predictor = Predictor.load(config.output)
    vectors = np.random.default_rng(0).random((400, len(entries.FEATURE_NAMES)), dtype=np.float32)
    alone = [predictor.survival(vector) for vector in vectors]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(predictor.survival, vectors)) == alone


def test_a_network_that_does_not_see_the_position_is_right_on_average_over_all_of_them(trace_folder):
    all_decisions, names = decisions.build(open_traces([trace_folder]), 8), ("top_prob", "margin")
    data = TraceDataModule(all_decisions, all_decisions.prompt_ids, names, batch_size=64, seed=0)
    network, (features, labels, _) = SurvivalNetwork(names, (8,)), data.part("val")
    network.standardise(features)
    _calibrate(network, data, all_decisions)
    assert network.survival(features).mean().item() == pytest.approx(float(labels.mean()), abs=0.01)


def test_the_shipped_copy_equals_the_artifact_and_nothing_lands_in_the_drafts_root(trained, config):
    assert config.ship_to is not None
    assert {path.name for path in config.ship_to.iterdir()} == {"config.json", "dsl"}
    for name in ("predictor.onnx", "config.json", "README.md"):
        assert (config.ship_to / "dsl" / name).read_bytes() == (config.output / name).read_bytes()


def test_the_runtime_gives_the_networks_numbers_one_by_one_and_in_batches(trained, config):
    network = load_best(config.output / "training", config).network
    predictor = Predictor.load(config.output)
    vectors = np.random.default_rng(0).random((50, len(entries.FEATURE_NAMES)), dtype=np.float32)
    batch = predictor.survival_batch(vectors)
    np.testing.assert_allclose(batch, [predictor.survival(v) for v in vectors], atol=1e-6)
    with torch.no_grad():
        raw = network(torch.from_numpy(vectors)).numpy()
    slope, shift = np.polyfit(raw, np.log(batch / (1 - batch)), 1)
    assert slope > 0
    np.testing.assert_allclose(1 / (1 + np.exp(-(slope * raw + shift))), batch, atol=1e-4)


def test_thresholds_rise_with_the_price_of_a_draft(trained, config):
    predictor = Predictor.load(config.output)
    table = predictor.table
    assert predictor.threshold(0.0) == table.threshold[0]
    assert predictor.threshold(table.c_eff[3]) == table.threshold[3]
    assert 0 < predictor.threshold(0.05) < predictor.threshold(0.3) <= 1.0


def test_export_only_reproduces_the_predictor_without_training(trained, config):
    before = Predictor.load(config.output).survival_batch(np.ones((1, len(entries.FEATURE_NAMES)), dtype=np.float32))
    result = fit(replace(config, export_only=True, ship_to=None))
    after = Predictor.load(config.output).survival_batch(np.ones((1, len(entries.FEATURE_NAMES)), dtype=np.float32))
    assert result.epochs is None
    np.testing.assert_array_equal(before, after)


def test_a_predictor_of_core_features_picks_its_columns_from_the_full_vector(trace_folder, tmp_path):
    fit(TrainConfig([trace_folder], tmp_path / "core", features="core", max_lookahead=8, hidden=(8,), epochs=1))
    predictor = Predictor.load(tmp_path / "core")
    assert predictor.names == entries.CORE
    vector = np.random.default_rng(1).random(len(entries.FEATURE_NAMES), dtype=np.float32)
    other = vector.copy()
    other[[i for i, name in enumerate(entries.FEATURE_NAMES) if name not in entries.CORE]] += 1
    assert predictor.survival(vector) == predictor.survival(other)
    other[entries.FEATURE_NAMES.index("top_prob")] += 1
    assert predictor.survival(vector) != predictor.survival(other)


def test_the_same_command_again_gives_the_same_predictor(trained, config, tmp_path):
    again = fit(replace(config, output=tmp_path / "again", ship_to=None))
    assert again.threshold_table == trained.threshold_table
    assert again.metrics["test"] == trained.metrics["test"]


def test_the_command_prints_one_json_document_last(trained, config, capsys):
    values = ["--traces", *map(str, config.traces), "--output", str(config.output), "--max_lookahead", "8"]
    assert main([*values, "--hidden", "16", "--epochs", "4", "--export_only", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["output"] == str(config.output)
    assert document["metrics"]["test"]["auc"] > 0.6


def test_several_texts_of_one_prompt_stay_on_one_side():
    prompt_ids = [f"prompt-{i % 20}" for i in range(60)]
    splits = split_by_prompt(prompt_ids, seed=3)
    assert all(len(set(splits[np.array(prompt_ids) == prompt].tolist())) == 1 for prompt in prompt_ids)
    assert [int((splits == code).sum()) for code in range(3)] == [48, 6, 6]


def test_two_prompts_are_too_few_to_split():
    with pytest.raises(DslError, match=r"hold 2 prompt.*3 at least"):
        split_by_prompt(["a", "b", "a"], seed=0)


def test_a_shuffled_pass_visits_every_row_once_and_the_next_pass_in_another_order():
    rows = torch.arange(10.0)
    batches = Batches((rows[:, None], rows, rows), 4, torch.Generator().manual_seed(0))
    first, second = (torch.cat([labels for _, labels, _ in batches]) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == rows.tolist()
    assert first.tolist() != second.tolist()
    assert len(batches) == 3


def test_probabilities_enter_as_clipped_logits_and_the_rest_as_it_is():
    network = SurvivalNetwork(("margin", "top_prob"), (2,))
    inputs = network._linearise(torch.tensor([[0.5, 0.5], [7.0, 1.0]]))
    np.testing.assert_allclose(inputs.numpy(), [[0.5, 0.0], [7.0, np.log(0.9999 / 0.0001)]], rtol=1e-3, atol=1e-6)


def test_a_constant_feature_does_not_divide_by_zero():
    network = SurvivalNetwork(("margin", "temperature"), (2,))
    network.standardise(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    assert network.scale.tolist() == [1.0, 1.0]
    assert network.survival(torch.tensor([[1.0, 0.0]])).isfinite().all()


def test_hidden_layers_have_the_parameters_they_should():
    count = sum(weight.numel() for weight in SurvivalNetwork(("margin", "top_prob"), (5, 3)).parameters())
    assert count == (2 * 5 + 5) + (5 * 3 + 3) + (3 + 1)


def test_a_file_that_gives_other_numbers_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("dsl_train.train.export.TOLERANCE", -1.0)
    with pytest.raises(DslError, match="differs from the trained network"):
        export_onnx(
            SurvivalNetwork(entries.CORE, (4,)),
            entries.CORE,
            torch.rand(5, 2),
            tmp_path / "predictor.onnx",
        )
    assert not list(tmp_path.iterdir())


def test_the_file_carries_its_schema(tmp_path):
    export_onnx(SurvivalNetwork(entries.CORE, (4,)), entries.CORE, torch.rand(5, 2), tmp_path / "predictor.onnx")
    metadata = open_session(tmp_path / "predictor.onnx").get_modelmeta().custom_metadata_map
    assert metadata["schema_fingerprint"] == entries.fingerprint(entries.CORE)
    assert json.loads(metadata["feature_names"]) == list(entries.CORE)


def test_calibration_undoes_a_wrong_slope_and_shift():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    slope, shift = metrics.platt((logits + 1.0) / 0.5, labels)
    assert slope == pytest.approx(0.5, abs=0.05)
    assert shift == pytest.approx(-1.0, abs=0.1)
    assert metrics.platt(logits, np.ones(20_000)) == (1.0, 0.0)


def test_every_position_gets_a_shift_of_its_own_and_rows_count_by_their_weight():
    rng = np.random.default_rng(0)
    logits, position = rng.normal(size=40_000), rng.integers(0, 2, 40_000)
    labels = rng.random(40_000) < 1 / (1 + np.exp(-logits - position))
    assert metrics.position_shifts(logits, labels, position, 3) == pytest.approx([0, 1, 0], abs=0.1)
    twice = np.concatenate([logits, logits[labels]]), np.concatenate([labels, labels[labels]])
    repeated = metrics.position_shifts(*twice, np.concatenate([position, position[labels]]), 2)
    weighted = metrics.position_shifts(logits, labels, position, 2, 1.0 + labels)
    assert weighted == pytest.approx(repeated, abs=1e-6)


def test_the_calibration_error_of_a_known_case_is_exact():
    survival, labels = np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 0, 0])
    assert metrics.calibration_error(survival, labels) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)


def test_loading_a_predictor_imports_no_torch(trained, config):
    code = f"""
import sys
from dsl_train.predictor.runtime import Predictor
Predictor.load({str(config.output)!r})
print([name for name in ("torch", "lightning", "onnx", "sklearn", "pyarrow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
