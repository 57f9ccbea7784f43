"""Every decision that any policy could face on the traced texts, with its features and the right answer.

A round may start at every index after a response's first token. Each start has one decision per drafted token:

    text index        s      s+1    m = first rejected    (tail: depth 1, 2, ... R of the traces)
    accepted          yes    yes    no
    decision          0      1      2       3         4      position = tokens drafted before it
    survival          True   True   False   False     False  position < run, run = m - s

Features come from `features.vector.assemble`, called as the live loop calls it; everything else is arithmetic on
columns. Knows traces and features; knows no policy, no predictor and no cost. Letters: N decisions, S starts, Q
sequences, F features.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np

from dsl_train.base.records import DraftPrimitives, DslError
from dsl_train.features.entries import FEATURE_NAMES
from dsl_train.features.state import BlockState, TextState
from dsl_train.features.vector import assemble
from dsl_train.traces.round_starts import RoundStarts, offsets
from dsl_train.traces.store import Traces, TraceSequence

Value = TypeVar("Value")

_DRAFT_COLUMNS = ("token_id", "entropy", "log_prob_1", "log_prob_2", "log_prob_3", "log_prob_4", "log_prob_5")


@dataclass(frozen=True, eq=False)
class Decisions:
    """Starts are in text order, sequence after sequence; the decisions of start i are `offsets[i]:offsets[i + 1]`."""

    features: np.ndarray
    """[N, F] float32"""
    survival: np.ndarray
    """[N] bool: all tokens drafted before and the next one are accepted."""
    position: np.ndarray
    """[N] int16: tokens drafted before; 0 first."""
    start: np.ndarray
    """[N] int32: text index of the round's start."""
    sequence: np.ndarray
    """[N] int32: 0 .. Q - 1"""
    offsets: np.ndarray
    """[S + 1] int64"""
    run: np.ndarray
    """[S] int32: accepted drafts from this start on, if drafting never stopped."""
    limit: np.ndarray
    """[S] int32: most tokens the live loop could draft, as in `RoundStarts`. At a start with fewer decisions than this
    and than `max_lookahead`, the recorded tail ends too early."""
    row: np.ndarray
    """[S] int64: trace row of the draft prediction at this start."""
    rejected: np.ndarray
    """[S] int64: trace row of the first draft that is not kept; -1 where none is recorded."""
    num_after: np.ndarray
    """[S] int32: rows recorded after that one."""
    bounds: np.ndarray
    """[Q + 1] int64: the starts of sequence q are `bounds[q]:bounds[q + 1]`."""
    source: np.ndarray
    """[Q] int64: its number in `traces.sequences`."""
    traces: Traces
    max_lookahead: int

    def __len__(self) -> int:
        return len(self.position)

    @property
    def num_sequences(self) -> int:
        return len(self.source)

    @property
    def sequences(self) -> list[TraceSequence]:
        return [self.traces.sequences[i] for i in self.source.tolist()]

    @property
    def prompt_ids(self) -> list[str]:
        """[Q]"""
        return [sequence.prompt_id for sequence in self.sequences]

    @property
    def num_decisions(self) -> np.ndarray:
        """[S] int64: decisions of each start."""
        return np.diff(self.offsets)

    @property
    def start_sequence(self) -> np.ndarray:
        """[S] int64: sequence of each start."""
        return np.repeat(np.arange(self.num_sequences), np.diff(self.bounds))

    @property
    def start_index(self) -> np.ndarray:
        """[S] int32: text index of each start."""
        return self.traces.rows["index"][self.row]

    @property
    def by_block(self) -> np.ndarray:
        """[Q] bool: whether rounds of that text are judged by block."""
        return self.traces.by_block[self.source]

    @property
    def verification(self) -> str | None:
        """`block` or `token`: how rounds of the sampled texts are judged; None without any.

        Raises DslError if some are judged one way and some the other.
        """
        sampled = np.array([sequence.temperature > 0 for sequence in self.traces.sequences])
        found = set(self.traces.by_block[sampled].tolist())
        if len(found) > 1:
            raise DslError(
                "some sampled texts were collected with --verification block and some with token; train on those of "
                "one kind, or collect them again"
            )
        return {True: "block", False: "token"}[found.pop()] if found else None

    @property
    def draft_temperatures(self) -> dict[str, list[float]]:
        """`target` temperatures of the sampled texts, rising, and the `draft`'s for each, 0 where it proposed its most
        likely token; neither is empty.

        Raises DslError if texts of one temperature were drafted at different ones, or some greedily and some not.
        """
        found: dict[float, float] = {}
        recorded = _of_sequences(self.traces, [m.get("draft_temperature", {}) for m in self.traces.manifests], {})
        for sequence, known in zip(self.traces.sequences, recorded, strict=True):
            if sequence.temperature > 0:
                target = f"{sequence.temperature:g}"
                draft = float(known.get(target, target))
                if found.setdefault(float(target), draft) != draft:
                    raise DslError(
                        f"texts at temperature {target} were drafted at {found[float(target)]:g} and at {draft:g}; "
                        "collect them all with the same --draft_temperature and --draft_sampling"
                    )
        if len({draft > 0 for draft in found.values()}) > 1:
            greedy = next(target for target, draft in found.items() if not draft)
            raise DslError(
                f"texts at temperature {greedy:g} were drafted greedily and others were not; collect them all with the "
                "same --draft_sampling"
            )
        pairs = sorted(found.items()) or [(1.0, 1.0)]
        return {"target": [target for target, _ in pairs], "draft": [draft for _, draft in pairs]}

    @property
    def draft_sampling(self) -> str | None:
        """How the draft chose its tokens where the target sampled: `greedy`, `probabilistic`; None if it never did."""
        if all(sequence.temperature == 0 for sequence in self.traces.sequences):
            return None
        return "probabilistic" if all(self.draft_temperatures["draft"]) else "greedy"

    def replayable(self, keep: np.ndarray) -> np.ndarray:
        """[Q] bool: those of the sequences `keep` [Q] that have a tail after every rejected draft, so that their replay
        is exact; all of `keep` if there are none."""
        whole = keep & (_tail_fractions(self.traces)[self.source] == 1.0)
        return whole if whole.any() else keep

    @property
    def weight(self) -> np.ndarray:
        """[N] float32: how many decisions each stands for, unrecorded ones included: more than one after a rejected
        draft, where only some rejected drafts, chosen at random, got a tail."""
        run = np.repeat(self.run, self.num_decisions)
        fraction = _tail_fractions(self.traces)[self.source][self.sequence]
        known = run + ~self.by_block[self.sequence]  # a round judged token by token has its rejected draft recorded
        return np.where(self.position > known, 1.0 / np.maximum(fraction, 1e-6), 1.0).astype(np.float32)

    def drafted(self, column: str) -> np.ndarray:
        """[N] a column of the trace rows, for the token drafted last; 0 where there is none."""
        of_start = np.repeat(np.arange(len(self.run)), self.num_decisions)
        before = np.maximum(self.position.astype(np.int64) - 1, 0)
        run = self.run[of_start].astype(np.int64)
        on_text = self.row[of_start + np.minimum(before, np.maximum(run - 1, 0))]
        rows = np.where(before < run, on_text, self.rejected[of_start] + before - run)
        return np.where(self.position > 0, self.traces.rows[column][rows], 0.0)

    def select(self, keep: np.ndarray) -> "Decisions":
        """The decisions of the sequences `keep` [Q] bool only, renumbered from 0. Copies the data."""
        per_decision, per_start = keep[self.sequence], np.repeat(keep, np.diff(self.bounds))
        masks = {
            **dict.fromkeys(("features", "survival", "position", "start", "sequence"), per_decision),
            **dict.fromkeys(("run", "limit", "row", "rejected", "num_after"), per_start),
            "source": keep,
        }
        chosen = {name: getattr(self, name)[mask] for name, mask in masks.items()}
        chosen["sequence"] = (np.cumsum(keep) - 1).astype(np.int32)[chosen["sequence"]]
        return replace(
            self,
            **chosen,
            offsets=offsets(self.num_decisions[per_start]),
            bounds=offsets(np.diff(self.bounds)[keep]),
        )

    def draft_rows(self, start: int, count: int) -> np.ndarray:
        """[<= count] trace rows of the tokens drafted from start number `start` on, shorter where the tail ends;
        `count` is at most `limit[start]`."""
        run = int(self.run[start])
        on_text = self.row[start : start + min(count, run)]
        rejected = int(self.rejected[start])
        if count <= run or rejected < 0:
            return on_text
        num_beyond = min(count - run, 1 + int(self.num_after[start]))
        return np.concatenate([on_text, np.arange(rejected, rejected + num_beyond)])


