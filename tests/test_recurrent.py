"""Models that fold the text into a state: the target's own text, whatever the draft, and states that stay small.

Every class of them writes a short text in tests/families too; here are long ones, and what only they can get wrong.
"""

import copy

import pytest
import torch
from conftest import make_model
from families.cells import Hostile
from families.zoo import ONE_BY_ONE, RECURRENT, VOCAB_SIZE, Family
from transformers import PreTrainedModel

import dsl_train
from dsl_train import hf
from dsl_train.base.sampling import Sampling
from dsl_train.bench.distribution import exact_distribution, fit
from dsl_train.loop.engine import SpeculativeEngine
from dsl_train.policies.registry import make_policy
from dsl_train.runners.cached import CachedModel
from dsl_train.runners.state import MOST_REREAD, StateDecoder, kind_of

#: A gated delta rule, Mamba 2, and attention beside it in one layer.
REPRESENTATIVE = ("Qwen3_5", "Mamba2", "FalconH1")
LONG = REPRESENTATIVE[:2]
FOLDING = [family for family in RECURRENT if not family.name.startswith(("Inkling", "Lfm"))]
#: Noise on the draft's weights, as a share of their spread.
NEVER, SOMETIMES, OFTEN, ALWAYS = 2.0, 0.1, 0.01, 0.0


def family(name: str) -> Family:
    return next(found for found in (*RECURRENT, *ONE_BY_ONE) if found.name == name)


def make(name: str, dtype: torch.dtype = torch.float64, **changes) -> PreTrainedModel:
    """Writes texts of any length. In float64 ties of rounding are rare enough; some scans compute in float32 inside."""
    model = family(name).make(max_position_embeddings=1024, **changes).to(dtype)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    model.generation_config.eos_token_id = None
    return model


def noisy(model: PreTrainedModel, noise: float) -> PreTrainedModel:
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in draft.parameters():
            if weight.dim() > 1:
                weight += (noise * weight.std() * torch.randn(weight.shape, generator=generator)).to(weight.dtype)
    return draft


