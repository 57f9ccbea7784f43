"""One request of vLLM between two steps: its text, what is drafted for it, and what the draft has read.

Lives as an attribute of vLLM's own record of the request, hence exactly as long as the request. Knows no models.
"""

from collections.abc import Sequence

from dsl_train.base.policy import Policy
from dsl_train.base.records import DraftPrimitives, DraftStep, Round, no_features
from dsl_train.features.vector import FeatureView
from dsl_train.loop.verify import compare


class RequestText:
    """The committed text, its features, and the block that is being drafted or verified."""

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        temperature: float,
        end: int,
        stop_token_ids: frozenset[int],
        with_features: bool,
        policy: Policy | None = None,
    ) -> None:
        """`end` is the length of the text at which the request is finished; `policy` one of its own, which is asked
        for this text alone."""
        self.tokens, self.prompt_length = list(prompt_token_ids), len(prompt_token_ids)
        """Committed, prompt included."""
        self.end, self.stop_token_ids, self.policy = end, stop_token_ids, policy
        self.view = FeatureView(prompt_token_ids, temperature) if with_features else None
        self.block: list[int] = []
        """Drafted tokens that have not been verified."""
        self.survivals: list[float] = []
        """The estimates that wanted them, where a predictor was asked."""
        self.last: DraftPrimitives | None = None
        """Of the token drafted last."""
        self.num_read = 0
        """Tokens of text and block that the draft's cache holds."""
        self.num_noted = 0
        """Tokens of the text that it held when the blocks of the cache were noted last."""
        self.behind: list[int] = []
        """Committed tokens that the draft has yet to predict, the latest ones of the text."""
        self.limit = 0
        """Tokens that this block may have."""
        if policy:
            policy.reset()

    @property
    def step(self) -> DraftStep:
        """What a policy sees."""
        read = self.view.vector if self.view else no_features
        return DraftStep(len(self.block), len(self.tokens), self.last, read)

    @property
    def unread(self) -> list[int]:
        """Tokens of text and block that the draft has yet to read."""
        num_committed = len(self.tokens)
        if self.num_read >= num_committed:
            return self.block[self.num_read - num_committed :]
        return self.tokens[self.num_read :] + self.block

    @property
    def can_grow(self) -> bool:
        """Whether another token may follow the block: nothing follows an end-of-text token."""
        return len(self.block) < self.limit and not (self.block and self.block[-1] in self.stop_token_ids)

    def begin_block(self, limit: int) -> None:
        """Draft at most `limit` tokens, and none that the text has no room for beside the target's own."""
        self.block, self.survivals, self.last = [], [], None
        self.limit = min(limit, self.end - 1 - len(self.tokens))
        if self.view:
            self.view.begin_block()

    def draft(self, token_id: int, primitives: DraftPrimitives | None) -> None:
        """Append a token to the block."""
        self.block.append(token_id)
        self.last = primitives
        if self.view and primitives:
            self.view.append(primitives)

    def agree(self, agreements: Sequence[float]) -> None:
        """The draft has predicted the tokens that it was behind by: 1 where it chose the same token, else 0."""
        if self.view:
            self.view.agree(agreements)
        self.behind.clear()

    def commit(self, token_ids: Sequence[int], num_verified: int) -> Round:
        """Append what the target said in a step that verified the first `num_verified` tokens of the block."""
        start, drafted = len(self.tokens), tuple(self.block[:num_verified])
        num_accepted = min(len(drafted), len(token_ids) - 1)
        self.tokens += token_ids
        self.num_read = min(self.num_read, start + num_accepted)
        self.block = []
        if self.view:
            agreements, _ = compare(token_ids, drafted, None, None)
            self.view.commit(token_ids)
            self.view.agree(agreements)
            self.behind += token_ids[len(agreements) :]
        return Round(start, drafted, num_accepted, tuple(token_ids))

    def forget_block(self) -> None:
        """The request was preempted: its block is not verified, and its cache is gone."""
        self.block, self.num_read = [], 0
