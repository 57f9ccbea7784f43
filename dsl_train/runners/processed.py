"""transformers' logits processors and warpers in our loop.

Processors (repetition penalty, forced and forbidden tokens, ...) read the tokens so far and belong to a model's logits;
warpers (temperature, top-k, ...) read the distribution alone and belong to the sampling. Letters: K rows, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AlternatingCodebooksLogitsProcessor,
    ClassifierFreeGuidanceLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    SynthIDTextWatermarkLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.logits_process import TopHLogitsWarper, WhisperNoSpeechDetection

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.runners.cached import CachedModel

_WARPERS = (
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
)
#: They remember earlier calls or run the model again: called for a rejected token they would not be the same after it.
_STATEFUL = (
    AlternatingCodebooksLogitsProcessor,
    ClassifierFreeGuidanceLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WhisperNoSpeechDetection,
)
_IMPOSSIBLE = 1e4  # below the best logit: probability exactly 0 in float32 at any sensible temperature, yet finite


@dataclass(frozen=True)
class WarpedSampling(Sampling):
    """Sampling at a temperature, then through transformers' own warpers."""

    warpers: tuple[LogitsProcessor, ...] = ()

    def probs_of_scaled(self, scores: torch.Tensor) -> torch.Tensor:  # [K, V] -> [K, V] float32, rows sum to 1
        for warper in self.warpers:
            scores = warper(None, scores)
        return scores.softmax(-1)


def split_processors(
    processors: Iterable[LogitsProcessor], do_sample: bool
) -> tuple[tuple[LogitsProcessor, ...], Sampling]:
    """The processors of a prepared list, and its warpers as a sampling.

    Raises DslError for a processor whose answer depends on more than the tokens so far.
    """
    listed = tuple(processors)
    for processor in listed:
        if isinstance(processor, _STATEFUL):
            raise DslError(
                f"{type(processor).__name__} remembers what it was called with, and speculative decoding calls it for "
                "tokens that are rejected; switch it off, or generate without a draft"
            )
    if not do_sample:
        return listed, Sampling()
    first = len(listed)
    while first and isinstance(listed[first - 1], _WARPERS):
        first -= 1
        warper = listed[first]
        if isinstance(warper, TemperatureLogitsWarper):  # what comes before it is no more a matter of warping
            return listed[:first], WarpedSampling(temperature=warper.temperature, warpers=listed[first + 1 :])
    return listed[:first], WarpedSampling(temperature=1.0, warpers=listed[first:])


class ProcessedModel(CachedModel):
    """Another runner's logits after logits processors; keeps the rows of the text as it stands if asked to."""

    def __init__(
        self,
        runner: CachedModel,
        processors: Sequence[LogitsProcessor],
        prefix: Sequence[int] = (),
        width: int = 0,
        keep_rows: bool = False,
    ) -> None:
        """`prefix`: padding that the processors see before the text. `width`: the vocabulary the logits are cut or
        filled up to; 0 leaves them."""
        self.runner, self.prefix, self.width, self.keep_rows = runner, list(prefix), width, keep_rows
        self.processors = LogitsProcessorList(processors)
        self.model, self.device, self.context = runner.model, runner.device, runner.context
        self._own_width: int = runner.model.config.get_text_config().vocab_size
        self._rows: dict[
            int, tuple[torch.Tensor, torch.Tensor]
        ] = {}  # by index in prefix + text: raw, processed [1, V]

    def reset(self) -> None:
        self.runner.reset()
        self._rows.clear()

    def resume(self, token_ids: Sequence[int]) -> None:
        self.runner.resume(token_ids)
        self._rows.clear()

    def truncate(self, length: int) -> None:
        self.runner.truncate(length)

    def raw_logits(self, start: int, end: int) -> tuple[torch.Tensor, ...]:
        """What the tokens of prefix + text from `start` to `end` came from, [1, V] each; needs `keep_rows`."""
        return tuple(self._rows[index][0] for index in range(start, end))

    def scores(self, start: int, end: int) -> tuple[torch.Tensor, ...]:
        """The same after the processors."""
        return tuple(self._rows[index][1] for index in range(start, end))

    def logits(self, token_ids: Sequence[int], keep: int) -> torch.Tensor:  # [K, V] float32
        raw = self.runner.logits(self._known(token_ids), keep).float()
        if self.width and self.width != raw.shape[-1]:
            raw = _finite(functional.pad(raw, (0, self.width - raw.shape[-1]), value=-math.inf))
        if not self.processors and not self.keep_rows:
            return raw
        ids: Any = torch.tensor([[*self.prefix, *token_ids]], device=self.device)  # LongTensor to transformers
        ends = range(ids.shape[1] - keep + 1, ids.shape[1] + 1)
        rows = [self.processors(ids[:, :end], raw[i : i + 1].clone()) for i, end in enumerate(ends)]
        if self.keep_rows:
            self._rows.update((end, (raw[i : i + 1], rows[i])) for i, end in enumerate(ends))
        return _finite(torch.cat(rows))

    def _known(self, token_ids: Sequence[int]) -> Sequence[int]:
        """What the model has no embedding for, in practice padding that nobody writes, is read as token 0."""
        if self._own_width >= self.width:
            return token_ids
        return [token_id if token_id < self._own_width else 0 for token_id in token_ids]


def _finite(logits: torch.Tensor) -> torch.Tensor:
    """The same distribution without infinities, which features cannot use."""
    return logits.clamp_min(logits.amax(-1, keepdim=True) - _IMPOSSIBLE)
