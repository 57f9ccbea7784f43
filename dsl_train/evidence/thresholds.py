"""Speed against the survival that is asked for: is the chosen threshold the right one?"""

from dataclasses import dataclass

from dsl_train.base.cost import StopRule
from dsl_train.bench import statistics
from dsl_train.bench.replay import by_prompt
from dsl_train.bench.statistics import Interval
from dsl_train.evidence.report_data import ReportData
from dsl_train.replay import rounds as replay

GRID = tuple(round(0.02 * step, 2) for step in range(50))


@dataclass(frozen=True)
class ThresholdCurve:
    threshold: tuple[float, ...]
    """Rising."""
    speedup: tuple[Interval, ...]
    """Tokens per target step at each threshold."""
    chosen: float
    """What the predictor's table gives for this price."""
    chosen_first: float
    """The same before a round's first draft, which also pays for verifying more than one token."""
    chosen_speedup: Interval

    @property
    def best(self) -> float:
        """The fastest threshold of the grid on these very prompts."""
        return max(zip(self.speedup, self.threshold, strict=True), key=lambda pair: pair[0].estimate)[1]

    @property
    def loss(self) -> float:
        """Share of the best threshold's speed that the chosen one misses; 0 where it is the faster one."""
        best = max(interval.estimate for interval in self.speedup)
        return max(0.0, 1.0 - self.chosen_speedup.estimate / best)


def threshold_curve(data: ReportData, seed: int = 0) -> ThresholdCurve:
    counts = statistics.draws(len(set(data.held_out.prompt_ids)), seed=seed)

    def speedup(threshold: float | StopRule) -> Interval:
        result = replay.replay_survival(data.held_out, data.survival, threshold)
        return statistics.rate(by_prompt(result, data.price), counts)

    rule = data.stop_rule(data.price)
    return ThresholdCurve(
        threshold=GRID,
        speedup=tuple(map(speedup, GRID)),
        chosen=rule.another,
        chosen_first=rule.first,
        chosen_speedup=speedup(rule),
    )
