"""Rounds judged by block in hindsight: their exact law, what is learned from them, and how they are read."""

import dataclasses
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from collecting import make_config, make_pair
from conftest import make_model, perturb

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.bench.ceiling import known_survival
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.shards import collect
from dsl_train.collect.text import Request
from dsl_train.loop.block import kept_weights, parts
from dsl_train.replay.rounds import replay_static
from dsl_train.traces.blocks import soft_survival
from dsl_train.traces.decisions import build
from dsl_train.traces.store import Traces, TraceSequence, open_traces

PROMPT = (1, 2, 3)


def without_end(*models):
    for model in models:
        model.generation_config.eos_token_id = 9999  # no token of theirs
    return models


@pytest.fixture
def config(pair_folders, tmp_path):
    return make_config(pair_folders, tmp_path / "traces", temperature=1.0)


def law_of_a_round(target, draft, sampling, num_drafts):
    """(first token, drafted block, kept, token after them) -> probability, by enumeration."""

    def after(text):
        with torch.inference_mode():
            logits = [model(torch.tensor([text])).logits[0, -1:] for model in (target, draft)]
        return sampling.probs(logits[0])[0].double(), sampling.of_draft.probs(logits[1])[0].double()

    law = defaultdict(float)
    num_tokens = target.config.vocab_size
    for first, block in itertools.product(range(num_tokens), itertools.product(range(num_tokens), repeat=num_drafts)):
        prob = float(after(PROMPT)[0][first])
        if prob == 0:
            continue
        seen = [after((*PROMPT, first, *block[:i])) for i in range(num_drafts + 1)]
        target_probs, draft_probs = (torch.stack([pair[i] for pair in seen]) for i in (0, 1))
        drawn = [float(draft_probs[i, x]) for i, x in enumerate(block)]
        prob *= float(np.prod(drawn))
        if prob == 0:
            continue
        ratios = [float(target_probs[i, x]) / drawn[i] for i, x in enumerate(block)]
        for kept, chance, following in parts(target_probs, draft_probs[:-1], ratios):
            for token, share in enumerate((prob * chance * following / following.sum()).tolist()):
                law[first, block, kept, token] += share
            prob *= 1 - chance
    return law


def rounds_of(texts, num_drafts, start):
    """The same of collected texts: the round that begins at the second token."""
    for text in texts:
        rows, at = text.rows, start - len(PROMPT)
        of_start = rows["index"] == start
        kept = min(int(rows["kept"][of_start & (rows["depth"] == 0)][0]), num_drafts)
        tail = rows["token_id"][of_start & (rows["depth"] > 0)].tolist()
        block = [*text.response_token_ids[at : at + kept], *tail][:num_drafts]
        yield text.response_token_ids[0], tuple(block), kept, text.response_token_ids[at + kept]


@pytest.mark.parametrize("sampling", [Sampling(1.5, 2), Sampling(2.0, 2, draft_temperature=1.2)])
def test_collected_rounds_have_exactly_the_law_of_the_loops_own(config, sampling):
    """Chi-square of 3,000 rounds of three drafts over first token, block, kept tokens and the one after them; cells
    expected fewer than five times are pooled. False alarms: one run in a million."""
    stats = pytest.importorskip("scipy.stats")
    target, draft = without_end(make_model(3, vocab_size=5), make_model(4, vocab_size=5))
    law = law_of_a_round(target, draft, sampling, num_drafts=3)
    assert sum(law.values()) == pytest.approx(1, abs=1e-6)
    settings = dataclasses.replace(config, max_new_tokens=5, tail_length=2, batch_size=500)
    collector = HindsightCollector(make_pair(target, draft), settings)
    texts = list(collector.collect([Request(PROMPT, seed, sampling) for seed in range(3000)]))
    found = Counter(rounds_of(texts, 3, len(PROMPT) + 1))
    assert all(law[cell] > 0 for cell in found)
    large = [cell for cell, prob in law.items() if prob * 3000 >= 5]
    assert len(large) > 20
    counts = np.array([*(found[cell] for cell in large), 3000 - sum(found[cell] for cell in large)])
    expected = 3000 * np.array([*(law[cell] for cell in large), 1 - sum(law[cell] for cell in large)])
    assert stats.chisquare(counts, expected / expected.sum() * 3000).pvalue > 1e-6


@pytest.fixture(scope="module")
def decisions(tmp_path_factory):
    """120 texts of 30 tokens as decisions."""
    folder = tmp_path_factory.mktemp("blocks")
    target = make_model(3)
    target, draft = without_end(target, perturb(target, 0.4, 9))
    pair = make_pair(target, draft)
    config = make_config(type("Folders", (), {"target": "t", "draft": "d"}), folder, temperature=1.0, batch_size=40)
    config = dataclasses.replace(config, max_new_tokens=30)
    answers = HindsightCollector(pair, config).collect([Request(PROMPT, i, config.sampling) for i in range(120)])
    sequences, rows = [], []
    for i, answer in enumerate(answers):
        count = len(answer.rows["index"])
        rows.append({"sequence_id": np.full(count, i), **answer.rows})
        tokens = (np.array(PROMPT, np.int32), np.array(answer.response_token_ids, np.int32))
        sequences.append(TraceSequence(i, f"prompt-{i}", *tokens, 1.0, 0, 1.0, "length"))
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return build(Traces(columns, tuple(sequences), ()), max_lookahead=6)


