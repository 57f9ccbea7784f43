"""From primitives to the feature vector: the one feature function.

Collection, training, replay and serving all call this module, so that a vector means the same everywhere. Letter: F
features. Does not know logits, models, caches, policies or files.

Which distribution describes which token (text index above, what is known below; the round starts at index s):

    committed text         ... s-2   s-1 |  block: s      s+1     ...
    agreement              ... s-2   s-1*|         (* once the draft has caught up: from position 1 on)
    draft primitives                     |         s      s+1     (position 1, 2, ...)
"""

import math
from collections.abc import Sequence

import numpy as np

from dsl_train.base.records import DraftPrimitives
from dsl_train.base.schema import MEAN_DECAY
from dsl_train.features.copies import CopyIndex

#: An agreement or a share that nothing is known of: as likely as not.
_UNKNOWN = 0.5


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


class FeatureView:
    """It is told everything and computes nothing before it is asked: rounds at rest are never asked."""

    def __init__(self, prompt_token_ids: Sequence[int], temperature: float) -> None:
        self._text = TextState(prompt_token_ids, temperature)
        self._block: BlockState | None = None
        self._drafted: list[DraftPrimitives] = []  # of the block
        self._committed: list[int] = []  # that the text has not been told of yet
        self._agreements: list[float] = []  # likewise

    def commit(self, token_ids: Sequence[int]) -> None:
        self._committed += token_ids

    def agree(self, agreements: Sequence[float]) -> None:
        """min(1, draft/target) of the next response tokens that have none yet."""
        self._agreements += agreements

    def begin_block(self) -> None:
        self._block, self._drafted = None, []

    def append(self, primitives: DraftPrimitives) -> None:
        """A token was drafted."""
        self._drafted.append(primitives)

    def vector(self) -> np.ndarray:
        """[F] float32, `features.assemble` of all this."""
        for token_id in self._committed:
            self._text.commit(token_id)
        for agreement in self._agreements:
            self._text.agree(agreement)
        self._committed.clear()
        self._agreements.clear()
        block = self._block = self._block or BlockState(self._text)
        for primitives in self._drafted[len(block.token_ids) :]:
            block.append(primitives)
        return np.array(assemble(block), dtype=np.float32)
