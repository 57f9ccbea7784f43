"""Block verification: its exact law by enumeration, under a policy that decides the length from what was drafted."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from dsl_train.loop.block import kept_weights, parts, verify_block
from dsl_train.loop.verify import verify

Prefix = tuple[int, ...]
END = 0  # ends a text


class World:
    """Random target and draft distributions after every prefix, [V] float64 each, some tokens impossible."""

    def __init__(self, num_tokens, seed, truncated=False):
        self.num_tokens, self.truncated, self.rng = num_tokens, truncated, np.random.default_rng(seed)
        self._known = {}

    def after(self, prefix: Prefix) -> tuple[torch.Tensor, torch.Tensor]:
        if prefix not in self._known:
            self._known[prefix] = (self._distribution(), self._distribution())
        return self._known[prefix]

    def _distribution(self):
        weights = self.rng.random(self.num_tokens) ** 3
        if self.truncated:
            weights[self.rng.permutation(self.num_tokens)[: self.num_tokens // 2]] = 0
        return torch.from_numpy(weights / weights.sum())


def goes_on(prefix: Prefix, max_drafts: int) -> bool:
    """Hostile: the length depends on the very tokens drafted. Nothing follows the end of a text."""
    return len(prefix) < max_drafts and (not prefix or (prefix[-1] != END and (sum(prefix) + len(prefix)) % 3 > 0))


def round_law(world, goes_on):
    """Exact law of a round's output, kept tokens and the one after them; and the mean number kept."""
    law, mean_kept = defaultdict(float), 0.0
    open_blocks = [((), 1.0)]
    while open_blocks:
        block, prob = open_blocks.pop()
        if goes_on(block):
            draft_probs = world.after(block)[1]
            open_blocks += [((*block, x), prob * q) for x, q in enumerate(draft_probs.tolist()) if q > 0]
            continue
        seen = [world.after(block[:i]) for i in range(len(block) + 1)]
        target_probs, draft_probs = (torch.stack([pair[i] for pair in seen]) for i in (0, 1))
        ratios = [float(target_probs[i, x] / draft_probs[i, x]) for i, x in enumerate(block)]
        for num_kept, chance, next_probs in parts(target_probs, draft_probs[:-1], ratios):
            mean_kept += prob * chance * num_kept
            for x, share in enumerate((prob * chance * next_probs / next_probs.sum()).tolist()):
                law[(*block[:num_kept], x)] += share
            prob *= 1 - chance
        assert prob == 0, "no token at all is kept for certain"
    return law, mean_kept


def deviation_from_target(world, law, length):
    """Largest absolute error of the law of the first `length` tokens, the target writing what a round leaves open."""
    found, wanted = defaultdict(float), defaultdict(float)
    for spread, begin in ((found, law), (wanted, {(): 1.0})):
        open_texts = list(begin.items())
        while open_texts:
            text, prob = open_texts.pop()
            if END in text or len(text) == length:
                spread[text[: text.index(END) + 1] if END in text else text] += prob
                continue
            open_texts += [((*text, x), prob * p) for x, p in enumerate(world.after(text)[0].tolist()) if p > 0]
    return max(abs(found[text] - wanted[text]) for text in found | wanted)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(("num_tokens", "max_drafts"), [(5, 1), (5, 2), (5, 3), (5, 4), (7, 3), (20, 2), (50, 2)])
def test_a_round_has_the_targets_law_when_the_policy_reads_what_was_drafted(num_tokens, max_drafts, truncated):
    """Exact: by enumeration in float64, no false alarms. A text that ends inside a block ends there."""
    world = World(num_tokens, seed=num_tokens + max_drafts, truncated=truncated)
    law, _ = round_law(world, lambda block: goes_on(block, max_drafts))
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert deviation_from_target(world, law, max_drafts + 1) < 1e-12


def test_the_enumeration_sees_a_policy_that_drops_a_token_for_its_value():
    """What losslessness forbids: the end-of-text token is drafted, looked at and thrown away."""
    world = World(5, seed=1)
    dropped = World(5, seed=1)
    dropped.after = lambda prefix: (world.after(prefix)[0], without_end(world.after(prefix)[1]))
    honest, _ = round_law(dropped, lambda block: len(block) < 2)
    assert deviation_from_target(world, honest, 3) < 1e-12  # a draft that never draws it is a draft like any other
    law = defaultdict(float)
    for text, prob in round_law(world, lambda block: len(block) < 2)[0].items():
        law[tuple(x for x in text[:-1] if x != END) + text[-1:]] += prob
    assert deviation_from_target(world, law, 3) > 1e-3


