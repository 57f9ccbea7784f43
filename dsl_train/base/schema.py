"""What a feature vector and a trace row consist of: names, units, order, version.

Standard library only. Knows nothing of tensors; `features.py` computes, this module names.
"""

import hashlib
from dataclasses import dataclass

SCHEMA_VERSION = 2
#: Of the columns below. Features are computed from them: traces outlive a change of features.
TRACE_VERSION = 1

#: How many of the most likely draft tokens have their log-probability kept in traces.
TOP = 5
#: Longest repeated suffix that the copy features look for [tokens].
COPY_CAP = 24
#: Decay of the exponential means over the committed response.
MEAN_DECAY = 0.9


@dataclass(frozen=True)
class Feature:
    name: str
    group: str
    """Known from position 1 on (`draft`, `block`, `agreement`) or always (`copy`, `setting`)."""
    unit: str
    """`nats`, `prob` (in [0, 1]; the network sees its clipped logit), `log_prob`, `count` or `flag`."""
    meaning: str


FEATURES: tuple[Feature, ...] = (
    Feature("top_prob", "draft", "prob", "largest probability of the draft distribution the last token came from"),
    Feature("margin", "draft", "nats", "log-probability of its first choice minus that of its second"),
    Feature("token_log_prob", "draft", "log_prob", "log-probability of the drafted token"),
    Feature("position", "draft", "count", "tokens drafted in this block; 0 before the first"),
    Feature("block_log_prob", "block", "log_prob", "sum of the block's token log-probabilities"),
    Feature("min_top_prob", "block", "prob", "smallest top_prob in the block"),
    Feature("agreement_1", "agreement", "prob", "min(1, draft/target) of the last committed token"),
    Feature("agreement_2", "agreement", "prob", "the same of the last committed token but one"),
    Feature("agreement_mean", "agreement", "prob", "its exponential mean over the committed response"),
    Feature("copy_agreement", "agreement", "prob", "the same of the token that followed the suffix; 0.5 if not known"),
    Feature("copy_agreement_before", "agreement", "prob", "copy_agreement one draft step earlier"),
    Feature("copy_length", "copy", "count", "longest suffix of text and block that occurs in the committed text"),
    Feature("copy_match", "copy", "flag", "the drafted token is the one that followed the repeated suffix"),
    Feature("copy_run", "copy", "count", "drafted tokens in a row, up to the last, that followed a repeated suffix"),
    Feature("copy_shortest", "copy", "count", "smallest copy_length in the block"),
    Feature("copy_distance", "copy", "nats", "log of the tokens from there to the end of the committed text"),
    Feature("copy_mean", "copy", "prob", "share of committed tokens that did, an exponential mean; 0.5 at first"),
    Feature("temperature", "setting", "count", "sampling temperature; 0 when greedy"),
    Feature("log_text_length", "setting", "nats", "log of the number of committed tokens, prompt included"),
)

FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(feature.group for feature in FEATURES))
CORE: tuple[str, ...] = ("top_prob", "position")

#: Columns of the `rows` table: name -> Parquet type. One row per draft prediction; depth-0 rows are predictions of
#: committed text, depth d >= 1 is the d-th token drafted after a rejected one at `index`.
ROW_COLUMNS: dict[str, str] = {
    "sequence_id": "int64",
    "index": "int32",  # text position predicted, prompt included
    "depth": "int16",
    "token_id": "int32",  # drafted token
    "entropy": "float32",
    "log_prob_1": "float32",
    "log_prob_2": "float32",
    "log_prob_3": "float32",
    "log_prob_4": "float32",
    "log_prob_5": "float32",
    "token_log_prob": "float32",
    "accept_prob": "float32",  # sum of min(target, draft); NaN where depth > 0
    "accept_ratio": "float32",  # min(1, target/draft) of the drafted token; NaN where depth > 0
    "accepted": "bool",  # False where depth > 0
    "agreement": "float32",  # min(1, draft/target) of the committed token; NaN where depth > 0
    "text_token_id": "int32",  # committed token; -1 where depth > 0
    "target_entropy": "float32",  # NaN where depth > 0
    "target_top_prob": "float32",  # NaN where depth > 0
}

#: Columns of the `sequences` table.
SEQUENCE_COLUMNS: dict[str, str] = {
    "sequence_id": "int64",
    "prompt_id": "string",
    "prompt_token_ids": "list<int32>",
    "response_token_ids": "list<int32>",
    "temperature": "float32",
    "top_k": "int32",
    "top_p": "float32",
    "finish_reason": "string",  # eos | length
}


def select(spec: str) -> tuple[str, ...]:
    """Feature names for `all`, `core`, or a comma-separated list of feature and group names, in schema order.

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
