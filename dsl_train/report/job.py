"""The report of a benchmark: what it needs is read before anything is timed, it is written when all is measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.bench.config import BenchConfig
from dsl_train.bench.live import LiveResult
from dsl_train.bench.replay import measured_price
from dsl_train.evidence.inputs import from_folders
from dsl_train.report.page import build_report


def open_report(config: BenchConfig) -> Callable[[Any], Path]:
    """A function that takes the benchmark's result, writes the report and returns its page.

    Raises DslError for traces, a predictor or a folder that cannot be used.
    """
    folder = Path(str(config.report))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DslError(f"report folder {folder} cannot be made ({error}); choose another with --report") from error
    data = from_folders(config.traces, config.tune_on, config.predictor, config.draft, config.threshold)

    def write(result: Any) -> Path:
        live = result if isinstance(result, LiveResult) else None
        cost = live.cost if live else result if isinstance(result, CostProfile) else None
        cost = cost or next(iter(measured_price(config)), data.cost)
        return build_report(folder, replace(data, cost=cost), config.c, config.seed, live)

    return write
