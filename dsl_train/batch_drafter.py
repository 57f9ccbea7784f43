"""Drafts one block for each text of a batch: a forward for all of them, then "another?".

Knows the draft model, the policy and the texts as features see them; never meets the target model. `drafter.py` is the
same for one text, and computes the same features. Letters: B texts, b of them drafting, V vocabulary, W tokens that the
draft has yet to predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dsl_train.drafter import DraftBlock
from dsl_train.feature_view import FeatureView
from dsl_train.features import draft_primitives, read_draft, unpack_draft
from dsl_train.policies.base import WITHOUT_ENTROPY
from dsl_train.policies.batch import BatchPolicy
from dsl_train.ragged import RaggedModel
from dsl_train.records import DraftPrimitives, DraftStep, no_features
from dsl_train.sampling import Sampling, draw

_MAX_BEHIND = 16  # committed tokens predicted at a time: bounds the logits after many rounds without drafts


@dataclass
class BatchText:
    """What drafting needs to know of one text."""

    number: int
    """In the batch as it began: what the policy knows it by."""
    tokens: list[int]
    """Committed; extended by the block while a round is under way."""
    generator: torch.Generator
    view: FeatureView | None
    """None if the policy needs no features."""
    behind: list[tuple[int, float]] = field(default_factory=list)
    """Committed tokens that the draft has yet to predict, with the target's probability of each."""

    def commit(self, agreements: Sequence[float], target_token_probs: Sequence[float]) -> None:
        """Tell the features of the last tokens: the target's probability of each, and min(1, draft/target) of the
        first of them, as far as the draft predicted them."""
        if self.view is None:
            return
        committed = self.tokens[-len(target_token_probs) :]
        self.view.commit(committed)
        self.view.agree(agreements)
        self.behind += list(zip(committed, target_token_probs, strict=True))[len(agreements) :]


class _Block:
    """A block in the making."""

    def __init__(self, slot: int, text: BatchText, limit: int) -> None:
        self.slot, self.text, self.limit = slot, text, limit
        self.start = len(text.tokens)
        self.probs: list[torch.Tensor] = []
        self.last: DraftPrimitives | None = None
        if text.view:
            text.view.begin_block()

    @property
    def position(self) -> int:
        return len(self.text.tokens) - self.start

    def step(self) -> DraftStep:
        view = self.text.view
        return DraftStep(self.position, self.start, self.last, view.vector if view else no_features)

    def append(self, token_id: int, primitives: DraftPrimitives | None) -> None:
        self.text.tokens.append(token_id)
        self.last = primitives
        if self.text.view and primitives:
            self.text.view.append(primitives)

    def done(self) -> DraftBlock:
        return DraftBlock(tuple(self.text.tokens[self.start :]), torch.stack(self.probs) if self.probs else None)


