"""The parallel collector: finished texts through both models once, acceptance decided in hindsight (`coupling.py`).

Texts of similar length are read together, chunk by chunk. Memory does not grow with the number of requests: a chunk's
logits take at most _CHUNK_BYTES for each model (but hold at least one position of every text), and what is computed of
them holds about eight float32 tensors of `block_rows` rows at a time. Letters: B texts, C positions of a chunk, N rows,
V vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect.blocks import BlockReader
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.coupling import choose, couple
from dsl_train.collect.reading import Batch, Chunk, Text, batches, response_limit
from dsl_train.collect.responses import is_possible, refusal
from dsl_train.collect.tails import TailReader, block_rows
from dsl_train.collect.text import (
    MODEL_FAILURES,
    CollectedText,
    Labels,
    Reject,
    Request,
    block_columns,
    text_rows,
)
from dsl_train.loop.verify import acceptance
from dsl_train.pair.loading import Pair
from dsl_train.runners.cached import context_length
from dsl_train.runners.padded import check_padded
from dsl_train.traces.store import Rows, join_rows

_CHUNK_BYTES, _GPU_CHUNK_BYTES = 1 << 27, 1 << 30
#: More positions at a time would have texts that ended, and texts with few rejected tokens, wait longer for the others.
_MAX_CHUNK = 32


class HindsightCollector:
    """Owns nothing between two batches."""

    def __init__(self, pair: Pair, config: CollectConfig, check: bool = True) -> None:
        """`check`: put texts aside whose response the target would not have given."""
        check_padded(pair.target, "target")
        check_padded(pair.draft, "draft")
        self.pair, self.config, self._check = pair, config, check
        self.context = min(context_length(model) for model in (pair.target, pair.draft))
        self.vocab_size = pair.target.config.get_text_config().vocab_size
        self._tails = TailReader(pair, config, self.context)

    def collect(self, requests: Sequence[Request]) -> Iterator[CollectedText | Reject]:
        """One answer per request, in their order; texts are read in batches of `batch_size` of similar length."""
        answers: dict[int, CollectedText | Reject] = {}
        for i, request in enumerate(requests):
            try:
                request.check(self.context, self.vocab_size, self.pair.eos_token_ids)
            except DslError as error:
                answers[i] = Reject.of(error)
        given = 0
        readable = {i: request for i, request in enumerate(requests) if i not in answers}
        for numbers in batches(readable, self.config.batch_size):
            answers |= dict(zip(numbers, self._answer([requests[i] for i in numbers]), strict=True))
            while given in answers:
                yield answers.pop(given)
                given += 1
        yield from (answers[i] for i in range(given, len(requests)))

    def _answer(self, requests: Sequence[Request]) -> list[CollectedText | Reject]:
        """Read one batch; if a model fails on it, text by text, so that only the text it fails on is put aside."""
        try:
            return self._read(requests)
        except MODEL_FAILURES as error:
            if len(requests) == 1:
                return [Reject.of(error)]
        return [answer for request in requests for answer in self._answer([request])]

    @torch.inference_mode()
    def _read(self, requests: Sequence[Request]) -> list[CollectedText | Reject]:
        limits = [response_limit(request, self.config.max_new_tokens, self.context) for request in requests]
        batch = Batch(self.pair, requests, limits, self.config.tail_length)
        texts, rows = batch.texts, []
        blocks = BlockReader(self.pair, self.config, self.context) if self.config.by_block else None
        while batch.texts:
            chunk = batch.read(self._chunk_size(len(batch.texts)))
            depth_0 = self._label(chunk, self._check and batch.is_logged)
            rows.append(depth_0)
            if blocks:
                rows += blocks.read(chunk, depth_0, batch.target, batch.draft)
            else:
                rows += self._tails.read(chunk, depth_0, batch.draft)
            batch.drop_finished()
        found = join_rows(rows)
        return self._finish(texts, found | blocks.kept(texts, found) if blocks else found)

    def _chunk_size(self, num_texts: int) -> int:
        size = _CHUNK_BYTES if self.pair.draft.device.type == "cpu" else _GPU_CHUNK_BYTES
        return min(_MAX_CHUNK, max(1, size // (4 * self.vocab_size * num_texts)))

    def _label(self, chunk: Chunk, check: bool) -> Rows:
        """Depth-0 rows of a chunk, whose `sequence_id` is the text's number. `check`: put impossible texts aside."""
        places = chunk.is_text.flatten().nonzero().squeeze(-1)  # [N] in the chunk, flat
        texts = places // chunk.token_ids.shape[1]
        block = block_rows(self.pair)
        return join_rows(
            [
                self._label_block(chunk, sampling, part, check)
                for sampling, group in chunk.by_sampling(texts)
                for part in places[group].split(block)
            ]
        )

    def _label_block(self, chunk: Chunk, sampling: Sampling, places: torch.Tensor, check: bool) -> Rows:
        """Rows at some of a chunk's places, all sampled alike."""
        target_logits, draft_logits = (x.flatten(0, 1)[places] for x in (chunk.target_logits, chunk.draft_logits))
        committed, luck = (x.flatten(0, 1)[places] for x in (chunk.token_ids, chunk.luck))
        by_block = self.config.by_block
        target_probs = self._target_probs(chunk, sampling, places, target_logits)
        if check:
            possible = is_possible(target_logits, target_probs, committed)
            if not possible.all():
                self._refuse(chunk, sampling, places[~possible])
                return self._label_block(chunk, sampling, places[possible], check=False)
        probs = None if target_probs is None else (target_probs, sampling.of_draft.probs(draft_logits))
        if probs is None:
            labels = Labels.greedy(choose(sampling, draft_logits, luck[:, 2]), committed)
        elif by_block:
            accepted = luck[:, 1] < acceptance(probs[1], probs[0], committed.tolist())
            labels = Labels.of(*probs, committed, committed, accepted)
        else:
            labels = couple(*probs, committed, luck[:, 1], luck[:, 2])
        texts, positions = np.divmod(places.cpu().numpy(), chunk.token_ids.shape[1])
        index = np.array([len(text.request.prompt_token_ids) for text in chunk.texts])[texts] + chunk.done + positions
        numbers = np.array([text.number for text in chunk.texts], np.int64)[texts]
        rows = {"sequence_id": numbers, **text_rows(index, labels, draft_logits, target_logits, sampling)}
        if by_block and probs:
            rows |= block_columns(*probs, committed)
        return rows

    def _target_probs(
        self, chunk: Chunk, sampling: Sampling, places: torch.Tensor, target_logits: torch.Tensor
    ) -> torch.Tensor | None:
        """What the tokens at these places were drawn from, [N, V]; None when greedy, unless blocks are judged."""
        return None if sampling.greedy and not self.config.by_block else sampling.probs(target_logits)

    def _refuse(self, chunk: Chunk, sampling: Sampling, places: torch.Tensor) -> None:
        """Put the texts at these places, which rise, aside for the first impossible token of each."""
        for place in places.tolist():
            text, position = divmod(place, chunk.token_ids.shape[1])
            if not chunk.texts[text].refusal:
                token_id, logits = int(chunk.token_ids[text, position]), chunk.target_logits[text, position]
                chunk.texts[text].refusal = refusal(sampling, logits, token_id, chunk.done + position)

    def _finish(self, texts: Sequence[Text], rows: Rows) -> list[CollectedText | Reject]:
        """Give every text its rows, ordered by index and depth."""
        order = np.lexsort((rows["depth"], rows["index"], rows["sequence_id"]))
        ends = np.cumsum(np.bincount(rows["sequence_id"], minlength=len(texts)))[:-1]
        columns = {name: np.split(column[order], ends) for name, column in rows.items() if name != "sequence_id"}
        answers: list[CollectedText | Reject] = []
        for text in texts:
            if text.refusal:
                answers.append(Reject(text.refusal))
                continue
            ended = text.response[-1] in self.pair.eos_token_ids
            own = {name: parts[text.number] for name, parts in columns.items()}
            answers.append(CollectedText(tuple(text.response), "eos" if ended else "length", own))
        return answers
