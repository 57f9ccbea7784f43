"""How far drafting would have paid and how far the policies draft. Draws; computes nothing."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsl_train.evidence.evidence import Evidence
from dsl_train.report.style import BOUND, LEARNED, RC, STATIC, new_figure

_REACHED = 0.01  # positions that fewer rounds reach are left out


@matplotlib.rc_context(RC)
def along_figure(evidence: Evidence) -> Figure:
    """Lookahead at the start of each round of one text: oracle, learned, static."""
    text = evidence.along
    figure = new_figure(2.7)
    axes: Axes = figure.subplots()
    axes.bar(text.token, text.oracle, width=1.0, color=BOUND, alpha=0.55, label="oracle")
    axes.plot(text.token, text.learned, "o-", color=LEARNED, markersize=3, linewidth=1.1, label="learned")
    axes.axhline(text.static, color=STATIC, linestyle="--", linewidth=1.4, label=f"static ({text.static})")
    axes.set_xlabel("response tokens before the round")
    axes.set_ylabel("tokens drafted")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(axes, columns=3)
    return figure


@matplotlib.rc_context(RC)
def distribution_figure(evidence: Evidence) -> Figure:
    """Share of rounds by lookahead."""
    shares = evidence.distribution
    figure = new_figure(2.6)
    axes: Axes = figure.subplots()
    _bars(axes, shares.oracle, -0.2, BOUND, f"oracle (mean {shares.oracle_mean:.1f})")
    _bars(axes, shares.learned, 0.2, LEARNED, f"learned (mean {shares.learned_mean:.1f})")
    axes.axvline(
        shares.static, color=STATIC, linestyle="--", linewidth=1.4, label=f"static ({shares.static})", zorder=0
    )
    axes.set_xlabel("tokens drafted in a round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.set_ylabel("share of rounds")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="x", visible=False)
    axes.legend()
    return figure


@matplotlib.rc_context(RC)
def acceptance_figure(evidence: Evidence) -> Figure:
    """Acceptance by position: after accepted drafts, of all drafts, and how many rounds draft so far."""
    figure = new_figure(3.0)
    panels: Sequence[Axes] = figure.subplots(1, 3, sharey=True)
    for policy in evidence.acceptance:
        learned = policy.policy == "learned"
        shown = sum(share >= _REACHED for share in policy.reached)
        colour, dashes = (LEARNED, "-") if learned else (STATIC, "--")
        for axes, values in zip(panels, (policy.conditional, policy.cumulative, policy.reached), strict=True):
            axes.plot(
                range(1, shown + 1), values[:shown], marker=".", color=colour, linestyle=dashes, label=policy.policy
            )
    titles = ("accepted if all\nbefore were", "accepted of\nall drafts", "rounds that\ndraft so far")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_ylim(0, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.yaxis.set_major_formatter("{x:.0%}")
    panels[1].set_xlabel("position in the block")
    panels[0].legend(loc="lower left")
    return figure


def _bars(axes: Axes, shares: Sequence[float], offset: float, colour: str, label: str) -> None:
    axes.bar([k + offset for k in range(len(shares))], shares, width=0.4, color=colour, label=label)


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, columnspacing=1.2)
