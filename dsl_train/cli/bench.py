"""`dsl-bench`: which stopping rule is fastest here, and what a step costs."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsl_train.bench.config import BenchConfig
from dsl_train.cli.app import run

if TYPE_CHECKING:
    from dsl_train.base.cost import CostProfile
    from dsl_train.bench.live import LiveResult
    from dsl_train.bench.lossless import VerifyResult
    from dsl_train.bench.replay import ReplayTable

    Result = LiveResult | ReplayTable | CostProfile | VerifyResult


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 also if an output in float32 is not the target's own."""
    results: list[Result] = []

    def execute(config: BenchConfig) -> "Result":
        results.append(_execute(config))
        return results[0]

    code = run(BenchConfig, execute, _show, lambda result: result.to_dict(), argv, prog="dsl-bench")
    return code or int(any(getattr(result, "failed", False) for result in results))


def _execute(config: BenchConfig) -> "Result":
    from dsl_train.report.folder import begin, finish
    from dsl_train.report.page import open_report

    folder = Path(config.output) if config.output else None
    if folder:
        begin(folder, asdict(config))
    write_report = open_report(config) if config.report else None
    result = _measure(config)
    if folder:
        finish(folder, result)
    if write_report:
        print(f"report: {write_report(result)}", file=sys.stderr)
    return result


def _measure(config: BenchConfig) -> "Result":
    if config.mode == "live":
        from dsl_train.bench.live import run_live

        return run_live(config)
    if config.mode == "replay":
        from dsl_train.bench.replay import run_replay

        return run_replay(config)
    if config.mode == "verify":
        from dsl_train.bench.lossless import run_verify

        return run_verify(config)
    from dsl_train.bench.setup import measure_costs

    return measure_costs(config)


def _show(result: Any) -> None:
    from dsl_train.report.tables import show

    show(result)


if __name__ == "__main__":
    sys.exit(main())
