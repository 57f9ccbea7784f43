"""Costs learned while generating: the draft step, and verification by the number of tokens verified.

Two things change them: the machine's pace (other work, a longer text), which slows all steps alike, and what steps cost
beside one another. So a block of rounds is taken apart like a table by Tukey's median polish (Exploratory Data
Analysis, 1977, chapter 11): the block's pace is the median of its verifications, each divided by what that width costs
in relation; then what each width costs in relation is the median of its latest samples, each divided by the pace of
its own block. Medians leave no trace of single outliers (a garbage collection, a compilation, a moment's other work).

Until there are samples, relations are those of a prior: costs recorded on some machine, or the ratio of the bytes that
the two models read in a step. Letters: W new tokens verified in one forward.
"""

import threading
from collections import deque
from statistics import median, median_low
from typing import NamedTuple

import numpy as np

from dsl_train.base.cost import CostProfile, never_falling

#: Widths [tokens] whose costs are told apart; wider verifications are extrapolated.
NUM_WIDTHS = 17
#: Rounds after which costs are renewed; the first time, after as many as FIRST_LOOKAHEADS.
BLOCK = 24
#: Latest samples of each step whose median counts, and how many samples the prior is worth.
RECENT, PRIOR_SAMPLES = 24, 0.5
#: Samples of one width that count as much as the line through all widths, for each that the prior is worth.
LINE_SAMPLES = 24
#: Drafts of the first rounds, so that every kind of step is met early; None leaves them to the stop rule.
FIRST_LOOKAHEADS = (None, 4, 4, 4, 4, 0, 0, 0, 2, 2)
#: Drafts and plain steps that were not met in so many rounds are tried, twice as seldom each time, drafts by TRIED.
TRY_AFTER, TRY_AFTER_MOST, TRIED = 16, 512, 4


class TimedRound(NamedTuple):
    num_drafted: int
    draft_seconds: float | None
    """None where nothing was drafted, or the draft had more to read than its own last tokens."""
    verify_seconds: float
    overhead_seconds: float


class OnlineCosts:
    """One pair's costs in service. Several threads may report to it.

    Nothing here is random, and it decides nothing but which lookaheads to try so that costs are known.
    """

    def __init__(
        self,
        prior: CostProfile,
        num_widths: int = NUM_WIDTHS,
        recent: int = RECENT,
        prior_samples: float = PRIOR_SAMPLES,
    ) -> None:
        self.profile = prior
        """What is known so far [seconds]; another object whenever it is renewed."""
        self.num_rounds = 0
        self._prior_samples = prior_samples
        steps = [prior.verification(width) for width in range(1, num_widths + 1)]
        self._prior_widths = np.array(steps) / steps[0]  # [W] relative to one token
        self._prior_draft, self._prior_overhead = prior.draft_step / steps[0], prior.round_overhead / steps[0]
        self._widths = self._prior_widths.tolist()
        self._width_samples = [deque[float](maxlen=recent) for _ in steps]
        self._draft_samples, self._overhead_samples = deque[float](maxlen=recent), deque[float](maxlen=recent)
        self._block: list[TimedRound] = []
        self._pace = steps[0]
        self._without = {"draft": 0, "plain": 0}  # rounds
        self._patience = {"draft": TRY_AFTER, "plain": TRY_AFTER}
        self._lock = threading.Lock()

    @property
    def lookahead_to_try(self) -> int | None:
        """What the coming round should draft for the sake of knowing its costs; None: whatever the rule says. Loops
        that time nothing are told to try nothing."""
        if self.num_rounds < len(FIRST_LOOKAHEADS):
            return FIRST_LOOKAHEADS[self.num_rounds]
        if self._without["draft"] >= self._patience["draft"]:
            return TRIED
        return 0 if self._without["plain"] >= self._patience["plain"] else None

    def observe(self, timed: TimedRound) -> None:
        with self._lock:
            self.num_rounds += 1
            self._wait("draft", timed.draft_seconds is not None)
            self._wait("plain", not timed.num_drafted)
            if timed.num_drafted < len(self._widths):
                self._block.append(timed)
            first = self.num_rounds <= len(FIRST_LOOKAHEADS)
            if len(self._block) >= (len(FIRST_LOOKAHEADS) if first else BLOCK):
                self.renew()

    def renew(self) -> None:
        """Take the last block into account; called by :meth:`observe` in time."""
        block, self._block = self._block, []
        if not block:
            return
        pace = self._pace = median(timed.verify_seconds / self._widths[timed.num_drafted] for timed in block)
        for timed in block:
            self._width_samples[timed.num_drafted].append(timed.verify_seconds / pace)
            self._overhead_samples.append(timed.overhead_seconds / pace)
            if timed.draft_seconds is not None:
                self._draft_samples.append(timed.draft_seconds / timed.num_drafted / pace)
        self._widths = self._relate_widths()
        self.profile = CostProfile.of_steps(
            draft_step=pace
            * self._prior_draft
            * float(np.exp(self._departure(self._draft_samples, self._prior_draft))),
            target_steps=[pace * width for width in self._widths],
            round_overhead=pace * (median(self._overhead_samples) if self._overhead_samples else self._prior_overhead),
        )

    def spread(self) -> dict[str, tuple[float, float]]:
        """First and third quartile [seconds] of the draft step and of a target step over one token, where known."""
        rows = {"draft": self._draft_samples, "target": self._width_samples[0]}
        quartiles = {name: np.quantile(row, [0.25, 0.75]).tolist() for name, row in rows.items() if row}
        return {name: (self._pace * low, self._pace * high) for name, (low, high) in quartiles.items()}

    def _wait(self, step: str, met: bool) -> None:
        if met and self._without[step] >= self._patience[step]:  # it was tried
            self._patience[step] = min(2 * self._patience[step], TRY_AFTER_MOST)
        self._without[step] = 0 if met else self._without[step] + 1

    def _relate_widths(self) -> list[float]:
        """[W] what verifying costs in relation. The departure from the prior is one number for a single token; for two
        and more it is drawn to a line, so that widths that were seldom met follow the others."""
        numbers = np.arange(len(self._widths))
        counts = np.array([len(samples) for samples in self._width_samples])
        pairs = zip(self._width_samples, self._prior_widths.tolist(), strict=True)
        departures = np.array([self._departure(samples, prior) for samples, prior in pairs])
        if counts[1:].any():
            line = _line(numbers[1:], departures[1:], counts[1:], self._prior_samples)
            own = counts[1:] / np.maximum(1e-9, counts[1:] + LINE_SAMPLES * self._prior_samples)
            departures[1:] = line + own * (departures[1:] - line)
        if not counts[0]:
            departures[0] = departures[1]
        elif not counts[1:].any():
            departures[1:] = departures[0]
        return list(never_falling((self._prior_widths * np.exp(departures)).tolist()))

    def _departure(self, samples: deque[float], prior: float) -> float:
        """Logarithm of the samples' median (of two, the quicker) over the prior, drawn towards 0 by what the prior is
        worth."""
        if not samples:
            return 0.0
        share = len(samples) / (len(samples) + self._prior_samples)
        return share * float(np.log(max(median_low(samples), 1e-9) / prior))


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray, prior_samples: float) -> np.ndarray:
    """Weighted least squares, its slope drawn towards 0 as by prior samples ten widths apart."""
    centre, mean = np.average(x, weights=weights), np.average(y, weights=weights)
    spread = (weights * (x - centre) ** 2).sum() + 100.0 * prior_samples
    slope = (weights * (x - centre) * (y - mean)).sum() / spread if spread else 0.0
    line: np.ndarray = mean + slope * (x - centre)
    return line
