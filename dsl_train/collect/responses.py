"""Whether the target can have given a response from a log. Pure.

Letters: N positions, V vocabulary.
"""

import torch

from dsl_train.base.sampling import Sampling

#: Greedy choices whose logits are closer than this may go either way [logits]. Whoever served the target may have used
#: a lower precision than we do: bfloat16 keeps 8 bits, so that logits between 16 and 32 come in steps of 1/8.
NEAR_TIE = 0.5


def is_possible(
    logits: torch.Tensor,  # [N, V] raw
    probs: torch.Tensor | None,  # [N, V] after temperature, top-k and top-p; None when greedy
    token_ids: torch.Tensor,  # [N]
) -> torch.Tensor:
    """Whether the target may give these tokens, [N] bool. A logit that is not a number counts as possible."""
    if probs is None:
        return ~(_gaps(logits, token_ids) > NEAR_TIE)
    return probs.gather(-1, token_ids[:, None]).squeeze(-1) != 0


def refusal(sampling: Sampling, logits: torch.Tensor, token_id: int, position: int) -> str:
    """Why a token that is not possible at a response's position, counted from 0, is not; `logits` [V] raw."""
    best, gap = int(logits.argmax()), float(_gaps(logits[None], logits.new_tensor([token_id], dtype=torch.int64)))
    what = f"response token {position} (id {token_id})"
    if sampling.greedy:
        return (
            f"{what} is not the target's greedy choice: that is id {best}, whose logit is {gap:.2f} higher "
            f"(up to {NEAR_TIE} counts as a tie); was it sampled, penalised, or said by another model?"
        )
    rank = int((logits > logits[token_id]).sum()) + 1
    return (
        f"{what} has probability 0 at temperature {sampling.temperature}, top_k {sampling.top_k}, "
        f"top_p {sampling.top_p}: it is the target's choice number {rank} there, {gap:.2f} in logits below the first "
        f"(id {best}); was it drawn with other settings, or by another model?"
    )


def _gaps(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Largest logit minus the token's, [N]."""
    return (logits.amax(-1) - logits.gather(-1, token_ids[:, None]).squeeze(-1)).float()
