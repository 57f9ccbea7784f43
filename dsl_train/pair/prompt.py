"""What a pair continues: token ids or, of an encoder-decoder, what its encoders read and how its decoder begins.

Letters: S encoder positions, M bins of a spectrum, T samples or frames.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, PreTrainedModel

from dsl_train.base.records import DslError, first_line
from dsl_train.pair.loading import Pair
from dsl_train.runners.cached import CachedModel, context_length
from dsl_train.runners.encoder_decoder import EncoderDecoderModel

_TYPICAL_LENGTH = 128  # tokens that an encoder reads when nobody says what


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """An input of encoder-decoders."""

    source: torch.Tensor
    """What the encoders read: token ids [1, S], or audio features [1, M, T] or [1, T]."""
    token_ids: tuple[int, ...]
    """What the decoders begin with; the loop continues it."""


PairPrompt = Sequence[int] | EncodedPrompt
"""Token ids are those of a decoder-only pair."""


def runner_of(model: PreTrainedModel) -> CachedModel:
    """For one text after another; each is begun by `begin`."""
    return EncoderDecoderModel(model) if model.config.is_encoder_decoder else CachedModel(model)


def begin(prompt: PairPrompt, *runners: CachedModel) -> Sequence[int]:
    """Give the runners what they read; returns the tokens to continue."""
    if not isinstance(prompt, EncodedPrompt):
        return prompt
    for runner in runners:
        if isinstance(runner, EncoderDecoderModel):
            runner.read(prompt.source)
    return prompt.token_ids


def encode_tokens(pair: Pair, token_ids: Sequence[int]) -> PairPrompt:
    """A prompt in tokens: continued by a decoder-only pair, read by encoders. Raises DslError if they read audio."""
    if pair.kind == "decoder-only":
        return token_ids
    if pair.kind == "speech":
        raise DslError(
            f"target {pair.target_identity.id} reads audio, not text; give samples [T] or features [M, T] as an array, "
            "in prompt files a column named audio or input_features"
        )
    if not token_ids:
        raise DslError("the encoder's input has no tokens; remove it")
    return _begun(pair, torch.tensor([list(token_ids)]))


def encode_text(pair: Pair, text: str) -> PairPrompt:
    """A prompt as the target's tokenizer writes it."""
    return encode_tokens(pair, () if pair.kind == "speech" else pair.tokenizer(text)["input_ids"])


def encode_audio(pair: Pair, audio: np.ndarray | torch.Tensor, sampling_rate: int | None = None) -> EncodedPrompt:
    """Samples [T] through the target's feature extractor, or features [M, T] as they are.

    `sampling_rate` [Hz] is by default the extractor's own. Raises DslError for another one, and if the pair reads text.
    """
    if pair.kind != "speech":
        raise DslError(f"target {pair.target_identity.id} reads text, not audio; give a text or token ids")
    values = torch.as_tensor(audio, dtype=torch.float32)
    if values.dim() == 1:
        values = _extract(pair.target_identity.id, values.numpy(), sampling_rate, str(pair.target.main_input_name))
    return _begun(pair, values if values.dim() == 3 else values[None])


def typical_runners(pair: Pair) -> tuple[CachedModel, CachedModel]:
    """Both models' runners, those of encoder-decoders beside an input of usual size that says nothing."""
    runners = runner_of(pair.target), runner_of(pair.draft)
    if pair.kind != "decoder-only":
        begin(EncodedPrompt(_typical_source(pair), ()), *runners)
    return runners


def _typical_source(pair: Pair) -> torch.Tensor:
    config = pair.target.config
    if pair.kind == "encoder-decoder":
        return torch.ones(1, min(_TYPICAL_LENGTH, context_length(pair.target) // 2), dtype=torch.int64)
    if hasattr(config, "num_mel_bins"):  # two frames a position, as Whisper has them
        return torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
    return torch.zeros(1, 10 * 16_000)  # ten seconds of samples


def _begun(pair: Pair, source: torch.Tensor) -> EncodedPrompt:
    return EncodedPrompt(source, tuple(_decoder_prompt(pair.target, source)))


def _decoder_prompt(model: PreTrainedModel, source: torch.Tensor) -> list[int]:
    """The decoder's start token and what the generation configuration forces behind it; of Whisper: language (detected
    unless configured), task, no timestamps."""
    settings: Any = copy.deepcopy(model.generation_config)
    start = settings.decoder_start_token_id
    start = settings.bos_token_id if start is None else start
    if start is None:
        raise DslError(
            f"{model.name_or_path or type(model).__name__} does not say how its decoder begins; set "
            "decoder_start_token_id in its generation_config"
        )
    if hasattr(model, "detect_language"):
        return _whisper_prompt(model, settings, source)
    forced = settings.forced_bos_token_id
    return [*(start if isinstance(start, list) else [start]), *([] if forced is None else [forced])]


@torch.inference_mode()
def _whisper_prompt(model: Any, settings: Any, source: torch.Tensor) -> list[int]:
    """As the model's own `generate` begins, which has no public name for it."""
    if getattr(settings, "return_timestamps", False):
        raise DslError(
            "return_timestamps is set, whose rules the loop does not know; set it to False, or transcribe with "
            "target.generate(..., custom_generate=dsl_train.hf.decode, draft_model=draft)"
        )
    settings.return_timestamps = False
    features = source.to(model.device, model.dtype)
    begun = model._retrieve_init_tokens(features, 1, settings, model.config, source.shape[-1], {})
    token_ids: list[int] = begun[0].tolist()
    return token_ids


def _extract(name: str, samples: np.ndarray, sampling_rate: int | None, wanted: str) -> torch.Tensor:
    extractor = _feature_extractor(name)
    if sampling_rate is not None and sampling_rate != extractor.sampling_rate:
        raise DslError(
            f"the audio has {sampling_rate} samples a second, {name} reads {extractor.sampling_rate}; resample it"
        )
    features = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    values: torch.Tensor = features[wanted]
    return values


@cache
def _feature_extractor(name: str) -> Any:
    try:
        return AutoFeatureExtractor.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise DslError(
            f"{name} has no feature extractor that can be loaded ({first_line(error)}); save one beside the model, or "
            "give features [M, T] instead of samples"
        ) from error
