"""Refusals name the model, the reason and the way out."""

import pytest
import torch
from conftest import make_model, make_tokenizer
from families.causal_classes import outcome
from families.zoo import FAMILIES, REFUSED
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForSequenceClassification

from dsl_train import attach, generate
from dsl_train.base.records import DslError
from dsl_train.pair.loading import load_pair
from dsl_train.runners.supported import check_pair_supported, check_supported


def test_a_recurrent_model_is_refused_when_it_is_loaded_and_when_it_is_given(tmp_path):
    mamba = next(family for family in REFUSED if family.model.startswith("Mamba")).make()
    mamba.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    sentence = r"target .*mamba \(MambaForCausalLM\) cannot be used .* cannot go back .*choose a model"
    with pytest.raises(DslError, match=sentence):
        load_pair(str(tmp_path), str(tmp_path))
    with pytest.raises(DslError, match=sentence.replace("target .*", "draft: ")):
        generate(make_model(0), mamba, [1, 2], tokenizer=make_tokenizer())


@pytest.mark.filterwarnings("ignore")  # of transformers' models in construction
@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.name)
def test_an_attached_draft_and_its_target_are_refused_by_name(family):
    refused, llama, options = family.make(), FAMILIES[0].make(), {"max_new_tokens": 4, "do_sample": False}
    with pytest.raises(DslError, match=rf"draft: .*{family.model}\) cannot be used .*; (choose|load) a"):
        attach(refused, policy="static:2")
    draft = attach(llama, policy="static:2")
    # transformers refuses a target that it knows to be recurrent before it looks at the draft
    error, sentence = (ValueError, "not supported with stateful") if refused._is_stateful else (DslError, "target: ")
    with pytest.raises(error, match=rf"{sentence}.*{family.model}"):
        refused.generate(torch.tensor([[5, 9, 13]]), assistant_model=draft, **options)


def test_a_state_that_transformers_does_not_name_is_found_in_the_cache():
    model = make_model(0)
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(DslError, match="its LinearAttentionLayer cannot be rolled back"):
        check_supported(model, "target")


def test_a_head_that_writes_no_text_is_refused():
    shape = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    model = LlamaForSequenceClassification(LlamaConfig(**shape, pad_token_id=0))
    with pytest.raises(DslError, match="no language-modelling head; load it with AutoModelForCausalLM"):
        check_supported(model, "draft")


def test_an_encoder_is_refused_unless_it_was_made_a_decoder():
    shape = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    with pytest.raises(DslError, match="reads in both directions"):
        check_supported(BertLMHeadModel(BertConfig(**shape)), "target")
    check_supported(BertLMHeadModel(BertConfig(**shape, is_decoder=True)), "target")


def test_a_quantized_cache_is_refused():
    model = make_model(0)
    model.generation_config.cache_implementation = "quantized"
    with pytest.raises(DslError, match=r"quantized cache.*cache_implementation = None"):
        check_supported(model, "target")


def test_two_vocabularies_are_refused_with_both_sizes():
    with pytest.raises(DslError, match="64 and 2000 tokens; choose a draft of the same family"):
        check_pair_supported(make_model(0), make_model(0, vocab_size=2000))


def test_a_model_that_feeds_tokens_of_its_own_is_refused():
    model = make_model(0)
    model.config.prompt_length = 32
    with pytest.raises(DslError, match="it feeds 32 tokens of its own before the text"):
        check_supported(model, "target")


@pytest.mark.parametrize(
    "name",
    ["Roberta", "Camembert", "XLMRoberta", "XLMRobertaXL", "Data2VecText", "RobertaPreLayerNorm", "TrOCR", "Moshi"],
)
def test_positions_are_those_that_generate_passes(name):
    """The first six count theirs from the padding id unless they are given; TrOCR returns the logits of all tokens."""
    assert outcome(f"{name}ForCausalLM") == "equal"
