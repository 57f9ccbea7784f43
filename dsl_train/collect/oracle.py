"""The sequential collector: speculative decoding itself, written for clarity. The reference that `hindsight` is tested
against.

A block is drafted and verified; what is accepted is committed and drafting goes on without the target's bonus token,
so that the draft's prediction of every position is on record. A rejected token is corrected, and the draft goes on
from it for a tail that will never be text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from dsl_train.collect.config import CollectConfig
from dsl_train.collect.text import CollectedText, Predictions, Reject, Request, tail_rows, text_rows
from dsl_train.loading import Pair
from dsl_train.records import DslError
from dsl_train.runner import CachedModel
from dsl_train.sampling import draw
from dsl_train.traces import Rows, join_rows
from dsl_train.verify import acceptance, residual_probs


@dataclass
class _Draft:
    """Tokens drafted after the text, and what they were drawn from."""

    token_ids: list[int] = field(default_factory=list)  # [K]
    logits: list[torch.Tensor] = field(default_factory=list)  # K of [V]
    probs: list[torch.Tensor] = field(default_factory=list)  # K of [V]

    def __getitem__(self, part: slice) -> Predictions:
        """Some of them, not none, as rows."""
        return Predictions(torch.stack(self.logits[part]), torch.stack(self.probs[part]), self.token_ids[part])


class OracleCollector:
    """Owns both caches; each text has a generator of its own. Greedy is sampling from one-hot distributions."""

    def __init__(self, pair: Pair, config: CollectConfig) -> None:
        self.target, self.draft = CachedModel(pair.target), CachedModel(pair.draft)
        self.config, self.sampling, self.eos_token_ids = config, config.sampling, pair.eos_token_ids
        self.context = min(self.target.context, self.draft.context)

    def collect(self, requests: Sequence[Request]) -> Iterator[CollectedText | Reject]:
        """One answer per request; a text that a model fails on is put aside."""
        for request in requests:
            try:
                yield self.collect_text(request)
            except (DslError, RuntimeError, IndexError) as error:
                yield Reject(f"{error}" or type(error).__name__)

    @torch.inference_mode()
    def collect_text(self, request: Request) -> CollectedText:
        """The target's continuation with a depth-0 row for each of its tokens and a tail at each rejection."""
        request.check(self.context)
        tokens, start = list(request.prompt_token_ids), len(request.prompt_token_ids)
        end = min(start + self.config.max_new_tokens, self.context + 1)
        generator = torch.Generator(self.target.device).manual_seed(request.seed)
        self.target.reset()
        self.draft.reset()
        parts: list[Rows] = []
        while len(tokens) < end and (len(tokens) == start or tokens[-1] not in self.eos_token_ids):
            parts += self._run_round(tokens, min(self.config.max_lookahead, end - len(tokens)), generator)
        finish_reason = "eos" if tokens[-1] in self.eos_token_ids else "length"
        return CollectedText(tuple(tokens[start:]), finish_reason, join_rows(parts))

    def _run_round(self, tokens: list[int], lookahead: int, generator: torch.Generator) -> list[Rows]:
        """Draft, verify, commit to `tokens`; returns the rows seen."""
        start, draft = len(tokens), _Draft()
        self._draft_until(lookahead, tokens, draft, generator)
        block = draft[:]
        logits = self.target.logits([*tokens, *block.token_ids[:-1]], keep=len(block.token_ids))  # [K, V]
        probs = self.sampling.probs(logits)
        coins = torch.rand(len(probs), generator=generator, device=probs.device)  # [K], range [0, 1)
        accepted = (coins < acceptance(probs, block.probs, block.token_ids)).tolist()
        committed, tail = list(block.token_ids), []
        if False in accepted:
            rejected = accepted.index(False)
            residual = residual_probs(probs[rejected], block.probs[rejected])
            committed[rejected:] = [int(draw(residual[None], generator))]
            tail = self._tail(tokens, draft, rejected, generator)
        tokens += committed
        for model in (self.target, self.draft):
            model.truncate(len(tokens) - 1)
        seen = slice(len(committed))
        target = Predictions(logits[seen], probs[seen], committed)
        return [text_rows(start, draft[seen], target, accepted[seen], self.sampling), *tail]

    def _tail(self, tokens: list[int], draft: _Draft, rejected: int, generator: torch.Generator) -> list[Rows]:
        """Rows after the block's token number `rejected`; the block is drafted on as far as they need."""
        first, end = rejected + 1, rejected + 1 + self.config.tail_length
        self._draft_until(end, tokens, draft, generator)
        if len(draft.token_ids) == first or first == end:
            return []
        return [tail_rows(len(tokens) + rejected, draft[first:end], self.sampling)]

    def _draft_until(self, length: int, tokens: list[int], draft: _Draft, generator: torch.Generator) -> None:
        """Extend the block to `length` tokens; it ends earlier at an end-of-text token or the end of the context."""
        while len(draft.token_ids) < min(length, self.context + 1 - len(tokens)):
            if draft.token_ids and draft.token_ids[-1] in self.eos_token_ids:
                return
            logits = self.draft.logits([*tokens, *draft.token_ids], keep=1)  # [1, V]
            probs = self.sampling.probs(logits)
            draft.token_ids.append(int(draw(probs, generator)))
            draft.logits.append(logits[0])
            draft.probs.append(probs[0])
