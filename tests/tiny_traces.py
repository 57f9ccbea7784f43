"""Traces written by hand, one text a string, for the tests of decisions, replay and policies."""

import numpy as np

from dsl_train.base.schema import ROW_COLUMNS
from dsl_train.traces.store import Traces, TraceSequence

EOS = 1
PROMPT = (7, 8, 9)


def make_traces(*texts: str, tail: int = 3, probs: dict[int, float] | None = None) -> Traces:
    """Each text is one letter per response token: `a` accepted, `r` rejected, `E` an accepted end of text, `e` an end
    of text the draft missed. `probs` maps a global row number to the drafted token's probability (else 0.5)."""
    rows: dict[str, list] = {name: [] for name in ROW_COLUMNS}
    sequences = []
    for i, text in enumerate(texts):
        response = [10 + j for j in range(len(text))]
        if text[-1] in "eE":
            response[-1] = EOS
        for j, letter in enumerate(text):
            accepted = letter in "aE"
            for depth in range(1 if accepted else 1 + tail):
                prob = (probs or {}).get(len(rows["index"]), 0.5)
                _add_row(rows, i, len(PROMPT) + j, depth, response[j], accepted, prob)
        sequences.append(
            TraceSequence(
                sequence_id=i,
                prompt_id=f"prompt-{i}",
                prompt_token_ids=np.array(PROMPT, dtype=np.int32),
                response_token_ids=np.array(response, dtype=np.int32),
                temperature=0.0,
                top_k=0,
                top_p=1.0,
                finish_reason="eos" if text[-1] in "eE" else "length",
            )
        )
    columns = {name: np.array(rows[name], dtype=kind) for name, kind in ROW_COLUMNS.items()}
    return Traces(columns, tuple(sequences), ())


def _add_row(
    rows: dict[str, list], sequence: int, index: int, depth: int, text_token: int, accepted: bool, prob: float
) -> None:
    number = len(rows["index"])
    nan = float("nan")
    row = {
        "sequence_id": sequence,
        "index": index,
        "depth": depth,
        "token_id": text_token if accepted else 100 + depth,
        "entropy": 0.1 * (number % 7) + 0.05,
        **{f"log_prob_{rank}": float(np.log(prob)) - 0.5 * (rank - 1) for rank in range(1, 6)},
        "token_log_prob": float(np.log(prob)),
        "accept_prob": nan if depth else float(accepted),
        "accept_ratio": nan if depth else float(accepted),
        "accepted": accepted,
        "agreement": nan if depth else float(accepted),
        "text_token_id": -1 if depth else text_token,
        "target_entropy": nan if depth else 0.2 + 0.01 * number,
        "target_top_prob": nan if depth else 0.8,
    }
    for name, value in row.items():
        rows[name].append(value)
