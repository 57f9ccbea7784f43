"""Products with few tokens: torch's own numbers, of the weights as they are now, with memory for them or without."""

import pytest
import torch
from conftest import make_model
from torch import nn
from torch.nn import functional

from dsl_train.runners import linear
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.linear import Linear, worth_packing

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def make(dtype: torch.dtype, bias: bool = True) -> tuple[nn.Linear, Linear]:
    torch.manual_seed(0)
    module = nn.Linear(48, 64, bias=bias).to(dtype)
    matrix = Linear.of(module)
    if worth_packing([matrix]):
        matrix.follow()
    return module, matrix


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_products_are_those_of_torch(dtype, bias):
    module, matrix = make(dtype, bias)
    for num_tokens in (1, 2, 3, 5, 8, 17, 60):
        x = torch.randn(num_tokens, 48).to(dtype)
        torch.testing.assert_close(matrix(x), module(x), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@torch.inference_mode()
def test_without_memory_nothing_is_kept_twice(monkeypatch):
    monkeypatch.setattr(linear, "available_memory", lambda: 1000)
    module, matrix = make(torch.float32)
    assert matrix.layout.packed is None
    for num_tokens in (1, 8, 17):
        x = torch.randn(num_tokens, 48)
        torch.testing.assert_close(matrix(x), functional.linear(x, module.weight, module.bias), rtol=1e-5, atol=1e-5)


def test_all_who_run_a_model_share_what_is_kept_of_it():
    module, matrix = make(torch.float32)
    assert Linear.of(module).layout is matrix.layout


@pytest.mark.parametrize("way", ["in place", "behind torch's back"])
@torch.inference_mode()
def test_the_next_text_is_read_by_the_weights_as_they_are_then(way):
    model, other = make_model(seed=0), make_model(seed=1)
    runner, tokens = CachedModel(model), [5, 9, 13, 17]
    runner.logits(tokens, keep=4)
    for weight, new in zip(model.parameters(), other.parameters(), strict=True):
        (weight if way == "in place" else weight.data).copy_(new)
    runner.reset()
    expected = other(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(runner.logits(tokens, keep=4), expected, rtol=1e-4, atol=1e-4)
