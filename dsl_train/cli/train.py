"""`dsl-train`: traces in, a predictor folder out, and a report on how good it is."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsl_train.cli.app import run
from dsl_train.train.config import TrainConfig

if TYPE_CHECKING:
    from dsl_train.train.fit import TrainResult

REPORT = "report"


def main(argv: Sequence[str] | None = None) -> int:
    return run(TrainConfig, _execute, _show, lambda result: result.to_dict(), argv, prog="dsl-train")


def _execute(config: TrainConfig) -> "TrainResult":
    from dsl_train.evidence.inputs import from_training
    from dsl_train.report.page import build_report
    from dsl_train.train.fit import fit
    from dsl_train.train.measure import REPORTED_C

    result = fit(config)
    build_report(config.output / REPORT, from_training(config), REPORTED_C, config.seed)
    return result


def _show(result: "TrainResult") -> None:
    from rich.table import Table

    from dsl_train.report.tables import print_whole

    test, floor, prompts = result.metrics["test"], result.metrics["floor"], result.metrics["num_prompts"]["test"]
    quality = Table(title=f"survival on {test['num_rows']:,} decisions of {prompts} held-out prompts")
    for heading in ("", "AUC", "log loss", "Brier", "calibration error"):
        quality.add_column(heading, justify="right" if heading else "left")
    for name, values in (("predictor", test), ("logistic, core features", floor)):
        cells = (values[key] for key in ("auc", "log_loss", "brier", "ece"))
        quality.add_row(name, *("-" if value is None else f"{value:.4f}" for value in cells))
    gains = Table(title="replay of those prompts: tokens per target step where a draft costs c")
    for heading in ("c", "threshold", "predictor", "best static", "gain"):
        gains.add_column(heading, justify="right")
    for row in result.metrics["replay"]:
        static = f"{row['static_rate']:.3f} (K = {row['static_lookahead']})"
        gains.add_row(f"{row['c']:g}", f"{row['threshold']:.3f}", f"{row['rate']:.3f}", static, f"{row['gain']:+.1%}")
    print_whole(quality, gains)
    done = "exported" if result.epochs is None else f"trained for {result.epochs} epochs"
    size = result.metrics["onnx_bytes"] / 1000
    print(f"{done} on {result.num_rows:,} decisions in {result.seconds:.1f} s; {size:.0f} kB in {result.output}")
    print(f"report: {result.output / REPORT / 'index.html'}")
    if result.shipped:
        print(f"shipped to {result.shipped}")


if __name__ == "__main__":
    sys.exit(main())
