"""Keep as long a part of a drafted block as the target's law allows, judged as a whole. Pure.

Sun et al. 2024 (2403.10444), algorithm 2, for blocks whose length a policy decides while they are drafted; the proof is
in docs/sampling.md. Letters: K drafted tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import torch

from dsl_train.base.records import DslError
from dsl_train.base.sampling import draw

Verification = Literal["block", "token"]
"""Judge a sampled block as a whole, or token by token (Leviathan et al. 2211.17192); the text has the same law."""


def checked(verification: str) -> Verification:
    """Raises DslError for a name that is none."""
    if verification not in get_args(Verification):
        raise DslError(f"verification is {verification!r}; choose one of {', '.join(get_args(Verification))}")
    return verification  # type: ignore[return-value]  # mypy does not narrow by get_args


def verify_block(
    target_probs: torch.Tensor,  # [K + 1, V]
    draft_probs: torch.Tensor,  # [K, V]
    ratios: Sequence[float],  # [K] target/draft of each drafted token
    generator: torch.Generator,
) -> tuple[int, int]:
    """How many of the drafted tokens are kept, and the token after them."""
    coins = torch.rand(len(ratios), generator=generator, device=target_probs.device).tolist()  # range [0, 1)
    tried = zip(parts(target_probs, draft_probs, ratios), [*coins, 0.0], strict=True)
    num_kept, next_probs = next((kept, probs) for (kept, chance, probs), coin in tried if coin < chance)
    return num_kept, int(draw(next_probs[None], generator))


def parts(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, ratios: Sequence[float]
) -> Iterator[tuple[int, float, torch.Tensor]]:
    """What may be kept, the longest part first: its tokens, the chance that it is kept if no longer one is, and what
    the token after it is drawn from, [V], in proportion. No token at all is kept for certain.

    The whole block is kept with probability w(K). Of a shorter part of i tokens the chance is R / (R + 1 - w(i)), where
    R is the sum over the vocabulary of max(0, w(i) * target - draft), and the next token follows these terms.
    """
    weights = kept_weights(ratios)
    yield len(ratios), weights[-1], target_probs[-1]
    for num_kept in reversed(range(len(ratios))):
        weight = weights[num_kept]
        residual = (weight * target_probs[num_kept] - draft_probs[num_kept]).clamp_min(0.0)  # [V]
        mass = float(residual.sum(dtype=torch.float64))
        if mass:
            yield num_kept, mass / (mass + (1.0 - weight)), residual
        else:  # both are equal, and only rounding leads here; or the part is impossible
            yield num_kept, float(weight == 1.0), target_probs[num_kept]


def kept_weights(ratios: Iterable[float]) -> list[float]:
    """[K + 1] w(0) = 1, w(i) = min(1, w(i - 1) * target/draft of the i-th token): the probability that i drafted tokens
    are all kept, given what they are."""
    weights = [1.0]
    for ratio in ratios:
        weights.append(min(1.0, weights[-1] * ratio))
    return weights
