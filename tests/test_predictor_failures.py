"""Each bad input of training and of loading has one clear message, and nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from synthetic_traces import PAIR, write_traces

from dsl_train.base import schema
from dsl_train.base.records import DslError
from dsl_train.cli.train import main
from dsl_train.features import entries
from dsl_train.predictor.runtime import Predictor
from dsl_train.train.config import TrainConfig
from dsl_train.train.export import export_onnx
from dsl_train.train.fit import fit
from dsl_train.train.network import SurvivalNetwork

NUM = len(entries.FEATURE_NAMES)


@pytest.fixture(scope="module")
def trace_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_traces(tmp_path_factory.mktemp("traces"), num_prompts=6, length=20)


@pytest.fixture(scope="module")
def whole(trace_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("work") / "predictor"
    fit(small(trace_folder, output))
    return output


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "predictor"))


def small(trace_folder: Path, output: Path, **changes) -> TrainConfig:
    return TrainConfig([trace_folder], output, **{"max_lookahead": 4, "hidden": (4,), "epochs": 1, **changes})


def edit(folder: Path, change) -> None:
    path = folder / "config.json"
    described = json.loads(path.read_text())
    change(described)
    described.pop("content_sha256", None)  # as older versions wrote it
    path.write_text(json.dumps(described))


def test_a_folder_without_a_predictor_says_what_is_missing(tmp_path):
    with pytest.raises(DslError, match=r"no predictor in .*config.json is missing; train one"):
        Predictor.load(tmp_path)


def test_a_truncated_onnx_file_is_damaged_not_a_traceback(folder):
    path = folder / "predictor.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DslError, match=r"predictor.onnx \(1000 bytes\) is damaged"):
        Predictor.load(folder)


def test_a_changed_byte_of_the_onnx_file_is_found_before_it_is_opened(folder):
    path = folder / "predictor.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DslError, match=r"predictor.onnx .* is damaged or of another predictor: sha256"):
        Predictor.load(folder)


def test_a_damaged_file_of_an_older_predictor_leaves_stdout_alone(folder, capfd):
    edit(folder, lambda described: described.pop("onnx_sha256"))
    path = folder / "predictor.onnx"
    path.write_bytes(path.read_bytes().replace(b"Sigmoid", b"\xffigmoid"))  # not UTF-8
    with pytest.raises(DslError, match=r"predictor.onnx .* is damaged or no ONNX model"):
        Predictor.load(folder)
    assert capfd.readouterr().out == ""


def test_an_edited_configuration_is_refused_until_its_seal_is_taken_off(folder):
    path = folder / "config.json"
    described = {**json.loads(path.read_text()), "max_lookahead": 3}
    path.write_text(json.dumps(described))
    with pytest.raises(DslError, match=r"config.json is damaged or was edited .*delete the key content_sha256 to keep"):
        Predictor.load(folder)
    edit(folder, lambda described: None)
    assert Predictor.load(folder).max_lookahead == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"threshold_table": {"threshold": [0.5]}}, "KeyError: 'c_eff'"),
        ({"threshold_table": {"c_eff": ["low"], "threshold": [0.5]}}, "ValueError: .*'low'"),
        ({"max_lookahead": "8"}, "TypeError: .*"),
        ({"pair": {"target": 1, "draft": 2}}, "TypeError: .*"),
        ({"versions": 3}, "TypeError: .*"),
        ({"schema": {}}, "KeyError: 'names'"),
    ],
)
def test_an_older_configuration_of_another_form_is_damaged(folder, change, reason):
    edit(folder, lambda described: described.update(change))
    with pytest.raises(DslError, match=rf"is damaged \({reason}\); copy it again"):
        Predictor.load(folder)


@pytest.mark.parametrize("content", ["", '{"schema": ', "[]", '{"model_type": "llama"}'])
def test_a_damaged_or_foreign_config_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(DslError, match=r"is damaged|is not a predictor's"):
        Predictor.load(folder)


def test_a_missing_onnx_file_is_named(folder):
    (folder / "predictor.onnx").unlink()
    with pytest.raises(DslError, match=r"predictor.onnx does not exist"):
        Predictor.load(folder)


def test_another_schema_shows_both_versions_and_fingerprints(folder):
    edit(folder, lambda described: described["schema"].update(version=7, fingerprint="feedfeedfeedfeed"))
    with pytest.raises(
        DslError, match=rf"schema v7: feedfeedfeedfeed.*v{schema.SCHEMA_VERSION}: {entries.fingerprint()}"
    ):
        Predictor.load(folder)


def test_a_feature_this_build_does_not_know_is_a_schema_mismatch(folder):
    edit(folder, lambda described: described["schema"]["names"].append("mood"))
    with pytest.raises(DslError, match=rf"expects {NUM + 1} features .* but this build computes {NUM} .*unknown"):
        Predictor.load(folder)


def test_files_of_two_predictors_are_not_mixed(folder):
    export_onnx(SurvivalNetwork(entries.CORE, (4,)), entries.CORE, torch.rand(4, 2), folder / "predictor.onnx")
    with pytest.raises(DslError, match=r"is damaged or of another predictor: sha256 .* its config.json says"):
        Predictor.load(folder)
    edit(folder, lambda described: described.pop("onnx_sha256"))
    with pytest.raises(DslError, match=rf"exported for 2 features .* describes {NUM}"):
        Predictor.load(folder)


@pytest.mark.parametrize("guesses", [None, "all", [{"temperature": 0.0}]])
def test_guesses_that_older_predictors_were_written_with_are_ignored(folder, guesses):
    edit(folder, lambda described: described.update(guesses=guesses))
    Predictor.load(folder)


def test_a_format_of_the_future_is_refused(folder):
    edit(folder, lambda described: described.update(format_version=99))
    with pytest.raises(DslError, match="has format 99, this build reads 1"):
        Predictor.load(folder)


@pytest.mark.parametrize(
    ("role", "key", "value"),
    [("draft", "vocab_size", 32000), ("target", "architecture", "GPT2LMHeadModel"), ("target", "config_hash", "else")],
)
def test_a_predictor_of_another_pair_shows_both_values(whole, role, key, value):
    predictor = Predictor.load(whole)
    predictor.check_pair(**PAIR)
    with pytest.raises(DslError, match=rf"trained for {role} models/{role} \({key} .*this {role} is .*{value}"):
        predictor.check_pair(**{**PAIR, role: {**PAIR[role], key: value}})


@pytest.mark.parametrize(("revision", "named"), [("other", "revision other"), (None, "no known revision")])
def test_other_weights_of_the_same_shape_are_warned_of_by_both_names(folder, caplog, revision, named):
    edit(folder, lambda described: described["pair"]["draft"].update(revision="first"))
    predictor = Predictor.load(folder)
    predictor.check_pair(PAIR["target"], {**PAIR["draft"], "revision": "first"})
    assert not caplog.records
    predictor.check_pair(PAIR["target"], {**PAIR["draft"], "id": "tuned", "revision": revision})
    assert f"draft models/draft of revision first, this one (tuned) has {named}" in caplog.text


def test_configuration_hashes_of_different_transformers_versions_are_not_compared(folder):
    edit(folder, lambda described: described["versions"].update(transformers="4.0.0"))
    Predictor.load(folder).check_pair(PAIR["target"], {**PAIR["draft"], "config_hash": "else"})


def test_an_output_of_another_configuration_is_kept_unless_overwrite(folder, trace_folder):
    before = (folder / "predictor.onnx").read_bytes()
    with pytest.raises(DslError, match=r"features 'all', now 'core'.*--overwrite"):
        fit(small(trace_folder, folder, features="core"))
    assert (folder / "predictor.onnx").read_bytes() == before
    fit(small(trace_folder, folder, features="core", overwrite=True))
    assert Predictor.load(folder).names == entries.CORE


def test_a_models_own_folder_is_no_output_even_with_overwrite(trace_folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 64}')
    with pytest.raises(DslError, match="was not written by this dsl-train and is kept"):
        fit(small(trace_folder, tmp_path, overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_output_that_is_a_file_is_refused(trace_folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DslError, match="is a file; name a folder"):
        fit(small(trace_folder, tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no config.json"), ('{"vocab_size": 32000}', "has 32000 tokens, that of the traced draft .* 64")],
)
def test_shipping_to_a_wrong_folder_fails_before_training(trace_folder, tmp_path, content, message):
    draft = tmp_path / "draft"
    draft.mkdir()
    if content:
        (draft / "config.json").write_text(content)
    with pytest.raises(DslError, match=message):
        fit(small(trace_folder, tmp_path / "out", ship_to=draft))
    assert not (tmp_path / "out").exists()


def test_export_only_without_a_checkpoint_says_so(trace_folder, tmp_path):
    with pytest.raises(DslError, match=r"best.ckpt does not exist.*without --export_only"):
        fit(small(trace_folder, tmp_path / "out", export_only=True))


def test_export_only_with_a_damaged_checkpoint_says_so(folder, trace_folder):
    (folder / "training" / "best.ckpt").write_bytes(b"PK")
    with pytest.raises(DslError, match=r"best.ckpt is damaged"):
        fit(small(trace_folder, folder, export_only=True))


def test_too_few_prompts_are_named_before_anything_is_written(tmp_path):
    traces = write_traces(tmp_path / "traces", num_prompts=2, length=12)
    with pytest.raises(DslError, match="hold 2 prompt"):
        fit(small(traces, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_failure_is_one_line_on_stderr_and_exit_1(tmp_path, capsys):
    assert main(["--traces", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [["--epochs", "0"], ["--features", "mood"], ["--no_such_flag", "1"], ["--hidden", "0"]]
)
def test_a_usage_error_is_exit_2(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--traces", str(tmp_path), "--output", str(tmp_path / "out"), *flags])
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_an_unknown_key_in_a_config_file_is_a_usage_error(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text("traces: [a]\noutput: b\nepoch: 3\n")
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(tmp_path / "train.yaml")])
    assert stopped.value.code == 2
    assert "epoch" in capsys.readouterr().err
