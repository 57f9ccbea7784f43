"""What a request asked of its decoder, as a log says it: which law its response was drawn from.

Knows the parameter names of transformers, vLLM, SGLang, TGI and OpenAI; knows no tokenizer and no model.
"""

import re
from typing import Any

from dsl_train.base.records import DslError
from dsl_train.base.sampling import Sampling

#: Change the target's distribution in a way the draft's is not changed: what was accepted is then not what would be.
#: Each with the value that does nothing, besides null, false, 0 and empty.
_TRANSFORMS: dict[str, float] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "guidance_scale"), 1),
    **dict.fromkeys(("num_beams", "best_of"), 1),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "top_h", "top_a", "tfs_z", "xtc_probability"), 0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_tokens", "min_new_tokens"), 0),
    **dict.fromkeys(("min_length", "dry_multiplier", "mirostat", "penalty_alpha", "watermark"), 0),
    **dict.fromkeys(("logit_bias", "sequence_bias", "bad_words", "bad_words_ids", "banned_words", "banned_tokens"), 0),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "allowed_token_ids", "logits_processors"), 0),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"), 0),
    **dict.fromkeys(("structured_outputs", "response_format", "json_schema", "regex", "ebnf", "grammar"), 0),
    **dict.fromkeys(("structural_tag", "tool_choice", "functions", "lora_request", "adapter_id"), 0),
}
#: Relatives of theirs with names of their own. A length penalty only ranks beams.
_RELATIVES = re.compile(r"(?<!^length)_penalty$|^guided_|custom_logit_processor")
NESTED = ("sampling_params", "generation_config", "sampling", "parameters")


def settings_of(where: str, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns, with those of nested objects (`sampling_params`, `generation_config`, …) among them.

    Raises DslError for a nested one that is no object.
    """
    settings = dict(columns)
    for name in NESTED:
        nested = columns.get(name)
        if nested is not None and not isinstance(nested, dict):
            raise DslError(f"{where}: {name} holds {str(nested)[:60]!r}, not an object of parameters")
        settings |= nested or {}
    return settings


def refuse_transforms(where: str, settings: dict[str, Any]) -> None:
    """Raises DslError naming the first parameter that changed the target's law, and its value."""
    for name, value in settings.items():
        if (name in _TRANSFORMS or _RELATIVES.search(name)) and not _neutral(value, _TRANSFORMS.get(name, 0)):
            raise DslError(
                f"{where}: drawn with {name} {_brief(value)}, which changes what the target says but not what the "
                "draft says; its labels would be wrong"
            )


def stated_sampling(where: str, settings: dict[str, Any], default: Sampling) -> Sampling:
    """Temperature, top-k and top-p as the request says; `default` for what it does not say.

    Raises DslError for values that no sampler has.
    """
    stated = {name: settings.get(name) for name in ("temperature", "top_k", "top_p")}
    if settings.get("do_sample") in (False, "false", "False"):
        stated["temperature"] = 0.0
    try:
        return Sampling(
            temperature=_number(stated["temperature"], default.temperature),
            top_k=max(0, int(_number(stated["top_k"], default.top_k))),  # -1 is vLLM's way to switch it off
            top_p=_number(stated["top_p"], default.top_p),
        )
    except (ValueError, TypeError) as error:
        raise DslError(f"{where}: no sampling parameters ({error}); mend or remove them") from error


def _neutral(value: Any, neutral: float) -> bool:
    if value == {"type": "text"} or value == "auto":  # response_format; tool_choice
        return True
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value.strip().lower() in ("", "none", "null", "false", "[]", "{}")
    return not value or value == neutral


def _number(value: Any, default: float) -> float:
    return default if value is None or value == "" else float(value)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
