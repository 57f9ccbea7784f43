"""A text as it grows, for streamers and stopping criteria that transformers prepared."""

from collections.abc import Callable, Sequence

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from dsl_train.base.records import Round


class TextWatch:
    """Passes committed tokens on, one by one, until a criterion says stop."""

    def __init__(
        self,
        input_ids: torch.Tensor,  # [1, T]
        criteria: Sequence[StoppingCriteria],
        streamer: BaseStreamer | None,
        scores: Callable[[int, int], tuple[torch.Tensor, ...]] | None = None,
    ) -> None:
        """`scores`: processed logits of the tokens between two indices, for criteria that read them. The streamer has
        been given the prompt."""
        self._token_ids, self._device, self._scores = input_ids[0].tolist(), input_ids.device, scores
        self._start = len(self._token_ids)
        self._criteria, self._streamer = StoppingCriteriaList(criteria), streamer

    @property
    def token_ids(self) -> torch.Tensor:  # [T + new]
        return torch.tensor(self._token_ids, device=self._device)

    def take(self, finished: Round) -> bool:
        """Pass a round's tokens on; False if a criterion ends the text, which has the token at which it holds and none
        after it."""
        for i, token_id in enumerate(finished.committed):
            self._token_ids.append(token_id)
            if self._criteria and self._holds():
                self._stream(finished.committed[: i + 1])
                return False
        self._stream(finished.committed)
        return True

    def _holds(self) -> bool:
        scores = self._scores(self._start, len(self._token_ids)) if self._scores else None
        return bool(self._criteria(self.token_ids[None], scores).all())  # type: ignore[arg-type]  # a tuple of any length

    def end(self) -> None:
        if self._streamer:
            self._streamer.end()

    def _stream(self, token_ids: Sequence[int]) -> None:
        if self._streamer:
            self._streamer.put(torch.tensor(token_ids))
