"""Rounds read off finished texts have the law of rounds that were run: many of them, over a small vocabulary."""

import pytest
import torch

from dsl_train.collect.coupling import couple, inverse_cdf
from dsl_train.loop.verify import residual_probs

stats = pytest.importorskip("scipy.stats")
VOCAB, LOOKAHEAD, NUM_ROUNDS = 4, 2, 200_000


def chain(seed: int) -> torch.Tensor:
    """A model that looks at the last token only: [V, V], rows sum to 1."""
    return torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed)).mul(1.5).softmax(-1)


def law_of_rounds(target: torch.Tensor, draft: torch.Tensor, start: int) -> torch.Tensor:
    """P(accepted drafts, rejected token, next token), [LOOKAHEAD + 1, V + 1, V]; nothing rejected is number V."""
    law, reached = torch.zeros(LOOKAHEAD + 1, VOCAB + 1, VOCAB, dtype=torch.float64), torch.zeros(VOCAB)
    reached[start] = 1.0
    for accepted in range(LOOKAHEAD):
        rejected = reached[:, None] * (draft - target).clamp_min(0.0)  # [last, rejected]
        law[accepted, :VOCAB] = torch.einsum("lr,ln->rn", rejected, residual_probs(target, draft))
        reached = reached @ torch.minimum(target, draft)
    law[LOOKAHEAD, VOCAB] = reached @ target
    return law


def rounds_in_hindsight(target: torch.Tensor, draft: torch.Tensor, start: int) -> torch.Tensor:
    """How often each occurs among NUM_ROUNDS texts that the target wrote, shaped like the law."""
    generator = torch.Generator().manual_seed(0)
    luck = torch.rand(LOOKAHEAD + 1, 3, NUM_ROUNDS, generator=generator, dtype=torch.float64)
    last, going_on = torch.full((NUM_ROUNDS,), start), torch.ones(NUM_ROUNDS, dtype=torch.bool)
    counts = torch.zeros(LOOKAHEAD + 1, VOCAB + 1, VOCAB, dtype=torch.float64)
    one = torch.ones(NUM_ROUNDS, dtype=torch.float64)
    for position, (which, coins, draws) in enumerate(luck):
        committed = inverse_cdf(target[last], which)
        labels = couple(target[last], draft[last], committed, coins, draws)
        ends = going_on & (~labels.accepted if position < LOOKAHEAD else True)
        rejected = labels.drafted if position < LOOKAHEAD else torch.full_like(committed, VOCAB)
        counts[position].index_put_((rejected[ends], committed[ends]), one[ends], accumulate=True)
        going_on, last = going_on & ~ends, committed
    return counts


@pytest.mark.parametrize("seed", [0, 1])
def test_accepted_count_rejected_token_and_next_token_have_the_joint_law_of_speculative_decoding(seed):
    """Chi-square over every cell that can occur; false alarms: one run in a hundred thousand."""
    target, draft = chain(seed), chain(seed + 10)
    expected = law_of_rounds(target, draft, start=1) * NUM_ROUNDS
    counts = rounds_in_hindsight(target, draft, start=1)
    assert counts.sum() == NUM_ROUNDS
    assert counts[expected < 1e-6 * NUM_ROUNDS].sum() <= 1  # rounding of float32 aside, what cannot be is not
    seen = expected > 5
    assert seen.sum() > 15
    scaled = expected[seen] / expected[seen].sum() * counts[seen].sum()
    assert stats.chisquare(counts[seen].numpy(), scaled.numpy()).pvalue > 1e-5
