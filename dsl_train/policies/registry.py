"""From `NAME[:ARGS]` to a policy."""

import difflib
import inspect
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from dsl_train.base.cost import StopRule
from dsl_train.base.policy import Needs, Policy
from dsl_train.base.records import DslError
from dsl_train.costs.online import OnlineCosts
from dsl_train.policies.register import RULES

if TYPE_CHECKING:
    from dsl_train.predictor.runtime import Predictor

for _module in iter_modules([str(Path(__file__).parent)]):
    if _module.name != Path(__file__).stem:
        import_module(f"dsl_train.policies.{_module.name}")

#: Name -> help of one line, the arguments first.
POLICIES: dict[str, str] = {
    name: RULES[name].help for name in sorted(RULES, key=lambda name: (name != "learned", name != "static", name))
}

Threshold = float | StopRule | OnlineCosts
"""What the learned policy compares survival with, or the costs that it follows from."""


def make_policy(spec: str, predictor: "Predictor | None" = None, threshold: Threshold | None = None) -> Policy:
    """A fresh policy from `NAME[:ARG,ARG...]`, as `static:4` or `confidence:0.4,20`; arguments have defaults.

    `learned` needs a predictor and a threshold or costs, and no other policy takes them. Raises DslError naming what
    is wrong.
    """
    name, _, listed = spec.partition(":")
    if name not in RULES:
        close = difflib.get_close_matches(name, POLICIES, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise DslError(f"unknown policy {name!r}; {meant}Choose one of {', '.join(POLICIES)}")
    arguments = _split(listed)
    if name == "learned":
        return _learned(spec, arguments, predictor, threshold)
    if threshold is not None:
        given = "costs are" if isinstance(threshold, OnlineCosts) else f"a threshold of {_first(threshold):g} is"
        raise DslError(f"{given} for the learned policy; {_usage(name)} instead")
    return RULES[name].policy(*_parse(spec, name, arguments))


def needs_of(spec: str) -> Needs:
    """What a policy looks at, without making it."""
    needs: Needs = RULES[spec.partition(":")[0]].policy.needs  # type: ignore[attr-defined]  # of the class
    return needs


def _split(listed: str) -> list[str]:
    """The arguments; a file that exists may have commas in its path and comes first."""
    pieces = [piece.strip() for piece in listed.split(",")] if listed else []
    for count in range(len(pieces), 1, -1):
        path = ",".join(listed.split(",")[:count])
        if Path(path).is_file():
            return [path, *pieces[count:]]
    return pieces


def _learned(spec: str, arguments: list[str], predictor: "Predictor | None", threshold: Threshold | None) -> Policy:
    if arguments:
        raise DslError(f"policy {spec!r}: the learned policy has no arguments; write learned")
    if predictor is None or threshold is None:
        missing = "predictor" if predictor is None else "threshold"
        raise DslError(
            f"policy 'learned' has no {missing}; train a predictor with dsl-train and name it by --predictor"
        )
    return RULES["learned"].policy(predictor, threshold)


def _parse(spec: str, name: str, arguments: list[str]) -> list[int | float | str]:
    """Arguments converted to what the rule's constructor annotates, and within their range."""
    parameters = list(inspect.signature(RULES[name].policy).parameters.values())
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


def _first(threshold: float | StopRule) -> float:
    return StopRule.of(threshold).first


def _usage(name: str) -> str:
    arguments, colon, _ = POLICIES[name].partition(":")
    return f"write {name}:{arguments}" if colon else f"write {name}"
