"""Who a model of the Hub is, by the local cache."""

import pytest
from conftest import make_model
from huggingface_hub import constants

from dsl_train.pair.hub import cached_revision
from dsl_train.pair.identity import describe_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    """A cache that holds `user/draft`, as huggingface_hub lays it out."""
    repository = tmp_path / "models--user--draft"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_a_model_of_the_hub_is_known_by_its_cached_commit():
    assert describe_model(make_model(0), "user/draft").revision == COMMIT


def test_what_transformers_says_comes_first():
    model = make_model(0)
    model.config._commit_hash = "told"
    assert describe_model(model, "user/draft").revision == "told"


@pytest.mark.parametrize("name", ["user/other", "", "../somewhere/else"])
def test_what_the_cache_does_not_hold_has_no_revision(name):
    assert cached_revision(name) is None
