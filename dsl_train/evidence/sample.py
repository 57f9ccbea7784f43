"""One text as the learned policy would write it: every token with its fate, and the survival it was drafted at.

round        drafts accepted | drafts rejected | the target's own: correction, or bonus after a whole block
survival of the k-th draft: the estimate that asked for it, at position k - 1
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from dsl_train.evidence.report_data import ReportData
from dsl_train.replay.rounds import ReplayResult, start_numbers

Fate = Literal["accepted", "rejected", "corrected", "bonus"]
PROMPT_TAIL = 40  # tokens of the prompt that are shown


@dataclass(frozen=True)
class SampleToken:
    text: str
    fate: Fate
    survival: float | None
    """Of the decision to draft it; None for the target's own tokens."""
    draft_prob: float | None
    """The draft's probability of it."""


@dataclass(frozen=True)
class SampleRound:
    tokens: tuple[SampleToken, ...]
    num_drafted: int
    num_accepted: int
    stopped_at: float | None
    """Survival of the draft that was not made; None where the text's end or the cap stopped the round."""


@dataclass(frozen=True)
class TextSample:
    prompt_id: str
    prompt: str
    """Its end, and the response's first token, which comes with the prompt's own forward."""
    rounds: tuple[SampleRound, ...]
    threshold: float
    note: str
    """Why token ids stand where texts should, if they do."""


class Reader:
    """Token ids to text, one at a time, as they read after the token before."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.tokenizer = tokenizer

    def text(self, before: int, token_id: int) -> str:
        if self.tokenizer is None:
            return f"#{token_id} "
        head, both = (str(self.tokenizer.decode(ids)) for ids in ([before], [before, token_id]))
        return both[len(head) :] if both.startswith(head) else str(self.tokenizer.decode([token_id]))

    def texts(self, token_ids: list[int]) -> str:
        if self.tokenizer is None:
            return "".join(f"#{token_id} " for token_id in token_ids)
        return str(self.tokenizer.decode(token_ids))


def sample(
    data: ReportData, learned: ReplayResult, text: int, tokenizer: PreTrainedTokenizerBase | None, note: str = ""
) -> TextSample:
    """The rounds of text number `text` in `learned`, a replay of the held-out decisions."""
    sequence = data.held_out.sequences[text]
    prompt, response = sequence.prompt_token_ids.tolist(), sequence.response_token_ids.tolist()
    reader = Reader(tokenizer)
    rounds = _Rounds(data, learned, [*prompt, *response], reader)
    return TextSample(
        prompt_id=sequence.prompt_id,
        prompt=reader.texts([*prompt[-PROMPT_TAIL:], *response[:1]]),
        rounds=tuple(map(rounds.round, np.flatnonzero(learned.sequence == text).tolist())),
        threshold=data.stop_rule(data.price).another,
        note=note,
    )


class _Rounds:
    """Letters: T tokens of prompt and response."""

    def __init__(self, data: ReportData, learned: ReplayResult, tokens: list[int], reader: Reader) -> None:
        self.decisions, self.survival, self.learned = data.held_out, data.survival, learned
        self.starts = start_numbers(data.held_out, learned)
        self.tokens, self.reader = tokens, reader  # [T]

    def round(self, number: int) -> SampleRound:
        """Round `number` of the replay."""
        first, last = self.decisions.offsets[self.starts[number] : self.starts[number] + 2].tolist()
        estimates = self.survival[first:last].tolist()  # at position 0, 1, ...
        num_drafted, num_accepted = int(self.learned.num_drafted[number]), int(self.learned.num_accepted[number])
        return SampleRound(
            tokens=(*self._drafts(number, num_accepted, estimates[:num_drafted]), *self._own(number)),
            num_drafted=num_drafted,
            num_accepted=num_accepted,
            stopped_at=estimates[num_drafted] if num_drafted < len(estimates) else None,
        )

    def _drafts(self, number: int, num_accepted: int, estimates: list[float]) -> Iterator[SampleToken]:
        rows = self.decisions.draft_rows(int(self.starts[number]), len(estimates))
        columns = self.decisions.traces.rows
        before = self.tokens[int(self.learned.start[number]) - 1]
        for k, (row, estimate) in enumerate(zip(rows.tolist(), estimates, strict=False)):  # as far as it was recorded
            token_id = int(columns["token_id"][row])
            yield SampleToken(
                text=self.reader.text(before, token_id),
                fate="accepted" if k < num_accepted else "rejected",
                survival=estimate,
                draft_prob=float(np.exp(columns["token_log_prob"][row])),
            )
            before = token_id

    def _own(self, number: int) -> Iterator[SampleToken]:
        """The target's own token, unless the text ended before it."""
        num_accepted = int(self.learned.num_accepted[number])
        index = int(self.learned.start[number]) + num_accepted
        if index < len(self.tokens):
            text = self.reader.text(self.tokens[index - 1], self.tokens[index])
            yield SampleToken(
                text, "bonus" if num_accepted == self.learned.num_drafted[number] else "corrected", None, None
            )
