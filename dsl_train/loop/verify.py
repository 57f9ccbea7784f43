"""Accept or reject a drafted block and add the target's own token. Pure.

Letters: K drafted tokens, V vocabulary. Leviathan et al. 2211.17192, algorithm 1; Chen et al. 2302.01318, theorem 1;
several drafted tokens are by default judged together (`block.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from dsl_train.base.sampling import Sampling, draw, most_likely, on_host
from dsl_train.loop.block import Verification, verify_block


@dataclass(frozen=True, slots=True)
class Verdict:
    num_accepted: int
    token_id: int
    """The corrected token at the first rejection, or the bonus token after a block accepted whole."""
    target_probs: torch.Tensor | None = field(default=None, compare=False)
    """[K + 1, V] what a sampled block was judged by."""


def judge(
    logits: torch.Tensor,  # [K + 1, V] of the target
    drafted: Sequence[int],  # [K]
    draft_probs: torch.Tensor | None,  # [K, V] float32; None when greedy or K = 0
    sampling: Sampling,
    generator: torch.Generator,
    verification: Verification = "block",
) -> Verdict:
    """What becomes of a drafted block."""
    if sampling.greedy:
        return verify_greedy(most_likely(logits), drafted)
    target_probs = sampling.probs(logits)
    verdict = verify(
        target_probs, target_probs[:0] if draft_probs is None else draft_probs, drafted, generator, verification
    )
    return replace(verdict, target_probs=target_probs)


def compare(
    committed: Sequence[int],  # no more than K + 1
    drafted: Sequence[int],  # [K]
    draft_probs: torch.Tensor | None,  # [K, V] float32; None when greedy or K = 0
    target_probs: torch.Tensor | None,  # [>= committed, V] float32; None when greedy
) -> tuple[list[float], list[float]]:
    """min(1, draft/target) of the committed tokens within the block, which a bonus token is not; and the target's
    probability of each committed token. Greedy distributions are one-hot."""
    if target_probs is None:
        agreements = [float(token_id == proposed) for token_id, proposed in zip(committed, drafted, strict=False)]
        return agreements, [1.0] * len(committed)
    target_token_probs = token_probs(target_probs, committed)
    draft_token_probs = [] if draft_probs is None else token_probs(draft_probs, committed[: len(drafted)])
    pairs = zip(draft_token_probs, target_token_probs, strict=False)
    return [min(1.0, draft_prob / target_prob) for draft_prob, target_prob in pairs], target_token_probs


def verify(
    target_probs: torch.Tensor,  # [K + 1, V] float32
    draft_probs: torch.Tensor,  # [K, V] float32
    drafted: Sequence[int],  # [K]
    generator: torch.Generator,
    verification: Verification = "block",
) -> Verdict:
    """Token by token: accept token i with probability min(1, target/draft); on rejection draw from norm(max(target -
    draft, 0)). A block of one token is judged so either way."""
    if verification == "block" and len(drafted) > 1:
        return Verdict(*verify_block(target_probs, draft_probs, ratios(target_probs, draft_probs, drafted), generator))
    if drafted:
        coins = torch.rand(len(drafted), generator=generator, device=target_probs.device)  # [K], range [0, 1)
        for i, is_accepted in enumerate(_accepted(coins, target_probs, draft_probs, drafted)):
            if not is_accepted:
                residual = residual_probs(target_probs[i], draft_probs[i])
                return Verdict(i, int(draw(residual[None], generator)))
    return Verdict(len(drafted), int(draw(target_probs[-1:], generator)))


def _accepted(
    coins: torch.Tensor, target_probs: torch.Tensor, draft_probs: torch.Tensor, drafted: Sequence[int]
) -> list[bool]:
    if not coins.is_cpu:
        flags: list[bool] = (coins < acceptance(target_probs, draft_probs, drafted)).tolist()
        return flags
    pairs = zip(coins.tolist(), ratios(target_probs, draft_probs, drafted), strict=True)
    return [coin < ratio for coin, ratio in pairs]


def verify_greedy(choices: Sequence[int], drafted: Sequence[int]) -> Verdict:
    """The same rule for one-hot distributions; `choices` [K + 1] are the target's most likely tokens."""
    for i, token_id in enumerate(drafted):
        if choices[i] != token_id:
            return Verdict(i, choices[i])
    return Verdict(len(drafted), choices[len(drafted)])


def acceptance(target_probs: torch.Tensor, draft_probs: torch.Tensor, drafted: Sequence[int]) -> torch.Tensor:
    """min(1, target/draft) of each drafted token, [K]; a token was drawn, so its draft probability is positive."""
    return _gathered(target_probs, drafted).div(_gathered(draft_probs, drafted)).clamp(max=1.0)


def ratios(target_probs: torch.Tensor, draft_probs: torch.Tensor, drafted: Sequence[int]) -> list[float]:
    """target/draft of each drafted token, [K]."""
    pairs = zip(token_probs(target_probs, drafted), token_probs(draft_probs, drafted), strict=True)
    return [target / draft for target, draft in pairs]


def token_probs(probs: torch.Tensor, token_ids: Sequence[int]) -> list[float]:  # [>= K, V] -> [K]
    """On the CPU one by one: behind a forward each of torch's kernels costs more than the lookups."""
    if probs.is_cpu:
        rows = on_host(probs)
        return [rows.item(row, token_id) for row, token_id in enumerate(token_ids)]
    values: list[float] = _gathered(probs, token_ids).tolist()
    return values


def _gathered(probs: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:  # [>= K, V] -> [K]
    ids = torch.tensor(token_ids, device=probs.device)
    return probs[: len(token_ids)].gather(-1, ids[:, None]).squeeze(-1)


def residual_probs(probs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """norm(max(probs - other, 0)), [..., V]; where both are equal up to rounding, `probs` itself."""
    residual = (probs - other).clamp_min(0.0)
    mass = residual.sum(-1, keepdim=True)
    return torch.where(mass > 0, residual / mass, probs)
