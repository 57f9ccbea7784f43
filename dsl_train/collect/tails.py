"""Tails: the draft goes on from rejected tokens, all those of a chunk at once.

Branches share the cache of the text that they leave; where a draft cannot do that (sliding windows, state), each reads
its text again. Letters: n branches, R tail steps, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from dsl_train.collect.config import CollectConfig
from dsl_train.collect.coupling import choose
from dsl_train.collect.reading import Chunk, Reader
from dsl_train.collect.text import tail_rows
from dsl_train.pair.loading import Pair
from dsl_train.runners.encoded_batch import EncodedBranches
from dsl_train.runners.packed import PackedBranches
from dsl_train.runners.padded import Branches, PaddedModel, shares_cache
from dsl_train.traces.store import Rows

#: Logits that rows are computed from at a time, in float32: small enough for a processor's cache, and on a GPU large
#: enough to keep it busy.
_BLOCK_BYTES, _GPU_BLOCK_BYTES = 1 << 24, 1 << 28
#: Tokens read at a time by branches that cannot share their text's cache.
_REREAD_TOKENS = 1 << 14


def block_rows(pair: Pair) -> int:
    """Rows of logits to compute from at a time."""
    size = _BLOCK_BYTES if pair.draft.device.type == "cpu" else _GPU_BLOCK_BYTES
    return max(1, size // (4 * pair.target.config.get_text_config().vocab_size))


@dataclass(frozen=True, eq=False)
class _Leaving:
    """n rejected tokens."""

    texts: np.ndarray  # [n] number in the chunk, rising
    index: np.ndarray  # [n] text position
    token_ids: np.ndarray  # [n]
    draws: torch.Tensor  # [n, R] range [0, 1): what is drafted after them

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> "_Leaving":
        return _Leaving(self.texts[part], self.index[part], self.token_ids[part], self.draws[part])


class TailReader:
    """Reads the tails of one chunk after another."""

    def __init__(self, pair: Pair, config: CollectConfig, context: int) -> None:
        self.draft, self.config, self.context = pair.draft, config, context
        self._ends = np.array(sorted(pair.eos_token_ids), np.int64)
        self._block = block_rows(pair)

    def read(self, chunk: Chunk, rows: Rows, reader: Reader) -> list[Rows]:
        """Rows of depth 1 .. R after the rejected tokens among a chunk's depth-0 `rows`; `reader` is the draft that
        has read the chunk, and is left as it was."""
        leaving = self._leaving(chunk, rows)
        size = at_once(leaving.index, self.draft)
        parts = (leaving[first : first + size] for first in range(0, len(leaving), size))
        return [rows for part in parts for rows in self._read_part(chunk, part, reader)]

    def _leaving(self, chunk: Chunk, rows: Rows) -> _Leaving:
        """Rejected tokens that get a tail: chosen for one, not an end of text, and with room behind them."""
        place = {text.number: i for i, text in enumerate(chunk.texts)}
        texts = np.array([place[number] for number in rows["sequence_id"].tolist()], np.int64)
        starts = np.array([len(text.request.prompt_token_ids) for text in chunk.texts])
        positions = rows["index"] - starts[texts]  # in the response
        chosen = [text.request.has_tail(text.limit, self.config.tail_fraction).tolist() for text in chunk.texts]
        has_tail = np.array([chosen[i][position] for i, position in zip(texts, positions, strict=True)], bool)
        wanted = has_tail & ~rows["accepted"] & (rows["index"] < self.context)
        wanted &= ~np.isin(rows["token_id"], self._ends) & (self.config.tail_length > 0)
        which = np.flatnonzero(wanted)
        which = which[np.argsort(texts[which], kind="stable")]
        draws = chunk.luck[texts[which], positions[which] - chunk.done, 3:]
        return _Leaving(texts[which], rows["index"][which], rows["token_id"][which], draws)

    def _read_part(self, chunk: Chunk, leaving: _Leaving, reader: Reader) -> Iterator[Rows]:
        token_ids = torch.tensor(leaving.token_ids, dtype=torch.int64, device=reader.device)  # [n]
        groups = chunk.by_sampling(torch.tensor(leaving.texts))
        numbers = np.array([text.number for text in chunk.texts], np.int64)[leaving.texts]
        going_on = np.ones(len(leaving), bool)
        with branches_of(self.draft, reader, chunk, leaving.texts, leaving.index) as branches:
            for depth in range(1, self.config.tail_length + 1):
                logits = branches.feed(token_ids[:, None])[:, 0]  # [n, V]
                for sampling, part in [(s, part) for s, group in groups for part in group.split(self._block)]:
                    token_ids[part] = choose(sampling.of_draft, logits[part], leaving.draws[part, depth - 1])
                    seen = part.numpy()[going_on[part.numpy()]]
                    index = leaving.index[seen]
                    tail = tail_rows(index, np.full_like(index, depth), token_ids[seen], logits[seen], sampling)
                    yield {"sequence_id": numbers[seen], **tail}
                going_on &= ~np.isin(token_ids.cpu(), self._ends) & (leaving.index + depth < self.context)
                if not going_on.any():
                    break


def can_share_cache(model: PreTrainedModel) -> bool:
    """Whether branches of its texts can use the caches of these."""
    return bool(model.config.is_encoder_decoder) or shares_cache(model)


def branches_of(
    model: PreTrainedModel, reader: Reader, chunk: Chunk, texts: np.ndarray, index: np.ndarray
) -> AbstractContextManager[Branches | PackedBranches | EncodedBranches | PaddedModel]:
    """Continuations of texts of the chunk, `texts` [n] rising, after their first `index` [n] tokens."""
    if can_share_cache(model):
        rows, lengths = (torch.tensor(x, dtype=torch.int64, device=reader.device) for x in (texts, index))
        return reader.branches(rows, lengths)
    return nullcontext(
        PaddedModel(model, [chunk.texts[i].token_ids[:end] for i, end in zip(texts, index, strict=True)])
    )


def at_once(index: np.ndarray, *models: PreTrainedModel) -> int:
    """How many branches that leave at `index` are read together."""
    if all(map(can_share_cache, models)):
        return max(1, len(index))
    return max(1, _REREAD_TOKENS // int(index.max(initial=1)))