class BatchDrafter:
    def __init__(
        self, draft: RaggedModel, policy: BatchPolicy, sampling: Sampling, eos_token_ids: frozenset[int]
    ) -> None:
        self.draft, self.policy, self.sampling, self.eos_token_ids = draft, policy, sampling, eos_token_ids

    def draft_blocks(self, texts: Sequence[BatchText], limits: Sequence[int]) -> list[DraftBlock]:
        """A block for each text, at most `limits` tokens; appended to `text.tokens` as well, for the verification.

        Texts that stop earlier wait for the others. Nothing follows an end-of-text token.
        """
        most = self.policy.max_lookahead(len(texts))
        if not most or max(limits) <= 0:
            return [DraftBlock((), None)] * len(texts)
        blocks = [_Block(i, text, min(limits[i], most)) for i, text in enumerate(texts)]
        open_blocks = self._wanting([block for block in blocks if block.limit > 0], len(texts))
        while open_blocks:
            self._draft_tokens(open_blocks, len(texts))
            fits = [block for block in open_blocks if block.position < block.limit and not self._ended(block)]
            open_blocks = self._wanting(fits, len(texts)) if fits else []
        return [block.done() for block in blocks]

    def _wanting(self, blocks: list[_Block], batch_size: int) -> list[_Block]:
        numbers = [block.text.number for block in blocks]
        answers = self.policy.wants_another(numbers, [block.step() for block in blocks], batch_size)
        return [block for block, answer in zip(blocks, answers, strict=True) if answer]

    def _ended(self, block: _Block) -> bool:
        return block.text.tokens[-1] in self.eos_token_ids

    def _draft_tokens(self, blocks: Sequence[_Block], batch_size: int) -> None:
        """One token for each block, by one forward."""
        self._read_long_behind(blocks, batch_size)
        behind = max(len(block.text.behind) for block in blocks)
        logits = self._forward({block.slot: block.text.tokens for block in blocks}, behind + 1, batch_size)
        if behind:
            self._catch_up(blocks, logits[:, :-1])
        scores = logits[:, -1]  # [b, V]
        if self.sampling.greedy:
            choices = scores.argmax(-1)  # [b]
        else:
            probs = self.sampling.probs(scores)
            pairs = list(zip(probs, blocks, strict=True))
            choices = torch.cat([draw(dist[None], block.text.generator) for dist, block in pairs])
            for dist, block in pairs:
                block.probs.append(dist)
        if self.policy.needs == "position":
            for token_id, block in zip(choices.tolist(), blocks, strict=True):
                block.append(token_id, None)
            return
        for (token_id, primitives), block in zip(self._read(self.sampling.scale(scores), choices), blocks, strict=True):
            block.append(token_id, primitives)

    def _read(self, scaled: torch.Tensor, choices: torch.Tensor) -> list[tuple[int, DraftPrimitives]]:
        """The drafted tokens [b] with their primitives, of logits [b, V]; on the CPU no more of them than wanted."""
        if scaled.is_cpu and self.policy.needs in WITHOUT_ENTROPY:
            rows = zip(scaled.split(1), choices.split(1), strict=True)
            return [
                (ids[0], primitives) for ids, primitives in (read_draft(*row, without_entropy=True) for row in rows)
            ]
        primitives = draft_primitives(scaled, choices)
        packed = torch.cat([choices[:, None].float(), primitives], dim=-1).tolist()  # one copy to the host
        return [(int(choice), unpack_draft(values, int(choice))) for choice, *values in packed]

    def _read_long_behind(self, blocks: Sequence[_Block], batch_size: int) -> None:
        while late := [block for block in blocks if len(block.text.behind) > _MAX_BEHIND]:
            # the last token read predicts the last of the first _MAX_BEHIND tokens behind
            ends = [len(block.text.tokens) - len(block.text.behind) + _MAX_BEHIND - 1 for block in late]
            read = {block.slot: block.text.tokens[:end] for block, end in zip(late, ends, strict=True)}
            self._catch_up(late, self._forward(read, _MAX_BEHIND, batch_size))

    def _forward(self, texts: dict[int, list[int]], keep: int, batch_size: int) -> torch.Tensor:
        """Logits [b, keep, V] of the texts in these slots, in their order; the other rows wait."""
        logits = self.draft.logits([texts.get(slot, []) for slot in range(batch_size)], keep)
        return logits if len(texts) == batch_size else logits[list(texts)]

    def _catch_up(self, blocks: Sequence[_Block], logits: torch.Tensor) -> None:  # [b, W, V], each text's at the end
        """Agreements of tokens that were committed without a draft's prediction."""
        width = logits.shape[1]
        rows = [block.text.behind[:width] for block in blocks]
        padded = torch.tensor(
            [[0] * (width - len(row)) + [token_id for token_id, _ in row] for row in rows], device=logits.device
        )
        if self.sampling.greedy:
            values = (logits.argmax(-1) == padded).float()  # [b, W]
        else:
            values = self.sampling.probs(logits.flatten(0, 1)).view(logits.shape).gather(-1, padded[..., None])[..., 0]
        for block, row, draft_probs in zip(blocks, rows, values.tolist(), strict=True):
            known = zip(draft_probs[width - len(row) :], row, strict=True)
            assert block.text.view is not None, "only what features are told of can be behind"
            block.text.view.agree([min(1.0, draft_prob / target_prob) for draft_prob, (_, target_prob) in known])
            del block.text.behind[:width]
