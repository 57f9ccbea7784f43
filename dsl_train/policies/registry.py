"""From `NAME[:ARGS]` to a policy."""

import difflib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from dsl_train.base.cost import StopRule
from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DslError
from dsl_train.costs.online import OnlineCosts
from dsl_train.policies.adaptive import AdaEdlPolicy, ConfidenceRocPolicy, DraftVerifyPolicy
from dsl_train.policies.rules import HeuristicPolicy, RandomPolicy, StaticPolicy
from dsl_train.policies.signals import ConfidencePolicy, CumulativePolicy, KangarooPolicy, LogisticPolicy, SvipPolicy
from dsl_train.policies.specdec import SpecDecPolicy

if TYPE_CHECKING:
    from dsl_train.predictor.runtime import Predictor

_RULES: dict[str, Callable[..., Policy]] = {
    "static": StaticPolicy,
    "heuristic": HeuristicPolicy,
    "confidence": ConfidencePolicy,
    "confidence-roc": ConfidenceRocPolicy,
    "draft-verify": DraftVerifyPolicy,
    "kangaroo": KangarooPolicy,
    "svip": SvipPolicy,
    "adaedl": AdaEdlPolicy,
    "cumulative": CumulativePolicy,
    "logistic": LogisticPolicy,
    "specdec++": SpecDecPolicy,
    "random": RandomPolicy,
}

#: Name -> help of one line, the arguments first.
POLICIES: dict[str, str] = {
    "learned": "the trained predictor, with the threshold that pays on this machine; learned:adapt corrects it online",
    "static": "LOOKAHEAD: always so many tokens; 0 is plain decoding",
    "heuristic": "two more after a fully accepted round, else one less (transformers)",
    "confidence": "THRESHOLD,CAP: stop behind a token of smaller draft probability (transformers)",
    "confidence-roc": "THRESHOLD,CAP: the same, refitted every round (transformers with scikit-learn)",
    "draft-verify": "THRESHOLD,CAP: the same, creeping towards 0.9 acceptance",
    "kangaroo": "THRESHOLD,CAP: stop where the largest draft probability is smaller",
    "svip": "THRESHOLD,CAP: stop where sqrt(0.15 * entropy) is larger",
    "adaedl": "THRESHOLD,CAP: stop where 1 - sqrt(0.2 * entropy) is smaller, creeping towards 0.9 acceptance",
    "cumulative": "THRESHOLD,CAP: stop once the product of draft probabilities is smaller",
    "logistic": "THRESHOLD,SLOPE,INTERCEPT,...: one feature and an intercept per position",
    "specdec++": "FILE,THRESHOLD,CAP: stop once a rejection is likelier, by the acceptance model in FILE",
    "random": "PROBABILITY,SEED,CAP: a coin, for tests",
}


Threshold = float | StopRule | OnlineCosts
"""What the learned policy compares survival with, or the costs that it follows from."""


def make_policy(spec: str, predictor: "Predictor | None" = None, threshold: Threshold | None = None) -> Policy:
    """A fresh policy from `NAME[:ARG,ARG...]`, as `static:4` or `confidence:0.4,20`; arguments have defaults.

    `learned` needs a predictor and a threshold or costs, and no other policy takes them. Raises DslError naming what
    is wrong.
    """
    name, _, listed = spec.partition(":")
    arguments = [argument.strip() for argument in listed.split(",")] if listed else []
    if name == "learned":
        return _learned(spec, arguments, predictor, threshold)
    if name not in _RULES:
        close = difflib.get_close_matches(name, POLICIES, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise DslError(f"unknown policy {name!r}; {meant}Choose one of {', '.join(POLICIES)}")
    if threshold is not None:
        given = (
            "costs are" if isinstance(threshold, OnlineCosts) else f"a threshold of {StopRule.of(threshold).first:g} is"
        )
        raise DslError(f"{given} for the learned policy; {_usage(name)} instead")
    return _RULES[name](*_parse(spec, name, arguments))


def needs_of(spec: str) -> Needs:
    """What the policy looks at, without making it."""
    name = spec.partition(":")[0]
    needs: Needs = "features" if name == "learned" else _RULES[name].needs  # type: ignore[attr-defined]  # of the class
    return needs


def _learned(spec: str, arguments: list[str], predictor: "Predictor | None", threshold: Threshold | None) -> Policy:
    from dsl_train.policies.learned import LearnedPolicy

    if arguments not in ([], ["adapt"]):
        raise DslError(f"policy {spec!r}: the learned policy has no arguments but `adapt`, as in learned:adapt")
    if predictor is None or threshold is None:
        missing = "predictor" if predictor is None else "threshold"
        raise DslError(
            f"policy 'learned' has no {missing}; train a predictor with dsl-train and name it by --predictor"
        )
    return LearnedPolicy(predictor, threshold, adapt=bool(arguments))


def _parse(spec: str, name: str, arguments: list[str]) -> list[int | float | str]:
    """Arguments converted to what the rule's constructor annotates, and within their range."""
    parameters = list(inspect.signature(_RULES[name]).parameters.values())
    values: list[int | float | str] = []
    for i, argument in enumerate(arguments):
        parameter = parameters[min(i, len(parameters) - 1)] if parameters else None
        if parameter is None or (i >= len(parameters) and parameter.kind is not inspect.Parameter.VAR_POSITIONAL):
            raise DslError(f"policy {spec!r} has {len(arguments)} arguments, {name} takes {len(parameters)} at most")
        try:
            values.append(argument if parameter.annotation is str else parameter.annotation(argument))
        except ValueError:
            kind = "a whole number" if parameter.annotation is int else "a number"
            raise DslError(
                f"policy {spec!r}: {parameter.name} must be {kind}, not {argument!r}; {_usage(name)}"
            ) from None
        if parameter.annotation is int and int(argument) < 0:
            raise DslError(f"policy {spec!r}: {parameter.name} must be 0 or more, not {argument}; {_usage(name)}")
    required = sum(p.default is p.empty for p in parameters)
    if len(values) < required:
        raise DslError(f"policy {spec!r} has {len(values)} arguments but needs {required}; {_usage(name)}")
    return values


def _usage(name: str) -> str:
    arguments, colon, _ = POLICIES[name].partition(":")
    return f"write {name}:{arguments}" if colon else f"write {name}"
