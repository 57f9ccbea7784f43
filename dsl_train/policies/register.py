"""The rules by name. Each class registers itself; nothing about a rule is written anywhere else."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from dsl_train.base.policy import Policy

C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Rule:
    policy: Callable[..., Policy]
    """The class; what its constructor takes are the arguments of `NAME:ARG,ARG...`."""
    help: str
    """One line, the arguments first."""
    settings: Callable[[int], Iterable[str]] | None
    """Arguments that tuning tries for texts of a largest lookahead; None where nothing is to be tuned."""
    published: bool
    """Whether its defaults are those of a publication or of another engine."""


RULES: dict[str, Rule] = {}


def register(
    name: str, help: str, settings: Callable[[int], Iterable[str]] | None = None, published: bool = False
) -> Callable[[C], C]:
    """Make a policy class known by its name."""

    def keep(policy: C) -> C:
        RULES[name] = Rule(policy, help, settings, published)
        return policy

    return keep
