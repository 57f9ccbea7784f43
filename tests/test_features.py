import math

import pytest
import torch

from dsl_train.copies import CopyIndex
from dsl_train.features import BlockState, TextState, assemble, draft_primitives, target_primitives
from dsl_train.records import DraftPrimitives, TargetPrimitives
from dsl_train.schema import COPY_CAP, CORE, FEATURE_NAMES, GROUPS, fingerprint, select


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


def test_nothing_of_the_draft_is_known_before_the_first_token():
    text = TextState([1, 2, 3], temperature=0.7)
    text.commit(4, TargetPrimitives(entropy=1.5, top_prob=0.4))
    text.agree(1.0)
    values = vector(BlockState(text))
    assert {values[name] for name in FEATURE_NAMES[:16]} == {0.0}
    assert (values["target_entropy"], values["target_top_prob"]) == (1.5, 0.4)
    assert values["temperature"] == 0.7
    assert values["log_text_length"] == math.log(4)


def test_block_features_fold_over_the_block():
    block = BlockState(TextState([1], 0.0))
    block.append(step(5, top_prob=0.8, entropy=0.3))
    block.append(step(6, top_prob=0.4, entropy=0.9))
    block.append(step(7, top_prob=0.5, entropy=0.6))
    values = vector(block)
    assert values["position"] == 3
    assert values["block_log_prob"] == pytest.approx(math.log(0.8 * 0.4 * 0.5))
    assert values["min_top_prob"] == pytest.approx(0.4)
    assert (values["entropy"], values["previous_entropy"], values["max_entropy"]) == (0.6, 0.9, 0.9)
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
    assert block.copy_length == 2  # 10 11, last followed by 12
    block.append(step(12))
    assert (block.copy_length, block.copy_match) == (3, True)
    block.append(step(50))
    assert (block.copy_length, block.copy_match) == (0, False)


def test_copy_length_stops_at_its_cap_and_equals_a_naive_search():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (120,), generator=generator).tolist()
    index = CopyIndex()
    for end, token_id in enumerate(tokens):
        length, follower = index.longest_match([])
        expected = next(
            (n for n in range(COPY_CAP, 0, -1) if n <= end and find(tokens[: end - 1], tokens[end - n : end])), 0
        )
        assert length == expected
        if length:
            last = max(i for i in range(end - length) if tokens[i : i + length] == tokens[end - length : end])
            assert follower == tokens[last + length]
        index.append(token_id)


def find(text, part):
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def test_select_takes_all_core_groups_and_names_and_names_what_is_unknown():
    assert select("all") == FEATURE_NAMES
    assert select("core") == CORE
    assert set(select("copy,entropy")) == {"entropy", "copy_length", "copy_match"}
    assert {name for group in GROUPS for name in select(group)} == set(FEATURE_NAMES)
    with pytest.raises(ValueError, match="'entropi'"):
        select("entropi,copy")


def test_the_fingerprint_changes_with_the_selection():
    assert fingerprint(CORE) != fingerprint()
    assert len(fingerprint()) == 16
