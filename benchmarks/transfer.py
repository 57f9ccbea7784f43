"""Transfer between kinds of text: predictors trained on each, replayed on each, as they are and corrected online.

    python benchmarks/transfer.py --output runs/reference/transfer \\
        --domain code checkpoints/reference/draft/dsl runs/reference/test_t0_tail15 \\
        --domain prose runs/reference/predictor_prose runs/reference/prose_test_t0

Each domain is a name, the predictor trained on its prompts, and traces of other prompts of it. For every pair of
predictor and texts: speed at each price, compared with the texts' own predictor; what the online correction
adds, and what the best shift and slope of the logit would, fitted on the test texts themselves in
hindsight. Prompts that both domains' test traces share are counted in both. Writes transfer.json and transfer.md.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dsl_train.api.serving import load_predictor
from dsl_train.base import files
from dsl_train.bench import statistics
from dsl_train.bench.replay import by_prompt
from dsl_train.bench.statistics import Interval, Rates
from dsl_train.policies.learned import LearnedPolicy
from dsl_train.predictor.runtime import Predictor
from dsl_train.replay import rounds as replay
from dsl_train.traces import decisions
from dsl_train.traces.decisions import Decisions
from dsl_train.traces.store import open_traces
from dsl_train.train.metrics import calibration_error, platt

PROB_CLIP = 1e-6


@dataclass(frozen=True)
class Cell:
    trained_on: str
    tested_on: str
    c: float
    num_prompts: int
    calibration_error: float
    """Of the predictor on all decisions of the test texts."""
    rate: Interval
    """Tokens per target step."""
    vs_static: Interval
    """Over the best constant lookahead on the test texts themselves."""
    vs_own: Interval
    """Over the predictor trained on texts of this kind."""
    adapted: Interval
    """What the online correction reaches, over the predictor as it is."""
    hindsight: Interval
    """What the best shift and slope reach, over the predictor as it is."""
    exhausted_share: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("NAME", "PREDICTOR", "TEST")
    parser.add_argument("--domain", nargs=3, action="append", required=True, metavar=names)
    parser.add_argument("--c", nargs="*", type=float, default=[0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    predictors = {name: load_predictor(folder) for name, folder, _ in options.domain}
    cap = min(predictor.max_lookahead for predictor in predictors.values())
    cells: list[Cell] = []
    for name, _, folder in options.domain:
        test = decisions.build(open_traces([Path(folder)]), cap)
        for c in options.c:
            cells += at_price(name, test, predictors, c, options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    text = markdown(cells)
    print(text)
    origin = {"versions": files.software_versions(), "command": files.command_line()}
    files.write_json(options.output / "transfer.json", {"cells": [asdict(cell) for cell in cells], **origin})
    files.write_text(options.output / "transfer.md", text)


def at_price(domain: str, test: Decisions, predictors: dict[str, Predictor], c: float, seed: int) -> Iterator[Cell]:
    counts = statistics.draws(len(set(test.prompt_ids)), seed=seed)
    survivals = {name: predictor.survival_batch(test.features) for name, predictor in predictors.items()}
    plain = {
        name: replay.replay_survival(test, survivals[name], predictor.threshold(c))
        for name, predictor in predictors.items()
    }
    rates = {name: by_prompt(result, c) for name, result in plain.items()}
    static = best_static(test, c)
    for name, predictor in predictors.items():
        threshold = predictor.threshold(c)
        policy = LearnedPolicy(predictor, threshold, corrected=True)
        adapted = by_prompt(replay.replay_policy(test, policy), c)
        fitted = by_prompt(replay.replay_survival(test, in_hindsight(survivals[name], test), threshold), c)
        yield Cell(
            trained_on=name,
            tested_on=domain,
            c=c,
            num_prompts=counts.shape[1],
            calibration_error=calibration_error(survivals[name], test.survival),
            rate=statistics.rate(rates[name], counts),
            vs_static=statistics.ratio(rates[name], static, counts),
            vs_own=statistics.ratio(rates[name], rates[domain], counts),
            adapted=statistics.ratio(adapted, rates[name], counts),
            hindsight=statistics.ratio(fitted, rates[name], counts),
            exhausted_share=plain[name].exhausted_share,
        )


def best_static(test: Decisions, c: float) -> Rates:
    constants = [replay.replay_static(test, lookahead) for lookahead in range(test.max_lookahead + 1)]
    return by_prompt(max(constants, key=lambda result: result.rate(c)), c)


def in_hindsight(survival: np.ndarray, test: Decisions) -> np.ndarray:
    """[N] survival with the shift and slope of the logit that fit these very texts best."""
    prob = np.clip(survival.astype(np.float64), PROB_CLIP, 1.0 - PROB_CLIP)
    logit = np.log(prob / (1.0 - prob))
    slope, shift = platt(logit, test.survival)
    return 1.0 / (1.0 + np.exp(-(slope * logit + shift)))


def markdown(cells: Sequence[Cell]) -> str:
    lines = [
        "| tested on | trained on | c | calibration error | tokens per target step | over best constant | "
        "over its own predictor | correction adds | best shift and slope in hindsight |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        own = "" if cell.trained_on == cell.tested_on else gain(cell.vs_own)
        gains = (gain(cell.vs_static), own, gain(cell.adapted), gain(cell.hindsight))
        head = (cell.tested_on, cell.trained_on, f"{cell.c:g}", f"{cell.calibration_error:.3f}")
        lines.append(f"| {' | '.join((*head, f'{cell.rate.estimate:.3f}', *gains))} |")
    return "\n".join(lines) + "\n"


def gain(ratio: Interval) -> str:
    low, middle, high = (100 * (value - 1) for value in (ratio.lower, ratio.estimate, ratio.upper))
    return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    main()
