"""The target's own continuations, many at a time, by transformers' `generate`.

Each text draws from a generator of its own (Gumbel-max), so that it does not depend on what else is in the batch.
"""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from dsl_train.collect.text import Request
from dsl_train.loading import library_defaults
from dsl_train.sampling import Sampling


class GumbelDraw(LogitsProcessor):
    """Adds Gumbel noise to the log-probabilities: their largest is then a draw from the distribution."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], device: torch.device) -> None:
        self.sampling = sampling
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        uniform = torch.stack(
            [torch.rand(scores.shape[-1], generator=generator, device=scores.device) for generator in self.generators]
        )
        noise = -(-uniform.clamp_min(1e-20).log()).log()
        noisy: torch.FloatTensor = self.sampling.probs(scores).log() + noise  # type: ignore[assignment]
        return noisy


def generate_responses(
    target: PreTrainedModel,
    requests: Sequence[Request],
    max_new_tokens: int,
    sampling: Sampling,
    eos_token_ids: frozenset[int],
) -> list[list[int]]:
    """One response per request, end-of-text token included where there is one."""
    longest = max(len(request.prompt_token_ids) for request in requests)
    rows = [[0] * (longest - len(r.prompt_token_ids)) + list(r.prompt_token_ids) for r in requests]
    mask = [[0] * (longest - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids) for r in requests]
    processors = LogitsProcessorList()
    if not sampling.greedy:
        processors.append(GumbelDraw(sampling, [request.seed for request in requests], target.device))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(eos_token_ids) or None,
        pad_token_id=min(eos_token_ids, default=0),
    )
    with library_defaults(target):
        output: torch.Tensor = target.generate(  # type: ignore[operator]  # annotated as Tensor | Module
            torch.tensor(rows, device=target.device),
            attention_mask=torch.tensor(mask, device=target.device),
            generation_config=settings,
            logits_processor=processors,
        )
    return [until_end(row, eos_token_ids) for row in output[:, longest:].tolist()]


def until_end(token_ids: list[int], eos_token_ids: frozenset[int]) -> list[int]:
    """Up to the first end-of-text token, that one included."""
    ends = [i for i, token_id in enumerate(token_ids) if token_id in eos_token_ids]
    return token_ids[: ends[0] + 1] if ends else token_ids
