"""vLLM's drafter for a draft model, with a lookahead of its own for each request and each step.

A step of the engine: the target verifies what was drafted, here the outcome is committed, the decision is asked who
drafts another token, the draft model runs for those, and so on until nobody does. The blocks go back to vLLM as lists
of different lengths. Letters: B requests in the batch, N of them drafting, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from dsl_train.base.records import DraftPrimitives
from dsl_train.features.primitives import read_drafts
from dsl_train.vllm.costs import BatchCosts
from dsl_train.vllm.decision import Decision
from dsl_train.vllm.draft_passes import DraftPasses, Reader
from dsl_train.vllm.request import RequestText
from dsl_train.vllm.statistics import Statistics

#: Name of the attribute of vLLM's record of a request that holds ours.
TEXT = "dsl_train_text"
#: Temperatures below are greedy to vLLM.
_GREEDY = 1e-5
#: Tokens that the draft may be behind by until it reads them though nothing is drafted.
_LATEST = 256


class LookaheadProposer(DraftModelProposer):
    """Becomes what vLLM's own proposer was (`plugin.py`); `vllm_propose` stands in for the model runner's
    `propose_draft_token_ids`."""

    def begin_service(self, decision: Decision, statistics: Statistics) -> None:
        """Called once, when vLLM has set up the rest."""
        self.decision, self.statistics = decision, statistics
        self.passes = DraftPasses(self)
        self._ended: float | None = None  # when the last step's drafting was done
        self._batch: list[str] = []  # that drafted in the last step
        self._last_steps = 0
        self._last_seconds: float | None = None  # None where the draft had more to read than its own last tokens

    def vllm_propose(
        self,
        scheduler_output: Any,
        sampled_token_ids: torch.Tensor,  # [B, <= lookahead + 1], -1 after the last token
        sampling: Any,
        verified: Any,
        block_table: torch.Tensor,  # [B, blocks]
    ) -> list[list[int]]:
        """The blocks of all requests of the batch, [B] lists of token ids."""
        sampled, began = sampled_token_ids.tolist(), time.perf_counter()
        num_verified = verified.num_draft_tokens if verified is not None else [0] * len(sampled)
        self._time_step(scheduler_output, num_verified, began)
        readers = self._commit(scheduler_output, sampled, num_verified, block_table)
        num_passes = self.passes.num_passes
        only_last = self._draft(readers, sampling, block_table)
        self._end_step(scheduler_output, began, self.passes.num_passes - num_passes, only_last)
        blocks: list[list[int]] = [[] for _ in sampled]
        for request, row in readers:
            blocks[row] = request.block
        return blocks

    # Commit

    def _commit(
        self, scheduler_output: Any, sampled: list[list[int]], num_verified: Sequence[int], block_table: torch.Tensor
    ) -> list[Reader]:
        """Take over what the target said; those requests that may draft."""
        batch, width = self.runner.input_batch, self.runner.input_batch.vocab_size
        resumed = scheduler_output.scheduled_cached_reqs.resumed_req_ids
        readers = []
        for row, request_id in enumerate(batch.req_ids):
            record = self.runner.requests[request_id]
            request, is_new = getattr(record, TEXT, None), False
            if request is None:
                request, is_new = self._begin_text(record), True
                setattr(record, TEXT, request)
            if request is None:
                continue
            reader, num_computed = Reader(request, row), int(batch.num_computed_tokens_cpu[row])
            if is_new or request_id in resumed:
                request.forget_block()
                request.num_read = request.num_noted = self.passes.num_filled(reader, num_computed, block_table)
            num_scheduled = scheduler_output.num_scheduled_tokens[request_id]
            self.passes.target_wrote(reader, num_computed, num_computed + num_scheduled, block_table)
            if self.runner.discard_request_mask.np[row]:
                continue  # in the midst of its prompt
            said = [token_id for token_id in sampled[row] if 0 <= token_id < width]
            self._commit_one(reader, said, num_verified[row], block_table)
            readers.append(reader)
        return readers

    def _commit_one(self, reader: Reader, said: list[int], num_verified: int, block_table: torch.Tensor) -> None:
        request = reader.request
        first = len(request.tokens) == request.prompt_length
        num_verified = min(num_verified, len(request.block))  # vLLM fills up some new requests with placeholders
        finished = request.commit(said, num_verified)
        self.passes.draft_wrote(reader, request.num_noted, request.num_read, block_table)
        request.num_noted = request.num_read
        if not first:
            self.decision.observe(request, finished)
            self.statistics.observe(finished)

    def _begin_text(self, record: Any) -> RequestText | None:
        """None for a request whose prompt is no tokens, or that samples none."""
        params, prompt = record.sampling_params, record.prompt_token_ids
        if params is None or prompt is None:
            return None
        temperature = params.temperature if params.temperature >= _GREEDY else 0.0
        stops = set() if params.ignore_eos else {params.eos_token_id}
        end = min(len(prompt) + (params.max_tokens or self.max_model_len), self.max_model_len)
        request = RequestText(
            prompt,
            temperature,
            min(end, self.runner.effective_drafter_max_model_len),
            frozenset(stops | set(params.stop_token_ids or ())),
            self.decision.needs_features,
            self.decision.policy(),
        )
        if record.output_token_ids:
            request.commit(list(record.output_token_ids), 0)
        return request

    # Draft

    def _draft(self, readers: list[Reader], sampling: Any, block_table: torch.Tensor) -> bool:
        """Extend the blocks while the decision wants it. Whether the draft had but its own last tokens to read."""
        limit = min(self.decision.begin(len(readers)), self.speculative_config.num_speculative_tokens) if readers else 0
        for reader in readers:
            reader.request.begin_block(limit)
        latest = min(_LATEST, self.max_num_tokens // 2)
        late = [reader for reader in readers if len(reader.request.behind) >= latest]
        if late:
            self._predict(late, block_table)
        only_last, position, probs = not late, 0, []
        growing = [reader for reader in readers if reader.request.can_grow]
        while growing:
            wanted = set(map(id, self.decision.wanted([reader.request for reader in growing], position)))
            growing = [reader for reader in growing if id(reader.request) in wanted]
            if not growing:
                break
            only_last = only_last and all(len(reader.request.unread) <= 2 for reader in growing)
            logits = self._predict(growing, block_table)  # [N, V]
            probs.append((growing, self._draw(growing, logits, sampling)))
            growing = [reader for reader in growing if reader.request.can_grow]
            position += 1
        self._last_draft_probs = self._stacked_probs(probs, len(self.runner.input_batch.req_ids))
        return only_last

    def _predict(self, readers: list[Reader], block_table: torch.Tensor) -> torch.Tensor:
        """What the draft says of the next token of each text, [N, V]. Catches up with what it was behind by."""
        readers.sort(key=lambda reader: len(reader.request.unread))  # some kernels want the short ones first
        keeps = [len(reader.request.behind) + 1 for reader in readers]
        hidden = self.passes.last_hidden(readers, keeps, block_table)
        logits = self.passes.logits(hidden)  # [sum(keeps), V]
        if len(logits) == len(readers):
            return logits
        choices = logits.argmax(-1).tolist()
        last, begin = [], 0
        for reader, keep in zip(readers, keeps, strict=True):
            behind = reader.request.behind
            if behind:
                pairs = zip(choices[begin:], behind, strict=False)
                reader.request.agree([float(choice == token_id) for choice, token_id in pairs])
            begin += keep
            last.append(begin - 1)
        return logits[torch.tensor(last, device=logits.device)]

    def _draw(self, readers: list[Reader], logits: torch.Tensor, sampling: Any) -> torch.Tensor | None:
        """Append a token to each block; the distributions that they were drawn from [N, V], None where the draft's
        most likely token is proposed."""
        probs = None
        rows = torch.tensor([reader.row for reader in readers], device=logits.device)
        if not sampling.all_greedy:
            if self._enable_probabilistic_draft_probs or not self.decision.shown_unscaled:
                temperature = sampling.temperature[rows]
                temperature = torch.where(temperature < _GREEDY, 1.0, temperature)
                logits = logits / temperature[:, None]
            if self._enable_probabilistic_draft_probs:
                # the logits are scaled already, which vLLM does in place
                unscaled = replace(sampling, temperature=torch.where(sampling.temperature[rows] < _GREEDY, 0.0, 1.0))
                chosen, probs = self._sample_from_logits(logits.clone(), unscaled)
                ids = chosen.tolist()
        if probs is None:
            ids = logits.argmax(-1).tolist()
        primitives: Sequence[DraftPrimitives | None] = [None] * len(ids)
        if self.decision.needs_primitives:
            primitives = read_drafts(logits, ids, self.decision.without_entropy)
        for reader, token_id, said in zip(readers, ids, primitives, strict=True):
            reader.request.draft(token_id, said)
        return probs

    def _stacked_probs(self, steps: list[tuple[list[Reader], torch.Tensor | None]], num_rows: int) -> Any:
        """[B, lookahead, V] as vLLM keeps them; None where no distribution was drawn from."""
        if not steps or steps[0][1] is None:
            return None
        width = self.runner.input_batch.vocab_size
        stacked = torch.zeros(num_rows, len(steps), width, device=self.device)
        for position, (readers, probs) in enumerate(steps):
            if probs is not None:
                rows = torch.tensor([reader.row for reader in readers], device=self.device)
                stacked[rows, position, : probs.shape[-1]] = probs
        return stacked

    # Time

    def _time_step(self, scheduler_output: Any, num_verified: Sequence[int], now: float) -> None:
        """A step in which the same requests as before were verified, and nothing else, tells what that costs."""
        costs = getattr(self.decision, "costs", None)
        req_ids = self.runner.input_batch.req_ids
        num_tokens = sum(num_verified) + len(req_ids)
        alike = self._batch == req_ids and scheduler_output.total_num_scheduled_tokens == num_tokens
        if isinstance(costs, BatchCosts) and self._ended is not None and alike and req_ids:
            costs.observe(len(req_ids), sum(num_verified), self._last_steps, self._last_seconds, now - self._ended)
            self.statistics.costs(costs.profile(len(req_ids)))

    def _end_step(self, scheduler_output: Any, began: float, num_steps: int, only_last: bool) -> None:
        self._ended = time.perf_counter()
        self._last_steps = num_steps
        self._last_seconds = self._ended - began if only_last and num_steps else None
        self._batch = list(self.runner.input_batch.req_ids)
        self.statistics.step(self.decision.num_questions, self.decision.num_stops, num_steps, self._ended - began)
