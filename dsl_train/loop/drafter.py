"""Drafts one block: token, primitives, features, another?

Knows the draft model, the policy and the text as features see it; never meets the target model. Letters: K drafted
tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dsl_train.base.policy import WITHOUT_ENTROPY, Policy
from dsl_train.base.records import DraftPrimitives, DraftStep, no_features
from dsl_train.base.sampling import Sampling, draw, most_likely
from dsl_train.features.primitives import read_draft, read_drawn
from dsl_train.features.vector import FeatureView
from dsl_train.loop.verify import token_probs
from dsl_train.runners.cached import CachedModel


@dataclass(frozen=True)
class DraftBlock:
    token_ids: tuple[int, ...]  # [K]
    probs: torch.Tensor | None  # [K, V] float32 the tokens were drawn from; None when greedy or K = 0


def as_drafted(sampling: Sampling, policy: Policy) -> Sampling:
    """What the draft draws with: at the temperature given for it, else at the one that the policy was trained for. A
    policy that is no subclass need not know one."""
    known = getattr(policy, "draft_temperature", None)
    if not sampling.greedy and sampling.draft_temperature is None and known:
        sampling = replace(sampling, draft_temperature=known(sampling.temperature))
    return sampling.of_draft


class Drafter:
    """Owns the draft's cache and, for policies that need features, their view of the committed text."""

    def __init__(
        self,
        draft: CachedModel,
        policy: Policy,
        sampling: Sampling,
        eos_token_ids: frozenset[int],
        prompt_token_ids: Sequence[int],
    ) -> None:
        self.draft, self.policy, self.eos_token_ids = draft, policy, eos_token_ids
        self.sampling = as_drafted(sampling, policy)
        self.view = FeatureView(prompt_token_ids, sampling.temperature) if policy.needs == "features" else None
        self._behind: list[tuple[int, float]] = []  # committed tokens the draft has yet to predict, target prob of each
        policy.reset()

    def draft_block(self, tokens: list[int], limit: int, generator: torch.Generator) -> DraftBlock:
        """Draft after the committed `tokens` for as long as the policy wants another, at most `limit`.

        Nothing follows an end-of-text token. `tokens` is extended while drafting and restored on return.
        """
        start, probs, read = len(tokens), [], no_features
        if self.view:
            self.view.begin_block()
            read = self.view.vector
        last: DraftPrimitives | None = None
        while len(tokens) - start < limit:
            if not self.policy.wants_another(DraftStep(len(tokens) - start, start, last, read)):
                break
            token_id, token_dist, last = self._draft_token(tokens, generator)
            tokens.append(token_id)
            if token_dist is not None:
                probs.append(token_dist)
            if self.view and last:
                self.view.append(last)
            if token_id in self.eos_token_ids:
                break
        drafted = tuple(tokens[start:])
        del tokens[start:]
        return DraftBlock(drafted, torch.stack(probs) if probs else None)

    def commit(
        self,
        token_ids: Sequence[int],
        agreements: Sequence[float],
        target_token_probs: Sequence[float],
    ) -> None:
        """Tell the features what was committed: each token with the target's probability of it, and min(1,
        draft/target) for the first of them, as far as the draft predicted them."""
        if self.view is None:
            return
        self.view.commit(token_ids)
        self.view.agree(agreements)
        self._behind += list(zip(token_ids, target_token_probs, strict=True))[len(agreements) :]

    def _draft_token(
        self, tokens: list[int], generator: torch.Generator
    ) -> tuple[int, torch.Tensor | None, DraftPrimitives | None]:
        """The next token, the distribution it was drawn from [V] (None when greedy), its primitives if wanted."""
        keep = len(self._behind) + 1
        if not self.sampling.greedy:
            return self._draw_token(self.draft.logits(tokens, keep), generator)
        if self.policy.needs in WITHOUT_ENTROPY:
            ids, primitives = self.draft.choose(tokens, keep)
            if self._behind:
                pairs = zip(ids, self._behind, strict=False)
                self._catch_up([float(choice == token_id) for choice, (token_id, _) in pairs])
            return ids[-1], None, primitives
        rows = self.draft.logits(tokens, keep)  # [1, V]
        if self.policy.needs == "position":
            return most_likely(rows)[-1], None, None
        ids, primitives = read_draft(rows)
        return ids[-1], None, primitives

    def _draw_token(
        self, rows: torch.Tensor, generator: torch.Generator
    ) -> tuple[int, torch.Tensor, DraftPrimitives | None]:
        scaled = self.sampling.scale(rows)
        probs = self.sampling.probs_of_scaled(scaled)
        choice = draw(probs[-1:], generator)  # [1]
        if self._behind:
            self._catch_up_sampled(probs)
        if self.policy.needs == "position":
            return int(choice), probs[-1], None
        without_entropy = self.policy.needs in WITHOUT_ENTROPY
        if without_entropy and probs.is_cpu and not self.sampling.truncates:
            return int(choice), probs[-1], read_drawn(scaled[-1], probs[-1], int(choice))
        ids, primitives = read_draft(scaled[-1:], choice, without_entropy)
        return ids[-1], probs[-1], primitives

    def _catch_up_sampled(self, probs: torch.Tensor) -> None:  # [behind + 1, V]
        pairs = zip(token_probs(probs, [token_id for token_id, _ in self._behind]), self._behind, strict=True)
        self._catch_up([min(1.0, draft_prob / target_prob) for draft_prob, (_, target_prob) in pairs])

    def _catch_up(self, agreements: Sequence[float]) -> None:
        assert self.view is not None, "only what features are told of can be behind"
        self.view.agree(agreements)
        self._behind.clear()
