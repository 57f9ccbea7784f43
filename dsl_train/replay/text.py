"""One traced text as one policy would have generated it, asked and told exactly as by the live loop.

Knows decisions and the policy's contract; prices nothing.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from dsl_train.base.policy import Policy
from dsl_train.base.records import DraftStep, Round, no_features
from dsl_train.traces.decisions import Decisions, draft_records

#: A drafted token beyond the recorded tail.
UNKNOWN_TOKEN = -1


class ReplayedText:
    """The rounds of text number `sequence`, one at a time; `round_starts` and `exhausted` grow with them."""

    def __init__(self, decisions: Decisions, policy: Policy, sequence: int) -> None:
        self.decisions, self.policy = decisions, policy
        self.round_starts: list[int] = []
        """Number of each round's start."""
        self.exhausted: list[bool] = []
        """Whether the policy wanted more drafts in that round than the traces hold."""
        self._first, self._end = decisions.bounds[sequence : sequence + 2].tolist()
        text = decisions.traces.sequences[int(decisions.source[sequence])]
        self._begin = len(text.prompt_token_ids) + 1
        self._text = text.response_token_ids[1:].tolist()  # one token per start
        rows = decisions.traces.rows
        span = np.searchsorted(rows["sequence_id"], decisions.source[sequence] + np.array([0, 1]))
        self._first_row = int(span[0])
        columns = {name: column[slice(*span)] for name, column in rows.items()}
        self._token_ids = columns["token_id"].tolist()
        self._drafts = draft_records(columns) if policy.needs != "position" else []

    def __iter__(self) -> Iterator[Round]:
        here = self._first
        while here < self._end:
            rows = self._draft_rows(here)
            num_drafted, exhausted = self._draft(here, rows)
            self.round_starts.append(here)
            self.exhausted.append(exhausted)
            finished = self._verify(here, rows, num_drafted)
            self.policy.observe(finished)
            yield finished
            here += len(finished.committed)

    def _draft_rows(self, start: int) -> list[int]:
        """Rows within the text of what could be drafted from here, as far as recorded."""
        limit = min(int(self.decisions.limit[start]), self.policy.max_lookahead)
        return (self.decisions.draft_rows(start, limit) - self._first_row).tolist()

    def _draft(self, start: int, rows: list[int]) -> tuple[int, bool]:
        """Number of tokens drafted, and whether the traces ended before the policy did."""
        limit = min(int(self.decisions.limit[start]), self.policy.max_lookahead)
        first, last = self.decisions.offsets[start : start + 2].tolist()
        known = {"position": limit, "features": last - first}.get(self.policy.needs, len(rows) + 1)
        for position in range(min(limit, known)):
            draft = self._drafts[rows[position - 1]] if position and self._drafts else None
            read = partial(self._vector, first + position) if self.policy.needs == "features" else no_features
            if not self.policy.wants_another(DraftStep(position, self._begin + start - self._first, draft, read)):
                return position, False
        return min(limit, known), known < limit

    def _vector(self, decision: int) -> np.ndarray:
        vector: np.ndarray = self.decisions.features[decision]
        return vector

    def _verify(self, start: int, rows: list[int], num_drafted: int) -> Round:
        here = start - self._first
        drafted = [self._token_ids[row] for row in rows[:num_drafted]]
        drafted += [UNKNOWN_TOKEN] * (num_drafted - len(drafted))
        num_accepted = min(num_drafted, int(self.decisions.run[start]))
        committed = tuple(self._text[here : here + num_accepted + 1])
        return Round(self._begin + here, tuple(drafted), num_accepted, committed)