def without_end(probs):
    kept = probs.clone()
    kept[END] = 0
    return kept / kept.sum()


def kept_token_by_token(world, max_drafts, block=(), reached=1.0):
    """Mean number of tokens kept: each needs all before it."""
    if len(block) == max_drafts:
        return 0.0
    target_probs, draft_probs = world.after(block)
    both = torch.minimum(target_probs, draft_probs).tolist()
    return sum(
        reached * share + kept_token_by_token(world, max_drafts, (*block, x), reached * share)
        for x, share in enumerate(both)
        if share > 0
    )


@pytest.mark.parametrize("num_drafts", [1, 2, 4])
def test_a_block_keeps_more_than_token_by_token_and_as_many_if_it_is_one_token(num_drafts):
    world = World(5, seed=3)
    _, kept = round_law(world, lambda block: len(block) < num_drafts)
    by_token = kept_token_by_token(world, num_drafts)
    assert kept == pytest.approx(by_token, abs=1e-12) if num_drafts == 1 else kept > by_token * 1.02


def test_given_the_tokens_the_weight_is_the_probability_that_all_are_kept():
    """Sun et al., lemma: the mean number kept is the sum of the expected weights."""
    world, expected = World(5, seed=4), 0.0
    open_blocks = [((), 1.0, 1.0)]
    while open_blocks:
        block, prob, weight = open_blocks.pop()
        if len(block) == 3:
            continue
        target_probs, draft_probs = world.after(block)
        for x, q in enumerate(draft_probs.tolist()):
            longer = min(1.0, weight * float(target_probs[x]) / q)
            expected += prob * q * longer
            open_blocks.append(((*block, x), prob * q, longer))
    _, kept = round_law(world, lambda block: len(block) < 3)
    assert kept == pytest.approx(expected, abs=1e-12)


def test_weights_recover_after_an_unlikely_token_but_never_above_one():
    assert kept_weights([0.5, 1.5, 4.0, 0.25]) == [1.0, 0.5, 0.75, 1.0, 0.25]
    assert kept_weights([0.0, 100.0]) == [1.0, 0.0, 0.0]


def test_equal_distributions_keep_everything():
    probs = torch.full((4, 5), 0.2)
    assert next(parts(probs, probs[:3], [1.0] * 3))[:2] == (3, 1.0)


def test_the_draws_follow_the_parts_law():
    """Chi-square over (kept, next token) of 20,000 draws after one block; the false-alarm probability is 1e-4 at 8
    degrees of freedom (critical value 31.8)."""
    target_probs = torch.tensor([[0.4, 0.2, 0.3, 0.1], [0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25]])
    draft_probs = torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.7, 0.1, 0.1, 0.1]])
    ratios, num_draws, left = [0.2 / 0.5, 0.1 / 0.7], 20_000, 1.0  # block (1, 0)
    expected = torch.zeros(3, 4)
    for kept, chance, next_probs in parts(target_probs, draft_probs, ratios):
        expected[kept] = num_draws * left * chance * next_probs / next_probs.sum()
        left *= 1 - chance
    generator, counts = torch.Generator().manual_seed(1), torch.zeros(3, 4)
    for _ in range(num_draws):
        counts[verify_block(target_probs, draft_probs, ratios, generator)] += 1
    possible = expected > 0
    assert (int(possible.sum()), float(counts[~possible].sum())) == (9, 0)
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 31.8


def test_one_token_is_judged_with_the_same_draws_either_way():
    """Seeds of texts with single drafts stay what they were."""
    world = World(7, seed=8)
    for seed in range(200):
        (target_probs, draft_probs), later = world.after(()), world.after((1,))[0]
        rows, x = torch.stack([target_probs, later]).float(), seed % 7
        by_token = verify(rows, draft_probs[None].float(), [x], torch.Generator().manual_seed(seed), "token")
        ratio = float(rows[0, x] / draft_probs.float()[x])
        by_block = verify_block(rows, draft_probs[None].float(), [ratio], torch.Generator().manual_seed(seed))
        assert by_block == (by_token.num_accepted, by_token.token_id)
        assert verify(rows, draft_probs[None].float(), [x], torch.Generator().manual_seed(seed)) == by_token
