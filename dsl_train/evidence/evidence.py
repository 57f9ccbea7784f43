"""All numbers of one report, gathered in one call."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.evidence.contest import STATIC, Contest, contests, replay_learned
from dsl_train.evidence.lookahead import (
    Acceptance,
    LookaheadAlong,
    LookaheadDistribution,
    acceptance,
    along,
    distribution,
    typical_text,
)
from dsl_train.evidence.quality import Reliability, Signal, reliability, signals
from dsl_train.evidence.report_data import ReportData
from dsl_train.evidence.sample import TextSample, sample
from dsl_train.evidence.thresholds import ThresholdCurve, threshold_curve
from dsl_train.pair.loading import load_tokenizer
from dsl_train.replay import rounds as replay


@dataclass(frozen=True)
class Source:
    """Where the numbers come from."""

    target: str
    draft: str
    predictor: str
    num_prompts: int
    num_texts: int
    num_tokens: int
    num_decisions: int
    temperatures: tuple[float, ...]
    num_tuning_prompts: int | None
    """None: rules were tuned on the held-out prompts themselves."""
    price: Literal["measured", "measured without the predictor", "assumed"]
    """How the price of a draft token is known."""


@dataclass(frozen=True)
class Evidence:
    source: Source
    contests: tuple[Contest, ...]
    """The first at the price measured here (or assumed)."""
    thresholds: ThresholdCurve
    along: LookaheadAlong
    distribution: LookaheadDistribution
    acceptance: tuple[Acceptance, ...]
    reliability: tuple[Reliability, ...]
    """Overall, then by position."""
    signals: tuple[Signal, ...]
    sample: TextSample
    cost: CostProfile | None

    @property
    def contest(self) -> Contest:
        return self.contests[0]

    def to_dict(self) -> dict[str, Any]:
        derived = {
            "gap_closed": self.contest.gap_closed,
            "best_threshold": self.thresholds.best,
            "threshold_loss": self.thresholds.loss,
        }
        return {**asdict(self), "cost": self.cost.to_dict() if self.cost else None, "derived": derived}


def gather(data: ReportData, costs: Sequence[float], seed: int = 0) -> Evidence:
    """Everything at the price that `data` holds; the contest at each of `costs` too."""
    held_out, survival = data.held_out, data.survival
    held = contests(data, costs, seed)
    learned = replay_learned(data, data.price)
    constant = int(held[0][STATIC].spec.partition(":")[2])
    text = typical_text(learned, replay.replay_static(held_out, constant), data.price)
    tokenizer, note = _tokenizer(data)
    always = replay.replay_static(held_out, held_out.max_lookahead)
    return Evidence(
        source=_source(data),
        contests=held,
        thresholds=threshold_curve(data, seed),
        along=along(held_out, learned, text, constant),
        distribution=distribution(held_out, learned, constant),
        acceptance=(acceptance("learned", learned), acceptance(f"static:{held_out.max_lookahead}", always)),
        reliability=reliability(survival, held_out),
        signals=signals(survival, held_out),
        sample=sample(data, learned, text, tokenizer, note),
        cost=data.cost,
    )


def _source(data: ReportData) -> Source:
    held_out, pair = data.held_out, data.held_out.traces.pair
    return Source(
        target=pair["target"]["id"],
        draft=pair["draft"]["id"],
        predictor=str(data.predictor.folder),
        num_prompts=len(set(held_out.prompt_ids)),
        num_texts=held_out.num_sequences,
        num_tokens=int(held_out.bounds[-1]),
        num_decisions=len(held_out),
        temperatures=tuple(sorted({round(float(sequence.temperature), 6) for sequence in held_out.sequences})),
        num_tuning_prompts=len(set(data.tuning.prompt_ids)) if data.tuning else None,
        price=_price(data.cost),
    )


def _price(cost: CostProfile | None) -> Literal["measured", "measured without the predictor", "assumed"]:
    if cost is None:
        return "assumed"
    return "measured" if cost.predictor else "measured without the predictor"


def _tokenizer(data: ReportData) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The target's, or why there is none: a report does not fail because the models have moved."""
    try:
        pair = data.held_out.traces.pair
        return load_tokenizer(pair.get("tokenizer") or pair["target"]["id"]), ""
    except DslError as error:
        return None, f"Token ids instead of texts: {error}"
