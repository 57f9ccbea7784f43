"""The measured costs: plausible, cached by what they depend on, and never a reason to fail."""

import dataclasses
import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny_predictor import write_predictor
from transformers import LlamaConfig, LlamaForCausalLM

from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.costs import profile, timing
from dsl_train.pair.loading import Pair, load_pair
from dsl_train.predictor.runtime import Predictor
from dsl_train.runners.cached import CachedModel

GREEDY = Sampling()
KNOWN = CostProfile(
    draft_step=0.25,
    target_step=2.0,
    target_step_per_token=0.5,
    predictor=0.125,
    round_overhead=0.5,
    target_steps=(2.0, 3.0, 3.5),
    spread={"draft_step": (0.25, 0.375)},
)


@pytest.fixture(scope="module")
def pair(pair_folders) -> Pair:
    return load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "measure", lambda *_: KNOWN)
    monkeypatch.setattr(profile, "_quickest_step", lambda _: 2.0)
    monkeypatch.setattr(profile, "_clocks", lambda: (0.0, 0.0))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_p=0.9)])
def test_every_step_has_a_price_and_without_predictor_it_costs_nothing(pair, sampling):
    measured = timing.measure(CachedModel(pair.target), CachedModel(pair.draft), None, sampling, turns=2)
    assert measured.draft_step > 0
    assert measured.target_step > 0
    assert measured.round_overhead > 0
    assert measured.predictor == measured.predictor_round == 0
    assert len(measured.target_steps) == 17
    assert measured.target_steps[0] == pytest.approx(measured.target_step)
    assert {"draft", "target", "position 0", "position 16", "confidence 8", "primitives 8"} < set(measured.spread)
    assert all(low <= high for low, high in measured.spread.values())


def test_features_and_predictor_are_timed_too(pair, tmp_path):
    predictor = Predictor.load(write_predictor(tmp_path, pair))
    measured = timing.measure(CachedModel(pair.target), CachedModel(pair.draft), predictor, turns=2)
    assert {"features 0", "features 8", "unasked 8"} < set(measured.spread)
    assert all(low > 0 for low, _ in measured.spread.values())


@pytest.mark.parametrize("context", [8, 16, 64, 128, 160])
def test_a_short_context_is_measured_as_far_as_it_goes(context):
    config = LlamaConfig(
        **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 32),
        **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1),
        max_position_embeddings=context,
    )
    model = LlamaForCausalLM(config).eval()
    measured = timing.measure(CachedModel(model), CachedModel(model), turns=1)
    assert len(measured.target_steps) == 1 + max(1, context // 8 if context < 128 else 16)


def test_no_room_for_a_draft_is_said(pair):
    config = LlamaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=1)
    config.max_position_embeddings = 2
    model = LlamaForCausalLM(config).eval()
    with pytest.raises(DslError, match="context of 2 tokens leaves no room"):
        timing.measure(CachedModel(model), CachedModel(model), turns=1)


def test_a_measured_pair_can_go_on_generating(pair):
    target, draft = CachedModel(pair.target), CachedModel(pair.draft)
    timing.measure(target, draft, turns=1)
    for model in (target, draft):
        model.reset()
        assert model.logits([5, 6, 7], keep=1).shape == (1, 64)


def test_a_round_is_priced_at_what_it_took():
    samples = {("position", 0): [1.25], ("position", 1): [2.0], ("position", 4): [3.2], ("primitives", 4): [3.6]}
    samples |= {("confidence", 4): [3.4], ("unasked", 4): [3.75]}
    samples |= {("features", 0): [1.5], ("features", 4): [4.25], ("draft", 1): [0.25], ("target", 1): [1.0]}
    cost = timing._summarise(samples, typical=4)
    assert [cost.without_predictor().round_seconds(k) for k in (0, 1, 4)] == pytest.approx([1.25, 2.0, 3.2])
    assert cost.without_predictor().round_seconds(2) == pytest.approx(2.4)  # between the measured ones
    assert [cost.round_seconds(k) for k in (0, 4)] == pytest.approx([1.5, 4.25])
    assert cost.for_needs("primitives").round_seconds(4) == pytest.approx(3.6)
    assert cost.for_needs("confidence").round_seconds(4) == pytest.approx(3.4)
    assert cost.round_seconds(4) - 5 * cost.question == pytest.approx(3.75)
    assert cost.round_overhead == pytest.approx(0.25)


def test_the_slope_is_that_behind_the_jump_to_two_tokens():
    assert timing._slope([1.0, 1.5, 2.0, 2.5]) == pytest.approx(0.5)
    assert timing._slope([1.0, 9.0, 9.5, 10.0]) == pytest.approx(0.5)
    assert timing._slope([1.0, *(2.0 + 0.5 * k for k in range(8)), 99.0, 99.0]) == pytest.approx(0.5)
    assert timing._slope([1.0, 1.0, 0.9]) == 0
    assert timing._slope([1.0, 1.25]) == 0.25
    assert timing._slope([1.0]) == 0


