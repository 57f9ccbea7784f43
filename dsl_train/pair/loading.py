"""A target and a draft from folders or the Hub, checked to belong together.

Knows transformers' loading; knows no cache, policy or file of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dsl_train.base.records import DslError, first_line
from dsl_train.pair import vocabulary
from dsl_train.pair.identity import ModelIdentity, describe_model
from dsl_train.pair.source import ModelSource, find_source, require, tokenizer_source
from dsl_train.runners.supported import check_encoder_decoder, check_pair_supported, check_supported

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Kind = Literal["decoder-only", "encoder-decoder", "speech"]
"""The last is an encoder-decoder that reads audio."""
_CLASSES: dict[Kind, Any] = {
    "decoder-only": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "speech": AutoModelForSpeechSeq2Seq,
}


@dataclass(frozen=True, eq=False)
class Pair:
    """Both models in eval mode on one device, with logits over one vocabulary."""

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target_identity: ModelIdentity
    draft_identity: ModelIdentity

    @property
    def kind(self) -> Kind:
        return kind_of(self.target.config)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text: the target's generation configuration, else its tokenizer's."""
        configured = getattr(self.target.generation_config, "eos_token_id", None)
        found = self.tokenizer.eos_token_id if configured is None else configured
        return frozenset(found if isinstance(found, list) else [] if found is None else [found])

    def describe(self) -> dict[str, dict[str, Any]]:
        """`{"target": …, "draft": …}` for manifests and artifacts."""
        return {"target": self.target_identity.to_dict(), "draft": self.draft_identity.to_dict()}


