"""Rounds judged by block, in hindsight: from what the target said to what a round from every token would have drafted.

Given a text that the target sampled, and a round that begins at one of its tokens, the policy does not matter: the
drafts are the text's own tokens for as long as they are kept, and then tokens that are not kept. With w(0) = 1 and
w(i) = min(1, w(i - 1) * target/draft), the i-th token t of the text is kept, given that those before it were, with
probability min(1, draft(t) / (w(i - 1) * target(t))); and a draft after i kept tokens that is not kept itself follows
norm(max(draft - w(i) * target, 0)), as does each further one with the weight that the one before left
(docs/sampling.md has the proof). So every token is a start with a run and a tail of its own, and the target reads the
tails as well. Letters: n starts that leave the text, R tail steps, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dsl_train.base.sampling import Sampling
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.coupling import inverse_cdf
from dsl_train.collect.reading import Chunk, Reader, Text, by_sampling
from dsl_train.collect.tails import at_once, block_rows, branches_of
from dsl_train.collect.text import Labels, block_columns, tail_rows
from dsl_train.pair.loading import Pair
from dsl_train.traces.store import Rows


@dataclass(frozen=True, eq=False)
class _Starts:
    """Rounds of one text that still keep all they drafted."""

    position: np.ndarray  # [n] response position where the round begins
    weight: np.ndarray  # [n] w of the drafts so far
    kept: np.ndarray  # [n] probability that they are kept, given the text
    draws: np.ndarray  # [n, 2 + R] range [0, 1): how many are kept, and what is drafted after them

    def __getitem__(self, which: np.ndarray) -> "_Starts":
        return _Starts(self.position[which], self.weight[which], self.kept[which], self.draws[which])

    def begin(self, position: int, draws: np.ndarray) -> "_Starts":
        return _Starts(
            np.append(self.position, position),
            np.append(self.weight, 1.0),
            np.append(self.kept, 1.0),
            np.vstack([self.draws, draws]),
        )


@dataclass(frozen=True, eq=False)
class _Leaving:
    """n rounds at the first draft that is not kept."""

    texts: np.ndarray  # [n] number in the chunk, rising
    index: np.ndarray  # [n] text position of that draft
    start: np.ndarray  # [n] text position where the round begins
    weight: torch.Tensor  # [n] float64
    draws: torch.Tensor  # [n, 1 + R]

    def __getitem__(self, part: slice) -> "_Leaving":
        return _Leaving(self.texts[part], self.index[part], self.start[part], self.weight[part], self.draws[part])


class BlockReader:
    """Reads the rounds of one batch, chunk after chunk."""

    def __init__(self, pair: Pair, config: CollectConfig, context: int) -> None:
        self.pair, self.config, self.context = pair, config, context
        self._ends = np.array(sorted(pair.eos_token_ids), np.int64)
        self._block = block_rows(pair)
        self._open: dict[int, _Starts] = {}  # by the text's number
        self._kept: dict[tuple[int, int], int] = {}  # (number, position) -> drafts kept, of those that have left

    def read(self, chunk: Chunk, rows: Rows, target: Reader, draft: Reader) -> Iterator[Rows]:
        """Rows of the drafts that were not kept, of rounds that leave the text in this chunk; `rows` are its depth-0
        rows. The readers have read the chunk, and are left as they were."""
        leaving = self._leaving(chunk, rows)
        if leaving is None:
            return
        size = at_once(leaving.index, self.pair.target, self.pair.draft)
        for first in range(0, len(leaving.index), size):
            yield from self._read_part(chunk, leaving[first : first + size], target, draft)

    def kept(self, texts: Sequence[Text], rows: Rows) -> Rows:
        """The column `kept`; rounds that never left the text keep it to its end."""
        lengths = {text.number: len(text.response) for text in texts}
        prompts = {text.number: len(text.request.prompt_token_ids) for text in texts}
        column = np.full(len(rows["index"]), -1, np.int32)
        for i in np.flatnonzero(rows["depth"] == 0).tolist():
            number = int(rows["sequence_id"][i])
            position = int(rows["index"][i]) - prompts[number]
            column[i] = self._kept.get((number, position), lengths[number] - position)
        return {"kept": column}

    def _leaving(self, chunk: Chunk, rows: Rows) -> _Leaving | None:
        """Rounds that end in this chunk and get a tail; None if there are none."""
        found = []
        luck = chunk.luck.cpu().numpy()
        for i, text in enumerate(chunk.texts):
            prompt, own = len(text.request.prompt_token_ids), np.flatnonzero(rows["sequence_id"] == text.number)
            own = own[np.argsort(rows["index"][own])]
            has_tail = text.request.has_tail(text.limit, self.config.tail_fraction).numpy()
            for row in own.tolist() if not text.refusal else ():
                position = int(rows["index"][row]) - prompt
                left = self._step(text.number, position, float(rows["log_ratio"][row]), luck[i, position - chunk.done])
                for j in np.flatnonzero(has_tail[left.position]).tolist():
                    found.append((i, position + prompt, left.position[j] + prompt, left.weight[j], left.draws[j, 1:]))
        if not found or not self.config.tail_length:
            return None
        texts, index, start, weight, draws = (list(column) for column in zip(*found, strict=True))
        device = chunk.token_ids.device
        return _Leaving(
            np.array(texts, np.int64),
            np.array(index, np.int64),
            np.array(start, np.int64),
            torch.tensor(weight, dtype=torch.float64, device=device),
            torch.tensor(np.array(draws), dtype=torch.float64, device=device),
        )

    def _step(self, number: int, position: int, log_ratio: float, luck: np.ndarray) -> _Starts:
        """Begin a round at this token, unless it is the first, which no round drafts; returns those that do not keep
        it, as they were before it."""
        width = 2 + self.config.tail_length
        starts = self._open.get(number, _Starts(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty((0, width))))
        if position:
            starts = starts.begin(position, luck[1:])
        with np.errstate(over="ignore", divide="ignore"):
            ratio = np.exp(np.float64(log_ratio))
            kept = starts.kept * np.minimum(1.0, 1.0 / (starts.weight * ratio))
        stays = starts.draws[:, 0] < kept
        left = starts[~stays]
        self._kept |= {(number, start): position - start for start in left.position.tolist()}
        weight = np.minimum(1.0, starts.weight * ratio)
        self._open[number] = _Starts(starts.position, weight, kept, starts.draws)[stays]
        return left

    def _read_part(self, chunk: Chunk, leaving: _Leaving, target: Reader, draft: Reader) -> Iterator[Rows]:
        device = chunk.token_ids.device
        starts = np.array([len(text.request.prompt_token_ids) for text in chunk.texts])[leaving.texts] + chunk.done
        texts, places = torch.tensor(leaving.texts, device=device), torch.tensor(leaving.index - starts, device=device)
        going_on, weight = np.ones(len(leaving.index), bool), leaving.weight.clone()
        token_ids = torch.zeros(len(leaving.index), dtype=torch.int64, device=device)
        logits = chunk.target_logits[texts, places], chunk.draft_logits[texts, places]  # [n, V] each
        yield from self._draft(chunk, leaving, 1, logits, going_on, token_ids, weight)
        going_on &= ~np.isin(token_ids.cpu(), self._ends) & (leaving.index < self.context)
        with (
            branches_of(self.pair.target, target, chunk, leaving.texts, leaving.index) as of_target,
            branches_of(self.pair.draft, draft, chunk, leaving.texts, leaving.index) as of_draft,
        ):
            for depth in range(2, self.config.tail_length + 2):
                if not going_on.any():
                    break
                fed = token_ids[:, None]
                logits = of_target.feed(fed)[:, 0], of_draft.feed(fed)[:, 0]
                yield from self._draft(chunk, leaving, depth, logits, going_on, token_ids, weight)
                going_on &= ~np.isin(token_ids.cpu(), self._ends) & (leaving.index + depth - 1 < self.context)

    def _draft(
        self,
        chunk: Chunk,
        leaving: _Leaving,
        depth: int,
        logits: tuple[torch.Tensor, torch.Tensor],  # [n, V] of the target, of the draft
        going_on: np.ndarray,  # [n] bool
        token_ids: torch.Tensor,  # [n], changed
        weight: torch.Tensor,  # [n], changed
    ) -> Iterator[Rows]:
        """The next draft of each round, and the rows of those that go on."""
        numbers = np.array([text.number for text in chunk.texts], np.int64)[leaving.texts]
        samplings = [text.request.sampling for text in chunk.texts]
        groups = by_sampling(samplings, torch.tensor(leaving.texts, device=token_ids.device))
        for sampling, part in [(s, part) for s, group in groups for part in group.split(self._block)]:
            probs = sampling.probs(logits[0][part]), sampling.of_draft.probs(logits[1][part])
            token_ids[part] = _not_kept(*probs, weight[part], leaving.draws[part, depth - 1])
            columns = _rows(probs, token_ids[part], logits[1][part], depth, sampling)
            ratio = torch.from_numpy(columns["log_ratio"]).to(weight.device).double().exp()
            weight[part] = (weight[part] * ratio).clamp_max(1.0)
            on_host = part.cpu().numpy()
            seen = going_on[on_host]
            columns = {name: column[seen] for name, column in columns.items()}
            index = leaving.start[on_host[seen]].astype(np.int32)
            yield {**columns, "sequence_id": numbers[on_host[seen]], "index": index}


def _not_kept(
    target_probs: torch.Tensor,  # [n, V]
    draft_probs: torch.Tensor,  # [n, V]
    weight: torch.Tensor,  # [n]
    draws: torch.Tensor,  # [n]
) -> torch.Tensor:  # [n]
    residual = (draft_probs - weight[:, None] * target_probs).clamp_min(0.0)
    mass = residual.sum(-1, keepdim=True)
    return inverse_cdf(torch.where(mass > 0, residual, draft_probs.double()), draws)  # without mass only by rounding


def _rows(
    probs: tuple[torch.Tensor, torch.Tensor],  # of target and draft
    drafted: torch.Tensor,
    draft_logits: torch.Tensor,
    depth: int,
    sampling: Sampling,
) -> Rows:
    """All columns but `sequence_id`; `index` is 0."""
    count = len(drafted)
    rows = tail_rows(np.zeros(count), np.full(count, depth), drafted, draft_logits, sampling)
    labels = Labels.of(*probs, drafted, drafted, torch.zeros(count, dtype=torch.bool))
    known = {"accept_prob": labels.accept_prob, "accept_ratio": labels.accept_ratio}
    of_target = {name: column.float().cpu().numpy() for name, column in known.items()}
    return {**rows, **of_target, **block_columns(*probs, drafted)}
