"""What the features are computed from: the state of the committed text and of the block being drafted.

Knows tokens, draft primitives and agreements; knows no logits, models, policies or files.
"""

import math
from collections.abc import Sequence

from dsl_train.base.records import DraftPrimitives
from dsl_train.base.schema import MEAN_DECAY
from dsl_train.features.suffix_index import SuffixIndex

#: Stands for an agreement or a share that is not known yet: as likely as not.
_UNKNOWN = 0.5


class TextState:
    """The committed text. Only `commit` and `agree` change it."""

    def __init__(self, prompt_token_ids: Sequence[int], temperature: float) -> None:
        self.temperature = temperature
        self.suffixes = SuffixIndex()
        self.copy_mean = _UNKNOWN
        """Exponential mean over committed tokens: whether each was the one that followed the repeated suffix."""
        self.agreements: list[float] = []
        """One for each response token that has one, in text order."""
        self.agreement_1 = self.agreement_2 = 0.0
        """The last two; 0 while there are none."""
        self.agreement_mean = 0.0
        self.length = self._prompt_length = len(prompt_token_ids)
        """Number of committed tokens, prompt included."""
        for token_id in prompt_token_ids:
            self.suffixes.append(token_id)

    def commit(self, token_id: int) -> None:
        """Append a response token."""
        follower = self.suffixes.match.follower
        if follower is not None:
            followed = self.suffixes.token_ids[follower] == token_id
            self.copy_mean += (1.0 - MEAN_DECAY) * (followed - self.copy_mean)
        self.suffixes.append(token_id)
        self.length += 1

    def agree(self, agreement: float) -> None:
        """Add min(1, draft/target) of the next response token that has none yet; call it in text order."""
        self.agreements.append(agreement)
        self.agreement_1, self.agreement_2 = agreement, self.agreement_1
        weight = max(1.0 / len(self.agreements), 1.0 - MEAN_DECAY)  # a plain mean at first
        self.agreement_mean += weight * (agreement - self.agreement_mean)

    def agreement_at(self, index: int | None) -> float:
        """Agreement of the token at a text index; 0.5 if there is no such token or it has no agreement."""
        number = -1 if index is None else index - self._prompt_length
        return self.agreements[number] if 0 <= number < len(self.agreements) else _UNKNOWN


class BlockState:
    """The block drafted so far, after a text that does not change meanwhile."""

    last: DraftPrimitives
    """Of the token drafted last; absent before the first."""

    def __init__(self, text: TextState) -> None:
        self.text = text
        self.token_ids: list[int] = []
        self.log_prob = 0.0
        self.top_prob = self.min_top_prob = 1.0
        self.match = text.suffixes.match
        """Of text + block."""
        self.copy_shortest, self.copy_run = self.match.length, 0
        self.copy_agreement = self.copy_agreement_before = _UNKNOWN

    def append(self, step: DraftPrimitives) -> None:
        """Add a drafted token."""
        self.token_ids.append(step.token_id)
        self.last = step
        self.log_prob += step.token_log_prob
        self.top_prob = math.exp(step.log_probs[0])
        self.min_top_prob = min(self.min_top_prob, self.top_prob)
        suffixes, follower = self.text.suffixes, self.match.follower
        copied = follower is not None and suffixes.token_ids[follower] == step.token_id
        self.copy_run = self.copy_run + 1 if copied else 0
        self.copy_agreement_before = self.text.agreement_at(follower)
        self.match = suffixes.match_after(self.match, self.token_ids)
        self.copy_agreement = self.text.agreement_at(self.match.follower)
        self.copy_shortest = min(self.copy_shortest, self.match.length)
