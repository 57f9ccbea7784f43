"""What a round costs. Standard library only; measuring is `bench.py`'s business."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class CostProfile:
    """Measured times of one (target, draft) pair on one machine [seconds]."""

    draft_step: float
    """One draft token: forward, draw and bookkeeping."""
    target_step: float
    """One target forward over a single new token."""
    target_step_per_token: float = 0.0
    """What each further token in a verification adds to it."""
    predictor: float = 0.0
    """Features and predictor per draft token."""
    round_overhead: float = 0.0
    """Verification, commit and bookkeeping per round, the forward excluded."""

    @property
    def c(self) -> float:
        """Draft step / target step (Leviathan et al. 2211.17192, section 3.3)."""
        return self.draft_step / self.target_step

    @property
    def c_eff(self) -> float:
        """Price of one more draft token, everything included, in target steps."""
        return (self.draft_step + self.predictor + self.target_step_per_token) / self.round_base

    @property
    def round_base(self) -> float:
        """A round without drafts [seconds]."""
        return self.target_step + self.round_overhead

    def round_cost(self, num_drafted: float) -> float:
        """Cost of a round in rounds without drafts: 1 + K * c_eff."""
        return 1.0 + num_drafted * self.c_eff

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "c": self.c, "c_eff": self.c_eff}


def interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Piecewise linear through the points (xs rising), constant outside."""
    if x <= xs[0]:
        return ys[0]
    for left, right, low, high in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return ys[-1]
