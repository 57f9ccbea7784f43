import pytest
import torch

from dsl_train.loop.verify import acceptance, residual_probs, verify, verify_greedy

TARGET = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]])
DRAFT = torch.tensor([[0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_acceptance_is_the_capped_ratio():
    assert acceptance(TARGET, DRAFT, [1, 2]).tolist() == pytest.approx([0.5, 1.0])


def test_the_residual_is_what_the_draft_left_of_the_target():
    assert residual_probs(TARGET[0], DRAFT[0]).tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert residual_probs(TARGET[0], TARGET[0]).tolist() == TARGET[0].tolist()


def test_a_certain_block_is_accepted_whole_with_its_bonus_token():
    verdict = verify(TARGET, DRAFT, [0, 2], generator())
    assert (verdict.num_accepted, verdict.token_id) == (2, 1)


def test_an_impossible_token_is_corrected_at_once():
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    verdict = verify(target, torch.tensor([[1.0, 0.0]]), [0], generator())
    assert (verdict.num_accepted, verdict.token_id) == (0, 1)


def test_an_empty_block_draws_the_targets_own_token():
    assert verify(TARGET[2:], DRAFT[:0], [], generator()).token_id == 1
    assert verify_greedy([7], []).token_id == 7


@pytest.mark.parametrize(
    ("choices", "drafted", "expected"),
    [([4, 5, 6], [4, 5], (2, 6)), ([4, 5, 6], [4, 9], (1, 5)), ([4, 5, 6], [9, 5], (0, 4))],
)
def test_greedy_accepts_up_to_the_first_mismatch(choices, drafted, expected):
    verdict = verify_greedy(choices, drafted)
    assert (verdict.num_accepted, verdict.token_id) == expected


def test_greedy_is_the_general_rule_on_one_hot_distributions():
    one_hot = torch.nn.functional.one_hot
    for seed in range(50):
        choices = torch.randint(3, (4,), generator=generator(seed))
        drafted = torch.randint(3, (3,), generator=generator(seed + 100))
        general = verify(one_hot(choices, 3).float(), one_hot(drafted, 3).float(), drafted.tolist(), generator())
        assert general == verify_greedy(choices.tolist(), drafted.tolist())


def test_the_first_token_follows_the_target_whatever_the_draft():
    """Chi-square with 2 degrees of freedom; false alarm probability 1e-4 (critical value 18.4)."""
    rng, counts, num_draws = generator(1), torch.zeros(3), 20_000
    drafted = torch.multinomial(DRAFT[0], num_draws, replacement=True, generator=rng).tolist()
    for token_id in drafted:
        verdict = verify(TARGET[:2], DRAFT[:1], [token_id], rng)
        counts[token_id if verdict.num_accepted else verdict.token_id] += 1
    expected = TARGET[0] * num_draws
    assert ((counts - expected) ** 2 / expected).sum() < 18.4
