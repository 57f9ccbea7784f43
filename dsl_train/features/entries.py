"""The features: each is one entry with its name, group, unit, meaning and function.

An entry's function reads the state of the committed text and that of the block. Standard library only at
run time; knows no logits, models, policies or files. Which distribution describes which token (text index above, what
is known below; the round starts at index s):

    committed text         ... s-2   s-1 |  block: s      s+1     ...
    agreement              ... s-2   s-1*|         (* once the draft has caught up: from position 1 on)
    draft primitives                     |         s      s+1     (position 1, 2, ...)
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from dsl_train.base.schema import COPY_CAP, MEAN_DECAY, SCHEMA_VERSION, TOP
from dsl_train.features.state import BlockState, TextState

#: Groups whose features are known before the first token of a block is drafted; all others are 0 there.
ALWAYS_KNOWN = ("copy", "setting")


@dataclass(frozen=True)
class Feature:
    name: str
    group: str
    """`draft`, `block` and `agreement` are known from position 1 on, `copy` and `setting` always."""
    unit: str
    """`nats`, `prob` (in [0, 1]; the network sees its clipped logit), `log_prob`, `count` or `flag`."""
    meaning: str
    value: Callable[[TextState, BlockState], float]


# fmt: off
FEATURES: tuple[Feature, ...] = (
    Feature("top_prob", "draft", "prob",
            "largest probability of the draft distribution the last token came from",
            lambda text, block: block.top_prob),
    Feature("margin", "draft", "nats",
            "log-probability of its first choice minus that of its second",
            lambda text, block: block.last.log_probs[0] - block.last.log_probs[1]),
    Feature("token_log_prob", "draft", "log_prob",
            "log-probability of the drafted token",
            lambda text, block: block.last.token_log_prob),
    Feature("position", "draft", "count",
            "tokens drafted in this block; 0 before the first",
            lambda text, block: len(block.token_ids)),
    Feature("block_log_prob", "block", "log_prob",
            "sum of the block's token log-probabilities",
            lambda text, block: block.log_prob),
    Feature("min_top_prob", "block", "prob",
            "smallest top_prob in the block",
            lambda text, block: block.min_top_prob),
    Feature("agreement_1", "agreement", "prob",
            "min(1, draft/target) of the last committed token",
            lambda text, block: text.agreement_1),
    Feature("agreement_2", "agreement", "prob",
            "the same of the last committed token but one",
            lambda text, block: text.agreement_2),
    Feature("agreement_mean", "agreement", "prob",
            "its exponential mean over the committed response",
            lambda text, block: text.agreement_mean),
    Feature("copy_agreement", "agreement", "prob",
            "the same of the token that followed the suffix; 0.5 if not known",
            lambda text, block: block.copy_agreement),
    Feature("copy_agreement_before", "agreement", "prob",
            "copy_agreement one draft step earlier",
            lambda text, block: block.copy_agreement_before),
    Feature("copy_length", "copy", "count",
            "longest suffix of text and block that occurs in the committed text",
            lambda text, block: block.match.length),
    Feature("copy_match", "copy", "flag",
            "the drafted token is the one that followed the repeated suffix",
            lambda text, block: block.copy_run > 0),
    Feature("copy_run", "copy", "count",
            "drafted tokens in a row, up to the last, that followed a repeated suffix",
            lambda text, block: block.copy_run),
    Feature("copy_shortest", "copy", "count",
            "smallest copy_length in the block",
            lambda text, block: block.copy_shortest),
    Feature("copy_distance", "copy", "nats",
            "log of the tokens from there to the end of the committed text",
            lambda text, block: 0.0 if block.match.follower is None else math.log(text.length - block.match.follower)),
    Feature("copy_mean", "copy", "prob",
            "share of committed tokens that did, an exponential mean; 0.5 at first",
            lambda text, block: text.copy_mean),
    Feature("temperature", "setting", "count",
            "sampling temperature; 0 when greedy",
            lambda text, block: text.temperature),
    Feature("log_text_length", "setting", "nats",
            "log of the number of committed tokens, prompt included",
            lambda text, block: math.log(text.length)),
)
# fmt: on

FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(feature.group for feature in FEATURES))
CORE: tuple[str, ...] = ("top_prob", "position")


def select(spec: str) -> tuple[str, ...]:
    """Feature names for `all`, `core`, or a comma-separated list of feature and group names, in the order of the table.

    Raises ValueError naming the first unknown name.
    """
    if spec == "all":
        return FEATURE_NAMES
    if spec == "core":
        return CORE
    wanted = {name.strip() for name in spec.split(",") if name.strip()}
    unknown = sorted(wanted - set(FEATURE_NAMES) - set(GROUPS))
    if unknown or not wanted:
        raise ValueError(
            f"unknown feature or group {', '.join(map(repr, unknown)) or spec!r}; "
            f"choose 'all', 'core', groups ({', '.join(GROUPS)}) or features ({', '.join(FEATURE_NAMES)})"
        )
    return tuple(feature.name for feature in FEATURES if feature.name in wanted or feature.group in wanted)


def fingerprint(names: tuple[str, ...] = FEATURE_NAMES) -> str:
    """16 hex digits over version, constants, names, units and meanings: equal if and only if vectors mean the same."""
    described = [(f.name, f.group, f.unit, f.meaning) for f in FEATURES if f.name in names]
    text = repr((SCHEMA_VERSION, TOP, COPY_CAP, MEAN_DECAY, described))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
