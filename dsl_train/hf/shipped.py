"""What the loader in a draft's `dsl` folder (`loader.py`) calls:

    target.generate(**inputs, custom_generate="<draft>/dsl", trust_remote_code=True)

transformers imports the loader from its own cache and does not pass the folder on, so the folder is read from the call.
"""

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria
from transformers.utils import ModelOutput

from dsl_train.api.serving import load_predictor
from dsl_train.base.policy import Policy
from dsl_train.base.records import DslError
from dsl_train.hf.callers import running
from dsl_train.hf.decoding import decode
from dsl_train.pair.loading import Placement, load_model
from dsl_train.predictor.runtime import Predictor


def generate(
    model: PreTrainedModel,
    draft_model: PreTrainedModel | None = None,
    assistant_model: PreTrainedModel | None = None,
    predictor: Predictor | str | Path | None = None,
    policy: str | Policy = "learned",
    tokenizer: PreTrainedTokenizerBase | None = None,
    assistant_tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    **options: Any,
) -> torch.Tensor | ModelOutput:
    """`model.generate` by our loop, with all its options. The draft is by default the model in whose folder this was
    shipped, loaded once; the predictor the one shipped. Raises DslError for what it cannot honour."""
    if assistant_tokenizer is not None:
        raise DslError(
            "custom_generate needs a draft that reads the target's tokens; for assistant_tokenizer= pass "
            "assistant_model=dsl_train.attach(draft) instead"
        )
    source = running(GenerationMixin.generate).get("custom_generate")
    draft = draft_model or assistant_model or _draft_beside(source, model.dtype, model.device)
    if predictor is None and policy == "learned":
        predictor = _predictor(source, revision)
    if tokenizer is not None:
        options = _with_stop_strings(tokenizer, options)
    return model.generate(**options, custom_generate=decode, draft_model=draft, predictor=predictor, policy=policy)  # type: ignore[operator]  # annotated as Tensor


@lru_cache(maxsize=4)
def _predictor(source: str | None, revision: str | None) -> Predictor:
    if source is None:  # the model itself was loaded with this as its generate
        raise DslError("custom_generate cannot tell which folder it was run from; pass predictor=")
    return load_predictor(source, revision)


@lru_cache(maxsize=1)
def _draft_beside(source: str | None, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    folder = Path(source or "").resolve().parent
    if not (source and Path(source).is_dir() and (folder / "config.json").is_file()):
        raise DslError(f"custom_generate={source!r} does not lie in a draft model's folder; pass draft_model=")
    return load_model(str(folder), "draft", Placement(dtype, device))


def _with_stop_strings(tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> dict[str, Any]:
    """Stop strings as a criterion: the inner `generate` needs the tokenizer for them, and is not given it."""
    settings = copy.copy(options.get("generation_config"))
    strings = options.get("stop_strings") or (settings and settings.stop_strings)
    if not strings:
        return options
    if settings is not None:
        settings.stop_strings = None
    criteria = [*(options.get("stopping_criteria") or []), StopStringCriteria(tokenizer, strings)]
    return options | {"generation_config": settings, "stop_strings": None, "stopping_criteria": criteria}
