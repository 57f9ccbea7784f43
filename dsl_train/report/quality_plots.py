"""How good the survival estimate is. Draws; computes nothing."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsl_train.evidence.evidence import Evidence
from dsl_train.evidence.quality import Reliability
from dsl_train.report.style import BOUND, GRID, INK, LEARNED, OTHERS, RC, new_figure

_COLUMNS = 3
_MIN_COUNT = 20  # decisions in a bin that is drawn


@matplotlib.rc_context(RC)
def reliability_figure(evidence: Evidence) -> Figure:
    """Frequency against estimate over all decisions, and how many decisions each bin holds."""
    figure = new_figure(3.9)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    overall = evidence.reliability[0]
    _draw(axes, overall, marker="o", size=5)
    axes.set_ylabel("how often it came true")
    axes.set_title(f"calibration error {overall.calibration_error:.3f}, {overall.num_decisions:,} decisions")
    for one in overall.bins:
        counts.bar(one.survival, one.count / overall.num_decisions, width=0.06, color=BOUND)
    counts.set_xlabel("estimated survival")
    counts.set_ylabel("decisions")
    counts.yaxis.set_major_formatter("{x:.0%}")
    return figure


@matplotlib.rc_context(RC)
def positions_figure(evidence: Evidence) -> Figure:
    """The same for each position in the block."""
    diagrams = evidence.reliability[1:]
    num_rows = -(-len(diagrams) // _COLUMNS)
    figure = new_figure(0.5 + 1.55 * num_rows)
    panels = figure.subplots(num_rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, diagram in zip(panels, diagrams, strict=False):
        _draw(axes, diagram, marker=".", size=5)
        axes.set_title(f"{_span(diagram)}: {diagram.calibration_error:.3f}", fontsize=9)
        axes.set_xticks((0, 0.5, 1), ("0", ".5", "1"))
        axes.set_yticks((0, 0.5, 1), ("0", ".5", "1"))
    for axes in panels[len(diagrams) :]:
        axes.set_visible(False)
    figure.supxlabel("estimated survival", fontsize=10, color=INK)
    figure.supylabel("how often it came true", fontsize=10, color=INK)
    return figure


@matplotlib.rc_context(RC)
def roc_figure(evidence: Evidence) -> Figure:
    """True against false positives of every signal, the area in the legend."""
    figure = new_figure(4.2)
    axes: Axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color=GRID, linewidth=1)
    colours = iter(OTHERS)
    for signal in evidence.signals:
        own = signal.name == "survival"
        colour = LEARNED if own else next(colours)
        if signal.auc is not None:
            axes.plot(
                signal.false_positive_rate,
                signal.true_positive_rate,
                color=colour,
                linewidth=2.2 if own else 1.1,
                linestyle="-" if own else "--",
                label=f"{signal.auc:.3f}  {signal.name}",
            )
    axes.set_xlabel("false positives: drafted, but will not survive")
    axes.set_ylabel("true positives: drafted and will survive")
    axes.set_aspect("equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", title="area under the curve", alignment="left", handlelength=1.6)
    return figure


def _draw(axes: Axes, diagram: Reliability, marker: str, size: float) -> None:
    axes.plot((0, 1), (0, 1), color=BOUND, linestyle=":", linewidth=1)
    shown = [one for one in diagram.bins if one.count >= _MIN_COUNT] or diagram.bins
    estimates, frequencies = ([getattr(one, name) for one in shown] for name in ("survival", "frequency"))
    axes.plot(estimates, frequencies, color=LEARNED, marker=marker, markersize=size, linewidth=1.2)


def _span(diagram: Reliability) -> str:
    """Which drafts are estimated, counted from 1: `draft 1`, `drafts 5-6`, `drafts 7+`."""
    first, last = diagram.first_position + 1, diagram.last_position
    if last is None:
        return f"drafts {first}+"
    return f"draft {first}" if first == last + 1 else f"drafts {first}-{last + 1}"
