"""Accept or reject a drafted block and add the target's own token. Pure.

Letters: K drafted tokens, V vocabulary. Leviathan et al. 2211.17192, algorithm 1; Chen et al. 2302.01318, theorem 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .sampling import draw


@dataclass(frozen=True, slots=True)
class Verdict:
    num_accepted: int
    token_id: int
    """The corrected token at the first rejection, or the bonus token after a block accepted whole."""


def verify(
    target_probs: torch.Tensor,  # [K + 1, V] float32
    draft_probs: torch.Tensor,  # [K, V] float32
    drafted: Sequence[int],  # [K]
    generator: torch.Generator,
) -> Verdict:
    """Accept token i with probability min(1, target/draft); on rejection draw from norm(max(target - draft, 0))."""
    if drafted:
        coins = torch.rand(len(drafted), generator=generator, device=target_probs.device)  # [K], range [0, 1)
        accepted = (coins < acceptance(target_probs, draft_probs, drafted)).tolist()
        for i, is_accepted in enumerate(accepted):
            if not is_accepted:
                residual = residual_probs(target_probs[i], draft_probs[i])
                return Verdict(i, int(draw(residual[None], generator)))
    return Verdict(len(drafted), int(draw(target_probs[-1:], generator)))


def verify_greedy(choices: Sequence[int], drafted: Sequence[int]) -> Verdict:
    """The same rule for one-hot distributions; `choices` [K + 1] are the target's most likely tokens."""
    for i, token_id in enumerate(drafted):
        if choices[i] != token_id:
            return Verdict(i, choices[i])
    return Verdict(len(drafted), choices[len(drafted)])


def acceptance(target_probs: torch.Tensor, draft_probs: torch.Tensor, drafted: Sequence[int]) -> torch.Tensor:
    """min(1, target/draft) of each drafted token, [K]; a token was drawn, so its draft probability is positive."""
    return token_probs(target_probs, drafted).div(token_probs(draft_probs, drafted)).clamp(max=1.0)


def token_probs(probs: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:  # [>= K, V] -> [K]
    ids = torch.tensor(token_ids, device=probs.device)
    return probs[: len(token_ids)].gather(-1, ids[:, None]).squeeze(-1)


def residual_probs(probs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """norm(max(probs - other, 0)), [..., V]; where both are equal up to rounding, `probs` itself."""
    residual = (probs - other).clamp_min(0.0)
    mass = residual.sum(-1, keepdim=True)
    return torch.where(mass > 0, residual / mass, probs)