def test_a_profile_is_measured_once_and_read_after_that(pair, unmeasured, monkeypatch, cache):
    assert profile.cached_profile(pair) == KNOWN
    monkeypatch.setattr(profile, "measure", lambda *_: pytest.fail("measured again"))
    assert profile.cached_profile(pair) == KNOWN
    (file,) = cache.rglob("*.json")
    written = json.loads(file.read_text())
    assert written["format_version"] == profile.FORMAT_VERSION
    assert written["setting"]["num_threads"] == torch.get_num_threads()
    assert CostProfile.from_dict(written["cost"]) == KNOWN


def test_fresh_measures_again_and_replaces_the_cache(pair, unmeasured):
    path = profile.cache_file(pair, False, GREEDY)
    path.parent.mkdir(parents=True)
    evidence = {"disturbed": "", "step": 2.0}
    content = {"format_version": profile.FORMAT_VERSION, **evidence, "cost": asdict(KNOWN) | {"draft_step": 1.0}}
    path.write_text(json.dumps(content))
    assert profile.cached_profile(pair).draft_step == 1.0
    assert profile.cached_profile(pair, fresh=True) == KNOWN
    assert profile.cached_profile(pair) == KNOWN


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.25, 1.5])
def test_a_profile_is_read_only_while_a_target_step_takes_what_it_took(pair, unmeasured, monkeypatch, caplog, factor):
    profile.cached_profile(pair)
    quicker = dataclasses.replace(KNOWN, draft_step=0.125)
    monkeypatch.setattr(profile, "measure", lambda *_: quicker)
    monkeypatch.setattr(profile, "_quickest_step", lambda _: 2.0 * factor)
    expected = quicker if factor in (0.5, 1.5) else KNOWN
    with caplog.at_level(logging.WARNING):
        assert profile.cached_profile(pair) == expected
    assert ("took 2000.00 ms when it was taken" in caplog.text) == (expected is quicker)
    assert profile.cached_profile(pair) == expected  # the step of now is kept with it


def test_a_profile_measured_while_others_had_the_processor_is_measured_again(pair, unmeasured, monkeypatch, caplog):
    clocks = iter([*[(0.0, 0.0), (3.0, 1.5)] * profile.ATTEMPTS, (10.0, 2.0), (13.0, 5.0)])
    monkeypatch.setattr(profile, "_clocks", lambda: next(clocks))
    with caplog.at_level(logging.WARNING):
        profile.cached_profile(pair)
    assert "busy machine (1.5 s of processor time in 3.0 s)" in caplog.text
    monkeypatch.setattr(profile, "measure", lambda *_: dataclasses.replace(KNOWN, draft_step=0.125))
    assert profile.cached_profile(pair).draft_step == 0.125
    assert profile.cached_profile(pair).draft_step == 0.125  # undisturbed: the clocks are not read again


def test_a_disturbance_that_passes_costs_a_measurement_and_no_warning(pair, unmeasured, monkeypatch, caplog):
    clocks = iter([(0.0, 0.0), (3.0, 1.5), (3.0, 1.5), (6.0, 4.5)])
    monkeypatch.setattr(profile, "_clocks", lambda: next(clocks))
    with caplog.at_level(logging.WARNING):
        assert profile.cached_profile(pair) == KNOWN
    assert not caplog.text
    assert profile.cached_profile(pair) == KNOWN


def test_steps_that_differ_widely_show_that_the_machine_was_busy():
    def disturbance(low: float, high: float) -> str:
        return profile._disturbance(dataclasses.replace(KNOWN, spread={"draft": (low, high)}), 3.0, 3.0)

    assert disturbance(1.0, 1.2) == ""
    assert "half of the draft steps" in disturbance(1.0, 1.5)


def test_the_quickest_step_is_timed_on_the_target_itself(pair):
    assert 0 < profile._quickest_step(pair) < 10


def test_what_the_numbers_depend_on_names_the_file(pair):
    other_draft = dataclasses.replace(pair.draft_identity, config_hash="0")
    files = {
        profile.cache_file(pair, False, GREEDY),
        profile.cache_file(pair, True, GREEDY),
        profile.cache_file(pair, False, Sampling(0.8)),
        profile.cache_file(dataclasses.replace(pair, draft_identity=other_draft), False, GREEDY),
    }
    assert len(files) == 4
    assert profile.cache_file(pair, False, Sampling(0.8)) == profile.cache_file(pair, False, Sampling(1.2))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '{"format_version": 1, "cost": {"draft_step": 1.0, "target_step": 2.0}}',
        '{"format_version": 3, "disturbed": "", "step": 2.0, "cost": {"draft_step": [], "target_step": 2.0}}',
        '{"format_version": 3, "disturbed": "", "step": 2.0, "cost": {"target_step": 2.0}}',
        '{"format_version": 3, "cost": {"draft_step": 1.0, "target_step": 2.0}}',
    ],
)
def test_a_damaged_cache_file_is_measured_anew_with_a_warning(pair, unmeasured, caplog, content):
    path = profile.cache_file(pair, False, GREEDY)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert profile.cached_profile(pair) == KNOWN
    assert str(path) in caplog.text
    assert CostProfile.from_dict(json.loads(path.read_text())["cost"]) == KNOWN


def test_a_cache_that_cannot_be_written_is_only_a_warning(pair, unmeasured, caplog, cache):
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert profile.cached_profile(pair) == KNOWN
    assert "cannot be cached" in caplog.text
