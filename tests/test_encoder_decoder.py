"""Encoder-decoder pairs through the engine's own door and through transformers', beyond the cells of the families."""

import pytest
import torch
from families.cells import Hostile
from families.zoo import ENCODER_DECODERS, END, FAMILIES, make_pair
from transformers import GenerationMixin

import dsl_train
from dsl_train.base.records import DslError
from dsl_train.loop.engine import SpeculativeEngine, autoregressive
from dsl_train.policies.registry import make_policy
from dsl_train.runners.encoder_decoder import EncoderDecoderModel

T5, WHISPER = (next(family for family in ENCODER_DECODERS if family.model.startswith(name)) for name in ("T5", "Whis"))


@pytest.fixture(scope="module")
def t5():
    return make_pair(T5)


@pytest.fixture(scope="module")
def whisper():
    return make_pair(WHISPER)


def text(length=6, seed=0):
    return torch.randint(1, 48, (1, length), generator=torch.Generator().manual_seed(seed))


def test_one_encoding_serves_any_number_of_texts(t5):
    target, draft = (EncoderDecoderModel.encode(model, text()) for model in t5)
    engine = SpeculativeEngine(target, draft, make_policy("static:3"))
    for start in ([1], [1, 5, 6], [1]):
        assert engine.generate(start, 20).token_ids == autoregressive(target, start, 20).token_ids


def test_a_masked_input_is_the_input_without_what_is_hidden(t5):
    target, draft = t5
    padded, mask = torch.cat([text(), torch.full((1, 3), 7)], dim=1), torch.tensor([[1] * 6 + [0] * 3])
    short = EncoderDecoderModel.encode(target, text())
    hidden = EncoderDecoderModel.encode(target, padded, mask)
    assert autoregressive(hidden, [1], 20).token_ids == autoregressive(short, [1], 20).token_ids
    options = {"max_new_tokens": 20, "do_sample": False}
    alone = target.generate(text(), **options)
    ways = ({"custom_generate": dsl_train.hf.decode, "draft_model": draft, "policy": Hostile()}, {})
    ways[1]["assistant_model"] = dsl_train.attach(draft, policy=Hostile())
    for way in ways:
        assert target.generate(padded, attention_mask=mask, **options, **way).tolist() == alone.tolist()


def test_the_decoders_context_ends_the_text(whisper):
    target, draft = (EncoderDecoderModel.encode(model, torch.randn(1, 8, 40)) for model in whisper)
    result = SpeculativeEngine(target, draft, make_policy("static:4")).generate([1], 500)
    assert len(result.token_ids) == target.context == 128
    assert result.token_ids == autoregressive(target, [1], 500).token_ids


def test_whispers_own_generate_takes_both_ways_in(whisper):
    target, draft = whisper
    features = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 20, "do_sample": False}
    alone = target.generate(features, **options).tolist()
    decoded = target.generate(
        features, custom_generate=dsl_train.hf.decode, draft_model=draft, policy=Hostile(), **options
    )
    assert decoded.tolist() == alone
    assert (
        target.generate(features, assistant_model=dsl_train.attach(draft, policy=Hostile()), **options).tolist()
        == alone
    )


def test_a_decoder_cannot_draft_for_an_encoder_decoder_nor_the_other_way_round(t5):
    target, _ = t5
    alone = FAMILIES[0].make()
    way = {"custom_generate": dsl_train.hf.decode, "policy": "static:2", "max_new_tokens": 3}
    with pytest.raises(DslError, match=r"draft: llama \(LlamaForCausalLM\).*it has no encoder"):
        GenerationMixin.generate(target, text(), draft_model=alone, **way)
    with pytest.raises(DslError, match=r"draft: t5 \(T5ForConditionalGeneration\).*it is an encoder-decoder"):
        alone.generate(text(), draft_model=target, **way)


def test_scores_come_with_the_encoder_decoders_own_output_type(t5):
    target, draft = t5
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    expected = target.generate(text(), **options)
    found = target.generate(text(), custom_generate=dsl_train.hf.decode, draft_model=draft, policy=Hostile(), **options)
    assert type(found) is type(expected)
    torch.testing.assert_close(torch.cat(found.scores), torch.cat(expected.scores), rtol=0, atol=1e-3)
    assert END not in found.sequences[0, 1:-1]
