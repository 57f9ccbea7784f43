"""Plots of a benchmark as PNG files. Knows results; computes nothing."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsl_train.bench.config import AUTOREGRESSIVE, is_learned
from dsl_train.bench.live import LiveResult, PolicyResult
from dsl_train.bench.replay import ReplayTable
from dsl_train.report import style
from dsl_train.report.style import RC, errors, new_figure, save_png, write_beside

_LINES = {"learned": style.LEARNED, "static": style.STATIC, "heuristic": style.OTHERS[1], "confidence": style.OTHERS[2]}
_BOUND = {"oracle": style.INK, "oracle+": style.BOUND}
_REACHED = 0.01  # positions that fewer rounds reach are left out


def save_live(result: LiveResult, folder: Path) -> None:
    """`speed.png`, `acceptance.png` and, of grouped prompts, `groups.png`."""
    save_png(speed_figure(result), folder / "speed.png")
    save_png(acceptance_figure(result), folder / "acceptance.png")
    if result.groups:
        save_png(groups_figure(result), folder / "groups.png")


def save_replay(result: ReplayTable, folder: Path) -> None:
    """`rates.png`"""
    save_png(rates_figure(result), folder / "rates.png")


@matplotlib.rc_context(RC)
def speed_figure(result: LiveResult) -> Figure:
    """Tokens per second of every contender, with intervals, and the speedup written at the bar."""
    figure = new_figure(1.1 + 0.24 * len(result.policies))
    axes: Axes = figure.subplots()
    names = [policy.name for policy in result.policies]
    speeds = [policy.tokens_per_second for policy in result.policies]
    axes.barh(
        names,
        [speed.estimate for speed in speeds],
        xerr=errors(speeds),
        color=[_colour(name) for name in names],
        error_kw={"elinewidth": 1, "ecolor": style.INK, "capsize": 2},
        height=0.72,
    )
    for row, policy in enumerate(result.policies):
        label = f"{policy.relative_to[AUTOREGRESSIVE].estimate:.2f}x"
        write_beside(axes, policy.tokens_per_second.upper, row, label, bold=is_learned(policy.name))
    plain = result[AUTOREGRESSIVE].tokens_per_second.estimate
    axes.axvline(plain, color=style.BOUND, linewidth=1, linestyle="--", zorder=0)
    axes.invert_yaxis()
    axes.set_xlim(right=1.2 * max(speed.upper for speed in speeds))
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("tokens per second")
    axes.set_title(f"{result.num_prompts} prompts, {'greedy' if result.greedy else 'sampled'}, 95 % intervals")
    return figure


@matplotlib.rc_context(RC)
def groups_figure(result: LiveResult) -> Figure:
    """How many times the target alone, by group: the learned policy, the best static lookahead, the rules."""
    compared = [policy.name for policy in _speculating(result)]
    figure = new_figure(1.2 + (0.16 * len(compared) + 0.12) * len(result.groups))
    axes: Axes = figure.subplots()
    height = 0.8 / len(compared)
    for number, name in enumerate(compared):
        ratios = [group[name].relative_to[AUTOREGRESSIVE] for group in result.groups]
        axes.barh(
            [row - 0.4 + (number + 0.5) * height for row in range(len(ratios))],
            [ratio.estimate for ratio in ratios],
            xerr=errors(ratios),
            height=0.9 * height,
            color=_colour(name) if is_learned(name) else _LINES.get(name.partition(":")[0], style.RULE),
            error_kw={"elinewidth": 1, "ecolor": style.INK, "capsize": 2},
            label=name,
        )
    axes.set_yticks(range(len(result.groups)), [f"{group.name} ({group.num_prompts})" for group in result.groups])
    axes.axvline(1.0, color=style.BOUND, linewidth=1, linestyle="--", zorder=0)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("times the target alone")
    axes.set_title(f"{result.num_prompts} prompts, {'greedy' if result.greedy else 'sampled'}, 95 % intervals")
    axes.legend(fontsize=9, loc="lower right")
    return figure


@matplotlib.rc_context(RC)
def acceptance_figure(result: LiveResult) -> Figure:
    """Acceptance by position, of the blocks that reach it, and how many reach it."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    accepted, reached = figure.subplots(1, 2, sharex=True)
    for policy in _speculating(result):
        stats = policy.stats
        shares = [drafted / stats.num_spec_steps for drafted in stats.drafted_by_position]
        shown = sum(share >= _REACHED for share in shares)
        colour = _LINES.get(policy.name.partition(":")[0])
        width = 2.2 if is_learned(policy.name) else 1.3
        for axes, values in ((accepted, stats.acceptance_by_position), (reached, shares)):
            axes.plot(range(1, shown + 1), values[:shown], ".-", color=colour, linewidth=width, label=policy.name)
    for axes, title in ((accepted, "Drafted tokens accepted"), (reached, "Rounds that draft so far")):
        axes.set_title(title)
        axes.set_xlabel("position in the block")
        axes.set_ylim(0, 1.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.grid()
    if reached.lines:
        reached.legend(fontsize=9)
    return figure


@matplotlib.rc_context(RC)
def rates_figure(result: ReplayTable) -> Figure:
    """Tokens per target step against c; the best static lookahead at each c as one line."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    for row in result.rows:
        if not row.policy.startswith("static:"):
            rates = [interval.estimate for interval in row.rates]
            axes.errorbar(
                result.costs,
                rates,
                yerr=errors(row.rates),
                label=row.policy,
                color=(_LINES | _BOUND).get(row.policy.partition(":")[0]),
                linewidth=2.2 if is_learned(row.policy) else 1.3,
                linestyle=":" if row.policy in _BOUND else "-",
                capsize=2,
            )
    static = [row for row in result.rows if row.policy.startswith("static:")]
    if static:
        best = [max(row.rates[i].estimate for row in static) for i in range(len(result.costs))]
        axes.plot(result.costs, best, color=style.STATIC, linestyle="--", marker="o", markersize=4, label="best static")
    axes.set_xlabel("c: cost of a draft token in target steps")
    axes.set_ylabel("tokens per target step")
    axes.set_title(f"Replayed speed, {result.num_prompts} prompts, 95 % intervals by prompt")
    axes.grid()
    axes.legend(fontsize=9)
    return figure


def _speculating(result: LiveResult) -> list[PolicyResult]:
    """Those of our loop; of the static ones only the best."""
    kept = [p for p in result.policies if not p.name.startswith("static:") or p.name == result.best_static]
    return [policy for policy in kept if policy.stats.num_draft_tokens]


def _colour(name: str) -> str:
    family = name.partition(":")[0]
    return {
        "learned": style.LEARNED,
        "static": style.STATIC,
        "autoregressive": style.BOUND,
        "transformers": style.BOUND,
        "transformers-assisted": style.BOUND,
    }.get(family, style.RULE)
