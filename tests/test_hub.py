"""Predictors on the Hub, against a stand-in: the cache's folder layout, and an API that keeps what it is given."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_stand_in import COMMITS, StandIn
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from tiny_predictor import write_predictor
from transformers import AutoModelForCausalLM

import dsl_train
from dsl_train.base.records import DslError
from dsl_train.pair.hub import fetch_predictor
from dsl_train.pair.loading import load_pair
from dsl_train.predictor.runtime import CARD, ONNX
from dsl_train.train.artifact import write_loader


@pytest.fixture(scope="module")
def artifact(pair_folders, tmp_path_factory):
    """As dsl-train leaves it, with its logs."""
    folder = tmp_path_factory.mktemp("artifact")
    write_predictor(folder, load_pair(pair_folders.target, pair_folders.draft, "float32", "cpu"))
    write_loader(folder)
    (folder / CARD).write_text("a card")
    (folder / "training").mkdir()
    (folder / "training" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    assert constants.HF_HUB_OFFLINE, "these tests must not ask the net"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    stand_in = StandIn(tmp_path)
    monkeypatch.setattr("dsl_train.pair.hub.HfApi", stand_in)
    fetch_predictor.cache_clear()
    return stand_in


def test_what_is_pushed_beside_a_draft_is_loaded_by_the_drafts_name(hub, artifact):
    assert dsl_train.push_predictor("user/draft", artifact, token="t") == "https://hub/user/draft/commit/1"
    snapshot = hub.folder("user/draft")
    assert hub.tokens == ["t"]
    assert [path.name for path in snapshot.iterdir()] == ["dsl"]
    shipped = {path.relative_to(snapshot / "dsl").as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert {ONNX, CARD, "config.json", "custom_generate/generate.py", "custom_generate/requirements.txt"} <= shipped
    assert not any(name.startswith("training") for name in shipped)
    assert dsl_train.load_predictor("user/draft").folder == snapshot / "dsl"


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, artifact):
    dsl_train.push_predictor("user/draft", artifact, revision="v2")
    for revision in ("v2", COMMITS["v2"]):
        assert dsl_train.load_predictor("user/draft", revision).folder.parent.name == COMMITS["v2"]
    with pytest.raises(DslError, match=r"user/draft at revision main holds no predictor.*name another revision="):
        dsl_train.load_predictor("user/draft")


def test_a_repository_of_its_own_holds_it_at_the_root_where_transformers_looks_for_code(hub, artifact):
    dsl_train.push_predictor("user/predictor", artifact, path_in_repo=".")
    snapshot = hub.folder("user/predictor")
    assert dsl_train.load_predictor("user/predictor").folder == snapshot
    assert (snapshot / "custom_generate" / "generate.py").is_file()


def test_a_draft_of_the_hub_brings_its_predictor(hub, artifact, pair_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "profiles"))
    for name in ("user/draft", "user/bare"):
        shutil.copytree(pair_folders.draft, hub.folder(name), dirs_exist_ok=True)
    dsl_train.push_predictor("user/draft", artifact)
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target)
    draft, bare = (AutoModelForCausalLM.from_pretrained(name) for name in ("user/draft", "user/bare"))
    prompt = torch.tensor([[50, 27, 63]])
    alone = target.generate(prompt, max_new_tokens=20).tolist()
    ours = target.generate(prompt, custom_generate=dsl_train.hf.decode, draft_model=draft, max_new_tokens=20)
    assert ours.tolist() == alone
    assert target.generate(prompt, assistant_model=dsl_train.attach(draft), max_new_tokens=20).tolist() == alone
    with pytest.raises(DslError, match="draft user/bare has no predictor in its dsl folder"):
        dsl_train.attach(bare)


def test_offline_only_the_local_cache_is_looked_at(hub):
    with pytest.raises(
        DslError,
        match="user/absent is no folder here, and repository user/absent at revision v2 is not in the local cache, "
        "and HF_HUB_OFFLINE is set; download it once while online",
    ):
        dsl_train.load_predictor("user/absent", revision="v2")


def test_what_the_hub_refuses_names_repository_revision_and_next_step(hub, artifact, monkeypatch):
    def refuse(*_, **__):
        raise HfHubHTTPError("404 Client Error", response=SimpleNamespace(headers={}, request=None, status_code=404))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("dsl_train.pair.hub.snapshot_download", refuse)
    with pytest.raises(DslError, match=r"at revision main cannot be read from the Hub \(404.*check name and revision"):
        dsl_train.load_predictor("user/draft")
    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(DslError, match=r"could not be pushed to repository user/draft at revision main \(404.*log in"):
        dsl_train.push_predictor("user/draft", artifact)


def test_a_folder_without_a_predictor_is_not_pushed_and_a_missing_folder_is_no_repository(hub, tmp_path):
    with pytest.raises(DslError, match=r"no predictor in .*config.json is missing"):
        dsl_train.push_predictor("user/draft", tmp_path)
    assert not (tmp_path / "models--user--draft").exists()
    with pytest.raises(DslError, match=r"no predictor in /nowhere/at/all"):
        dsl_train.load_predictor(Path("/nowhere/at/all"))
