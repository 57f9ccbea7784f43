"""What a target's `generation_config` asks for beyond greedy search and plain sampling, where `generate` is not called.

The caller's own arguments (temperature, top-k, top-p, length) win; the rest is honoured with transformers' own
processors, or refused by name.
"""

import copy
from dataclasses import replace
from typing import Any

import torch

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling
from dsl_train.pair.loading import Pair
from dsl_train.pair.prompt import EncodedPrompt, PairPrompt, begin
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.processed import ProcessedModel, split_processors

#: Settings of the target's own distribution, with the value besides None that changes nothing.
_NEUTRAL: dict[str, object] = {
    "sequence_bias": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "guidance_scale": 1,
    "watermarking_config": None,
}
#: The same, of sampling alone.
_WARPING: dict[str, object] = {"top_h": None, "min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0, "eta_cutoff": 0}
#: Other ways to generate.
_REFUSED: dict[str, object] = {
    "num_beams": 1,
    "penalty_alpha": 0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "token_healing": False,
}
#: Ends that are not tokens, which `hf.decode` knows.
_ENDS: dict[str, object] = {"stop_strings": None, "max_time": None}


def settings_in_force(pair: Pair, sampling: Sampling) -> dict[str, Any]:
    """Settings of the target that change what it writes. Raises DslError for one that the loop cannot honour."""
    settings = pair.target.generation_config
    for name, value in _set(settings, {**_REFUSED, **_ENDS}).items():
        or_else = ", or call target.generate(..., custom_generate=dsl_train.hf.decode)" if name in _ENDS else ""
        raise DslError(
            f"target {pair.target_identity.id} sets {name}={value!r}, which this loop cannot honour; set it to None in "
            f"target.generation_config{or_else}"
        )
    found = _set(settings, _NEUTRAL if sampling.greedy else {**_NEUTRAL, **_WARPING})
    if pair.kind != "decoder-only":
        found.pop("forced_bos_token_id", None)  # part of the decoder's prompt
    return found


def under_own_settings(
    pair: Pair,
    runners: tuple[CachedModel, CachedModel],
    prompt: PairPrompt,
    sampling: Sampling,
    max_new_tokens: int,
) -> tuple[CachedModel, CachedModel, Sampling]:
    """Both runners, and the sampling, as the target's settings want them for a text that continues `prompt`. A draft
    that pads the common vocabulary otherwise is cut or filled up to the target's number of tokens."""
    width, draft_width = (model.config.get_text_config().vocab_size for model in (pair.target, pair.draft))
    if not settings_in_force(pair, sampling):
        target, draft = runners
        return target, draft if draft_width == width else ProcessedModel(draft, (), width=width), sampling
    processors, own_sampling = split_processors(
        _processors(pair, prompt, sampling, max_new_tokens, runners[0].context), not sampling.greedy
    )
    target, draft = (
        ProcessedModel(runner, processors, width=width) if processors or draft_width != width else runner
        for runner in runners
    )
    return target, draft, replace(own_sampling, draft_temperature=sampling.draft_temperature)


def _processors(pair: Pair, prompt: PairPrompt, sampling: Sampling, max_new_tokens: int, context: int) -> Any:
    """As `generate` prepares them, which has no public name for it."""
    model: Any = pair.target
    settings = copy.deepcopy(model.generation_config)
    if settings.guidance_scale not in (None, 1):
        raise DslError(
            f"target {pair.target_identity.id} sets guidance_scale={settings.guidance_scale!r}, and guidance remembers "
            "what it was called with; set it to 1 in target.generation_config, or generate without a draft"
        )
    length = len(begin(prompt))
    settings.do_sample = not sampling.greedy
    settings.num_beams = 1
    settings.temperature, settings.top_k, settings.top_p = sampling.temperature, sampling.top_k, sampling.top_p
    settings.eos_token_id = sorted(pair.eos_token_ids) or None
    settings.max_length = min(length + max_new_tokens, context + 1)
    if pair.kind != "decoder-only":
        settings.forced_bos_token_id = None
    model._prepare_special_tokens(settings, True, device=model.device)
    source = prompt.source if isinstance(prompt, EncodedPrompt) else torch.tensor([list(prompt)])
    return model._get_logits_processor(
        settings, input_ids_seq_length=length, encoder_input_ids=source.to(model.device), device=model.device
    )


def _set(settings: Any, neutral: dict[str, object]) -> dict[str, Any]:
    values = {name: getattr(settings, name, None) for name in neutral}
    return {name: value for name, value in values.items() if value is not None and value != neutral[name]}
