import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dsl_train.base.records import DraftPrimitives
from dsl_train.base.schema import COPY_CAP
from dsl_train.features.entries import CORE, FEATURE_NAMES, FEATURES, GROUPS, fingerprint, select
from dsl_train.features.primitives import draft_primitives, read_draft, read_drawn, target_primitives
from dsl_train.features.state import BlockState, TextState
from dsl_train.features.suffix_index import SuffixIndex
from dsl_train.features.vector import FeatureView, assemble


def vector(block):
    return dict(zip(FEATURE_NAMES, assemble(block), strict=True))


def step(token_id, top_prob=0.5, entropy=1.0):
    log_prob = math.log(top_prob)
    return DraftPrimitives(token_id, entropy, (log_prob, log_prob - 1, -4.0, -5.0, -6.0), log_prob)


def test_draft_primitives_are_entropy_top_log_probs_and_the_tokens_own():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125]]).log()
    entropy, *top, token = draft_primitives(logits, torch.tensor([3]))[0].tolist()
    assert entropy == pytest.approx(1.9375 * math.log(2))
    assert [math.exp(value) for value in top] == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.03125])
    assert math.exp(token) == pytest.approx(0.0625)


def test_primitives_of_impossible_tokens_are_finite_in_entropy():
    logits = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf"), float("-inf"), float("-inf")]])
    assert draft_primitives(logits, torch.tensor([0]))[0, 0].item() == pytest.approx(math.log(2))
    assert target_primitives(logits)[0].tolist() == pytest.approx([math.log(2), 0.5])


def test_a_vocabulary_smaller_than_the_top_is_padded_with_its_last():
    row = draft_primitives(torch.tensor([[0.6, 0.4]]).log(), torch.tensor([0]))[0].exp()
    assert row[1:-1].tolist() == pytest.approx([0.6, 0.4, 0.4, 0.4, 0.4])


def test_what_features_need_is_what_the_full_primitives_say():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    tokens = torch.tensor([3, 0, 7, 49, 1, 2])
    for sampled in (None, tokens):
        ids, full = read_draft(logits, sampled)
        lean_ids, lean = read_draft(logits.clone(), sampled, without_entropy=True)
        assert lean_ids == ids
        assert (lean.token_id, math.isnan(lean.entropy)) == (full.token_id, True)
        assert lean.log_probs == pytest.approx(full.log_probs[:2], abs=1e-6)
        assert lean.token_log_prob == pytest.approx(full.token_log_prob, abs=1e-6)


def test_what_a_softmax_says_already_is_not_computed_again():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 5
    for row, token_id in zip(logits, (3, 0, 7, 49, 1, 2), strict=True):
        _, expected = read_draft(row[None].clone(), torch.tensor([token_id]), without_entropy=True)
        found = read_drawn(row.clone(), row.softmax(-1), token_id)
        assert found.token_id == token_id
        assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-6)
        assert found.token_log_prob == pytest.approx(expected.token_log_prob, abs=1e-6)


def test_nothing_of_the_draft_is_known_before_the_first_token():
    text = TextState([1, 2, 3], temperature=0.7)
    text.commit(4)
    text.agree(1.0)
    values = vector(BlockState(text))
    known = {f.name for f in FEATURES if f.group in ("copy", "setting")}
    assert {values[name] for name in FEATURE_NAMES if name not in known} == {0.0}
    assert values["temperature"] == 0.7
    assert values["log_text_length"] == math.log(4)


def test_block_features_fold_over_the_block():
    block = BlockState(TextState([1], 0.0))
    block.append(step(5, top_prob=0.8))
    block.append(step(6, top_prob=0.4))
    block.append(step(7, top_prob=0.5))
    values = vector(block)
    assert values["position"] == 3
    assert values["block_log_prob"] == pytest.approx(math.log(0.8 * 0.4 * 0.5))
    assert values["min_top_prob"] == pytest.approx(0.4)
    assert values["top_prob"] == pytest.approx(0.5)
    assert values["margin"] == pytest.approx(1.0)


def test_agreement_keeps_the_last_two_and_a_mean_that_starts_plain():
    text = TextState([1], 0.0)
    for agreement in (1.0, 0.0, 0.5):
        text.agree(agreement)
    block = BlockState(text)
    block.append(step(2))
    values = vector(block)
    assert (values["agreement_1"], values["agreement_2"]) == (0.5, 0.0)
    assert values["agreement_mean"] == pytest.approx(0.5)


def test_copy_features_follow_a_repeated_passage():
    text = TextState([10, 11, 12, 13, 99, 10, 11], 0.0)
    block = BlockState(text)
    values = vector(block)
    assert (values["copy_length"], values["copy_shortest"]) == (2, 2)  # 10 11, last followed by 12
    assert values["copy_distance"] == pytest.approx(math.log(5))
    block.append(step(12))
    values = vector(block)
    assert (values["copy_length"], values["copy_match"], values["copy_run"], values["copy_shortest"]) == (3, 1, 1, 2)
    block.append(step(13))
    assert vector(block)["copy_run"] == 2
    block.append(step(50))
    values = vector(block)
    assert [values[f"copy_{name}"] for name in ("length", "match", "run", "shortest", "distance")] == [0] * 5


