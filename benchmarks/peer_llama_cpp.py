"""llama.cpp on a GGUF file, called and timed as our policies are: for orientation, what else a processor can do.

Needs the package `xllamacpp`. Activations are rounded to eight bits there, so greedy texts may leave the target's own.
"""

import time
from pathlib import Path

import torch
import xllamacpp

from dsl_train.base.records import GenerationResult
from dsl_train.bench.hf import Generate
from dsl_train.pair.prompt import PairPrompt, begin

CONTEXT = 4096  # tokens


def llama_cpp_generate(file: Path, max_new_tokens: int, ngrams: bool = False) -> Generate:
    """Greedy, on as many threads as torch has, nothing kept from prompt to prompt; with `ngrams` it speculates by
    n-grams of the text so far (`ngram-simple` at its defaults)."""
    server = xllamacpp.Server(_params(file, ngrams))

    def generate(prompt: PairPrompt, seed: int) -> GenerationResult:
        prompt_token_ids = tuple(begin(prompt))
        request = {"prompt": list(prompt_token_ids), "max_tokens": max_new_tokens, "temperature": 0.0, "seed": seed}
        began = time.perf_counter()
        answer = server.handle_completions(request | {"cache_prompt": False, "logprobs": 1})  # which name the tokens
        seconds = time.perf_counter() - began
        choice = answer["choices"][0]
        token_ids = tuple(token["id"] for token in choice["logprobs"]["content"])
        finish_reason = "eos" if choice["finish_reason"] == "stop" else "length"
        return GenerationResult(prompt_token_ids, token_ids, finish_reason, (), seconds)

    return generate


def _params(file: Path, ngrams: bool) -> "xllamacpp.CommonParams":
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(file), CONTEXT, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    if ngrams:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    return params