def test_the_weights_follow_from_the_recorded_ratios(decisions):
    known = known_survival(decisions, foresees=True)
    assert decisions.verification == "block"
    for start in range(0, len(decisions.run), 37):
        count = int(decisions.num_decisions[start])
        rows = decisions.draft_rows(start, count)
        weights = kept_weights(np.exp(decisions.traces.rows["log_ratio"][rows].astype(np.float64)).tolist())[1:]
        first = decisions.offsets[start]
        np.testing.assert_allclose(known[first : first + len(rows)], weights, atol=1e-5)


def test_the_label_is_the_mean_of_what_is_kept(decisions):
    """At every position: its mean, that of the weights and the share kept agree, within four standard errors."""
    soft, weights = soft_survival(decisions), known_survival(decisions, foresees=True)
    assert np.isfinite(soft).all()
    assert ((soft >= 0) & (soft <= 1 + 1e-6)).all()
    for position in range(6):
        here = decisions.position == position
        for other in (decisions.survival[here].astype(float), weights[here]):
            difference = other - soft[here]
            assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference) / 6) + 0.01
    assert soft.std() < decisions.survival.std()


def test_blocks_keep_more_than_token_by_token(decisions):
    """Of four drafts each; the product of min(1, ratio) is what is kept token by token."""
    result = replay_static(decisions, 4)
    whole = np.flatnonzero(decisions.num_decisions >= 4)
    ratios = [
        np.exp(decisions.traces.rows["log_ratio"][decisions.draft_rows(start, 4)].astype(np.float64)) for start in whole
    ]
    by_token = np.mean([np.cumprod(np.minimum(1.0, ratio)).sum() for ratio in ratios])
    by_block = np.mean(np.minimum(decisions.run[whole], 4))
    assert by_block > by_token * 1.01
    assert result.num_accepted.mean() > by_token


def test_rows_do_not_depend_on_the_batch_or_the_chunk(config, monkeypatch):
    pair = make_pair(make_model(0), perturb(make_model(0), 0.1, 10))
    settings = dataclasses.replace(config, tail_length=4, tail_fraction=0.6)
    asked = [Request(tuple(range(3, 3 + n)), n, Sampling(0.8, 20, 0.9)) for n in (3, 9, 40, 17, 5)]
    alone = list(HindsightCollector(pair, dataclasses.replace(settings, batch_size=1)).collect(asked))
    monkeypatch.setattr("dsl_train.collect.hindsight._CHUNK_BYTES", 4 * 64 * 5 * 7)
    monkeypatch.setattr("dsl_train.collect.tails._BLOCK_BYTES", 4 * 64 * 3)
    together = HindsightCollector(pair, dataclasses.replace(settings, batch_size=5)).collect(asked)
    for one, other in zip(together, alone, strict=True):
        assert one.response_token_ids == other.response_token_ids
        for name, column in one.rows.items():
            np.testing.assert_allclose(column, other.rows[name], atol=1e-3, err_msg=name)


def test_folders_of_both_kinds_are_read_together_and_trained_on_apart(config, tmp_path):
    folders = {}
    for name, changes in {
        "block": {},
        "token": {"verification": "token"},
        "greedy": {"temperature": 0.0},
    }.items():
        folders[name] = tmp_path / name
        collect(dataclasses.replace(config, output=str(folders[name]), **changes))
    assert build(open_traces([folders["block"], folders["greedy"]])).verification == "block"
    assert build(open_traces([folders["token"], folders["greedy"]])).verification == "token"
    both = build(open_traces([folders["token"], folders["block"]]))
    assert both.by_block.tolist() == [False] * 6 + [True] * 6
    alone = [build(open_traces([folders[name]])) for name in ("token", "block")]
    np.testing.assert_array_equal(soft_survival(both), np.concatenate([soft_survival(one) for one in alone]))
    np.testing.assert_array_equal(both.features, np.concatenate([one.features for one in alone]))
    with pytest.raises(DslError, match="--verification block and some with token"):
        _ = both.verification
    texts = [[s.response_token_ids.tolist() for s in one.sequences] for one in alone]
    assert texts[0] == texts[1]


def test_the_sequential_collector_refuses_blocks(config):
    with pytest.raises(ValueError, match="verifies token by token"):
        dataclasses.replace(config, method="oracle", verification="block")
    assert not dataclasses.replace(config, method="oracle").by_block
