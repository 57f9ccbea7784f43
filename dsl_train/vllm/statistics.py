"""Counts of rounds and questions, and the costs in use: in vLLM's log, and among its Prometheus metrics.

The drafting process counts into a small file in memory that the server process reads when it is scraped: vLLM has no
way of its own for a drafter's numbers. The file is named by an environment variable that child processes inherit.
"""

import atexit
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dsl_train.base.cost import CostProfile
from dsl_train.base.records import Round

#: Environment variable: where the drafting processes of a server count.
FILE = "DSL_TRAIN_METRICS"
#: Lookaheads that are told apart; longer ones count as the last.
LOOKAHEADS = 33
COUNTERS = {
    "rounds": "rounds verified, one for each request in each step",
    "questions": "times the predictor or policy was asked whether to draft another token",
    "stops": "questions that were answered by no",
    "draft_tokens": "tokens drafted and verified",
    "accepted_tokens": "drafted tokens that were accepted",
    "draft_steps": "forwards of the draft model",
    "drafting_seconds": "time from the target's answer to the next blocks",
}
GAUGES = {
    "draft_step_seconds": "estimated time of a draft step of the batch met last",
    "target_step_seconds": "estimated time of a step of that batch in which nothing is verified beside its own tokens",
}
_NAMES = (*COUNTERS, *GAUGES)
_LOG_EVERY = 10.0
"""[seconds]"""


class Statistics:
    """One drafting process's numbers."""

    def __init__(self, log: logging.Logger | None = None) -> None:
        """`log` has vLLM's `info`; None logs nothing."""
        self._log, self._logged, self._logged_at = log, np.zeros(len(_NAMES)), time.monotonic()
        path = os.environ.get(FILE)
        shape = (len(_NAMES) + LOOKAHEADS,)
        self.numbers: np.ndarray = (
            np.memmap(f"{path}.{os.getpid()}", np.float64, "w+", shape=shape) if path else np.zeros(shape)
        )
        """Counters, gauges, then rounds by lookahead."""

    def observe(self, finished: Round) -> None:
        self._add("rounds", 1)
        self._add("draft_tokens", len(finished.drafted))
        self._add("accepted_tokens", finished.num_accepted)
        self.numbers[len(_NAMES) + min(len(finished.drafted), LOOKAHEADS - 1)] += 1

    def step(self, num_questions: int, num_stops: int, num_draft_steps: int, seconds: float) -> None:
        """An engine step is over; questions and stops are totals."""
        self.numbers[_NAMES.index("questions")] = num_questions
        self.numbers[_NAMES.index("stops")] = num_stops
        self._add("draft_steps", num_draft_steps)
        self._add("drafting_seconds", seconds)
        if self._log and time.monotonic() - self._logged_at > _LOG_EVERY:
            self._log_since()

    def costs(self, profile: CostProfile) -> None:
        self.numbers[_NAMES.index("draft_step_seconds")] = profile.draft_step
        self.numbers[_NAMES.index("target_step_seconds")] = profile.target_step

    def _add(self, name: str, amount: float) -> None:
        self.numbers[_NAMES.index(name)] += amount

    def _log_since(self) -> None:
        now = np.array(self.numbers[: len(_NAMES)])
        new = dict(zip(_NAMES, (now - self._logged).tolist(), strict=True))
        self._logged, self._logged_at = now, time.monotonic()
        if self._log and new["rounds"]:
            self._log.info(
                "dsl_train: %.2f tokens drafted and %.2f accepted per round, %d rounds, %d questions, %d stops, draft "
                "step %.2f ms, target step %.2f ms",
                *(new["draft_tokens"] / new["rounds"], new["accepted_tokens"] / new["rounds"]),
                *(new["rounds"], new["questions"], new["stops"]),
                *(1e3 * now[_NAMES.index(f"{model}_step_seconds")] for model in ("draft", "target")),
            )


def share_statistics() -> None:
    """Called in the server's process before the others start: name the file, and show it to Prometheus."""
    if FILE in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="dsl_train_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[FILE] = str(Path(folder) / "statistics")
    from prometheus_client import REGISTRY

    REGISTRY.register(_Collector(Path(os.environ[FILE])))


class _Collector:
    """Sums over the drafting processes of this server."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def collect(self) -> Iterator[object]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        parts = [np.fromfile(part, np.float64) for part in self.path.parent.glob(f"{self.path.name}.*")]
        if not parts:
            return
        numbers = np.sum(parts, axis=0)
        values = dict(zip(_NAMES, numbers.tolist(), strict=False))
        for name, meaning in COUNTERS.items():
            yield CounterMetricFamily(f"dsl_train:{name}", meaning, value=values[name])
        for name, meaning in GAUGES.items():
            yield GaugeMetricFamily(f"dsl_train:{name}", meaning, value=values[name] / len(parts))
        rounds = numbers[len(_NAMES) :]
        total = float(np.arange(LOOKAHEADS) @ rounds)
        buckets = [(str(length), count) for length, count in enumerate(np.cumsum(rounds[:-1]).tolist())]
        everything = [*buckets, ("+Inf", float(rounds.sum()))]
        yield HistogramMetricFamily(
            "dsl_train:lookahead", "tokens drafted per round", buckets=everything, sum_value=total
        )
