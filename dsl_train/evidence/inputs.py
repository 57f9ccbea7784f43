"""Where a report's data come from: trace folders named on the command line, or the traces of a training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsl_train.api.serving import find_predictor, load_predictor
from dsl_train.base.cost import CostProfile
from dsl_train.bench.tuned import check_apart
from dsl_train.evidence.report_data import ReportData
from dsl_train.predictor.runtime import Predictor
from dsl_train.traces import decisions
from dsl_train.traces.decisions import Decisions
from dsl_train.traces.store import Traces, open_traces
from dsl_train.train.config import TrainConfig
from dsl_train.train.data import SPLITS, split_by_prompt

#: Training texts that rules are tuned on, one or two numbers each: more would only take longer.
MAX_TUNING_TEXTS = 300


def from_folders(
    held_out: Sequence[str],
    tuning: Sequence[str],
    predictor: str | None = None,
    draft: str | None = None,
    threshold: float | None = None,
) -> ReportData:
    """The predictor defaults to the one of `draft`, which defaults to the traces' own.

    Raises DslError for what cannot be read, for another pair's predictor, and for prompts on both sides.
    """
    traces = open_traces([Path(folder) for folder in held_out])
    found = find_predictor(draft or traces.pair["draft"]["id"], predictor)
    walked = _build(traces, found)
    tuned_on = _build(open_traces([Path(folder) for folder in tuning]), found) if tuning else None
    if tuned_on:
        check_apart(tuned_on, walked)
    return ReportData(walked, tuned_on, found, _collected_cost(traces), threshold)


def from_training(config: TrainConfig) -> ReportData:
    """The finished predictor on the prompts that its training held out; rules are tuned on some it trained on."""
    traces, predictor = open_traces(config.traces), load_predictor(config.output)
    walked = _build(traces, predictor)
    split = split_by_prompt(walked.prompt_ids, config.seed)
    test = walked.select(walked.replayable(split == SPLITS.index("test")))
    train = np.flatnonzero(walked.replayable(split == SPLITS.index("train")))
    chosen = np.random.default_rng(config.seed).permutation(train)[:MAX_TUNING_TEXTS]
    tuning = walked.select(np.isin(np.arange(walked.num_sequences), chosen))
    return ReportData(test, tuning, predictor, _collected_cost(traces))


def _build(traces: Traces, predictor: Predictor) -> Decisions:
    predictor.check_pair(traces.pair["target"], traces.pair["draft"])
    return decisions.build(traces, predictor.max_lookahead)


def _collected_cost(traces: Traces) -> CostProfile | None:
    """What the pair's steps cost where the traces were collected, if that was written down."""
    cost = traces.manifests[0].get("cost")
    return CostProfile.from_dict(cost) if cost else None
