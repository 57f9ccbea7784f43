"""What a policy decides, and what it is told."""

from typing import Literal, Protocol

from dsl_train.base.records import DraftStep, Round

Needs = Literal["position", "confidence", "primitives", "features"]
"""The position alone, also the two largest log-probabilities and the token's, also entropy and TOP of them; or
features."""
WITHOUT_ENTROPY = ("confidence", "features")


class Policy(Protocol):
    """Decides after every drafted token, and once before the first, whether to draft another.

    A policy may read anything in the step, but it cannot remove a token: what is drafted is verified. It owns the
    memory it adapts with; `reset` is called before each text.
    """

    name: str
    needs: Needs
    """What the engine must compute for it: the cheaper the better."""
    max_lookahead: int
    """The engine stops asking once this many tokens are drafted."""

    def wants_another(self, step: DraftStep) -> bool: ...

    def draft_temperature(self, temperature: float) -> float:
        """At which the draft had better draw where the target samples at `temperature`."""
        return temperature

    def observe(self, finished: Round) -> None:
        """Called once per round, after commit."""

    def timed(self, num_drafted: int, draft_seconds: float, verify_seconds: float, round_seconds: float) -> None:
        """Called after :meth:`observe`: how long drafting, verification and the whole round took [seconds]."""
        return None  # noqa: RET501  # not abstract: most policies do not ask the time

    def reset(self) -> None:
        """Forget whatever belongs to one text; keep what a baseline is defined to keep across texts."""


def draft_temperature_of(policy: Policy, temperature: float) -> float:
    """:meth:`Policy.draft_temperature`, which a policy that is no subclass may do without."""
    known = getattr(policy, "draft_temperature", None)
    return known(temperature) if known else temperature


def tell_times(
    policy: Policy, num_drafted: int, draft_seconds: float, verify_seconds: float, round_seconds: float
) -> None:
    """:meth:`Policy.timed`, which a policy that is no subclass may do without."""
    timed = getattr(policy, "timed", None)
    if timed is not None:
        timed(num_drafted, draft_seconds, verify_seconds, round_seconds)
