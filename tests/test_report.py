"""What people see: tables, plots, and the folder that is left behind."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dsl_train.base.cost import CostProfile
from dsl_train.base.records import AcceptanceStats, DslError, Round
from dsl_train.bench.live import LiveResult, Mismatch, PolicyResult
from dsl_train.bench.replay import ReplayRow, ReplayTable
from dsl_train.bench.statistics import Interval
from dsl_train.cli.train import _show as show_training
from dsl_train.report import folder, plots, tables

COST = CostProfile(draft_step=0.001, target_step=0.01, target_step_per_token=0.0005, predictor=0.0001)
ROUNDS = [Round(5, (1, 2, 3), 3, (1, 2, 3, 4)), Round(9, (1, 2), 0, (7,))]


def around(value: float) -> Interval:
    return Interval(value, 0.9 * value, 1.1 * value)


def policy(name: str, speed: float) -> PolicyResult:
    one = Interval(1.0, 1.0, 1.0)
    relative = {"autoregressive": around(speed / 100), "static:4": one if name == "static:4" else around(speed / 150)}
    return PolicyResult(name, around(speed), relative, AcceptanceStats.of(ROUNDS if name != "autoregressive" else []))


LIVE = LiveResult(
    policies=(policy("autoregressive", 100), policy("static:4", 150), policy("learned", 175)),
    best_static="static:4",
    mismatches=(),
    cost=COST,
    threshold=0.25,
    num_prompts=8,
    dtype="float32",
    greedy=True,
)
REPLAY = ReplayTable(
    costs=(0.1, 0.2),
    rows=(
        ReplayRow("static:4", (around(1.5), around(1.4)), (Interval(1.0, 1.0, 1.0),) * 2, (4.0, 4.0)),
        ReplayRow("learned", (around(1.65), around(1.47)), (around(1.1), around(1.05)), (3.5, 3.0)),
    ),
    best_static=("static:4", "static:4"),
    warnings=(),
    num_prompts=8,
)


def printed(*renderables: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(*renderables, sep="\n")
    return console.file.getvalue()


def test_the_live_table_shows_speed_speedup_gain_and_acceptance():
    row = next(line for line in printed(tables.live_table(LIVE)).splitlines() if "learned" in line)
    for cell in ("175.0 [157.5, 192.5]", "1.75 [1.57, 1.93]", "+16.7 % [+5.0, +28.3]", "2.50", "60%"):
        assert cell in row


def test_equal_outputs_are_confirmed_and_different_ones_listed():
    assert "every output equals the target's own" in printed(*tables.live_remarks(LIVE))
    wrong = replace(LIVE, mismatches=(Mismatch("learned", "p7", 12, 40, None),))
    text = printed(*tables.live_remarks(wrong))
    assert "DIFFERENT learned, prompt p7: token 12 is None, the target's own is 40" in text
    assert wrong.failed
    assert not replace(wrong, dtype="bfloat16").failed
    assert "ties" in printed(*tables.live_remarks(replace(wrong, dtype="bfloat16")))


def test_sampled_outputs_are_not_called_equal():
    assert "equals" not in printed(*tables.live_remarks(replace(LIVE, greedy=False)))


def test_a_live_table_without_static_lookaheads_has_no_column_for_them():
    result = replace(LIVE, best_static=None)
    assert "vs static" not in printed(tables.live_table(result))


def test_the_replay_table_shows_rates_and_gains_at_every_cost():
    text = printed(tables.replay_table(REPLAY))
    assert "c = 0.1" in text
    assert "(best static:4)" in text
    assert "1.650" in text
    assert "+10.0 % [-1.0, +21.0]" in text


def test_the_cost_table_gives_times_and_shares_of_a_target_step():
    text = printed(tables.cost_table(COST))
    assert "1.000 ms" in text
    assert "0.160" in text  # c_eff = (1 + 0.1 + 0.5) / 10


def test_acceptance_is_drawn_for_the_best_static_lookahead_and_whoever_drafts():
    result = replace(LIVE, policies=(*LIVE.policies, policy("static:9", 90)))
    accepted, reached = plots.acceptance_figure(result).axes
    assert [line.get_label() for line in reached.lines] == ["static:4", "learned"]
    assert list(accepted.lines[0].get_ydata()) == [0.5, 0.5, 1.0]
    assert list(reached.lines[0].get_ydata()) == [1.0, 1.0, 0.5]


def test_a_folder_holds_the_question_the_numbers_and_the_plots(tmp_path):
    folder.begin(tmp_path / "new", {"mode": "live"})
    folder.finish(tmp_path / "new", LIVE)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json", "result.json", "speed.png", "acceptance.png",
    }  # fmt: skip
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["policies"][2]["tokens_per_second"]["estimate"] == 175
    assert result["cost"]["c_eff"] == pytest.approx(COST.c_eff)
    assert "torch" in result["versions"]
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_replay_leaves_a_plot_of_rates(tmp_path):
    folder.finish(tmp_path, REPLAY)
    assert (tmp_path / "rates.png").stat().st_size > 10_000


def test_a_folder_of_another_benchmark_is_not_overwritten(tmp_path):
    folder.begin(tmp_path, {"mode": "live", "repeats": 3})
    folder.begin(tmp_path, {"mode": "live", "repeats": 3})
    with pytest.raises(DslError, match="repeats is 3, now 5"):
        folder.begin(tmp_path, {"mode": "live", "repeats": 5})


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DslError, match="cannot be written"):
        folder.begin(tmp_path / "file" / "out", {})


def test_a_table_in_a_file_is_as_wide_as_it_needs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    costs = tuple(0.01 * (i + 1) for i in range(30))
    row = ReplayRow("learned", (around(1.65),) * 30, (around(1.1),) * 30, (3.5,) * 30)
    tables.show(replace(REPLAY, costs=costs, rows=(row,), best_static=("static:4",) * 30, warnings=("w" * 300,)))
    lines = capsys.readouterr().out.splitlines()
    (numbers,) = [line for line in lines if line.split()[:1] == ["learned"]]
    assert numbers.split() == ["learned", *["1.650"] * 30]
    assert "w" * 300 in lines


def test_the_tables_of_training_are_whole_in_a_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    quality = {"num_rows": 1_000_000, "auc": 0.91, "log_loss": 0.3, "brier": 0.1, "ece": 0.02}
    gain = {"c": 0.1, "threshold": 0.2, "rate": 2.5, "static_rate": 2.25, "static_lookahead": 4, "gain": 0.111}
    metrics = {"test": quality, "floor": quality, "num_prompts": {"test": 9}, "replay": [gain], "onnx_bytes": 1000}
    done = SimpleNamespace(metrics=metrics, epochs=3, num_rows=10, seconds=1.0, output=Path("out"), shipped=None)
    show_training(done)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "survival on 1,000,000 decisions of 9 held-out prompts" in printed
    (numbers,) = [line for line in printed.splitlines() if "logistic, core features" in line]
    assert [word for word in numbers.split() if word.startswith("0.")] == ["0.9100", "0.3000", "0.1000", "0.0200"]