def build(traces: Traces, max_lookahead: int = 16) -> Decisions:
    """All decisions at positions 0 .. max_lookahead - 1, in one pass over each text.

    Raises DslError where the rows of a text do not cover its response.
    """
    starts = RoundStarts.of(traces)
    counts = np.minimum(np.minimum(starts.limit, max_lookahead), starts.known).astype(np.int64)
    first = offsets(counts)
    of_start = np.repeat(np.arange(len(counts)), counts)  # [N]
    position = np.arange(len(of_start)) - first[of_start]
    return Decisions(
        features=_features(traces, starts, counts),
        survival=position < starts.run[of_start],
        position=position.astype(np.int16),
        start=traces.rows["index"][starts.row][of_start],
        sequence=np.repeat(np.arange(len(traces.sequences), dtype=np.int32), np.diff(starts.bounds))[of_start],
        offsets=first,
        run=starts.run,
        limit=starts.limit,
        row=starts.row,
        rejected=starts.rejected,
        num_after=starts.num_after,
        bounds=starts.bounds,
        source=np.arange(len(traces.sequences)),
        traces=traces,
        max_lookahead=max_lookahead,
    )


def _tail_fractions(traces: Traces) -> np.ndarray:
    """[sequences] share of the rejected drafts that got a tail, from the manifests; 1 where they do not say."""
    fractions = [manifest.get("config", {}).get("tail_fraction", 1.0) for manifest in traces.manifests]
    return np.array(_of_sequences(traces, fractions, 1.0))


