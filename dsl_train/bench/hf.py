"""transformers' own `generate`, plain and assisted, called and timed as our policies are.

The models' generation configurations are set aside while it runs, so that the library's defaults (20 draft tokens,
confidence 0.4) hold and nothing but our sampling parameters applies. Knows nothing of our loop.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils import is_sklearn_available, logging

from dsl_train.base.records import GenerationResult
from dsl_train.base.sampling import Sampling
from dsl_train.pair.loading import Pair, library_defaults
from dsl_train.pair.prompt import EncodedPrompt, PairPrompt, begin
from dsl_train.runners.cached import context_length

Generate = Callable[[PairPrompt, int], GenerationResult]
"""(prompt, seed) -> the finished generation."""


def hf_generate(
    pair: Pair,
    sampling: Sampling,
    max_new_tokens: int,
    assistant: Any = None,
    settings: Mapping[str, Any] | None = None,
    prompt_lookup: int | None = None,
) -> Generate:
    """`target.generate`, with `assistant` (the draft, or what `attach` made of it) as `assistant_model`. `settings`
    change the draft's generation configuration (`num_assistant_tokens` and the like); `prompt_lookup` tokens are copied
    from the text instead. No rounds: the library records none."""
    plain_generate: Any = GenerationMixin.generate  # speech models have one of their own, which cuts audio
    eos = sorted(pair.eos_token_ids)
    context = context_length(pair.target)
    own_settings = GenerationConfig(
        do_sample=not sampling.greedy,
        temperature=None if sampling.greedy else sampling.temperature,
        top_k=None if sampling.greedy else sampling.top_k,
        top_p=None if sampling.greedy else sampling.top_p,
        eos_token_id=eos or None,
        pad_token_id=eos[0] if eos else 0,
        prompt_lookup_num_tokens=prompt_lookup,
    )

    def generate(prompt: PairPrompt, seed: int) -> GenerationResult:
        prompt_token_ids = begin(prompt)
        inputs = _inputs(prompt, pair.target)
        config = copy.deepcopy(own_settings)
        config.decoder_start_token_id = prompt_token_ids[0]  # of no meaning for decoder-only pairs
        config.max_new_tokens = min(max_new_tokens, context + 1 - len(prompt_token_ids))
        with library_defaults(pair.target), library_defaults(pair.draft), _quiet(), torch.inference_mode():
            pair.draft.generation_config.update(**dict(settings or {}))
            torch.manual_seed(seed)
            began = time.perf_counter()
            output: torch.Tensor = plain_generate(
                pair.target,
                **inputs,
                generation_config=config,
                assistant_model=assistant,
            )
            token_ids = tuple(output[0, len(prompt_token_ids) :].tolist())
            seconds = time.perf_counter() - began
        finish_reason = "eos" if token_ids and token_ids[-1] in pair.eos_token_ids else "length"
        return GenerationResult(tuple(prompt_token_ids), token_ids, finish_reason, (), seconds)

    return generate


def _inputs(prompt: PairPrompt, target: PreTrainedModel) -> dict[str, torch.Tensor]:
    token_ids = torch.tensor([list(begin(prompt))], device=target.device)
    if not isinstance(prompt, EncodedPrompt):
        return {"inputs": token_ids, "attention_mask": torch.ones_like(token_ids)}
    source = prompt.source.to(target.device)
    if source.is_floating_point():
        return {"inputs": source.to(target.dtype), "decoder_input_ids": token_ids}
    return {"inputs": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": token_ids}


def assisted_note() -> str:
    """Which of transformers' two default behaviours runs here."""
    adapts = "adapted by scikit-learn's ROC curve" if is_sklearn_available() else "fixed: scikit-learn is not installed"
    defaults = GenerationConfig._get_default_generation_params()
    return (
        f"{defaults['num_assistant_tokens']} draft tokens ({defaults['num_assistant_tokens_schedule']}), "
        f"confidence threshold {defaults['assistant_confidence_threshold']} ({adapts})"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings about how it calls itself."""
    kept = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(kept)
