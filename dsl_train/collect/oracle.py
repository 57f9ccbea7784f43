"""The sequential collector: speculative decoding itself, written for clarity. The reference that `hindsight` is tested
against.

A block is drafted and verified; what is accepted is committed and drafting goes on without the target's bonus token,
so that the draft's prediction of every position is on record. A rejected token is corrected, and the draft goes on
from it for a tail that will never be text. Letters: K drafted tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dsl_train.base.records import DslError
from dsl_train.base.sampling import draw
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.text import MODEL_FAILURES, CollectedText, Labels, Reject, Request, tail_rows, text_rows
from dsl_train.loop.verify import acceptance, residual_probs
from dsl_train.pair.loading import Pair
from dsl_train.pair.prompt import begin, runner_of
from dsl_train.traces.store import Rows, join_rows


@dataclass
class _Text:
    """The text so far, and how it goes on."""

    request: Request
    token_ids: list[int]
    generator: torch.Generator
    has_tail: list[bool]  # by response position

    @property
    def done(self) -> int:
        """Response tokens."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)


@dataclass
class _Draft:
    """Tokens drafted after the text, and what they were drawn from."""

    token_ids: list[int] = field(default_factory=list)  # [K]
    logits: list[torch.Tensor] = field(default_factory=list)  # K of [V]
    probs: list[torch.Tensor] = field(default_factory=list)  # K of [V]


class OracleCollector:
    """Owns both caches; each text has a generator of its own. Greedy is sampling from one-hot distributions."""

    def __init__(self, pair: Pair, config: CollectConfig) -> None:
        self.target, self.draft = runner_of(pair.target), runner_of(pair.draft)
        self.config, self.eos_token_ids = config, pair.eos_token_ids
        self.context = min(self.target.context, self.draft.context)
        self.vocab_size = pair.target.config.get_text_config().vocab_size

    def collect(self, requests: Sequence[Request]) -> Iterator[CollectedText | Reject]:
        """One answer per request; a text that a model fails on is put aside."""
        for request in requests:
            try:
                yield self.collect_text(request)
            except MODEL_FAILURES as error:
                yield Reject.of(error)

    @torch.inference_mode()
    def collect_text(self, request: Request) -> CollectedText:
        """The target's continuation with a depth-0 row for each of its tokens and a tail at each rejection.

        Raises DslError for a request that cannot be used, one with a response from a log among them.
        """
        if request.response_token_ids is not None:
            raise DslError("the oracle decodes by itself and cannot label responses from a log; use --method hindsight")
        request.check(self.context, self.vocab_size, self.eos_token_ids)
        room = min(self.config.max_new_tokens, self.context + 1 - len(request.prompt_token_ids))
        generator = torch.Generator(self.target.device).manual_seed(request.seed)
        has_tail = request.has_tail(room, self.config.tail_fraction).tolist()
        text = _Text(request, list(begin(request.prompt, self.target, self.draft)), generator, has_tail)
        self.target.reset()
        self.draft.reset()
        parts: list[Rows] = []
        while text.done < room and not (text.done and text.token_ids[-1] in self.eos_token_ids):
            parts += self._run_round(text, min(self.config.max_lookahead, room - text.done))
        finish_reason = "eos" if text.token_ids[-1] in self.eos_token_ids else "length"
        return CollectedText(tuple(text.token_ids[-text.done :]), finish_reason, join_rows(parts))

    def _run_round(self, text: _Text, lookahead: int) -> list[Rows]:
        """Draft, verify, commit to the text; returns the rows seen."""
        start, sampling, draft = len(text.token_ids), text.request.sampling, _Draft()
        self._draft_until(lookahead, text, draft)
        block, draft_probs = list(draft.token_ids), torch.stack(draft.probs)  # [K], [K, V]
        logits = self.target.logits([*text.token_ids, *block[:-1]], keep=len(block))  # [K, V]
        target_probs = sampling.probs(logits)
        coins = torch.rand(len(block), generator=text.generator, device=logits.device)  # [K], range [0, 1)
        accepted = (coins < acceptance(target_probs, draft_probs, block)).tolist()
        committed, tail = list(block), []
        if False in accepted:
            rejected = accepted.index(False)
            residual = residual_probs(target_probs[rejected], draft_probs[rejected])
            committed[rejected:] = [int(draw(residual[None], text.generator))]
            tail = self._tail(text, draft, rejected) if text.has_tail[text.done + rejected] else []
        text.token_ids += committed
        for model in (self.target, self.draft):
            model.truncate(len(text.token_ids) - 1)
        seen = slice(len(committed))
        tensors = (torch.tensor(values[seen], device=logits.device) for values in (block, committed, accepted))
        labels = Labels.of(target_probs[seen], draft_probs[seen], *tensors)
        index = start + np.arange(len(committed))
        return [text_rows(index, labels, torch.stack(draft.logits[seen]), logits[seen], sampling), *tail]

    def _tail(self, text: _Text, draft: _Draft, rejected: int) -> list[Rows]:
        """Rows after the block's token number `rejected`; the block is drafted on as far as they need."""
        first, end = rejected + 1, rejected + 1 + self.config.tail_length
        self._draft_until(end, text, draft)
        drafted = torch.tensor(draft.token_ids[first:end], device=self.draft.device)
        if not len(drafted):
            return []
        index, depth = np.full(len(drafted), len(text.token_ids) + rejected), np.arange(1, len(drafted) + 1)
        return [tail_rows(index, depth, drafted, torch.stack(draft.logits[first:end]), text.request.sampling)]

    def _draft_until(self, length: int, text: _Text, draft: _Draft) -> None:
        """Extend the block to `length` tokens; it ends earlier at an end-of-text token or the end of the context."""
        while len(draft.token_ids) < min(length, self.context + 1 - len(text.token_ids)):
            if draft.token_ids and draft.token_ids[-1] in self.eos_token_ids:
                return
            logits = self.draft.logits([*text.token_ids, *draft.token_ids], keep=1)  # [1, V]
            probs = text.request.sampling.of_draft.probs(logits)
            draft.token_ids.append(int(draw(probs, text.generator)))
            draft.logits.append(logits[0])
            draft.probs.append(probs[0])
