"""Learn when to stop drafting: dynamic speculation lookahead for Hugging Face models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dsl_train.base.files import __version__

if TYPE_CHECKING:
    from dsl_train import hf
    from dsl_train.api.serving import load_predictor
    from dsl_train.api.speculator import Speculator, generate
    from dsl_train.hf.attach import attach
    from dsl_train.pair.hub import push_predictor

__all__ = ["Speculator", "__version__", "attach", "generate", "hf", "load_predictor", "push_predictor"]

_HOMES = {
    "Speculator": "dsl_train.api.speculator",
    "attach": "dsl_train.hf.attach",
    "generate": "dsl_train.api.speculator",
    "load_predictor": "dsl_train.api.serving",
    "push_predictor": "dsl_train.pair.hub",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "hf":
        return import_module("dsl_train.hf")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
