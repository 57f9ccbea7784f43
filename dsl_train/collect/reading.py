"""A batch of texts read by both models at once, a chunk of positions at a time.

The target generates the responses as it goes, or reads those from a log; the draft reads what the target has. Texts
leave the batch as they end. Letters: B texts, C positions of a chunk, L longest response, R tail steps, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from dsl_train.base.sampling import Sampling
from dsl_train.collect.coupling import choose
from dsl_train.collect.text import Request
from dsl_train.pair.loading import Pair
from dsl_train.runners.encoded_batch import EncodedTexts
from dsl_train.runners.packed import PackedModel, read_together
from dsl_train.runners.padded import PaddedModel

Reader = PaddedModel | PackedModel | EncodedTexts
"""A model with the caches of a batch."""


@dataclass(eq=False)
class Text:
    """One text of the batch and its response so far."""

    number: int
    """In the batch as it began."""
    request: Request
    limit: int
    """Response tokens at most."""
    response: list[int] = field(default_factory=list)
    refusal: str = ""
    """Why it is put aside, once that is known."""

    @property
    def token_ids(self) -> list[int]:
        return [*self.request.prompt_token_ids, *self.response]


@dataclass(frozen=True, eq=False)
class Chunk:
    """C response positions from number `done` on, of all texts still open."""

    texts: Sequence[Text]  # B
    done: int
    is_text: torch.Tensor  # [B, C] bool; False beyond a text's end
    token_ids: torch.Tensor  # [B, C] committed
    luck: torch.Tensor  # [B, C, 3 + R] range [0, 1)
    target_logits: torch.Tensor  # [B, C, V] raw
    draft_logits: torch.Tensor  # [B, C, V] raw

    def by_sampling(self, rows: torch.Tensor) -> Iterable[tuple[Sampling, torch.Tensor]]:
        """Places in `rows`, which holds numbers of `texts`, by how those are sampled."""
        return by_sampling([text.request.sampling for text in self.texts], rows)


class Batch:
    """Owns both caches of the texts still open. All randomness is drawn before anything is computed, from each text's
    own generator, so that batching cannot change it."""

    def __init__(self, pair: Pair, requests: Sequence[Request], limits: Sequence[int], tail_length: int) -> None:
        """Requests bring responses along either all or none, all if both models are the same; each reads at most
        `limits[i]` response tokens."""
        device, self._eos_token_ids = pair.target.device, pair.eos_token_ids
        self.texts = [Text(i, request, limit) for i, (request, limit) in enumerate(zip(requests, limits, strict=True))]
        prompts = [request.prompt_token_ids for request in requests]
        self.draft = _begin(pair.draft, requests)
        self.target = self.draft if pair.target is pair.draft else _begin(pair.target, requests)
        self._done = 0
        self._last = torch.tensor([prompt[-1:] for prompt in prompts], device=device)  # [B, 1] not read yet
        self._luck = pad_sequence([_luck(text, tail_length) for text in self.texts], batch_first=True).to(device)
        given = [torch.tensor(request.response_token_ids or ()) for request in requests]
        self._given = pad_sequence(given, batch_first=True).to(device)  # [B, L]; L = 0 when the target generates

    @property
    def is_logged(self) -> bool:
        return self._given.shape[1] > 0

    def read(self, count: int) -> Chunk:
        """The next chunk, of `count` positions or what is left. There must be texts."""
        done, count = self._done, min(count, max(text.limit for text in self.texts) - self._done)
        luck = self._luck[:, done : done + count]
        if self.is_logged:
            token_ids = self._given[:, done : done + count]
            target_logits = self._feed(self.target, token_ids)
        else:
            token_ids, target_logits = self._generate(luck[..., 0])
        draft_logits = target_logits if self.draft is self.target else self._feed(self.draft, token_ids)
        self._last, self._done = token_ids[:, -1:], done + token_ids.shape[1]
        lengths = [self._extend(text, ids) for text, ids in zip(self.texts, token_ids.tolist(), strict=True)]
        is_text = torch.arange(token_ids.shape[1]) < torch.tensor(lengths)[:, None]
        return Chunk(self.texts, done, is_text.to(token_ids.device), token_ids, luck, target_logits, draft_logits)

    def drop_finished(self) -> None:
        """Forget texts that have ended or are put aside."""
        going_on = [i for i, text in enumerate(self.texts) if not (text.refusal or self._is_finished(text))]
        if len(going_on) == len(self.texts):
            return
        self.texts = [self.texts[i] for i in going_on]
        rows = torch.tensor(going_on, dtype=torch.int64, device=self._last.device)
        self._last, self._luck, self._given = self._last[rows], self._luck[rows], self._given[rows]
        if going_on:
            for reader in {id(reader): reader for reader in (self.target, self.draft)}.values():
                reader.keep(rows)

    def _feed(self, reader: Reader, token_ids: torch.Tensor) -> torch.Tensor:
        """What a model says at the places of these tokens, [B, C, V]."""
        return reader.feed(torch.cat([self._last, token_ids[:, :-1]], dim=1))

    def _generate(self, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The target's next tokens [B, <= C] and what they were chosen from [B, <= C, V]; stops when all have ended."""
        groups = by_sampling([text.request.sampling for text in self.texts], torch.arange(len(draws)))
        token_ids, logits, ended = [], [], torch.zeros(len(draws), dtype=torch.bool, device=draws.device)
        ends = torch.tensor(sorted(self._eos_token_ids), device=draws.device)
        last = self._last
        for draw in draws.T:  # [B]
            logits.append(self.target.feed(last))
            last = torch.empty_like(last)
            for sampling, rows in groups:
                last[rows, 0] = choose(sampling, logits[-1][rows, 0], draw[rows])
            token_ids.append(last)
            ended |= torch.isin(last[:, 0], ends)
            if ended.all():
                break
        return torch.cat(token_ids, dim=1), torch.cat(logits, dim=1)

    def _extend(self, text: Text, token_ids: list[int]) -> int:
        """Append what is still text; returns how many tokens that is."""
        before = len(text.response)
        for token_id in token_ids:
            if self._is_finished(text):
                break
            text.response.append(token_id)
        return len(text.response) - before

    def _is_finished(self, text: Text) -> bool:
        response = text.response
        return len(response) == text.limit or bool(response and response[-1] in self._eos_token_ids)


