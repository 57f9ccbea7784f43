"""Sampling: the first tokens follow the target's own law under a hostile decision, which vLLM's rejection sampler is to
make up for. One in 10,000 such runs fails by chance."""

import copy

import pytest
import torch
from conftest import make_tokenizer
from engines import decide, make_engine, runner_of
from scipy.stats import chi2
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import SamplingParams

from dsl_train.base.records import Round
from dsl_train.vllm.request import RequestText

VOCAB, PROMPT, NUM_TEXTS = 64, [5, 9, 23, 9], 6000


class LooksAtTokens:
    """Drafts one more after some tokens than after others: whoever dropped a token by its value would bend the law."""

    name, needs_features, needs_primitives, without_entropy = "looks at tokens", False, True, True
    num_questions = num_stops = 0

    def policy(self) -> None:
        return None

    def begin(self, num_requests: int) -> int:
        return 4

    def wanted(self, requests: list[RequestText], position: int) -> list[RequestText]:
        return [r for r in requests if position == 0 or (r.block[-1] * 7 + r.tokens[-1]) % 3]

    def observe(self, request: RequestText, finished: Round) -> None:
        self.num_rejected = getattr(self, "num_rejected", 0) + (not finished.all_accepted)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    target = LlamaForCausalLM(config).eval()
    draft = copy.deepcopy(target)
    with torch.no_grad():
        for weight in draft.parameters():
            if weight.dim() > 1:
                weight += 0.3 * weight.std() * torch.randn_like(weight)
    root = tmp_path_factory.mktemp("tiny")
    for name, model in (("target", target), ("draft", draft)):
        model.save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    return root, target


@torch.inference_mode()
def law(target) -> torch.Tensor:
    """Of the second and third token together, [V, V] float64."""

    def next_probs(texts: torch.Tensor) -> torch.Tensor:
        return target(texts).logits[:, -1].double().softmax(-1)

    every = torch.arange(VOCAB)
    first = next_probs(torch.tensor([PROMPT]))[0]  # [V]
    two = torch.cat([torch.tensor([PROMPT]).expand(VOCAB, -1), every[:, None]], dim=1)  # [V, 5]
    second = next_probs(two)  # [V, V]
    three = torch.cat([two.repeat_interleave(VOCAB, 0), every.repeat(VOCAB)[:, None]], dim=1)  # [V * V, 6]
    third = next_probs(three).view(VOCAB, VOCAB, VOCAB)
    return torch.einsum("a,ab,abc->bc", first, second, third)


@pytest.mark.parametrize("draft_sample_method", ["greedy", "probabilistic"])
def test_sampled_tokens_follow_the_targets_law(folders, draft_sample_method, monkeypatch):
    root, target = folders
    monkeypatch.setenv("DSL_TRAIN_POLICY", "static:1")  # anything: the decision is replaced
    engine = make_engine(
        str(root / "target"),
        str(root / "draft"),
        {"num_speculative_tokens": 4, "draft_sample_method": draft_sample_method},
        max_model_len=32,
        max_num_seqs=64,
    )
    recorded = decide(engine, LooksAtTokens())
    params = SamplingParams(temperature=1.0, max_tokens=6, ignore_eos=True)
    done = engine.generate([{"prompt_token_ids": PROMPT}] * NUM_TEXTS, params, use_tqdm=False)
    assert recorded.num_rejected > 500
    counts = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for answer in done:
        _, second, third, *_ = answer.outputs[0].token_ids
        counts[second, third] += 1
    expected = law(target) * NUM_TEXTS
    common = expected >= 5
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    assert statistic < chi2.ppf(1 - 1e-4, len(wanted) - 1), (statistic, len(wanted))
    assert len(wanted) > 50
    assert runner_of(engine).drafter.speculative_config.draft_sample_method == draft_sample_method
