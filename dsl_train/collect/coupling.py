"""The hindsight coupling: from the target's text to what speculative decoding would have drafted there. Pure.

Given a token t that the target sampled, t was an accepted draft with probability min(1, draft(t)/target(t)); if it was
not, the rejected draft token follows norm(max(draft - target, 0)), independently of t. (Accepted and t has probability
min(target, draft)(t); divide by target(t).) Greedy is the one-hot case. Letters: N positions, V vocabulary.
"""

import torch

from dsl_train.base.sampling import Sampling, most_likely
from dsl_train.collect.text import Labels
from dsl_train.loop.verify import acceptance, residual_probs


def couple(
    target_probs: torch.Tensor,  # [N, V] float32, positive at the committed tokens
    draft_probs: torch.Tensor,  # [N, V] float32
    committed: torch.Tensor,  # [N] int64, drawn from target_probs
    coins: torch.Tensor,  # [N] range [0, 1): accepted?
    draws: torch.Tensor,  # [N] range [0, 1): which token was rejected?
) -> Labels:
    """What was drafted at N positions of a text that the target sampled."""
    accepted = coins < acceptance(draft_probs, target_probs, committed.tolist())
    drafted, rejected = committed.clone(), ~accepted
    drafted[rejected] = inverse_cdf(residual_probs(draft_probs[rejected], target_probs[rejected]), draws[rejected])
    return Labels.of(target_probs, draft_probs, drafted, committed, accepted)


def choose(sampling: Sampling, logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The next token of each row: [N, V] logits, [N] uniform numbers (unused when greedy) -> [N] int64."""
    if sampling.greedy:
        return torch.tensor(most_likely(logits), device=logits.device)
    return inverse_cdf(sampling.probs(logits), draws)


def inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token id per row of `probs` [N, V] by a uniform number each [N]; never one of probability 0."""
    cumulative = probs.double().cumsum(-1)
    points = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(-1).clamp_max(probs.shape[-1] - 1)
