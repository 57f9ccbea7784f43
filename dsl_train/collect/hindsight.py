"""The parallel collector: finished texts through both models once, acceptance decided in hindsight.

Given a token t that the target sampled, t was an accepted draft with probability min(1, draft(t)/target(t)); if it was
not, the rejected draft token follows norm(max(draft - target, 0)), independently of t. So one forward of each model
over the text has the same law as the rounds of sequential speculative decoding. Greedy is the one-hot case.

Letters: B texts, C positions of a chunk, R tail steps, n rejected tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dsl_train.collect.config import CollectConfig
from dsl_train.collect.responses import generate_responses, until_end
from dsl_train.collect.text import CollectedText, Predictions, Reject, Request, tail_rows, text_rows
from dsl_train.loading import Pair
from dsl_train.padded import PaddedModel, shares_cache
from dsl_train.records import DslError
from dsl_train.runner import context_length
from dsl_train.traces import Rows, join_rows
from dsl_train.verify import acceptance, residual_probs

#: Most logits held at once, of one model [numbers].
_MAX_LOGITS = 1 << 25
_MAX_BRANCHES = 64


@dataclass(frozen=True, eq=False)
class _Text:
    """A finished text and its luck, drawn before anything is computed so that batching cannot change it."""

    prompt: tuple[int, ...]
    response: list[int]
    coins: torch.Tensor  # [N] accept?
    draws: torch.Tensor  # [N] which token was rejected?
    tail_draws: torch.Tensor  # [N, R] what was drafted after it?

    @classmethod
    def of(cls, request: Request, response: list[int], tail_length: int) -> "_Text":
        generator = torch.Generator().manual_seed(request.seed + 1)
        luck = torch.rand(len(response), 2 + tail_length, generator=generator, dtype=torch.float64)
        return cls(request.prompt_token_ids, response, luck[:, 0], luck[:, 1], luck[:, 2:])

    @property
    def fed(self) -> list[int]:
        """All but the last token: what the models read to predict the response."""
        return [*self.prompt, *self.response[:-1]]


class HindsightCollector:
    """Owns nothing between two batches."""

    def __init__(self, pair: Pair, config: CollectConfig) -> None:
        self.pair, self.config, self.sampling = pair, config, config.sampling
        self.context = min(context_length(model) for model in (pair.target, pair.draft))
        if not shares_cache(pair.draft):
            raise DslError(
                f"draft {pair.draft_identity.id} ({pair.draft_identity.architecture}) has sliding-window layers, whose "
                "cache cannot be shared by branches; collect with --method oracle"
            )

    def collect(self, requests: Sequence[Request]) -> Iterator[CollectedText | Reject]:
        """One answer per request; texts are generated and read in batches of `batch_size`."""
        for first in range(0, len(requests), self.config.batch_size):
            yield from self._collect_batch(requests[first : first + self.config.batch_size])

    @torch.inference_mode()
    def _collect_batch(self, requests: Sequence[Request]) -> list[CollectedText | Reject]:
        answers: dict[int, CollectedText | Reject] = {}
        for i, request in enumerate(requests):
            try:
                request.check(self.context)
            except DslError as error:
                answers[i] = Reject(str(error))
        usable = [i for i in range(len(requests)) if i not in answers]
        roomy = [i for i in usable if self._room(requests[i]) >= self.config.max_new_tokens]
        for group in (roomy, *([i] for i in usable if i not in roomy)):
            if group:
                answers |= dict(zip(group, self._read([requests[i] for i in group]), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _room(self, request: Request) -> int:
        """Tokens that the context allows after the prompt."""
        return self.context + 1 - len(request.prompt_token_ids)

    def _read(self, requests: Sequence[Request]) -> list[CollectedText | Reject]:
        limit = min(self.config.max_new_tokens, *map(self._room, requests))
        responses = generate_responses(self.pair.target, requests, limit, self.sampling, self.pair.eos_token_ids)
        texts = [
            _Text.of(request, response, self.config.tail_length)
            for request, response in zip(requests, responses, strict=True)
        ]
        target, draft = (PaddedModel(model, [t.fed for t in texts]) for model in (self.pair.target, self.pair.draft))
        parts: list[list[Rows]] = [[] for _ in texts]
        first = target.num_columns - max(len(text.response) for text in texts)
        vocab_size = self.pair.target.config.get_text_config().vocab_size
        chunk = max(1, _MAX_LOGITS // (vocab_size * len(texts)))
        column = first
        for target_logits, draft_logits in zip(
            target.logits(first, chunk), draft.logits(first, chunk), strict=True
        ):  # [B, C, V] each
            for i, text in enumerate(texts):
                skipped = max(0, target.num_columns - len(text.response) - column)
                done = column + skipped - (target.num_columns - len(text.response))
                if skipped < target_logits.shape[1]:
                    parts[i].append(self._rows(text, done, target_logits[i, skipped:], draft_logits[i, skipped:]))
            column += target_logits.shape[1]
        return [self._finish(text, join_rows(parts[i]), draft, i) for i, text in enumerate(texts)]

    def _rows(self, text: _Text, done: int, target_logits: torch.Tensor, draft_logits: torch.Tensor) -> Rows:
        """Depth-0 rows of a chunk [C, V] of one text, whose first position is number `done` of the response."""
        part = slice(done, done + len(target_logits))
        committed = text.response[part]
        target_probs, draft_probs = self.sampling.probs(target_logits), self.sampling.probs(draft_logits)
        agreements = acceptance(draft_probs, target_probs, committed).cpu()
        accepted = text.coins[part] < agreements
        rejected = inverse_cdf(residual_probs(draft_probs, target_probs), text.draws[part])
        drafted = torch.where(accepted, torch.tensor(committed), rejected).tolist()
        return text_rows(
            len(text.prompt) + done,
            Predictions(draft_logits, draft_probs, drafted),
            Predictions(target_logits, target_probs, committed),
            accepted.tolist(),
            self.sampling,
        )

    def _finish(self, text: _Text, rows: Rows, draft: PaddedModel, number: int) -> CollectedText:
        """Add the tails; order all rows."""
        ended = text.response[-1] in self.pair.eos_token_ids
        wanted = [
            i
            for i, (accepted, token_id) in enumerate(zip(rows["accepted"], rows["token_id"], strict=True))
            if not accepted and token_id not in self.pair.eos_token_ids and len(text.prompt) + i < self.context
        ]
        tails: list[Rows] = []
        if self.config.tail_length:
            for first in range(0, len(wanted), _MAX_BRANCHES):
                tails += self._tails(text, rows, wanted[first : first + _MAX_BRANCHES], draft, number)
        joined = join_rows([rows, *tails])
        order = np.lexsort((joined["depth"], joined["index"]))
        ordered = {name: column[order] for name, column in joined.items()}
        return CollectedText(tuple(text.response), "eos" if ended else "length", ordered)

    def _tails(self, text: _Text, rows: Rows, rejected: list[int], draft: PaddedModel, number: int) -> list[Rows]:
        """R draft steps after each rejected token, all of them at once."""
        where = torch.tensor(rejected, device=draft.device)  # [n] number in the response
        first_column = draft.num_columns - len(text.response) + 1
        branches = draft.branches(number, where + first_column)
        token_ids = torch.tensor(rows["token_id"][rejected].tolist(), device=draft.device)
        logits, probs, drafted = [], [], []
        for step in range(self.config.tail_length):
            logits.append(branches.logits(token_ids))  # [n, V]
            probs.append(self.sampling.probs(logits[-1]))
            token_ids = inverse_cdf(probs[-1], text.tail_draws[rejected, step]).to(draft.device)
            drafted.append(token_ids.tolist())
        tails = []
        for i, position in enumerate(rejected):
            room = self.context - len(text.prompt) - position
            ids = until_end([step[i] for step in drafted], self.pair.eos_token_ids)[:room]
            steps = (torch.stack([rows[i] for rows in step_rows[: len(ids)]]) for step_rows in (logits, probs))
            predictions = Predictions(next(steps), next(steps), ids)
            tails.append(tail_rows(len(text.prompt) + position, predictions, self.sampling))
        return tails


def inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token id per row of `probs` [N, V] by a uniform number each [N]; on the CPU."""
    cumulative = probs.double().cumsum(-1).cpu()
    points = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(-1).clamp_max(probs.shape[-1] - 1)
