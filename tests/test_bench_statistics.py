"""Rates, ratios and their bootstrap intervals."""

import numpy as np

from dsl_train.bench import statistics
from dsl_train.bench.statistics import Rates


def rates(tokens: list[float], cost: list[float]) -> Rates:
    return Rates(np.array(tokens), np.array(cost))


def test_a_rate_is_all_tokens_over_all_seconds_and_not_a_mean_of_rates():
    interval = statistics.rate(rates([10, 30], [1, 1.5]), statistics.draws(2))
    assert interval.estimate == 16.0  # (10 + 30) / 2.5; the mean of rates would be 15
    assert (interval.lower, interval.upper) == (10.0, 20.0)  # both draws of one prompt


def test_equal_prompts_leave_no_uncertainty():
    interval = statistics.rate(rates([20] * 5, [2] * 5), statistics.draws(5))
    assert (interval.estimate, interval.lower, interval.upper) == (10, 10, 10)


def test_a_paired_ratio_ignores_what_both_sides_share():
    seconds = np.array([1.0, 5.0, 30.0, 2.0, 11.0])
    tokens = np.full(5, 64.0)
    counts = statistics.draws(5)
    twice = statistics.ratio(Rates(tokens, seconds / 2), Rates(tokens, seconds), counts)
    np.testing.assert_allclose([twice.estimate, twice.lower, twice.upper], 2.0)
    alone = statistics.rate(Rates(tokens, seconds), counts)
    assert alone.upper / alone.lower > 2


def test_draws_take_as_many_prompts_as_there_are_and_repeat_with_the_seed():
    counts = statistics.draws(7, num_samples=50, seed=3)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(counts, statistics.draws(7, num_samples=50, seed=3))


def test_intervals_cover_the_truth_about_nineteen_times_in_twenty():
    generator = np.random.default_rng(0)
    truth, covered, trials = 100 / np.exp(0.5 * 0.3**2), 0, 300
    for trial in range(trials):
        sample = Rates(np.full(40, 100.0), generator.lognormal(0, 0.3, 40))
        covered += not statistics.rate(sample, statistics.draws(40, 400, seed=trial)).excludes(truth)
    assert 0.90 <= covered / trials <= 0.98  # seeded; a fair 93 % leaves this range once in 30 choices of seed


def test_the_fastest_is_the_highest_rate_and_none_of_none():
    assert statistics.fastest({"a": rates([10], [2]), "b": rates([10], [1]), "c": rates([20], [2])}) == "b"
    assert statistics.fastest({}) is None
