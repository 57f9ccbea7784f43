"""How far labels made by the draft alone, from the target's top log-probabilities, are from those of both models.

    python benchmarks/served_labels.py --num_prompts 48

The target samples its own texts; what a server would have told of them, the most likely tokens of each place, labels
them once more without the target, for drafts that are drawn and for drafts that are the most likely token. Both
labellings use the same random numbers, so what differs is due to what was not told.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

from dsl_train.base.sampling import Sampling
from dsl_train.collect.config import CollectConfig
from dsl_train.collect.draft_alone import DraftAlone
from dsl_train.collect.hindsight import HindsightCollector
from dsl_train.collect.log_probs import TopLogProbs
from dsl_train.collect.prompts import read_prompts
from dsl_train.collect.text import CollectedText, Request
from dsl_train.pair.loading import load_draft, load_pair


@torch.inference_mode()
def told(target: torch.nn.Module, request: Request, count: int) -> TopLogProbs:
    """The `count` most likely tokens of each place, and the token said."""
    prompt, said = request.prompt_token_ids, request.response_token_ids or ()
    logits = target(torch.tensor([[*prompt, *said]])).logits[0, len(prompt) - 1 : -1]
    log_probs = request.sampling.probs(logits).log().clamp_min(-9999)
    best = torch.cat([log_probs.topk(count).indices, torch.tensor(said)[:, None]], dim=-1).tolist()
    return TopLogProbs.of([{i: float(log_probs[j, i]) for i in dict.fromkeys(row)} for j, row in enumerate(best)], said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="checkpoints/reference/target")
    parser.add_argument("--draft", default="checkpoints/reference/draft")
    parser.add_argument("--prompts", default="data/prompts/heldout_test.jsonl")
    parser.add_argument("--num_prompts", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    options = parser.parse_args()
    pair, alone = load_pair(options.target, options.draft), load_draft(options.draft)
    config = CollectConfig(
        draft=options.draft, target=options.target, output="none", prompts=options.prompts, tail_length=0
    )
    config = replace(config, max_new_tokens=options.max_new_tokens)
    prompts = [
        tuple(prompt.encode(pair.tokenizer)) for prompt in read_prompts(options.prompts, None, options.num_prompts)
    ]
    asked = [Request(prompt, seed, Sampling(options.temperature)) for seed, prompt in enumerate(prompts)]
    answers = HindsightCollector(pair, config).collect(asked)
    said = [
        replace(request, response_token_ids=answer.response_token_ids)
        for request, answer in zip(asked, answers, strict=True)
        if isinstance(answer, CollectedText)
    ]
    print(
        f"{len(said)} texts, {sum(len(r.response_token_ids or ()) for r in said)} places, temperature "
        f"{options.temperature}"
    )
    print(
        "| drafts | told | acceptance differs | rejected token differs | accept_prob off by, mean (99 %) | its mean |"
    )
    print("|---|---|---|---|---|---|")
    for drafting, draft_temperature in (("drawn", None), ("greedy", 0.0)):
        law = Sampling(options.temperature, draft_temperature=draft_temperature)
        requests = [replace(request, sampling=law) for request in said]
        expected = joined(HindsightCollector(pair, config).collect(requests))
        for count in (0, 1, 5, 20, 100):
            if not count and drafting == "drawn":
                continue
            known = [replace(r, log_probs=told(pair.target, r, count)) if count else r for r in requests]
            found = joined(DraftAlone(alone, config).collect(known))
            rejected = ~expected["accepted"]
            off = np.abs(found["accept_prob"] - expected["accept_prob"])
            print(
                f"| {drafting} | {count} | {np.mean(found['accepted'] != expected['accepted']):.2%} "
                f"| {np.mean((found['token_id'] != expected['token_id'])[rejected]):.2%} "
                f"| {off.mean():.4f} ({np.quantile(off, 0.99):.4f}) "
                f"| {found['accept_prob'].mean():.4f}, of both models {expected['accept_prob'].mean():.4f} |",
                flush=True,
            )


def joined(answers) -> dict[str, np.ndarray]:
    rows = [answer.rows for answer in answers]
    return {name: np.concatenate([row[name] for row in rows]) for name in ("accepted", "token_id", "accept_prob")}


if __name__ == "__main__":
    main()
