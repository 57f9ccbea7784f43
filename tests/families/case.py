"""A pair with one text to begin: the same for decoders and encoder-decoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

from dsl_train.runners.cached import CachedModel
from dsl_train.runners.encoder_decoder import EncoderDecoderModel
from families.zoo import END, VOCAB_SIZE, WINDOW, Family, make_pair

EOS = (END,)
_PROMPT_LENGTHS = (1, 3 * WINDOW)  # the last one is beyond every window from the start


@dataclass(frozen=True, eq=False)
class Case:
    target: PreTrainedModel
    draft: PreTrainedModel
    inputs: torch.Tensor
    """Prompt [1, T], or what the encoders read."""
    prompt: list[int]
    """Tokens that the engine continues."""

    def runners(self) -> tuple[CachedModel, CachedModel]:
        if self.target.config.is_encoder_decoder:
            return EncoderDecoderModel.encode(self.target, self.inputs), EncoderDecoderModel.encode(
                self.draft, self.inputs
            )
        return CachedModel(self.target), CachedModel(self.draft)

    def generate(self, max_new_tokens: int, **options: Any) -> list[int]:
        """transformers' plain `generate` (Whisper's own cuts audio into pieces first)."""
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, **options}
        return GenerationMixin.generate(self.target, self.inputs, **settings)[0].tolist()

    def logits(self, model: PreTrainedModel, token_ids: Sequence[int]) -> torch.Tensor:  # [T, V]
        """One forward over a whole text, without a cache."""
        ids = torch.tensor([list(token_ids)])
        if model.config.is_encoder_decoder:
            read = {model.main_input_name: self.inputs, "decoder_input_ids": ids}
        else:
            read = {"input_ids": ids}
        return model(**read, use_cache=False).logits[0]


class Recorded(CachedModel):
    """Another runner whose rows are kept as long as the text before them stands."""

    def __init__(self, runner: CachedModel) -> None:
        self.runner, self.model, self.device, self.context = runner, runner.model, runner.device, runner.context
        self.rows: dict[int, torch.Tensor] = {}  # by the index of the token they predict, [V]

    def reset(self) -> None:
        self.runner.reset()
        self.rows.clear()

    def logits(self, token_ids: Sequence[int], keep: int) -> torch.Tensor:
        logits = self.runner.logits(token_ids, keep)
        self.rows |= {len(token_ids) - keep + 1 + i: row for i, row in enumerate(logits)}
        return logits

    def truncate(self, length: int) -> None:
        self.runner.truncate(length)
        self.rows = {index: row for index, row in self.rows.items() if index <= length}


def cases(family: Family) -> list[Case]:
    target, draft = make_pair(family)
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(1, VOCAB_SIZE, (1, length), generator=generator) for length in _PROMPT_LENGTHS]
    if not target.config.is_encoder_decoder:
        return [Case(target, draft, text, text[0].tolist()) for text in texts]
    start = [target.generation_config.decoder_start_token_id]
    if target.main_input_name == "input_ids":
        return [Case(target, draft, text, start) for text in texts]
    num_bins, num_frames = target.config.num_mel_bins, 2 * target.config.max_source_positions
    return [Case(target, draft, torch.randn(1, num_bins, num_frames, generator=generator), start) for _ in range(2)]
