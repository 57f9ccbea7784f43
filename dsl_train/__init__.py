"""Learn when to stop drafting: dynamic speculation lookahead for Hugging Face models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsl_train.api import generate, load_predictor

__version__ = "0.1.0"
__all__ = ["__version__", "generate", "load_predictor"]


def __getattr__(name: str) -> Any:
    if name in ("generate", "load_predictor"):
        from dsl_train import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