def prompt_of(length: int) -> list[int]:
    return torch.randint(1, 48, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def own_text(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> tuple[int, ...]:
    written = model.generate(torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False)
    return tuple(written[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def long_texts() -> dict[str, tuple[PreTrainedModel, tuple[int, ...]]]:
    models = {name: make(name) for name in LONG}
    return {name: (model, own_text(model, prompt_of(3), 400)) for name, model in models.items()}


@pytest.mark.parametrize("name", LONG)
def test_texts_of_400_tokens_are_the_targets_own_whatever_the_draft(name, long_texts):
    target, expected = long_texts[name]
    shares = []
    for noise in (NEVER, SOMETIMES, OFTEN, ALWAYS):
        engine = SpeculativeEngine(CachedModel(target), CachedModel(noisy(target, noise)), make_policy("static:4"))
        result = engine.generate(prompt_of(3), 400)
        assert result.token_ids == expected
        shares.append(sum(r.num_accepted for r in result.rounds) / sum(len(r.drafted) for r in result.rounds))
    never, sometimes, often, always = shares
    assert never < 0.08 < sometimes < often <= always == 1.0


@pytest.mark.parametrize("length", [1, 150])
@pytest.mark.parametrize("name", [family.name for family in FOLDING])
def test_prompts_shorter_than_the_convolution_and_longer_than_chunks(name, length):
    """Chunks are of 16 tokens where that can be configured, and of 64 elsewhere."""
    target = make(name)
    engine = SpeculativeEngine(CachedModel(target), CachedModel(noisy(target, SOMETIMES)), Hostile())
    assert engine.generate(prompt_of(length), 24).token_ids == own_text(target, prompt_of(length), 24)


@pytest.mark.parametrize("name", ["Zamba2", "NemotronH"])
def test_time_steps_are_clamped_in_the_prompt_alone_as_generate_does(name):
    """transformers clamps them where it reads several tokens, and forgets it where it reads one."""
    target = make(name, time_step_min=0.5)
    before = {key: getattr(module, "time_step_limit", None) for key, module in target.named_modules()}
    expected = own_text(target, prompt_of(9), 40)
    engine = SpeculativeEngine(CachedModel(target), CachedModel(noisy(target, SOMETIMES)), make_policy("static:4"))
    assert engine.generate(prompt_of(9), 40).token_ids == expected
    assert {key: getattr(module, "time_step_limit", None) for key, module in target.named_modules()} == before
    assert any(limit and limit[0] == 0.5 for limit in before.values())


@pytest.mark.parametrize("family", ONE_BY_ONE, ids=lambda family: family.name)
def test_a_scan_that_begins_anew_drafts_one_token_at_a_time(family):
    """As the draft of itself it is accepted whole, unless a state went wrong."""
    model = make(family.name)
    assert not kind_of(model).reads_on
    prompt = prompt_of(20)
    runner, text = CachedModel(model), [*prompt, *own_text(model, prompt, 24)]
    runner.logits(prompt, keep=1)
    rows = runner.logits(text[:-1], keep=len(text) - len(prompt) - 1)
    assert rows.argmax(-1).tolist() == text[len(prompt) + 1 :]
    runner.truncate(len(prompt) + 5)
    assert runner.logits(text[:-1], keep=4).argmax(-1).tolist() == text[-4:]
    runner.logits([*text, *text], keep=1)
    assert len(runner._decoder._kept) == 1  # however many tokens it had to catch up with


@pytest.mark.parametrize("name", ["Qwen3_5", "Mamba"])
def test_a_recurrent_draft_of_a_target_that_attends(name):
    target, draft = make_model(0), family(name).make(vocab_size=64)
    prompt = [50, 27, 63, 6, 17]
    expected = own_text(target, prompt, 40)
    engine = SpeculativeEngine(CachedModel(target), CachedModel(draft), Hostile(), eos_token_ids=[0])
    assert engine.generate(prompt, 40).token_ids == expected
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": 40, "do_sample": False}
    ours = target.generate(ids, custom_generate=hf.decode, draft_model=draft, policy="static:3", **settings)
    assisted = target.generate(ids, assistant_model=dsl_train.attach(draft, policy="static:3"), **settings)
    for text in (ours, assisted):
        assert tuple(text[0, len(prompt) :].tolist()) == expected


def test_an_attention_draft_of_a_recurrent_target():
    target, draft = family("Qwen3_5").make(), make_model(0, vocab_size=VOCAB_SIZE)
    engine = SpeculativeEngine(CachedModel(target), CachedModel(draft), make_policy("random:0.7"))
    assert engine.generate(prompt_of(3), 60).token_ids == own_text(target, prompt_of(3), 60)


def test_a_round_is_one_forward_unless_too_much_would_be_read_again(monkeypatch):
    """With a draft that is always wrong the state stands still while a text grows by a token a round."""
    target = make("Qwen3_5", torch.float32)
    widths: list[int] = []
    forward = type(target).forward

    def counted(self, input_ids, **inputs):
        widths.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **inputs)

    text, own, runner = prompt_of(3), own_text(target, prompt_of(3), 200), CachedModel(target)
    monkeypatch.setattr(type(target), "forward", counted)
    for i, token_id in enumerate(own):
        wrong = [(other + 1) % VOCAB_SIZE for other in own[i : i + 4]]
        rows = runner.logits([*text, *wrong], keep=len(wrong) + 1)
        assert int(rows[0].argmax()) == token_id
        text.append(token_id)
        runner.truncate(len(text) - 1)
    assert max(widths) <= MOST_REREAD + 5
    assert len(widths) <= len(own) * (1 + 1 / MOST_REREAD) + 1


class Weighed(CachedModel):
    """Notes what the kept copies take after each forward, by the text's length."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.num_bytes: dict[int, int] = {}

    def logits(self, token_ids, keep):
        rows = super().logits(token_ids, keep)
        assert isinstance(self._decoder, StateDecoder)
        self.num_bytes[len(token_ids)] = self._decoder.num_kept_bytes
        return rows


def test_what_is_kept_does_not_grow_with_the_text():
    target = make("FalconH1", torch.float32)
    runners = Weighed(target), Weighed(noisy(target, SOMETIMES))
    SpeculativeEngine(*runners, make_policy("static:4")).generate(prompt_of(3), 200)
    one = min(size for size in runners[0].num_bytes.values() if size)
    for runner, most in zip(runners, (2, 4), strict=True):  # a forward in two parts; four drafted tokens a round
        for part in (range(4, 104), range(104, 204)):
            assert one <= max(size for length, size in runner.num_bytes.items() if length in part) <= most * one
        assert runner._decoder.num_kept_bytes == 0


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_sampled_texts_follow_the_targets_exact_law(name):
    """Three tokens of eight: the prompt's own, and two that may be drafted; the false alarm is 1e-4 each."""
    target = family(name).make(vocab_size=8)
    draft, sampling, num_draws = noisy(target, 0.3), Sampling(1.0), 300
    law = exact_distribution(CachedModel(target), [3, 5], sampling, [0], 3, num_draws)
    engine = SpeculativeEngine(CachedModel(target), CachedModel(draft), make_policy("static:2"), sampling, [0])
    found = [engine.generate([3, 5], 3, seed=seed) for seed in range(num_draws)]
    accepted = sum(finished.num_accepted for text in found for finished in text.rounds)
    drafted = sum(len(finished.drafted) for text in found for finished in text.rounds)
    assert 0.1 < accepted / drafted < 0.95
    assert fit(law, [text.token_ids for text in found], level=1e-4).p_value > 1e-4
