"""How figures look: colours that mean the same everywhere, one size that a phone can show, PNG and inline SVG.

Colours are Okabe and Ito's, told apart by colour-blind readers. Ink and grid are placeholders that the page replaces.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsl_train.base import files
from dsl_train.bench.statistics import Interval

LEARNED, STATIC, RULE, PUBLISHED, BOUND = "#d55e00", "#0072b2", "#56b4e9", "#a9c6d8", "#8a8a8a"
INK, GRID = "#1b1f23", "#dfe3e6"
#: For curves beside the learned one, in turn.
OTHERS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#7a5195", "#6b8e23", "#a0522d")
WIDTH = 4.3
"""[inches]: 10 pt text stays 11 px tall on a phone."""
RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "svg.fonttype": "none",
}


def new_figure(height: float) -> Figure:
    """An empty figure of the one width; `height` [inches]. To be called within `rc_context(RC)`."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def errors(intervals: Sequence[Interval]) -> list[list[float]]:
    """Distances to both ends. A percentile interval of few prompts may miss its own estimate: then 0."""
    below = [max(0.0, i.estimate - i.lower) for i in intervals]
    return [below, [max(0.0, i.upper - i.estimate) for i in intervals]]


def write_beside(axes: Axes, x: float, y: float, text: str, bold: bool = False) -> None:
    """A value to the right of a bar that ends at `x`."""
    axes.annotate(
        text,
        (x, y),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        fontweight="bold" if bold else "normal",
        annotation_clip=False,
    )


def save_png(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180)
    files.write_bytes(path, buffer.getvalue())


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an element of an HTML page, in the page's own ink; equal figures give equal text."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", svg, count=4)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    return svg.replace(INK, "currentColor").replace(GRID, "var(--grid)")
