"""Drafts one block: token, primitives, features, another?

Knows the draft model, the policy and the text as features see it; never meets the target model. Letters: K drafted
tokens, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch

from dsl_train.base.policy import WITHOUT_ENTROPY, Policy, draft_temperature_of
from dsl_train.base.records import DraftPrimitives, DraftStep, no_features
from dsl_train.base.sampling import Sampling, draw, most_likely
from dsl_train.features.primitives import read_draft, read_drawn
from dsl_train.loop.text import Text
from dsl_train.loop.verify import token_probs
from dsl_train.runners.cached import CachedModel


@dataclass(frozen=True)
class DraftBlock:
    token_ids: tuple[int, ...]  # [K]
    probs: torch.Tensor | None  # [K, V] float32 the tokens were drawn from; None when the target is greedy or K = 0


def as_drafted(sampling: Sampling, policy: Policy) -> Sampling:
    """What the draft draws with: at the temperature given for it, else at the one that the policy was trained for."""
    if not sampling.greedy and sampling.draft_temperature is None:
        sampling = replace(sampling, draft_temperature=draft_temperature_of(policy, sampling.temperature))
    return sampling.of_draft


class Drafter:
    """A draft under a policy; what it remembers of a text is in the text."""

    def __init__(self, draft: CachedModel, policy: Policy, sampling: Sampling) -> None:
        """`sampling` is the target's."""
        self.draft, self.policy, self.sampling = draft, policy, as_drafted(sampling, policy)
        self._is_sampled = not sampling.greedy

    def draft_block(self, text: Text, limit: int) -> DraftBlock:
        """Draft after the committed tokens for as long as the policy wants another, at most `limit`.

        Nothing follows an end-of-text token. `text.tokens` is extended while drafting and restored on return.
        """
        tokens = text.tokens
        start, probs, read = len(tokens), [], no_features
        if text.view:
            text.view.begin_block()
            read = text.view.vector
        last: DraftPrimitives | None = None
        while len(tokens) - start < limit:
            if not self.policy.wants_another(DraftStep(len(tokens) - start, start, last, read)):
                break
            token_id, token_dist, last = self._draft_token(text)
            tokens.append(token_id)
            if token_dist is not None:
                probs.append(token_dist)
            if text.view and last:
                text.view.append(last)
            if token_id in text.eos_token_ids:
                break
        drafted = tuple(tokens[start:])
        del tokens[start:]
        return DraftBlock(drafted, torch.stack(probs) if probs else None)

    def _draft_token(self, text: Text) -> tuple[int, torch.Tensor | None, DraftPrimitives | None]:
        """The next token, the distribution it was drawn from [V] (None when greedy), its primitives if wanted."""
        keep = len(text.unpredicted) + 1
        if self._is_sampled:
            return self._draw_token(text, self.draft.logits(text.tokens, keep))
        if self.policy.needs in WITHOUT_ENTROPY:
            ids, primitives = self.draft.choose(text.tokens, keep)
            if text.unpredicted:
                pairs = zip(ids, text.unpredicted, strict=False)
                text.catch_up([float(choice == token_id) for choice, (token_id, _) in pairs])
            return ids[-1], None, primitives
        rows = self.draft.logits(text.tokens, keep)  # [1, V]
        if self.policy.needs == "position":
            return most_likely(rows)[-1], None, None
        ids, primitives = read_draft(rows)
        return ids[-1], None, primitives

    def _draw_token(self, text: Text, rows: torch.Tensor) -> tuple[int, torch.Tensor, DraftPrimitives | None]:
        scaled = self.sampling.scale(rows)
        probs = self.sampling.probs_of_scaled(scaled)  # [unpredicted + 1, V]
        choice = draw(probs[-1:], text.generator)  # [1]
        if text.unpredicted:
            pairs = zip(
                token_probs(probs, [token_id for token_id, _ in text.unpredicted]), text.unpredicted, strict=True
            )
            text.catch_up([min(1.0, draft_prob / target_prob) for draft_prob, (_, target_prob) in pairs])
        if self.policy.needs == "position":
            return int(choice), probs[-1], None
        without_entropy = self.policy.needs in WITHOUT_ENTROPY
        if without_entropy and probs.is_cpu and not (self.sampling.truncates or self.sampling.greedy):
            return int(choice), probs[-1], read_drawn(scaled[-1], probs[-1], int(choice))
        ids, primitives = read_draft(scaled[-1:], choice, without_entropy)
        return ids[-1], probs[-1], primitives
