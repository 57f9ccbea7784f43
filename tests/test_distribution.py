"""The one-sample test of drawn texts: exact cells, its false alarms, what it sees."""

import numpy as np
import pytest
import torch

from dsl_train.base.sampling import Sampling
from dsl_train.bench.distribution import MIN_EXPECTED, POWER, Distribution, detectable_bias, exact_distribution, fit

# The law of a text of two tokens: the first by FIRST, the second by SECOND[first]; token 2 ends a text.
FIRST = torch.tensor([0.6, 0.3, 0.1])
SECOND = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]])


class TwoTokens:
    """Stands in for a cached model: prompt [0], then the law above."""

    def reset(self):
        self.fed = 0

    def logits(self, token_ids, keep):
        assert token_ids[0] == 0
        return (FIRST if len(token_ids) == 1 else SECOND[token_ids[1]]).log()[None]


def two_tokens(num_draws):
    return exact_distribution(TwoTokens(), [0], Sampling(1.0), {2}, num_tokens=2, num_draws=num_draws)


def prob_of(law, prefix):
    return law.probs[law.cells[prefix]]


def test_cells_have_the_models_own_probabilities():
    law = two_tokens(num_draws=10_000)
    assert law.probs.sum() == pytest.approx(1.0)
    for prefix, prob in {(0, 0): 0.3, (0, 1): 0.3, (1, 0): 0.27, (1, 1): 0.03, (2,): 0.1}.items():
        assert prob_of(law, prefix) == pytest.approx(prob, abs=1e-6)


def test_a_prefix_too_rare_to_split_is_one_cell_and_the_rarest_share_one():
    law = two_tokens(num_draws=50)  # a cell needs a probability of 0.2
    assert law.cells[(0, 0)] != law.cells[(0, 1)]
    assert (1, 0) not in law.cells
    assert law.probs[law.cells[(1,)]] == pytest.approx(0.4, abs=1e-6)  # 0.3, joined by the 0.1 of a text that ends
    assert law.cells[(1,)] == law.cells[()]


def test_every_text_falls_into_one_cell_and_impossible_ones_are_told_apart():
    law = two_tokens(num_draws=10_000)
    counts, impossible = law.count([(0, 0), (0, 0), (1, 1), (2,), (0, 2)])
    assert counts[law.cells[(0, 0)]] == 2
    assert counts.sum() == 4
    assert impossible == 1  # token 2 cannot follow token 0
    assert fit(law, [(0, 0)] * 99 + [(0, 2)], level=1e-3).p_value == 0.0


def some_law(num_cells, num_draws):
    probs = np.random.default_rng(0).dirichlet(np.ones(num_cells))
    probs = np.maximum(probs, MIN_EXPECTED / num_draws)
    return Distribution({(i,): i for i in range(num_cells)}, probs / probs.sum())


def p_values(law, probs, num_draws, num_runs, seed):
    samples = np.random.default_rng(seed).multinomial(num_draws, probs, size=num_runs)
    texts = [[(cell,) for cell in range(len(probs)) for _ in range(count[cell])] for count in samples]
    return np.array([fit(law, drawn, 1e-3).p_value for drawn in texts])


def test_a_right_sampler_is_accused_as_often_as_the_level_says():
    """2,000 runs at 5 %: 100 alarms expected, standard deviation 9.7; outside 60 ... 145 with probability 2e-5."""
    law = some_law(num_cells=20, num_draws=500)
    alarms = int((p_values(law, law.probs, 500, num_runs=2000, seed=1) < 0.05).sum())
    assert 60 <= alarms <= 145


def test_a_bias_of_the_stated_size_is_seen_as_often_as_stated():
    """The hardest one: spread over all cells in proportion. 300 runs at a chance of 0.9: fewer than 246 with
    probability 1e-5; the approximation may cost some of that."""
    law, num_draws, level = some_law(num_cells=20, num_draws=2000), 2000, 1e-3
    shift = detectable_bias(20, num_draws, level)
    up = np.arange(20) % 2 == 0
    biased = law.probs * np.where(up, 1 + shift / law.probs[up].sum(), 1 - shift / law.probs[~up].sum())
    assert np.abs(biased - law.probs).sum() / 2 == pytest.approx(shift)
    seen = (p_values(law, biased, num_draws, num_runs=300, seed=2) < level).mean()
    assert seen > POWER - 0.08


def test_more_draws_see_smaller_biases_and_a_single_cell_sees_none():
    assert detectable_bias(20, 4000, 1e-3) == pytest.approx(detectable_bias(20, 1000, 1e-3) / 2, rel=1e-6)
    assert detectable_bias(1, 10**6, 1e-3) == 1.0
    assert fit(Distribution({(): 0}, np.ones(1)), [(3, 4)] * 5, 1e-3).p_value == 1.0
