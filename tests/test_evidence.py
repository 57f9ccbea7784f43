"""The numbers of a report: each against one worked out by hand or by another library."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from synthetic_traces import PAIR, write_traces
from tiny_traces import make_traces

from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.evidence import lookahead, quality
from dsl_train.evidence.contest import LEARNED, STATIC, contests
from dsl_train.evidence.evidence import gather
from dsl_train.evidence.inputs import from_folders
from dsl_train.evidence.report_data import ASSUMED_C, ReportData
from dsl_train.evidence.sample import sample
from dsl_train.evidence.thresholds import threshold_curve
from dsl_train.replay import rounds as replay
from dsl_train.replay.rounds import ReplayResult
from dsl_train.traces import decisions
from dsl_train.traces.store import open_traces

COST = CostProfile(draft_step=0.001, target_step=0.01, predictor=0.0001)


class KnowsAll:
    """Survival 0.9 where everything survives, else 0.1; threshold 0.5 whatever a draft costs."""

    folder, max_lookahead = Path("predictor"), 8

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth

    def survival_batch(self, vectors: np.ndarray) -> np.ndarray:
        assert len(vectors) == len(self.truth)
        return np.where(self.truth, 0.9, 0.1).astype(np.float32)

    def threshold(self, c: float) -> float:
        return 0.5


class Letters:
    """A tokenizer: token 10 is `a`, 11 `b`, ...; drafted tokens from 100 on are markup."""

    def decode(self, ids: list[int]) -> str:
        return "".join("<script>" if i >= 100 else chr(87 + i) for i in ids)


def all_knowing(walked: decisions.Decisions, **other) -> ReportData:
    return ReportData(walked, None, KnowsAll(walked.survival), **other)  # type: ignore[arg-type]


def written(*texts: str, tail: int = 3) -> decisions.Decisions:
    return decisions.build(replace(make_traces(*texts, tail=tail), manifests=({"pair": PAIR},)), 8)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> decisions.Decisions:
    folder = write_traces(tmp_path_factory.mktemp("traces"), num_prompts=6, length=40)
    return decisions.build(open_traces([folder]), 8)


def result(num_drafted: list[int], num_accepted: list[int], sequence: list[int], prompts: int = 1) -> ReplayResult:
    tokens = np.bincount(sequence, np.array(num_accepted) + 1, prompts).astype(int)
    ids = tuple(f"prompt-{i}" for i in range(prompts))
    arrays = map(np.array, (sequence, num_drafted, num_drafted, num_accepted))
    return ReplayResult(*arrays, np.zeros(len(sequence), dtype=bool), tokens, ids)


def test_acceptance_is_counted_behind_accepted_drafts_and_over_all():
    by_position = lookahead.acceptance("rule", result([3, 3, 1, 0], [3, 1, 0, 0], [0, 0, 0, 0]))
    assert by_position.reached == (0.75, 0.5, 0.5)
    assert by_position.conditional == pytest.approx((2 / 3, 1 / 2, 1.0))
    assert by_position.cumulative == pytest.approx((2 / 3, 1 / 2, 1 / 2))


def test_the_text_shown_is_the_one_with_the_median_gain():
    learned = result([1] * 3, [1] * 3, [0, 1, 2], prompts=3)
    static = result([9, 2, 5], [1] * 3, [0, 1, 2], prompts=3)
    assert lookahead.typical_text(learned, static, 0.1) == 2


def test_lookahead_along_a_text_sets_the_choices_beside_what_would_be_accepted():
    walked = written("aaaraaar")
    rounds = replay.replay_static(walked, 2)
    text = lookahead.along(walked, rounds, 0, static=4)
    assert text.token == (1, 4, 7)
    assert text.oracle == (2, 3, 0)
    assert text.learned == (2, 2, 0)
    assert text.accepted == (2, 2, 0)
    assert text.static == 4


def test_the_distribution_counts_rounds_by_lookahead():
    walked = written("aaaraaar")
    shares = lookahead.distribution(walked, replay.replay_static(walked, 1), 1)
    assert shares.oracle == (0, 0, 1 / 2, 1 / 2, 0, 0, 0, 0, 0)
    assert shares.oracle_mean == 2.5
    assert sum(shares.learned) == pytest.approx(1.0)
    assert shares.learned_mean == pytest.approx(np.dot(range(9), shares.learned))


def test_areas_under_the_curves_are_scikit_learns(synthetic):
    survival = np.random.default_rng(0).random(len(synthetic))
    found = {signal.name: signal for signal in quality.signals(survival, synthetic)}
    drafted = synthetic.position > 0
    labels = synthetic.survival[drafted]
    assert found["survival"].auc == pytest.approx(roc_auc_score(labels, survival[drafted]))
    entropy = -synthetic.drafted("entropy")[drafted]
    assert found["entropy"].auc == pytest.approx(roc_auc_score(labels, entropy))
    curve = found["entropy"]
    assert (curve.false_positive_rate[0], curve.true_positive_rate[0]) == (0.0, 0.0)
    assert (curve.false_positive_rate[-1], curve.true_positive_rate[-1]) == (1.0, 1.0)
    assert len(curve.true_positive_rate) <= 201


def test_a_signal_without_two_outcomes_has_no_curve():
    walked = written("aaaa")
    signals = quality.signals(np.full(len(walked), 0.7), walked)
    assert all(signal.auc is None and not signal.true_positive_rate for signal in signals)


def test_a_reliability_diagram_compares_estimates_with_frequencies():
    walked = written("aaraar")
    survival = np.where(walked.survival, 0.85, 0.25)
    overall, *by_position = quality.reliability(survival, walked)
    assert [(one.survival, one.frequency) for one in overall.bins] == [(0.25, 0.0), (0.85, 1.0)]
    assert sum(one.count for one in overall.bins) == overall.num_decisions == len(walked)
    assert overall.calibration_error == pytest.approx(np.where(walked.survival, 0.15, 0.25).mean())
    assert [diagram.first_position for diagram in by_position] == [0, 1, 2, 3]
    assert sum(diagram.num_decisions for diagram in by_position) == len(walked)


def test_an_estimate_that_knows_the_truth_reaches_the_oracle_and_closes_more_than_the_gap(synthetic):
    contest = contests(all_knowing(synthetic), [])[0]
    assert contest.c == ASSUMED_C
    assert contest[LEARNED].speedup.estimate == pytest.approx(contest["oracle"].speedup.estimate)
    assert contest.gap_closed > 1.0
    assert contest[STATIC].vs_static.estimate == 1.0
    assert contest.best_rule.setting in ("tuned", "published")
    speeds = [contender.speedup.estimate for contender in contest.contenders]
    assert speeds == sorted(speeds, reverse=True)


def test_only_who_asks_a_network_pays_for_it(synthetic):
    free, dear = (contests(all_knowing(synthetic, cost=cost), [])[0] for cost in (COST.without_predictor(), COST))
    assert dear[LEARNED].speedup.estimate < free[LEARNED].speedup.estimate
    assert dear[STATIC].speedup == free[STATIC].speedup
    assert dear["confidence"].speedup == free["confidence"].speedup


def test_rules_are_judged_at_settings_that_were_tuned_elsewhere(synthetic):
    keep = np.arange(synthetic.num_sequences) < 3
    held_out, other = synthetic.select(keep), synthetic.select(~keep)
    data = ReportData(held_out, other, KnowsAll(held_out.survival))  # type: ignore[arg-type]
    chosen = contests(data, [0.4])[1][STATIC].spec
    rates = {k: replay.replay_static(other, k).rate(0.4) for k in range(9)}
    assert chosen == f"static:{max(rates, key=rates.__getitem__)}"


def test_the_threshold_curve_marks_the_chosen_one_and_what_it_misses(synthetic):
    curve = threshold_curve(all_knowing(synthetic))
    assert curve.chosen == 0.5
    assert curve.loss == 0.0
    assert 0.1 <= curve.best < 0.9
    wrong = threshold_curve(all_knowing(synthetic, threshold=0.95))
    assert wrong.chosen == 0.95
    assert wrong.chosen_speedup.estimate == pytest.approx(1.0)
    assert wrong.loss == pytest.approx(1 - 1 / curve.chosen_speedup.estimate)


def test_every_token_of_the_sample_has_its_fate_and_the_survival_it_was_drafted_at():
    walked = written("aaaraa")
    data = ReportData(walked, None, KnowsAll(np.ones(len(walked), dtype=bool)))  # type: ignore[arg-type]
    rounds = replay.replay_static(walked, 3)
    text = sample(data, rounds, 0, Letters())  # type: ignore[arg-type]
    assert text.prompt.endswith("a")
    first, last = text.rounds
    assert [(token.text, token.fate) for token in first.tokens] == [
        ("b", "accepted"), ("c", "accepted"), ("<script>", "rejected"), ("d", "corrected"),
    ]  # fmt: skip
    assert [token.survival for token in first.tokens] == [pytest.approx(0.9)] * 3 + [None]
    assert first.tokens[0].draft_prob == pytest.approx(0.5)
    assert first.stopped_at == pytest.approx(0.9)
    assert [token.fate for token in last.tokens] == ["accepted", "bonus"]


def test_a_block_drafted_past_its_recorded_tail_is_shown_as_far_as_it_was_recorded():
    walked = written("aaaraaaaaa", tail=0)  # as with --tail_fraction below 1
    data = ReportData(walked, None, KnowsAll(np.ones(len(walked), dtype=bool)))  # type: ignore[arg-type]
    first, *_ = sample(data, replay.replay_static(walked, 6), 0, Letters()).rounds  # type: ignore[arg-type]
    assert (first.num_drafted, first.num_accepted) == (6, 2)
    assert [token.fate for token in first.tokens] == ["accepted", "accepted", "rejected", "corrected"]


def test_without_a_tokenizer_the_sample_shows_ids_and_says_why(synthetic):
    evidence = gather(all_knowing(synthetic), [])
    assert evidence.sample.rounds[0].tokens[0].text.startswith("#")
    assert "models/target" in evidence.sample.note


def test_traces_without_tails_and_texts_with_one_outcome_are_reported():
    for name, texts in {"none": ("aaaa", "aa"), "all": ("rrrr", "rr")}.items():
        evidence = gather(all_knowing(written(*texts, tail=0)), [0.2])
        assert evidence.contest[LEARNED].speedup.estimate > 0, name


def test_prompts_cannot_be_tuned_on_and_judged_by(tmp_path, monkeypatch):
    folder = str(write_traces(tmp_path / "traces", num_prompts=3))
    stub = SimpleNamespace(check_pair=lambda *_: None, max_lookahead=4)
    monkeypatch.setattr("dsl_train.evidence.inputs.find_predictor", lambda *_: stub)
    assert from_folders([folder], []).tuning is None
    with pytest.raises(DslError, match=r"3 prompts are in --traces and in --tune_on \(prompt-0 first\)"):
        from_folders([folder], [folder])
