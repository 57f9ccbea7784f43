"""Our stop rule inside transformers: `decode` for `custom_generate`; which models can take part."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsl_train.hf.decoding import decode

__all__ = ["decode"]


def __getattr__(name: str) -> Any:
    if name == "decode":
        from dsl_train.hf.decoding import decode

        return decode
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