def _of_sequences(traces: Traces, by_folder: Sequence[Value], unknown: Value) -> list[Value]:
    """[sequences] the value of each one's folder; `unknown` for all if the manifests do not count them."""
    counts = [manifest.get("counts", {}).get("num_sequences", 0) for manifest in traces.manifests]
    if sum(counts) != len(traces.sequences):
        return [unknown] * len(traces.sequences)
    return [value for value, count in zip(by_folder, counts, strict=True) for _ in range(count)]


def _features(traces: Traces, starts: RoundStarts, counts: np.ndarray) -> np.ndarray:
    """[N, F] float32"""
    vectors = np.empty((int(counts.sum()), len(FEATURE_NAMES)), dtype=np.float32)
    row_bounds = np.searchsorted(traces.rows["sequence_id"], np.arange(len(traces.sequences) + 1)).tolist()
    done = 0
    for i, (sequence, (first, last)) in enumerate(zip(traces.sequences, pairwise(row_bounds), strict=True)):
        span = slice(starts.bounds[i], starts.bounds[i + 1])
        local_rows = (starts.row[span] - first).tolist()
        columns = {name: column[first:last] for name, column in traces.rows.items()}
        buffer = array("f")
        rejected = (starts.rejected[span] - first).tolist()
        runs = starts.run[span].tolist()
        for vector in _vectors(sequence, columns, local_rows, runs, rejected, counts[span].tolist()):
            buffer.extend(vector)
        block = np.frombuffer(buffer, dtype=np.float32).reshape(-1, len(FEATURE_NAMES))
        vectors[done : done + len(block)] = block
        done += len(block)
    return vectors


def _vectors(
    sequence: TraceSequence,
    columns: dict[str, np.ndarray],
    rows: list[int],
    runs: list[int],
    rejected: list[int],
    counts: list[int],
) -> Iterator[list[float]]:
    """The vectors of one text, start by start. `rows`, `runs`, `rejected` and `counts` are per start; rows count from
    the text's own first row, which is the prediction of the response's first token."""
    if not rows:
        return
    text = TextState(sequence.prompt_token_ids.tolist(), float(sequence.temperature))
    drafts = draft_records(columns)
    committed = columns["text_token_id"].tolist()
    agreements = columns["agreement"].tolist()
    before = 0
    for i, row in enumerate(rows):
        text.commit(committed[before])
        text.agree(agreements[before])
        before = row
        if counts[i]:
            block = BlockState(text)
            yield assemble(block)
            split = min(counts[i] - 1, runs[i])  # drafts on the text; the rest follows the rejected row
            for j in rows[i : i + split]:
                block.append(drafts[j])
                yield assemble(block)
            for j in range(rejected[i], rejected[i] + counts[i] - 1 - split):
                block.append(drafts[j])
                yield assemble(block)


def draft_records(columns: dict[str, np.ndarray]) -> list[DraftPrimitives]:
    """One record per row, with the same float32 values that the live loop reads."""
    token_ids, entropies, *log_probs = (columns[name].tolist() for name in _DRAFT_COLUMNS)
    token_log_probs = columns["token_log_prob"].tolist()
    return list(map(DraftPrimitives, token_ids, entropies, zip(*log_probs, strict=True), token_log_probs))
