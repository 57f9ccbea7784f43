"""What a trace row consists of, and the constants that features and traces share. Standard library only.

The features themselves are in `features/entries.py`.
"""

#: Of the features.
SCHEMA_VERSION = 2
#: Of the columns below. Features are computed from them, so traces stay valid when the features change.
TRACE_VERSION = 1
#: Of traces that record rounds judged by block: other rows after a rejected draft, and BLOCK_COLUMNS as well.
BLOCK_TRACE_VERSION = 2

#: How many of the most likely draft tokens have their log-probability kept in traces.
TOP = 5
#: Longest repeated suffix that the copy features look for [tokens].
COPY_CAP = 24
#: Decay of the exponential means over the committed response.
MEAN_DECAY = 0.9

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

#: Weights w at which the curve sum of min(w * target, draft) is recorded, besides 0, where it is 0, and 1, where it is
#: `accept_prob`.
GAIN_WEIGHTS = (0.125, 0.25, 0.5)
#: Further columns of the `rows` table where rounds are judged by block. There every response token is a start of its
#: own: its depth-0 row tells of the committed token as if it had been drafted (`accepted`: whether it would have been
#: accepted as a single draft), and the rows of depth d >= 1 at its index are the drafts that a round from here would
#: not have kept, the first of them after `kept` tokens of the text. All columns of the target's are known in both.
BLOCK_COLUMNS: dict[str, str] = {
    "log_ratio": "float32",  # log(target/draft) of the drafted token
    "gain_1": "float32",  # sum of min(w * target, draft) at the first of GAIN_WEIGHTS, and so on
    "gain_2": "float32",
    "gain_3": "float32",
    "kept": "int32",  # drafts kept from here on if drafting never stopped, text to its end; -1 where depth > 0
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