def test_a_copy_remembers_how_well_the_draft_did_there_before():
    text = TextState([10, 11], 0.0)
    for token_id, agreement in [(12, 0.25), (13, 1.0), (99, 0.0), (10, 1.0), (11, 1.0)]:
        text.commit(token_id)
        text.agree(agreement)
    block = BlockState(text)
    block.append(step(12))  # copied: 13 follows
    values = vector(block)
    assert (values["copy_agreement"], values["copy_agreement_before"]) == (1.0, 0.25)
    block.append(step(50))  # not what followed: nothing is known of the next
    values = vector(block)
    assert (values["copy_agreement"], values["copy_agreement_before"]) == (0.5, 1.0)


def test_the_agreement_of_a_prompts_token_is_not_known():
    text = TextState([10, 11, 12, 10], 0.0)
    block = BlockState(text)
    block.append(step(11))
    assert (vector(block)["copy_agreement"], vector(block)["copy_agreement_before"]) == (0.5, 0.5)


def test_the_share_of_copies_counts_committed_tokens_that_could_have_been_one():
    text = TextState([10, 11, 12, 10], 0.0)
    text.commit(11)  # as before
    assert text.copy_mean == pytest.approx(0.55)
    text.commit(99)  # 12 before
    assert text.copy_mean == pytest.approx(0.495)
    text.commit(5)  # behind a new token: no copy to follow
    assert text.copy_mean == pytest.approx(0.495)


def test_copy_length_stops_at_its_cap_and_equals_a_naive_search():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 2, (400,), generator=generator).tolist()
    tokens += tokens[:60]
    index, longest = SuffixIndex(), 0
    for end, token_id in enumerate(tokens):
        length, follower = index.match
        expected = next(
            (n for n in range(COPY_CAP, 0, -1) if n <= end and find(tokens[: end - 1], tokens[end - n : end])), 0
        )
        assert length == expected
        if length:
            last = max(i for i in range(end - length) if tokens[i : i + length] == tokens[end - length : end])
            assert follower == last + length
        index.append(token_id)
        longest = max(longest, length)
    assert longest == COPY_CAP


def test_a_match_carried_along_a_block_is_the_one_found_from_nothing():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 2, (300,), generator=generator).tolist()
    tokens += tokens[:60]
    index, longest = SuffixIndex(), 0
    for end, token_id in enumerate(tokens):
        block, match = [], index.match
        for drafted in (*tokens[end : end + 4], 0, 1):
            block.append(drafted)
            match = index.match_after(match, block)
            assert match == index.longest_match(block)
        longest = max(longest, match.length)
        index.append(token_id)
        assert index.match == index.longest_match([])
    assert longest > 8


def find(text, part):
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def test_select_takes_all_core_groups_and_names_and_names_what_is_unknown():
    assert select("all") == FEATURE_NAMES
    assert select("core") == CORE
    assert set(select("copy,margin")) == {
        "margin",
        *(name for name in FEATURE_NAMES if name.startswith("copy_") and "agreement" not in name),
    }
    assert {name for group in GROUPS for name in select(group)} == set(FEATURE_NAMES)
    with pytest.raises(ValueError, match="'entropi'"):
        select("entropi,copy")


def test_the_fingerprint_changes_with_the_selection():
    assert fingerprint(CORE) != fingerprint()
    assert len(fingerprint()) == 16


def test_the_features_of_the_shipped_predictor_still_mean_what_they_meant():
    shipped = Path(__file__).parent.parent / "checkpoints" / "reference" / "draft" / "dsl" / "config.json"
    described = json.loads(shipped.read_text("utf-8"))["schema"]
    assert fingerprint(tuple(described["names"])) == described["fingerprint"] == "ad20e391f86bb9be"


def test_an_entry_that_is_added_to_the_table_is_computed_named_and_fingerprinted():
    code = """
from dsl_train.features import entries
before = entries.fingerprint()
entries.FEATURES += (
    entries.Feature("even_length", "setting", "flag", "for a test", lambda text, block: text.length % 2 == 0),
)
from dsl_train.features.vector import FeatureView
print(FeatureView([1, 2], 0.0).vector()[-1], FeatureView([1], 0.0).vector()[-1])
print(entries.fingerprint((*entries.FEATURE_NAMES, "even_length")) != before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0", "0.0", "True"]


def test_the_view_gives_what_text_and_block_say():
    view, text = FeatureView([10, 11, 12], 0.7), TextState([10, 11, 12], 0.7)
    for tokens, agreements in (([10], [0.5]), ([11, 12], [1.0, 0.0]), ([7], [])):
        view.commit(tokens)
        view.agree(agreements)
        view.begin_block()
        for token_id in tokens:
            text.commit(token_id)
        for agreement in agreements:
            text.agree(agreement)
        block = BlockState(text)
        for token_id in (None, 10, 99):
            if token_id is not None:
                view.append(step(token_id))
                block.append(step(token_id))
            np.testing.assert_array_equal(view.vector(), np.array(assemble(block), np.float32))
