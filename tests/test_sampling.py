import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dsl_train.base.sampling import Sampling, draw


def test_greedy_is_the_one_hot_distribution():
    probs = Sampling().probs(torch.tensor([[0.1, 3.0, 2.0], [5.0, 0.0, 0.0]]))
    assert probs.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_probs_equal_transformers_warpers_in_their_order():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    scores = TemperatureLogitsWarper(0.7)(None, logits)
    scores = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(10)(None, scores))
    torch.testing.assert_close(Sampling(0.7, 10, 0.8).probs(logits), scores.softmax(-1))


def test_features_read_logits_at_temperature_before_truncation():
    logits = torch.tensor([[1.0, 2.0]])
    assert Sampling(0.5, top_k=1).scale(logits).tolist() == [[2.0, 4.0]]
    assert Sampling(0.0).scale(logits) is logits


@pytest.mark.parametrize(
    ("settings", "message"),
    [((-1.0,), "temperature"), ((1.0, -2), "top_k"), ((1.0, 0, 0.0), "top_p"), ((1.0, 0, 1.5), "top_p")],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(*settings)


def test_the_same_seed_draws_the_same_tokens():
    probs = torch.full((100, 10), 0.1)
    first, second = (draw(probs, torch.Generator().manual_seed(3)).tolist() for _ in range(2))
    assert first == second
    assert len(set(first)) > 5
