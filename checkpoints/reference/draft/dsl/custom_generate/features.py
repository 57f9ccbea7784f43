"""From logits to primitives, from primitives to the feature vector: the one feature function.

Collection, training, replay and serving all call this module, so that a vector means the same everywhere. Letters:
T positions, V vocabulary, F features. Reads logits; does not know models, caches, policies or files.

Which distribution describes which token (text index above, what is known below; the round starts at index s):

    committed text         ... s-2   s-1 |  block: s      s+1     ...
    agreement              ... s-2   s-1*|         (* once the draft has caught up: from position 1 on)
    draft primitives                     |         s      s+1     (position 1, 2, ...)
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from .copies import CopyIndex
from .records import DraftPrimitives
from .sampling import on_host
from .schema import MEAN_DECAY, TOP

#: Logits this far below the largest count as that far: their probability is nothing, and infinity times nothing none.
_NEGLIGIBLE = np.float32(-80.0)
#: Largest logits up to here: the exponentials of all of them can be added in float32 as they are.
_MODEST = 30.0
#: An agreement or a share that nothing is known of: as likely as not.
_UNKNOWN = 0.5


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
    """Token ids and the primitives of the last row, in one copy to the host; `without_entropy`: perhaps no more of them
    than :func:`assemble` needs.

    `logits` as in :func:`draft_primitives`, [T, V], overwritten; `token_ids` [T] int64, by default each row's most
    likely one.
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


def read_drawn(logits: torch.Tensor, probs: torch.Tensor, token_id: int) -> DraftPrimitives:
    """What :func:`read_draft` reads without entropy, where `probs` [V] = softmax(`logits` [V]) is known already; on the
    CPU. `logits` is overwritten."""
    row = on_host(logits)
    best = int(row.argmax())
    return _confidence(row, best, token_id, -math.log(on_host(probs).item(best)))


def unpack_draft(row: list[float], token_id: int) -> DraftPrimitives:
    """One row of :func:`draft_primitives` as a record."""
    return DraftPrimitives(token_id, row[0], tuple(row[1 : 1 + TOP]), row[1 + TOP])


def _entropy(log_probs: torch.Tensor) -> torch.Tensor:  # [T, V] -> [T, 1], nats
    probs = log_probs.exp()
    return -(probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1, keepdim=True)


# On the host one row at a time in numpy: after a forward has emptied the caches each new kernel costs more than its
# arithmetic, and these share theirs (docs/performance.md). `tests/test_features.py` holds both ways together.


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
    """Two log-probabilities and the token's; the entropy, which features do without, is not a number. `log_total`: less
    the log-probability of the best, if it is known."""
    most, token = float(logits[best]), float(logits[token_id])
    logits[best] = -math.inf
    second = float(logits[logits.argmax()])
    if log_total is None:
        shift = 0.0 if abs(most) < _MODEST else most
        if shift:
            np.subtract(logits, shift, out=logits)
        others = float(np.add.reduce(np.exp(logits, out=logits)))  # what they weigh beside one of exp(most - shift)
        log_total = math.log1p(others * math.exp(shift - most))
    return DraftPrimitives(token_id, math.nan, (-log_total, second - most - log_total), token - most - log_total)


def _target_row(logits: np.ndarray) -> tuple[float, float]:
    _, log_total, entropy = _normalised(logits)
    return entropy, math.exp(-log_total)


def _normalised(logits: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Logits less their largest [V], log of the sum of their exponentials, entropy [nats]."""
    shifted = logits - logits[logits.argmax()]
    kept = np.maximum(shifted, _NEGLIGIBLE)
    weights = np.exp(kept)
    total = float(np.add.reduce(weights))
    log_total = math.log(total)
    return shifted, log_total, log_total - float(weights.dot(kept)) / total


class TextState:
    """What the committed text says; changed by `commit` and `agree` only."""

    def __init__(self, prompt_token_ids: Sequence[int], temperature: float) -> None:
        self.temperature = temperature
        self.copies = CopyIndex()
        self.copy_mean = _UNKNOWN
        self.agreements: list[float] = []  # of the response tokens that have one, in text order
        self.agreement_mean = 0.0
        self._prompt_length = len(prompt_token_ids)
        for token_id in prompt_token_ids:
            self.copies.append(token_id)

    @property
    def length(self) -> int:
        """Committed tokens, prompt included."""
        return len(self.copies.token_ids)

    def commit(self, token_id: int) -> None:
        """Append a response token."""
        follower = self.copies.match.follower
        if follower is not None:
            followed = self.copies.token_ids[follower] == token_id
            self.copy_mean += (1.0 - MEAN_DECAY) * (followed - self.copy_mean)
        self.copies.append(token_id)

    def agree(self, agreement: float) -> None:
        """Add min(1, draft/target) of the next response token that has none yet; called in text order."""
        self.agreements.append(agreement)
        weight = max(1.0 / len(self.agreements), 1.0 - MEAN_DECAY)  # a plain mean at first
        self.agreement_mean += weight * (agreement - self.agreement_mean)

    def agreement_at(self, index: int | None) -> float:
        """Of the token at a text index; neutral where there is none, or none is known."""
        number = -1 if index is None else index - self._prompt_length
        return self.agreements[number] if 0 <= number < len(self.agreements) else _UNKNOWN


class BlockState:
    """What the block drafted so far says, on top of a text that does not change meanwhile."""

    def __init__(self, text: TextState) -> None:
        self.text = text
        self.token_ids: list[int] = []
        self.last: DraftPrimitives | None = None
        self.log_prob = 0.0
        self.min_top_prob = 1.0
        self.match = text.copies.match
        self.copy_shortest, self.copy_run = self.match.length, 0
        self.copy_agreement_before = _UNKNOWN

    def append(self, step: DraftPrimitives) -> None:
        self.token_ids.append(step.token_id)
        self.last = step
        self.log_prob += step.token_log_prob
        self.min_top_prob = min(self.min_top_prob, math.exp(step.log_probs[0]))
        copies, follower = self.text.copies, self.match.follower
        copied = follower is not None and copies.token_ids[follower] == step.token_id
        self.copy_run = self.copy_run + 1 if copied else 0
        self.copy_agreement_before = self.text.agreement_at(follower)
        self.match = copies.match_after(self.match, self.token_ids)
        self.copy_shortest = min(self.copy_shortest, self.match.length)


def assemble(block: BlockState) -> list[float]:
    """The feature vector [F] in `schema.FEATURE_NAMES` order; what is unknown at position 0 is 0."""
    text, last = block.text, block.last
    if last is None:
        drafted = [0.0] * 11
    else:
        agreements = [0.0, 0.0, *text.agreements[-2:]]
        drafted = [
            math.exp(last.log_probs[0]),
            last.log_probs[0] - last.log_probs[1],
            last.token_log_prob,
            float(len(block.token_ids)),
            block.log_prob,
            block.min_top_prob,
            agreements[-1],
            agreements[-2],
            text.agreement_mean,
            text.agreement_at(block.match.follower),
            block.copy_agreement_before,
        ]
    return [
        *drafted,
        float(block.match.length),
        float(block.copy_run > 0),
        float(block.copy_run),
        float(block.copy_shortest),
        0.0 if block.match.follower is None else math.log(text.length - block.match.follower),
        text.copy_mean,
        text.temperature,
        math.log(text.length),
    ]
