"""One text: what is committed, whether it is at an end, and what the features know of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError, GenerationResult, Round
from dsl_train.base.sampling import Sampling
from dsl_train.features.vector import FeatureView


def view_for(policy: Policy, prompt_token_ids: Sequence[int], sampling: Sampling) -> FeatureView | None:
    """What a policy that reads features is shown of a text; None for the others."""
    return FeatureView(prompt_token_ids, sampling.temperature) if policy.needs == "features" else None


@dataclass
class Text:
    """All that belongs to one generation and outlives a round."""

    tokens: list[int]
    """Committed, prompt included."""
    prompt_length: int
    end: int
    """Length at which generation stops."""
    eos_token_ids: frozenset[int]
    generator: torch.Generator
    """All random draws of this text."""
    view: FeatureView | None = None
    """What a policy that reads features is told; None for the others."""
    finish_reason: str = ""
    """`eos` or `length`; empty while the text goes on."""
    unpredicted: list[tuple[int, float]] = field(default_factory=list)
    """Committed tokens that the draft has yet to predict, each with the target's probability of it."""

    @classmethod
    def begin(
        cls,
        prompt_token_ids: Sequence[int],
        max_new_tokens: int,
        context: int,
        eos_token_ids: frozenset[int],
        generator: torch.Generator,
        view: FeatureView | None = None,
    ) -> "Text":
        """Raises DslError if the prompt is empty or does not fit the target's context."""
        length = len(prompt_token_ids)
        if not length:
            raise DslError("the prompt has no tokens; give it at least one (a beginning-of-text token, say)")
        if length > context:
            raise DslError(
                f"the prompt has {length} tokens but the target's context holds {context}; "
                "shorten the prompt or use a target with a longer context"
            )
        if max_new_tokens < 1:
            raise DslError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        end = min(length + max_new_tokens, context + 1)
        return cls(list(prompt_token_ids), length, end, eos_token_ids, generator, view)

    @property
    def response(self) -> tuple[int, ...]:
        return tuple(self.tokens[self.prompt_length :])

    def commit(self, token_ids: Sequence[int]) -> list[int]:
        """Append up to the end of the text; returns what was appended."""
        committed: list[int] = []
        for token_id in token_ids:
            committed.append(token_id)
            self.tokens.append(token_id)
            if token_id in self.eos_token_ids:
                self.finish_reason = "eos"
            elif len(self.tokens) == self.end:
                self.finish_reason = "length"
            if self.finish_reason:
                break
        return committed

    def tell(self, committed: Sequence[int], agreements: Sequence[float], target_token_probs: Sequence[float]) -> None:
        """Tell the features what was committed: each token with the target's probability of it, and min(1,
        draft/target) for the first of them, as far as the draft predicted them."""
        if self.view is None:
            return
        self.view.commit(committed)
        self.view.agree(agreements)
        self.unpredicted += list(zip(committed, target_token_probs, strict=True))[len(agreements) :]

    def catch_up(self, agreements: Sequence[float]) -> None:
        """Tell the features min(1, draft/target) of all tokens that the draft had yet to predict."""
        assert self.view is not None, "only what features are told of can be unpredicted"
        self.view.agree(agreements)
        self.unpredicted.clear()

    def result(self, rounds: Sequence[Round], seconds: float) -> GenerationResult:
        """The finished text; `rounds` after that of the prompt, `seconds` by the clock."""
        prompt = tuple(self.tokens[: self.prompt_length])
        return GenerationResult(prompt, self.response, self.finish_reason, tuple(rounds), seconds)
