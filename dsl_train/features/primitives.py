"""From logits to primitives: the few numbers of a model's distribution that features are computed from.

Letters: T positions, V vocabulary. Reads logits; knows no models, caches, policies or files.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from dsl_train.base.records import DraftPrimitives
from dsl_train.base.sampling import on_host
from dsl_train.base.schema import TOP

#: Logits further below the largest one are raised to this distance: their probability is 0 in float32 anyway, and -inf
#: times 0 would be NaN.
_NEGLIGIBLE = np.float32(-80.0)
#: Up to this largest logit, the exponentials can be added in float32 without shifting the logits.
_MODEST = 30.0


def draft_primitives(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Entropy, TOP falling log-probabilities and the token's log-probability of each row: [T, 1 + TOP + 1] float32.

    `logits` [T, V] is temperature-scaled but not truncated by top-k or top-p; `token_ids` [T] int64. Vocabularies
    smaller than TOP are padded with the smallest log-probability there is.
    """
    if logits.is_cpu:
        pairs = zip(on_host(logits), token_ids.tolist(), strict=True)
        return torch.tensor([_draft_row(row, token_id) for row, token_id in pairs]).view(-1, 1 + TOP + 1)
    log_probs = logits.float().log_softmax(-1)  # [T, V]
    top = log_probs.topk(min(TOP, log_probs.shape[-1]), dim=-1).values  # [T, <= TOP]
    if top.shape[-1] < TOP:
        top = torch.cat([top, top[:, -1:].expand(-1, TOP - top.shape[-1])], dim=-1)
    token = log_probs.gather(-1, token_ids[:, None])
    return torch.cat([_entropy(log_probs), top, token], dim=-1)


def target_primitives(logits: torch.Tensor) -> torch.Tensor:
    """Entropy and largest probability of each row, [T, 2] float32; `logits` [T, V] temperature-scaled."""
    if logits.is_cpu:
        return torch.tensor([_target_row(row) for row in on_host(logits)]).view(-1, 2)
    log_probs = logits.float().log_softmax(-1)
    return torch.cat([_entropy(log_probs), log_probs.amax(-1, keepdim=True).exp()], dim=-1)


def read_draft(
    logits: torch.Tensor, token_ids: torch.Tensor | None = None, without_entropy: bool = False
) -> tuple[list[int], DraftPrimitives]:
    """Token ids of all rows and the primitives of the last one, in one copy to the host.

    `logits` [T, V] as in :func:`draft_primitives`, overwritten; `token_ids` [T] int64, by default each row's most
    likely token. `without_entropy` allows leaving out the primitives that features do not need.
    """
    if logits.is_cpu:
        rows = on_host(logits)
        best: list[int] = rows.argmax(-1).tolist()
        ids = best if token_ids is None else token_ids.tolist()
        if without_entropy:
            return ids, _confidence(rows[-1], best[-1], ids[-1])
        entropy, *log_probs, token_log_prob = _draft_row(rows[-1], ids[-1])
        return ids, DraftPrimitives(ids[-1], entropy, tuple(log_probs), token_log_prob)
    token_ids = logits.argmax(-1) if token_ids is None else token_ids
    packed = torch.cat([token_ids.double(), draft_primitives(logits[-1:], token_ids[-1:])[0].double()]).tolist()
    ids = list(map(int, packed[: len(token_ids)]))
    return ids, unpack_draft(packed[len(ids) :], ids[-1])


def read_drafts(logits: torch.Tensor, token_ids: Sequence[int], without_entropy: bool = False) -> list[DraftPrimitives]:
    """The primitives of one drafted token per text: the rows of `logits` [T, V], overwritten, are of T texts. As
    :func:`read_draft`, in one copy to the host."""
    if logits.is_cpu:
        ids = torch.tensor(token_ids)
        rows = range(len(token_ids))
        return [read_draft(logits[i : i + 1], ids[i : i + 1], without_entropy)[1] for i in rows]
    packed = draft_primitives(logits, torch.tensor(token_ids, device=logits.device)).tolist()
    return [unpack_draft(row, token_id) for row, token_id in zip(packed, token_ids, strict=True)]


def read_drawn(logits: torch.Tensor, probs: torch.Tensor, token_id: int) -> DraftPrimitives:
    """The result of :func:`read_draft` without entropy, on the CPU, if `probs` [V] = softmax(`logits` [V]) is known.
    Overwrites `logits`."""
    row = on_host(logits)
    best = int(row.argmax())
    return _confidence(row, best, token_id, -math.log(on_host(probs).item(best)))


def unpack_draft(row: list[float], token_id: int) -> DraftPrimitives:
    """One row of :func:`draft_primitives` as a record."""
    return DraftPrimitives(token_id, row[0], tuple(row[1 : 1 + TOP]), row[1 + TOP])


def _entropy(log_probs: torch.Tensor) -> torch.Tensor:  # [T, V] -> [T, 1], nats
    probs = log_probs.exp()
    return -(probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1, keepdim=True)


# On the CPU one row at a time in numpy: after a forward the caches are cold, so each new kernel costs more than its
# arithmetic, and the functions below use few (docs/performance.md). `tests/test_features.py` compares both ways.


def _draft_row(logits: np.ndarray, token_id: int) -> list[float]:  # [V] -> [1 + TOP + 1]
    shifted, log_total, entropy = _normalised(logits)
    token = float(shifted[token_id])
    top = []
    for _ in range(min(TOP, len(shifted))):
        best = shifted.argmax()
        top.append(float(shifted[best]) - log_total)
        shifted[best] = -math.inf
    return [entropy, *top, *(TOP - len(top)) * top[-1:], token - log_total]


def _confidence(
    logits: np.ndarray, best: int, token_id: int, log_total: float | None = None
) -> DraftPrimitives:  # [V], overwritten
    """Two log-probabilities and the token's; the entropy, which features do not need, is NaN. `log_total` is minus the
    log-probability of the best token, if known."""
    most, token = float(logits[best]), float(logits[token_id])
    logits[best] = -math.inf
    second = float(logits[logits.argmax()])
    if log_total is None:
        shift = 0.0 if abs(most) < _MODEST else most
        if shift:
            np.subtract(logits, shift, out=logits)
        others = float(np.add.reduce(np.exp(logits, out=logits)))  # relative to exp(most - shift)
        log_total = math.log1p(others * math.exp(shift - most))
    return DraftPrimitives(token_id, math.nan, (-log_total, second - most - log_total), token - most - log_total)


def _target_row(logits: np.ndarray) -> tuple[float, float]:
    _, log_total, entropy = _normalised(logits)
    return entropy, math.exp(-log_total)


def _normalised(logits: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Logits minus their largest [V], log of the sum of the exponentials, entropy [nats]."""
    shifted = logits - logits[logits.argmax()]
    kept = np.maximum(shifted, _NEGLIGIBLE)
    weights = np.exp(kept)
    total = float(np.add.reduce(weights))
    log_total = math.log(total)
    return shifted, log_total, log_total - float(weights.dot(kept)) / total
