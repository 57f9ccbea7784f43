"""Labels without the target: what it said, and the probabilities that came with it, against the draft.

Greedy, and where the draft proposes its most likely token, a draft was accepted if and only if it is the token said:
nothing more is needed. Where the draft draws, the token said was the draft's with probability min(1, draft/target),
which its own log-probability tells exactly. Two labels depend on more, the other probabilities of the target:

- the chance of acceptance, the sum over the vocabulary of min(target, draft): estimated without bias, within [0, 1]
  (`_chances`).
- which other token was rejected, where the draft draws: those told count as they are, the others as the draft would
  share what is left (`log_probs.completed`).

Letters: N places, K known tokens, V vocabulary.
"""

from typing import NamedTuple

import numpy as np
import torch

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.log_probs import TopLogProbs, completed
from dsl_train.collect.reading import Chunk
from dsl_train.collect.text import Request
from dsl_train.pair.loading import Pair
from dsl_train.traces.store import Rows


class _Known(NamedTuple):
    """Of the target's law at N places; as in `TopLogProbs`."""

    token_ids: torch.Tensor  # [N, K] int64
    log_probs: torch.Tensor  # [N, K] float32
    is_top: torch.Tensor  # [N, K] bool


class DraftAlone(HindsightCollector):
    """Labels responses; `pair` has the draft in both roles. The target's own columns are the draft's, and worthless."""

    def __init__(self, pair: Pair, config: CollectConfig) -> None:
        super().__init__(pair, config, check=False)

    def _label_block(self, chunk: Chunk, sampling: Sampling, places: torch.Tensor, check: bool) -> Rows:
        rows = super()._label_block(chunk, sampling, places, check)
        if sampling.greedy or not len(places):
            return rows
        draft_probs = sampling.of_draft.probs(chunk.draft_logits.flatten(0, 1)[places])
        said, agreements = chunk.token_ids.flatten()[places], torch.from_numpy(rows["agreement"]).to(places.device)
        chances = _chances(_known(chunk, places), said, draft_probs, agreements, sampling.of_draft.greedy)
        return {**rows, "accept_prob": chances.cpu().numpy()}

    def _target_probs(
        self, chunk: Chunk, sampling: Sampling, places: torch.Tensor, target_logits: torch.Tensor
    ) -> torch.Tensor | None:
        """`target_logits` [N, V] are the draft's."""
        if sampling.greedy:
            return None
        known = _known(chunk, places)
        return completed(known.token_ids, known.log_probs, sampling.scale(target_logits))


def check_labels(request: Request) -> None:
    """Raises DslError for a response that the draft alone cannot label."""
    sampling = request.sampling
    if not sampling.greedy and not sampling.of_draft.greedy and request.log_probs is None:
        raise DslError(
            f"the text is sampled (temperature {sampling.temperature:g}) and came without log-probabilities of the law "
            "it was drawn from, so drafts that are drawn cannot be labelled without the target; log them (logprobs, "
            'and "logprobs_mode": "processed_logprobs"), collect with --draft_sampling greedy, or give --target'
        )


def _chances(
    known: _Known,
    said: torch.Tensor,  # [N]
    draft_probs: torch.Tensor,  # [N, V]
    agreements: torch.Tensor,  # [N] min(1, draft/target) of the token said
    greedy: bool,
) -> torch.Tensor:
    """Sum over the vocabulary of min(target, draft), [N] float32: its mean given text and model, without bias.

    The mean of `agreements` over what the target might have said is that sum. Given that it said one of the tokens
    told, the mean is known: their part of the sum, divided by their probability. Where the draft is `greedy`, its one
    token is told, and its probability with it, or it is not, and the agreement is all there is.
    """
    target_probs = known.log_probs.exp() * known.is_top  # [N, K]
    told = torch.minimum(target_probs, draft_probs.gather(-1, known.token_ids)).sum(-1)
    is_told = ((known.token_ids == said[:, None]) & known.is_top).any(-1)
    if greedy:
        return told + torch.where(is_told, 0.0, agreements)
    return torch.where(is_told, told / target_probs.sum(-1).clamp_min(1e-30), agreements)


def _known(chunk: Chunk, places: torch.Tensor) -> _Known:
    """At places of the chunk, flat. Where nothing was told, the token said has it all."""
    texts, positions = np.divmod(places.cpu().numpy(), chunk.token_ids.shape[1])
    said = chunk.token_ids.flatten()[places].tolist()
    rows = []
    for text, position, token_id in zip(texts.tolist(), (chunk.done + positions).tolist(), said, strict=True):
        told = chunk.texts[text].request.log_probs or TopLogProbs.of([{token_id: 0.0}], [token_id])
        row = position if chunk.texts[text].request.log_probs else 0
        rows.append((told.token_ids[row], told.log_probs[row], told.is_top[row]))
    width = max((len(row[0]) for row in rows), default=1)
    edges = ("edge", "edge", "constant")  # no repeated token counts twice
    columns = (
        np.stack([np.pad(row[i], (0, width - len(row[i])), mode) for row in rows])  # type: ignore[call-overload]
        for i, mode in enumerate(edges)
    )
    return _Known(*(torch.from_numpy(column).to(places.device) for column in columns))
