"""A policy under a lower cap."""

from typing import Any

from dsl_train.base.policy import Policy


class Capped:
    """Drafts what `policy` wants, at most `cap` tokens a round. The policy itself is not changed for its owner, and a
    cap of its own that varies from round to round still counts."""

    def __init__(self, policy: Policy, cap: int) -> None:
        self._policy, self._cap = policy, cap

    @property
    def max_lookahead(self) -> int:
        return min(self._policy.max_lookahead, self._cap)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_policy", "_cap"):  # asked for by copy and pickle before they are set
            raise AttributeError(name)
        return getattr(self._policy, name)
