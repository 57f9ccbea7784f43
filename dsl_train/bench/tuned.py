"""Every rule at the setting that is best on other prompts, replayed on those it is judged by."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from dsl_train.base.cost import Price
from dsl_train.base.records import DslError
from dsl_train.policies.registry import make_policy
from dsl_train.replay import rounds as replay
from dsl_train.replay.rounds import ReplayResult
from dsl_train.replay.tuning import tune_baselines
from dsl_train.traces.decisions import Decisions

#: Name of a tuned rule's row, as `static:tuned`.
SUFFIX = ":tuned"


@dataclass(frozen=True, eq=False)
class TunedRule:
    specs: tuple[str, ...]
    """What was chosen at each price; a model's file left out."""
    results: tuple[ReplayResult, ...]


def replay_tuned(tuning: Decisions, judged: Decisions, prices: Sequence[Price]) -> dict[str, TunedRule]:
    """By row name. Raises DslError if a prompt is on both sides."""
    check_apart(tuning, judged)
    with TemporaryDirectory() as folder:
        model = Path(folder) / "acceptance"
        replayed = cache(lambda spec: replay_spec(judged, spec))
        chosen = tune_baselines(tuning, prices, model)
        specs = {name: [at_price[name].spec for at_price in chosen] for name in chosen[0]}
        return {
            name + SUFFIX: TunedRule(
                tuple(spec.replace(f"{model},", "") for spec in of_name), tuple(map(replayed, of_name))
            )
            for name, of_name in specs.items()
        }


def replay_spec(decisions: Decisions, spec: str) -> ReplayResult:
    """A rule by the quickest way that is exact."""
    name, _, lookahead = spec.partition(":")
    if name == "static" and lookahead:
        return replay.replay_static(decisions, int(lookahead))
    return replay.replay_policy(decisions, make_policy(spec))


def check_apart(tuning: Decisions, judged: Decisions) -> None:
    """Raises DslError for prompts that are on both sides."""
    shared = sorted(set(judged.prompt_ids) & set(tuning.prompt_ids))
    if shared:
        raise DslError(
            f"{len(shared)} prompts are in --traces and in --tune_on ({shared[0]} first); rules tuned on the prompts "
            "they are judged by look better than they are: give other folders, or leave --tune_on out"
        )
