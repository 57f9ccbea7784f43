"""The oracle collector on a tiny pair: which rows there are, and that they follow the law."""

import dataclasses

import numpy as np
import pytest
import torch
from collecting import make_config, make_pair
from conftest import CONTEXT, make_model

from dsl_train.base.sampling import Sampling
from dsl_train.collect.oracle import OracleCollector
from dsl_train.collect.text import Request
from dsl_train.loop.engine import autoregressive
from dsl_train.runners.cached import CachedModel

PROMPT = (22, 23, 24, 25)


@pytest.fixture
def config(pair_folders, tmp_path):
    return make_config(pair_folders, tmp_path / "traces", method="oracle")


@pytest.fixture
def pair(tiny_target, tiny_draft):
    return make_pair(tiny_target, tiny_draft)


def collect_text(pair, config, prompt=PROMPT, seed=0, **changes):
    changed = dataclasses.replace(config, **changes)
    return OracleCollector(pair, changed).collect_text(Request(prompt, seed, changed.sampling))


def test_the_greedy_response_is_the_targets_own(pair, config):
    for seed in range(4):
        prompt = tuple(range(3 + seed, 20))
        text = collect_text(pair, config, prompt)
        alone = autoregressive(CachedModel(pair.target), prompt, 24, eos_token_ids=pair.eos_token_ids)
        assert (text.response_token_ids, text.finish_reason) == (alone.token_ids, alone.finish_reason)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_response_token_has_its_row_and_every_rejected_one_its_tail(pair, config, temperature):
    text = collect_text(pair, config, temperature=temperature, tail_length=3, max_lookahead=2)
    rows, start = text.rows, len(PROMPT)
    known = rows["depth"] == 0
    assert rows["index"][known].tolist() == list(range(start, start + len(text.response_token_ids)))
    assert rows["text_token_id"][known].tolist() == list(text.response_token_ids)
    assert 0 < rows["accepted"].sum() < known.sum()
    for i in np.flatnonzero(known):
        following = np.flatnonzero((rows["index"] == rows["index"][i]) & ~known)
        drafted = [rows["token_id"][i], *rows["token_id"][following]]
        length = 0 if rows["accepted"][i] else next((d for d, token in enumerate(drafted) if token == 0), 3)
        assert rows["depth"][following].tolist() == list(range(1, length + 1))
    assert np.isnan(rows["agreement"][~known]).all()
    assert np.isfinite(rows["agreement"][known]).all()


def test_greedy_rows_agree_with_one_forward_over_the_finished_text(pair, config):
    text = collect_text(pair, config)
    tokens, start = torch.tensor([[*PROMPT, *text.response_token_ids]]), len(PROMPT)
    with torch.inference_mode():
        draft, target = (model(tokens).logits[0, start - 1 : -1].log_softmax(-1) for model in (pair.draft, pair.target))
    known = text.rows["depth"] == 0
    row = {name: column[known] for name, column in text.rows.items()}
    assert row["token_id"].tolist() == draft.argmax(-1).tolist()
    assert row["accepted"].tolist() == (draft.argmax(-1) == target.argmax(-1)).tolist()
    for name, expected in {
        "entropy": -(draft.exp() * draft).sum(-1),
        "log_prob_1": draft.amax(-1),
        "token_log_prob": draft.amax(-1),
        "target_entropy": -(target.exp() * target).sum(-1),
        "target_top_prob": target.amax(-1).exp(),
        "accept_prob": row["accepted"],
        "agreement": row["accepted"],
    }.items():
        np.testing.assert_allclose(row[name], np.asarray(expected, np.float32), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("max_lookahead", [1, 3, 20])
def test_greedy_rows_do_not_depend_on_the_lookahead(pair, config, max_lookahead):
    expected, found = collect_text(pair, config), collect_text(pair, config, max_lookahead=max_lookahead)
    assert expected.response_token_ids == found.response_token_ids
    for name, column in expected.rows.items():
        np.testing.assert_allclose(found.rows[name], column, atol=1e-4, err_msg=name)


def test_a_text_ends_where_the_context_does(pair, config):
    text = collect_text(pair, config, prompt=tuple(range(3, 60)) * 4, max_new_tokens=1000, temperature=1.0)
    assert text.finish_reason == "eos" or len(text.response_token_ids) == CONTEXT + 1 - 57 * 4


def test_sampled_rows_follow_the_law_of_the_coupling(config):
    """Joint law of (drafted, committed) over 1,200 texts of one token; false alarms: one run in a million."""
    stats = pytest.importorskip("scipy.stats")
    target, draft = make_model(3, vocab_size=5), make_model(4, vocab_size=5)
    collector = OracleCollector(
        make_pair(target, draft), dataclasses.replace(config, temperature=2.0, max_new_tokens=1, tail_length=0)
    )
    counts = np.zeros((5, 5))
    for seed in range(1200):
        rows = collector.collect_text(Request((1, 2, 3), seed, Sampling(2.0))).rows
        counts[rows["token_id"][0], rows["text_token_id"][0]] += 1
        assert rows["accepted"][0] == (rows["token_id"][0] == rows["text_token_id"][0])
    sampling, tokens = Sampling(2.0), torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        draft_probs, target_probs = (
            sampling.probs(model(tokens).logits[0, -1:])[0].double().numpy() for model in (draft, target)
        )
    residual = np.maximum(target_probs - draft_probs, 0)
    expected = np.outer(np.maximum(draft_probs - target_probs, 0), residual / residual.sum())
    expected += np.diag(np.minimum(draft_probs, target_probs))
    seen = expected * 1200 > 1
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[seen], expected[seen] / expected[seen].sum() * counts[seen].sum()).pvalue > 1e-6


def test_a_model_that_gives_nan_has_its_texts_put_aside(config):
    broken = make_model(0)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    answers = list(
        OracleCollector(make_pair(make_model(0), broken), config).collect([Request(PROMPT, 0, config.sampling)])
    )
    assert "draft model's logits are not numbers" in answers[0].reason
