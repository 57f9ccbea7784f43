"""Which models can take part, and one sentence for each that cannot.

Looks at a loaded model's class, configuration and the cache transformers would give it; runs those alone that keep a
state, on five tokens.
"""

from transformers import DynamicCache, PreTrainedModel

from dsl_train.base.records import DslError
from dsl_train.runners.state import cache_argument, is_linear, kind_of

#: Tokens by which sizes of one family pad one vocabulary differently, at most.
_PADDING = 1024
#: Encoders that can be loaded as causal models: they read in both directions unless configured otherwise.
_TWO_WAY = {"is_decoder", "add_cross_attention"}


def check_pair_supported(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """Raises DslError unless both models can generate together: of one kind, and over one vocabulary as far as its
    size tells."""
    check_kinds(target, draft)
    bins = [getattr(model.config, "num_mel_bins", None) for model in (target, draft)]
    if bins[0] != bins[1]:
        raise DslError(
            f"target {target.name_or_path} and draft {draft.name_or_path} read different audio features: {bins[0]} and "
            f"{bins[1]} mel bins; choose a draft of the same release"
        )
    sizes = [model.config.get_text_config().vocab_size for model in (target, draft)]
    if sizes[0] != sizes[1] and not differ_by_padding(*sizes):
        raise DslError(
            f"target {target.name_or_path} and draft {draft.name_or_path} have different vocabularies: {sizes[0]} and "
            f"{sizes[1]} tokens; choose a draft of the same family"
        )


def differ_by_padding(size: int, other: int) -> bool:
    """Whether two vocabulary sizes can be one vocabulary, padded differently."""
    return 0 < abs(size - other) <= _PADDING


def check_runs(model: PreTrainedModel, role: str) -> None:
    """Raises DslError unless `model` can be the `role` of a pair of its own kind."""
    (check_encoder_decoder if model.config.is_encoder_decoder else check_supported)(model, role)


def check_kinds(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """The same for a pair whose tokenizers differ."""
    check = check_encoder_decoder if target.config.is_encoder_decoder else check_supported
    check(target, "target")
    check(draft, "draft")


def check_supported(model: PreTrainedModel, role: str) -> None:
    """Raises DslError unless `model` can be the `role` (target, draft) of a decoder-only pair."""
    obstacle = _head(model) or _direction(model) or _state(model, role) or _precision(model)
    if obstacle:
        raise _refusal(model, role, obstacle)


def check_encoder_decoder(model: PreTrainedModel, role: str) -> None:
    """The same for encoder-decoder pairs."""
    if not model.config.is_encoder_decoder:
        obstacle = "it has no encoder; pair it with a decoder-only model through dsl_train.generate"
    else:
        obstacle = _state(model, role) or _precision(model)
    if obstacle:
        raise _refusal(model, role, obstacle)


def _refusal(model: PreTrainedModel, role: str, obstacle: str) -> DslError:
    named = f" {model.name_or_path}" if model.name_or_path else ""
    kind = f"{model.config.model_type} ({type(model).__name__})"
    return DslError(f"{role}{named}: {kind} cannot be used for speculative decoding: {obstacle}")


def _head(model: PreTrainedModel) -> str:
    if not type(model).can_generate():
        return "it has no language-modelling head; load it with AutoModelForCausalLM"
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder and this is the decoder-only way in; use dsl_train.runners.encoder_decoder"
    return ""


def _direction(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    if all(hasattr(config, name) for name in _TWO_WAY) and not config.is_decoder:
        return "it reads in both directions; load a causal model, or set is_decoder=True if it was trained as one"
    return ""


def _state(model: PreTrainedModel, role: str) -> str:
    """Rollback must be exact: every layer keeps what each token left behind, or a state that can be kept."""
    advice = "choose a model whose layers all attend to a cache, or generate with the target alone"
    if getattr(model.config, "prompt_length", 0):  # CPM-Ant
        return f"it feeds {model.config.prompt_length} tokens of its own before the text at every call; {advice}"
    if not (cache_argument(model) and model._supports_default_dynamic_cache()):  # type: ignore[operator]  # annotated as Tensor
        return f"it keeps its past in a form of its own that cannot be rolled back; {advice}"
    layers = DynamicCache(config=model.config).layers
    strange = {type(layer).__name__ for layer in layers if not (is_linear(layer) or layer.is_croppable)}
    if strange:
        return f"its {', '.join(sorted(strange))} cannot be rolled back to before a rejected token; {advice}"
    kind = kind_of(model)
    if kind.lies_elsewhere:
        return f"it keeps its state outside the cache, where it cannot be put back after a rejected token; {advice}"
    if model._is_stateful and not kind.folds:  # said by the modelling code itself, but of another cache
        return f"its layers fold the text into a state that cannot go back before a rejected token; {advice}"
    if role == "target" and not kind.reads_on:
        return (
            "its scan reads several tokens from an empty state, so a block would be verified one token at a time; it "
            "can be a draft, or generate with the target alone"
        )
    return ""


def _precision(model: PreTrainedModel) -> str:
    if model.generation_config is not None and model.generation_config.cache_implementation == "quantized":
        return (
            "its generation_config asks for a quantized cache, whose rounding depends on how many tokens a step reads; "
            "set model.generation_config.cache_implementation = None"
        )
    return ""
