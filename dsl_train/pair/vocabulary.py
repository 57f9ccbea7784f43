"""Checks that target and draft have the same vocabulary, and gives their logits the same width. Loads nothing."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsl_train.base.records import DslError


def are_same(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    return bool(ours.get_vocab() == theirs.get_vocab())


def check_same(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, target: str, draft: str) -> None:
    """Raises DslError with the first token that target and draft number differently."""
    if are_same(ours, theirs):
        return
    ours_by_id, theirs_by_id = (
        {index: token for token, index in tokenizer.get_vocab().items()} for tokenizer in (ours, theirs)
    )
    first = min(i for i in ours_by_id.keys() | theirs_by_id.keys() if ours_by_id.get(i) != theirs_by_id.get(i))
    raise DslError(
        f"target {target} and draft {draft} have different vocabularies: {len(ours_by_id)} and {len(theirs_by_id)} "
        f"tokens, id {first} is {ours_by_id.get(first)!r} and {theirs_by_id.get(first)!r}; choose a draft of the same "
        "family, or attach this one to the target (dsl_train.attach, assistant_tokenizer=)"
    )


def share_width(target: PreTrainedModel, draft: PreTrainedModel, num_tokens: int, *names: str) -> None:
    """Cut the wider model's logits to the width of the narrower one's: models of one family may pad their common
    vocabulary differently.

    Raises DslError if the narrower one lacks tokens.
    """
    widths = [model.config.get_text_config().vocab_size for model in (target, draft)]
    if min(widths) < num_tokens and widths[0] != widths[1]:
        raise DslError(
            f"target {names[0]} and draft {names[1]} have different vocabularies: {widths[0]} and {widths[1]} logits "
            f"for {num_tokens} tokens; choose a draft of the same family"
        )
    for model, width in zip((target, draft), widths, strict=True):
        if width > min(widths):
            model.resize_token_embeddings(min(widths))
