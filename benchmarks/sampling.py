"""What block verification and the draft's temperature are worth on a pair, by expectation: no clock, no coins.

    python benchmarks/sampling.py --target checkpoints/reference/target --draft checkpoints/reference/draft \\
        --prompts data/prompts/heldout_test.jsonl

Texts are the target's, sampled. First table: drafted blocks after places of them, and how many of their tokens are kept
on average given the block, the sum of products of min(1, ratio) token by token and the sum of w(i) by block. Second and
third: the acceptance of one draft token, the sum over the vocabulary of min(target, draft), averaged over all places.
Brackets are 95 % intervals bootstrapped by prompt. Letters: B blocks, K drafts, V vocabulary.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from dsl_train.base.sampling import Sampling, draw
from dsl_train.collect.draft_temperature import expected_acceptance, read_places
from dsl_train.collect.prompts import read_prompts
from dsl_train.collect.text import Request
from dsl_train.loop.block import kept_weights
from dsl_train.loop.engine import autoregressive
from dsl_train.pair.loading import Pair, load_pair
from dsl_train.runners.cached import CachedModel

DRAFTS = (2, 4, 8)
TEMPERATURES, DRAFT_TEMPERATURES = (0.3, 0.6, 0.8, 1.0), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TRUNCATIONS = (Sampling(0.8, top_p=0.9), Sampling(1.0, top_p=0.9), Sampling(0.8, top_k=20))


def main() -> None:
    args = arguments()
    pair = load_pair(args.target, args.draft, "float32", "cpu")
    prompts = read_prompts(args.prompts, tokenizer=pair.tokenizer)[: args.num_prompts]
    encoded = [tuple(prompt.encode(pair.tokenizer)) for prompt in prompts]
    kept = kept_by_block(pair, encoded, Sampling(args.temperature), args)
    print(f"Kept of a block at temperature {args.temperature:g}, {len(kept)} places, {args.blocks} blocks at each\n")
    print("| drafts | token by token | by block | gain |\n|---|---|---|---|")
    of_prompt = kept[:, 0, 0].astype(int)
    for i, num_drafts in enumerate(DRAFTS, start=1):
        by_token, by_block = kept[:, i].T
        low, high = interval(by_block, by_token, of_prompt)
        gain = f"{by_block.mean() / by_token.mean() - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]"
        print(f"| {num_drafts} | {by_token.mean():.3f} | {by_block.mean():.3f} | {gain} |")
    print("\nMean acceptance by the draft's temperature (best per place: of these, chosen with hindsight)\n")
    heads = " | ".join(f"{temperature:g}" for temperature in DRAFT_TEMPERATURES)
    print(f"| target | places | greedy draft | {heads} | best per place |\n|{'---|' * (len(DRAFT_TEMPERATURES) + 4)}")
    for temperature in TEMPERATURES:
        accepted = acceptances(pair, encoded, Sampling(temperature), args.max_new_tokens)
        means = accepted.mean(0).tolist()
        best = max(means[1:])
        cells = [f"**{mean:.3f}**" if mean == best else f"{mean:.3f}" for mean in means]
        print(f"| {temperature:g} | {len(accepted)} | {' | '.join(cells)} | {accepted[:, 1:].max(1).mean():.3f} |")
    print("\nMean acceptance with a truncated target, the draft at the same temperature\n")
    print("| target | draft truncated as well | draft whole |\n|---|---|---|")
    for sampling in TRUNCATIONS:
        both, alone = truncated(pair, encoded, sampling, args.max_new_tokens)
        cut = f"top-p {sampling.top_p:g}" if sampling.top_p < 1 else f"top-k {sampling.top_k}"
        print(f"| {sampling.temperature:g}, {cut} | {both:.3f} | {alone:.3f} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("target", "draft", "prompts"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--num_prompts", type=int, default=24)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--every", type=int, default=5, help="tokens from one place to the next")
    parser.add_argument("--blocks", type=int, default=8, help="drafted after each place")
    return parser.parse_args()


@torch.inference_mode()
def kept_by_block(
    pair: Pair, prompts: Sequence[Sequence[int]], sampling: Sampling, args: argparse.Namespace
) -> np.ndarray:  # [places, 1 + DRAFTS, 2]
    """Number of the prompt, then mean tokens kept of blocks of each length: token by token, by block."""
    rows, generator, runner = [], torch.Generator().manual_seed(0), CachedModel(pair.target)
    for number, prompt in enumerate(prompts):
        text = autoregressive(runner, prompt, args.max_new_tokens, sampling, pair.eos_token_ids, seed=number)
        whole = [*prompt, *text.token_ids]
        for end in range(len(prompt) + 1, len(whole), args.every):
            kept = kept_after(pair, whole[:end], sampling, args.blocks, generator)
            rows.append([(number, number), *kept])
    return np.array(rows)


def kept_after(
    pair: Pair, text: Sequence[int], sampling: Sampling, num_blocks: int, generator: torch.Generator
) -> list[tuple[float, float]]:
    """Of blocks drafted after one place. A draft after an end of text is none."""
    last = torch.full((num_blocks, 1), text[-1])
    drafted, draft_probs, cache = [last], [], read(pair.draft, text[:-1], num_blocks)
    for _ in range(max(DRAFTS)):
        logits = pair.draft(drafted[-1], past_key_values=cache).logits[:, -1]
        draft_probs.append(sampling.of_draft.probs(logits))  # [B, V]
        drafted.append(draw(draft_probs[-1], generator)[:, None])
    cache, tokens = read(pair.target, text[:-1], num_blocks), torch.cat(drafted, dim=1)
    logits = pair.target(tokens[:, :-1], past_key_values=cache).logits  # [B, K, V]
    block = tokens[:, 1:, None]  # [B, K, 1]
    target = sampling.probs(logits.flatten(0, 1)).unflatten(0, logits.shape[:2]).gather(-1, block)[..., 0].double()
    ratios = target / torch.stack(draft_probs, dim=1).gather(-1, block)[..., 0]  # [B, K]
    ends = torch.isin(block[..., 0], torch.tensor(sorted(pair.eos_token_ids)))
    ratios[ends.cumsum(1) - ends.long() > 0] = 0.0
    by_token = ratios.clamp(max=1).cumprod(1)  # [B, K]
    by_block = torch.tensor([kept_weights(row)[1:] for row in ratios.tolist()])
    return [
        (float(by_token[:, :num_drafts].sum(1).mean()), float(by_block[:, :num_drafts].sum(1).mean()))
        for num_drafts in DRAFTS
    ]


def read(model: PreTrainedModel, text: Sequence[int], num_rows: int) -> DynamicCache:
    """The text's cache, for as many continuations."""
    cache = DynamicCache(config=model.config)
    model(torch.tensor([text]), past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(num_rows)
    return cache


@torch.inference_mode()
def acceptances(
    pair: Pair, prompts: Sequence[tuple[int, ...]], sampling: Sampling, max_new_tokens: int
) -> np.ndarray:  # [places, 1 + draft temperatures]
    """Of a greedy draft, then of one at each temperature."""
    requests = [Request(prompt, number, sampling) for number, prompt in enumerate(prompts)]
    parts = []
    for _, target_logits, draft_logits in read_places(pair, requests, max_new_tokens, batch_size=8):
        choice = draft_logits.argmax(-1, keepdim=True)
        columns = [sampling.probs(target_logits).gather(-1, choice)[:, 0]]
        for temperature in DRAFT_TEMPERATURES:
            tried = replace(sampling, draft_temperature=temperature)
            columns.append(expected_acceptance(tried, target_logits, draft_logits))
        parts.append(torch.stack(columns, dim=1))
    return torch.cat(parts).numpy()


@torch.inference_mode()
def truncated(
    pair: Pair, prompts: Sequence[tuple[int, ...]], sampling: Sampling, max_new_tokens: int
) -> tuple[float, float]:
    """Mean acceptance with the draft truncated as the target is, and with it whole."""
    requests = [Request(prompt, number, sampling) for number, prompt in enumerate(prompts)]
    plain, both, alone = Sampling(sampling.temperature), [], []
    for _, target_logits, draft_logits in read_places(pair, requests, max_new_tokens, batch_size=8):
        target_probs = sampling.probs(target_logits)
        for law, found in ((sampling, both), (plain, alone)):
            found.append(torch.minimum(target_probs, law.probs(draft_logits)).sum(-1))
    return float(torch.cat(both).mean()), float(torch.cat(alone).mean())


def interval(numbers: np.ndarray, base: np.ndarray, prompt: np.ndarray) -> tuple[float, float]:
    """Of the ratio of sums."""
    members = [np.flatnonzero(prompt == number) for number in np.unique(prompt)]
    sums = np.array([(numbers[i].sum(), base[i].sum()) for i in members])
    drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    totals = sums[drawn].sum(1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
