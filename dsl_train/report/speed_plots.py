"""Who is fastest, at which threshold and at which price, and what the price consists of. Draws; computes nothing."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsl_train.base.cost import CostProfile
from dsl_train.bench.statistics import Interval
from dsl_train.evidence.contest import LEARNED, STATIC, Contender
from dsl_train.evidence.evidence import Evidence
from dsl_train.report import style
from dsl_train.report.style import RC, errors, new_figure, write_beside

_WHISKER = {"elinewidth": 1, "ecolor": style.INK, "capsize": 2}
_FILL = {"learned": style.LEARNED, "tuned": style.RULE, "published": style.PUBLISHED, "bound": style.BOUND}


@matplotlib.rc_context(RC)
def contest_figure(evidence: Evidence) -> Figure:
    """Speedup of every policy with intervals."""
    contenders = evidence.contest.contenders
    figure = new_figure(1.0 + 0.235 * len(contenders))
    axes: Axes = figure.subplots()
    for row, contender in enumerate(contenders):
        speedup = contender.speedup
        axes.barh(
            row,
            speedup.estimate,
            xerr=errors([speedup]),
            color=style.STATIC if contender.name == STATIC else _FILL[contender.setting],
            hatch="////" if contender.setting == "bound" else None,
            edgecolor="white" if contender.setting == "bound" else None,
            linewidth=0,
            error_kw=_WHISKER,
            height=0.74,
        )
        write_beside(axes, speedup.upper, row, f"{speedup.estimate:.2f}", bold=contender.name == LEARNED)
    axes.set_yticks(range(len(contenders)), list(map(_label, contenders)), fontsize=9)
    axes.axvline(1.0, color=style.INK, linewidth=1, linestyle=":")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(contender.speedup.upper for contender in contenders))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("times the speed of the target alone")
    return figure


@matplotlib.rc_context(RC)
def threshold_figure(evidence: Evidence) -> Figure:
    """Speedup against the survival asked for, the chosen threshold marked."""
    curve, static = evidence.thresholds, evidence.contest[STATIC]
    figure = new_figure(2.9)
    axes: Axes = figure.subplots()
    axes.fill_between(
        curve.threshold,
        [interval.lower for interval in curve.speedup],
        [interval.upper for interval in curve.speedup],
        color=style.LEARNED,
        alpha=0.15,
        linewidth=0,
    )
    axes.plot(curve.threshold, [interval.estimate for interval in curve.speedup], color=style.LEARNED, label="learned")
    axes.axhline(static.speedup.estimate, color=style.STATIC, linestyle="--", label=f"best constant ({static.spec})")
    axes.axhline(1.0, color=style.INK, linewidth=1, linestyle=":", label="target alone")
    label = f"chosen: {curve.chosen:.2f}"
    axes.plot(
        curve.chosen, curve.chosen_speedup.estimate, "D", color=style.LEARNED, markeredgecolor="white", label=label
    )
    axes.set_xlabel("threshold: draft on while survival is above it")
    axes.set_ylabel("times the target alone")
    axes.legend(loc="lower center", ncols=2, columnspacing=1.0)
    axes.set_ylim(bottom=min(0.95, *(interval.lower for interval in curve.speedup)) - 0.25)
    return figure


@matplotlib.rc_context(RC)
def prices_figure(evidence: Evidence) -> Figure:
    """Gain over the best constant lookahead against the price of a draft."""
    alike = evidence.contests[1:] if evidence.cost else evidence.contests  # at a measured price some pay more
    held = sorted(alike, key=lambda contest: contest.c)
    figure = new_figure(2.8)
    axes: Axes = figure.subplots()
    lines = (
        (held[0].bound.name, style.BOUND, ":", [contest.bound for contest in held]),
        (LEARNED, style.LEARNED, "-", [contest[LEARNED] for contest in held]),
        ("best other rule", style.RULE, "-", [contest.best_rule for contest in held]),
    )
    for label, colour, dashes, contenders in lines:
        gains = [contender.vs_static for contender in contenders]
        axes.errorbar(
            [contest.c for contest in held],
            [gain.estimate - 1 for gain in gains],
            yerr=errors(gains),
            color=colour,
            linestyle=dashes,
            marker="o",
            markersize=4,
            capsize=2,
            label=label,
        )
    axes.axhline(0.0, color=style.STATIC, linestyle="--", label="best constant")
    axes.axvline(evidence.contest.c, color=style.INK, linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xlabel("c: target steps a draft token costs (dotted: here)")
    axes.set_ylabel("gain over best constant")
    axes.yaxis.set_major_formatter("{x:+.0%}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return figure


@matplotlib.rc_context(RC)
def cost_figure(evidence: Evidence) -> Figure:
    """Milliseconds of each step, and of a target step by the tokens it verifies."""
    assert evidence.cost, "no figure of costs that were not measured"
    figure = new_figure(2.5)
    steps, widths = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_steps(steps, evidence.cost)
    _draw_widths(widths, evidence.cost)
    return figure


def _draw_steps(axes: Axes, cost: CostProfile) -> None:
    parts = {
        "target_step": ("target step", style.BOUND),
        "draft_step": ("draft step", style.STATIC),
        "predictor": ("predictor, draft", style.LEARNED),
        "predictor_round": ("predictor, round", style.LEARNED),
        "round_overhead": ("round, rest", style.RULE),
    }
    times = [_with_quartiles(cost, name.removesuffix("_step"), getattr(cost, name)) for name in parts]
    for row, (time, (_, colour)) in enumerate(zip(times, parts.values(), strict=True)):
        axes.barh(row, time.estimate, xerr=errors([time]), color=colour, height=0.7, error_kw=_WHISKER)
        write_beside(axes, max(time.estimate, time.upper), row, f"{time.estimate:.2f}")
    axes.set_yticks(range(len(parts)), [label for label, _ in parts.values()])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(time.upper for time in times))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("milliseconds")


def _draw_widths(axes: Axes, cost: CostProfile) -> None:
    widths = range(1, max(2, len(cost.target_steps)) + 1)
    milliseconds = [1e3 * cost.verification(width) for width in widths]
    axes.plot(widths, milliseconds, ".-", color=style.BOUND)
    axes.set_title("target step [ms]")
    axes.set_xlabel("tokens verified")
    axes.set_ylim(0, 1.15 * max(milliseconds))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _with_quartiles(cost: CostProfile, name: str, seconds: float) -> Interval:
    """[milliseconds]"""
    lower, upper = cost.spread.get(name, (seconds, seconds))
    return Interval(1e3 * seconds, 1e3 * lower, 1e3 * upper)


def _label(contender: Contender) -> str:
    if contender.setting in ("learned", "bound"):
        return contender.name
    arguments = contender.spec.partition(":")[2] if contender.name != "logistic" else ""
    return f"{contender.name} {arguments or contender.setting}"
