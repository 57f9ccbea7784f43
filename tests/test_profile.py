"""The measured costs: plausible, cached by what they depend on, and never a reason to fail."""

import dataclasses
import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_predictor import write_predictor

from dsl_train import profile
from dsl_train.cost import CostProfile
from dsl_train.loading import Pair, load_pair
from dsl_train.predictor.runtime import Predictor
from dsl_train.runner import CachedModel
from dsl_train.sampling import Sampling

GREEDY = Sampling()
KNOWN = CostProfile(draft_step=0.25, target_step=2.0, target_step_per_token=0.5, predictor=0.125, round_overhead=0.5)


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


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_p=0.9)])
def test_every_step_has_a_price_and_without_predictor_it_costs_nothing(pair, sampling):
    measured = profile.measure(CachedModel(pair.target), CachedModel(pair.draft), None, sampling, repeats=2)
    assert measured.draft_step > 0
    assert measured.target_step > 0
    assert measured.round_overhead > 0
    assert measured.predictor == 0


def test_features_and_predictor_have_a_price(pair, tmp_path):
    predictor = Predictor.load(write_predictor(tmp_path, pair))
    measured = profile.measure(CachedModel(pair.target), CachedModel(pair.draft), predictor, repeats=2)
    assert measured.predictor > 0


def test_a_measured_pair_can_go_on_generating(pair):
    target, draft = CachedModel(pair.target), CachedModel(pair.draft)
    profile.measure(target, draft, repeats=1)
    for model in (target, draft):
        model.reset()
        assert model.logits([5, 6, 7], keep=1).shape == (1, 64)


def test_the_slope_passes_through_the_first_step():
    assert profile._slope([1.0, 1.5, 2.0, 2.5]) == pytest.approx(0.5)
    assert profile._slope([1.0, 1.0, 0.9]) == 0


def test_a_profile_is_measured_once_and_read_after_that(pair, unmeasured, monkeypatch, cache):
    assert profile.cached_profile(pair) == KNOWN
    monkeypatch.setattr(profile, "measure", lambda *_: pytest.fail("measured again"))
    assert profile.cached_profile(pair) == KNOWN
    (file,) = cache.rglob("*.json")
    assert json.loads(file.read_text()) == asdict(KNOWN)


def test_fresh_measures_again_and_replaces_the_cache(pair, unmeasured):
    path = profile.cache_file(pair, False, GREEDY)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(KNOWN) | {"draft_step": 1.0}))
    assert profile.cached_profile(pair).draft_step == 1.0
    assert profile.cached_profile(pair, fresh=True) == KNOWN
    assert profile.cached_profile(pair) == KNOWN


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


@pytest.mark.parametrize("content", ["", "{}", '{"draft_step": []}', "[1]"])
def test_a_damaged_cache_file_is_measured_anew_with_a_warning(pair, unmeasured, caplog, content):
    path = profile.cache_file(pair, False, GREEDY)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert profile.cached_profile(pair) == KNOWN
    assert str(path) in caplog.text
    assert json.loads(path.read_text()) == asdict(KNOWN)


def test_a_cache_that_cannot_be_written_is_only_a_warning(pair, unmeasured, caplog, cache):
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert profile.cached_profile(pair) == KNOWN
    assert "cannot be cached" in caplog.text
