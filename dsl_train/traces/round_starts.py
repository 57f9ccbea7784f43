"""Where rounds can start in traced texts, and how far a draft from there would get: arithmetic on columns.

A round may start at every index after a response's first token. Where rounds are judged token by token, all those that
begin between two rejected drafts end at the second one and share its tail; where they are judged by block, each has a
run and a tail of its own (`schema.BLOCK_COLUMNS`). Knows traces; knows no feature and no policy.
Letters: S starts, Q sequences, T response tokens.
"""

from dataclasses import dataclass

import numpy as np

from dsl_train.base.records import DslError
from dsl_train.traces.store import Traces

UNLIMITED = 1 << 30


@dataclass(frozen=True)
class RoundStarts:
    """Columns over all starts, in text order, sequence after sequence."""

    row: np.ndarray
    """[S] int64: trace row of the draft prediction at this start."""
    run: np.ndarray
    """[S] int32: accepted drafts from this start on, if drafting never stopped."""
    limit: np.ndarray
    """[S] int32: most tokens the live loop could draft: until the text has room for one more token only, or until an
    end-of-text token is drafted. About UNLIMITED where neither is known."""
    rejected: np.ndarray
    """[S] int64: trace row of the first draft that is not kept; -1 where none is recorded."""
    num_after: np.ndarray
    """[S] int32: rows recorded after that one."""
    known: np.ndarray
    """[S] int32: decisions whose past is recorded, and of blocks also what comes next."""
    bounds: np.ndarray
    """[Q + 1] int64: the starts of sequence q are `bounds[q]:bounds[q + 1]`."""

    @classmethod
    def of(cls, traces: Traces) -> "RoundStarts":
        on_text = np.flatnonzero(traces.rows["depth"] == 0)  # one per response token
        lengths = np.array([len(sequence.response_token_ids) for sequence in traces.sequences], dtype=np.int64)
        _check_coverage(traces, on_text, lengths)
        firsts = offsets(lengths)  # [Q + 1]
        end = np.repeat(firsts[1:], lengths)  # [T] number of the response token after each sequence
        rounds = _by_token(traces, on_text, end)
        by_block = np.repeat(traces.by_block, lengths)
        if by_block.any():
            own = _by_block(traces, on_text, end)
            rounds = _Rounds(*(np.where(by_block, *pair) for pair in zip(own.columns, rounds.columns, strict=True)))
        here = np.arange(len(on_text))
        to_eos = np.where(rounds.run < end - here, rounds.run + rounds.to_eos, end - here)
        begin = np.repeat(firsts[:-1], lengths)
        limit = np.minimum(to_eos, np.repeat(_max_lengths(traces, lengths), lengths) - (here - begin) - 1)
        is_start = np.ones(len(on_text), dtype=bool)
        is_start[firsts[:-1][lengths > 0]] = False
        return cls(
            row=on_text[is_start],
            run=rounds.run[is_start].astype(np.int32),
            limit=limit[is_start].astype(np.int32),
            rejected=rounds.rejected[is_start],
            num_after=rounds.num_after[is_start].astype(np.int32),
            known=(rounds.run + rounds.num_after + np.where(by_block, 1, 2))[is_start].astype(np.int32),
            bounds=offsets(np.maximum(lengths - 1, 0)),
        )


@dataclass(frozen=True)
class _Rounds:
    """One from every response token, [T] int64 each."""

    run: np.ndarray
    rejected: np.ndarray
    num_after: np.ndarray
    to_eos: np.ndarray
    """Drafts from the rejected one up to and including an end-of-text token."""

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.run, self.rejected, self.num_after, self.to_eos


def _by_token(traces: Traces, on_text: np.ndarray, end: np.ndarray) -> _Rounds:
    num_tail = np.diff(np.append(on_text, len(traces))) - 1  # [T]
    here = np.arange(len(on_text))
    rejected = np.flatnonzero(~traces.rows["accepted"][on_text])
    next_rejected = np.append(rejected, len(on_text))[np.searchsorted(rejected, here)]
    meets_rejection = next_rejected < end
    stop = np.where(meets_rejection, next_rejected, 0)
    return _Rounds(
        np.minimum(next_rejected, end) - here,
        np.where(meets_rejection, on_text[stop], -1),
        np.where(meets_rejection, num_tail[stop], 0),
        _drafts_to_eos(traces, on_text, ~traces.rows["accepted"], first=0)[stop],
    )


def _by_block(traces: Traces, on_text: np.ndarray, end: np.ndarray) -> _Rounds:
    num_own = np.diff(np.append(on_text, len(traces))) - 1  # [T] drafts that are not kept
    return _Rounds(
        np.minimum(traces.rows["kept"][on_text], end - np.arange(len(on_text))),
        np.where(num_own > 0, on_text + 1, -1),
        np.maximum(num_own - 1, 0),
        _drafts_to_eos(traces, on_text, traces.rows["depth"] > 0, first=1),
    )


def _check_coverage(traces: Traces, on_text: np.ndarray, lengths: np.ndarray) -> None:
    found = np.bincount(traces.rows["sequence_id"][on_text], minlength=len(lengths))
    for i in np.flatnonzero(found != lengths)[:1].tolist():
        raise DslError(
            f"sequence {i} (prompt {traces.sequences[i].prompt_id!r}) has a response of {lengths[i]} tokens but "
            f"{found[i]} depth-0 rows; collect these traces again"
        )


def _max_lengths(traces: Traces, lengths: np.ndarray) -> np.ndarray:
    """[Q]: response tokens that each text could have had; UNLIMITED where an end-of-text token ended it and the
    manifest gives no limit."""
    by_length = np.array([sequence.finish_reason != "eos" for sequence in traces.sequences])
    counts = [manifest.get("counts", {}).get("num_sequences", 0) for manifest in traces.manifests]
    allowed = np.repeat(
        [manifest.get("sampling", {}).get("max_new_tokens", 0) for manifest in traces.manifests], counts
    )
    if len(allowed) != len(lengths):
        allowed = np.full(len(lengths), UNLIMITED)
    return np.where(by_length, lengths, np.maximum(allowed, lengths)).astype(np.int64)


def _drafts_to_eos(traces: Traces, on_text: np.ndarray, drafted: np.ndarray, first: int) -> np.ndarray:
    """Per response token [T]: drafts from a rejected token up to and including the first drafted end-of-text token,
    among the rows `drafted` [M] bool, where the rejected one has depth `first`. The end-of-text tokens are those that
    ended a traced text."""
    eos = {int(s.response_token_ids[-1]) for s in traces.sequences if s.finish_reason == "eos"}
    drafts = np.full(len(on_text), UNLIMITED, dtype=np.int64)
    rows = np.flatnonzero(np.isin(traces.rows["token_id"], sorted(eos)) & drafted)[::-1]
    owner = np.searchsorted(on_text, rows, side="right") - 1
    drafts[owner] = traces.rows["depth"][rows] + 1 - first  # reversed: the first of each tail is written last
    return drafts


def offsets(counts: np.ndarray) -> np.ndarray:
    """[n + 1] int64: where each of n groups begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
