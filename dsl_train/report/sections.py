"""What a report says in words, and which figures it shows, in reading order. Knows evidence; computes nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from dsl_train.bench.config import AUTOREGRESSIVE, is_learned
from dsl_train.bench.live import LiveResult
from dsl_train.evidence.contest import CEILING, LEARNED, STATIC
from dsl_train.evidence.evidence import Evidence
from dsl_train.report import lookahead_plots, quality_plots, speed_plots
from dsl_train.report.tables import as_gain


@dataclass(frozen=True)
class Plate:
    """One figure of the report."""

    name: str
    """Of its PNG file and its place in the page."""
    title: str
    draw: Callable[[Evidence], Figure]
    how: str
    """How to read it, in a sentence or two."""


def headline(evidence: Evidence) -> str:
    """What the predictor gains on this pair."""
    contest = evidence.contest
    learned, static = contest[LEARNED], contest[STATIC]
    gain = as_gain(learned.vs_static) or "0 %"
    pays = learned.vs_static.estimate >= 1.0
    says = f"gains {gain} over" if pays else f"does not pay here: {gain} against"
    knows = "knows the true acceptance probabilities" if contest.bound.name == CEILING else "knows the future"
    way = f", {100 * contest.gap_closed:.0f} % of the way to one that {knows} ({contest.bound.name})"
    closed = way if pays and contest.gap_closed else ""
    return (
        f"The learned lookahead {says} the best constant one ({static.spec.partition(':')[2]} tokens a round){closed}: "
        f"{learned.speedup.estimate:.2f} times the speed of the target alone."
    )


def runner_up(evidence: Evidence) -> str:
    best = evidence.contest.best_rule
    return f"The best of the other rules here, {best.spec} ({best.setting}), gains {as_gain(best.vs_static) or '0 %'}."


def live_headline(live: LiveResult) -> str | None:
    """What a run on the clock says of the learned policy, if it ran."""
    learned = next((policy for policy in live.policies if is_learned(policy.name)), None)
    if learned is None:
        return None
    over = learned.relative_to.get(live.best_static or "")
    gain = f", {as_gain(over)} over {live.best_static}" if over else ""
    return (
        f"On the clock ({live.num_prompts} prompts): {learned.tokens_per_second.estimate:.0f} tokens/s{gain}, "
        f"{learned.relative_to[AUTOREGRESSIVE].estimate:.2f} times the target alone."
    )


def origin(evidence: Evidence) -> str:
    """The numbers' source, for every caption."""
    source = evidence.source
    heat = ", ".join("greedy" if t == 0 else f"temperature {t:g}" for t in source.temperatures)
    return f"{source.num_prompts} held-out prompts, {heat}; c = {evidence.contest.c:.3g} ({source.price})"


def tuning(evidence: Evidence) -> str:
    number = evidence.source.num_tuning_prompts
    if number is None:
        return "Rules are tuned on these very prompts, which favours them."
    return f"Rules are tuned on {number} other prompts."


def plates(evidence: Evidence) -> Iterator[Plate]:
    """The figures, in order."""
    yield Plate(
        "speedup",
        "Every rule against every other",
        speed_plots.contest_figure,
        "The longer the bar, the faster; whiskers are 95 % intervals by prompt, hatched bars see the future and cannot "
        f"be reached. {tuning(evidence)}",
    )
    if len(evidence.contests) > 1:
        yield Plate(
            "prices",
            "Where the draft is cheaper or dearer",
            speed_plots.prices_figure,
            "Each point is one price of a draft token: the gain over the constant lookahead that is best there. "
            "Larger targets lie further left. All policies pay the same here.",
        )
    yield Plate(
        "threshold",
        "Is the threshold the right one?",
        speed_plots.threshold_figure,
        "The curve is the speed at every threshold if the predictor is asked after every draft; the diamond is what "
        "the stop rule chose by itself, "
        f"{100 * evidence.thresholds.loss:.1f} % slower than the best on these prompts ({evidence.thresholds.best:g}).",
    )
    yield from _lookahead_plates(evidence)
    yield from _quality_plates(evidence)
    if evidence.cost:
        yield Plate(
            "cost",
            "What a step costs",
            speed_plots.cost_figure,
            "Left, medians of one step each; right, a target step by the number of tokens it verifies; whiskers and "
            f"band hold the middle half of the timings. A draft token costs {evidence.cost.c:.3f} target steps, with "
            f"predictor and verification {evidence.cost.c_eff:.3f}.",
        )


def _lookahead_plates(evidence: Evidence) -> Iterator[Plate]:
    yield Plate(
        "along",
        "Lookahead along a text",
        lookahead_plots.along_figure,
        "Each grey bar is what would be accepted from there; a good policy draws the bars' outline, a constant can "
        "only cut through them. The text is the one whose gain is the median of all.",
    )
    yield Plate(
        "distribution",
        "How far drafting pays",
        lookahead_plots.distribution_figure,
        "Share of rounds by lookahead, each policy over its own rounds; the last bar holds all that reach the cap.",
    )
    yield Plate(
        "acceptance",
        "Acceptance by position",
        lookahead_plots.acceptance_figure,
        "Behind accepted drafts acceptance rises with the position, since only easy text gets there (left); of all "
        "drafts a constant makes there, ever fewer are accepted, of the learned policy's not (middle), which rarely "
        "goes so far (right).",
    )


def _quality_plates(evidence: Evidence) -> Iterator[Plate]:
    yield Plate(
        "reliability",
        "Does 70 % mean 70 %?",
        quality_plots.reliability_figure,
        "On the diagonal, drafts of estimated survival s are accepted in s of the cases; the bars below count the "
        "decisions of each bin.",
    )
    yield Plate(
        "positions",
        "The same by position",
        quality_plots.positions_figure,
        "One panel for each draft of a round, its calibration error in the title; 0 is perfect.",
    )
    yield Plate(
        "signals",
        "What tells a good draft from a bad one",
        quality_plots.roc_figure,
        "The further a curve bends to the upper left, the better the signal tells drafts that survive from others; "
        "decisions after the first draft, where every signal is known.",
    )