def response_limit(request: Request, max_new_tokens: int, context: int) -> int:
    """Response tokens at most: all that there are, or what may be generated."""
    if request.response_token_ids is not None:
        return len(request.response_token_ids)
    return min(max_new_tokens, context + 1 - len(request.prompt_token_ids))


def batches(requests: Mapping[int, Request], batch_size: int) -> Iterator[list[int]]:
    """Numbers of requests to be read together: with a response, or without, and prompts of similar length."""
    for is_logged in (True, False):
        alike = [i for i, request in requests.items() if (request.response_token_ids is not None) == is_logged]
        alike.sort(key=lambda i: len(requests[i].prompt_token_ids))
        for first in range(0, len(alike), batch_size):
            yield alike[first : first + batch_size]


def _begin(model: PreTrainedModel, requests: Sequence[Request]) -> Reader:
    """All prompts read but for their last tokens."""
    texts = [request.prompt_token_ids[:-1] for request in requests]
    sources = [request.source for request in requests if request.source is not None]
    return EncodedTexts.read(model, sources, texts) if sources else read_together(model, texts)


def by_sampling(samplings: Sequence[Sampling], rows: torch.Tensor) -> list[tuple[Sampling, torch.Tensor]]:
    """Places in `rows`, which holds numbers of `samplings`, one group for each different sampling among them."""
    different = list(dict.fromkeys(samplings))
    if len(different) == 1:
        return [(different[0], torch.arange(len(rows), device=rows.device))]
    kinds = torch.tensor([different.index(sampling) for sampling in samplings], device=rows.device)[rows]
    groups = ((sampling, (kinds == i).nonzero().squeeze(-1)) for i, sampling in enumerate(different))
    return [(sampling, places) for sampling, places in groups if len(places)]


def _luck(text: Text, tail_length: int) -> torch.Tensor:
    """A row for each response position: which token, was the draft accepted, which was rejected, which followed it."""
    generator = torch.Generator().manual_seed(text.request.seed)
    return torch.rand(text.limit, 3 + tail_length, generator=generator, dtype=torch.float64)
