"""Every causal class of transformers that a small configuration can build: our text against `generate`'s own."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import dsl_train
from dsl_train import hf
from dsl_train.base.records import DslError
from families.zoo import _SHAPE, SPREAD

MOST_WEIGHTS = 10_000_000  # larger ones have sizes of other names
PROMPT = torch.tensor([[5, 9, 13, 12, 7]])
SETTINGS = _SHAPE | {
    "pad_token_id": 1,
    "is_decoder": True,
    "head_dim": 8,
    "ffn_dim": 48,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
}


def class_names() -> list[str]:
    return sorted(set(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def build(name: str) -> PreTrainedModel:
    kind: Any = getattr(transformers, name)
    with torch.device("meta"):
        num_weights = sum(weight.numel() for weight in kind(kind.config_class(**SETTINGS)).parameters())
    if num_weights > MOST_WEIGHTS:
        raise ValueError(f"{num_weights} weights")
    torch.manual_seed(0)
    model: PreTrainedModel = kind(kind.config_class(**SETTINGS)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, SPREAD)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model


def outcome(name: str) -> str:
    """`equal`, `refused: ...`, `not built: ...`, or what is wrong."""
    try:
        model = build(name)
        expected = text(model)
    except Exception as error:  # a configuration of another form: nothing to compare
        return f"not built: {type(error).__name__}"
    try:
        found = text(model, custom_generate=hf.decode, draft_model=model, policy="static:3")
        assisted = text(model, assistant_model=dsl_train.attach(model, policy="static:3"))
    except DslError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {error}"
    wrong = [way for way, ids in (("custom_generate", found), ("attach", assisted)) if ids != expected]
    return f"ANOTHER TEXT by {' and '.join(wrong)}" if wrong else "equal"


def text(model: PreTrainedModel, **options: Any) -> list[int]:
    written: torch.Tensor = model.generate(PROMPT, max_new_tokens=20, do_sample=False, **options)  # type: ignore[operator]
    return [int(token_id) for token_id in written[0]]


def outcomes() -> Iterator[tuple[str, str]]:
    for name in class_names():
        if hasattr(transformers, name):
            yield name, outcome(name)