@dataclass(frozen=True)
class Placement:
    """How and where a model is loaded."""

    dtype: torch.dtype
    device: torch.device
    device_map: str | None = None
    """Spread over several devices by accelerate (`auto`, `balanced`, …); None: all on `device`."""
    quantization: str | None = None
    """`8bit` or `4bit`"""

    def options(self) -> dict[str, Any]:
        """For `from_pretrained`. Raises DslError if a library is missing."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.device_map or self.quantization:
            require(("accelerate",), "--device_map and --quantization need", "gpu")
            options["device_map"] = self.device_map or {"": self.device}
        if self.quantization:
            require(("bitsandbytes",), "--device_map and --quantization need", "gpu")
            bits = {f"load_in_{self.quantization}": True}
            options["quantization_config"] = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=self.dtype)
        return options


def load_pair(
    target: str,
    draft: str,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    quantization: str | None = None,
    own_tokenizers: bool = False,
) -> Pair:
    """Load both models. `device` auto is CUDA if there is one; `dtype` auto is float32 on the CPU, else bfloat16;
    `device_map` and `quantization` are the target's (`Placement`). With `own_tokenizers` the draft may speak other
    tokens; the pair has the target's tokenizer.

    Raises DslError for a missing, foreign or damaged folder and for two different vocabularies.
    """
    place = resolve_device(device)
    precision = DTYPES[resolve_dtype(dtype, place)]
    target_model = load_model(target, "target", Placement(precision, place, device_map, quantization))
    draft_model = load_model(draft, "draft", Placement(precision, target_model.device))
    identities = (describe_model(target_model, target, quantization), describe_model(draft_model, draft))
    check_pair_supported(target_model, draft_model)
    pair = Pair(target_model, draft_model, load_tokenizer(target), *identities)
    if not own_tokenizers:
        if tokenizer_source(draft):
            vocabulary.check_same(pair.tokenizer, load_tokenizer(draft), target, draft)
        vocabulary.share_width(pair.target, pair.draft, len(pair.tokenizer), target, draft)
    return pair


def load_draft(draft: str, dtype: str = "auto", device: str = "auto") -> Pair:
    """A draft in both roles, with its own tokenizer, its target not being at hand. Raises DslError like `load_pair`."""
    place = resolve_device(device)
    model = load_model(draft, "draft", Placement(DTYPES[resolve_dtype(dtype, place)], place))
    identity = describe_model(model, draft)
    return Pair(model, model, load_tokenizer(draft), identity, identity)


def share_tokenizer(target: str, draft: str) -> bool:
    """Whether both speak the same tokens; a draft without a tokenizer of its own is taken to."""
    return tokenizer_source(draft) is None or vocabulary.are_same(load_tokenizer(target), load_tokenizer(draft))


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA if there is one, else the CPU. Raises DslError for a device that this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DslError(f"device {device!r} cannot be used ({first_line(error)}); try --device cpu") from error
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> Dtype:
    """`auto` is float32 on the CPU, else bfloat16. Raises DslError for an unknown name."""
    name = ("float32" if device.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
    if name not in DTYPES:
        raise DslError(f"dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")
    return cast(Dtype, name)


def load_model(name: str, role: str, placement: Placement) -> PreTrainedModel:
    """One language model in eval mode, decoder-only or encoder-decoder, with its adapter merged if it is one of PEFT;
    `role` (target, draft) is for messages."""
    source, options = find_source(name, role), placement.options()
    if source.adapter and placement.quantization:
        raise DslError(
            f"{role} {name} is an adapter, which does not merge exactly into {placement.quantization} weights; "
            "leave --quantization out, or merge it first with merge_and_unload and save_pretrained"
        )
    with _naming(name, role):
        kind = kind_of(AutoConfig.from_pretrained(source.name, **source.options))
        loaded: Any = _CLASSES[kind].from_pretrained(source.name, output_loading_info=True, **source.options, **options)
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise DslError(
            f"{role} {name} lacks {len(missing)} of its weights, {missing[0]} first; download or save it again"
        )
    if source.adapter:
        with _naming(name, role):
            model = _merged(model, source.adapter)
    (check_supported if kind == "decoder-only" else check_encoder_decoder)(model, role)
    return (model if "device_map" in options else model.to(placement.device)).eval()


def _merged(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The adapter's difference added to the model's weights. Raises DslError for one that adds no difference."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, adapter)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = str(adapted.peft_config["default"].peft_type).rpartition(".")[2]
        raise DslError(f"its adapter is {kind}, which has no weights to merge; give one that has, such as LORA")
    return cast(PreTrainedModel, adapted.merge_and_unload())


def identify(name: str, role: str, dtype: torch.dtype, quantization: str | None = None) -> ModelIdentity:
    """Who a model is once it is loaded, from its configuration alone: a second instead of minutes."""
    source = find_source(name, role)
    with _naming(name, role), torch.device("meta"):
        config = AutoConfig.from_pretrained(source.name, **source.options)
        model = _CLASSES[kind_of(config)].from_config(config, dtype=dtype)
    return describe_model(model, name, quantization)


def kind_named(name: str) -> Kind:
    """Of a model that `identify` has found."""
    source = find_source(name, "model")
    return kind_of(AutoConfig.from_pretrained(source.name, **source.options))


def kind_of(config: PreTrainedConfig) -> Kind:
    """What a model of this configuration reads and how."""
    if not config.is_encoder_decoder:
        return "decoder-only"
    return "speech" if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING else "encoder-decoder"


@contextmanager
def _naming(name: str, role: str) -> Iterator[None]:
    """Say which model it was that could not be loaded."""
    try:
        yield
    except Exception as error:  # transformers and the libraries below it have a dozen classes for this
        damaged = isinstance(error, SafetensorError)
        reason = "has a damaged weights file" if damaged else _unreadable(name, "a language model that generates")
        raise DslError(
            f"{role} {name} {reason} ({first_line(error)}); download or save it again, "
            "or give a folder written by save_pretrained or a Hub id"
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Raises DslError if there is none."""
    source = tokenizer_source(name) or ModelSource(name)
    try:
        return AutoTokenizer.from_pretrained(source.name, **source.options)
    except Exception as error:  # as above
        raise DslError(
            f"{name} {_unreadable(name, 'a folder with a tokenizer')} ({first_line(error)}); check the name, "
            f"or save a tokenizer beside the model with tokenizer.save_pretrained({name!r})"
        ) from error


@contextmanager
def library_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Set the model's own generation settings aside: nothing but what `generate` is given then applies."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _unreadable(name: str, wanted: str) -> str:
    return f"is not {wanted}" if Path(name).is_dir() else f"is neither {wanted} here nor one readable from the Hub"
