"""A report as a folder: `index.html` (one page that needs nothing else), every figure as PNG, all numbers as JSON."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from dsl_train.base import files
from dsl_train.base.cost import CostProfile
from dsl_train.base.records import DslError
from dsl_train.bench.config import BenchConfig
from dsl_train.bench.live import LiveResult
from dsl_train.bench.recommend import Recommendation, recommend
from dsl_train.bench.replay import measured_price
from dsl_train.evidence.evidence import Evidence, gather
from dsl_train.evidence.inputs import from_folders
from dsl_train.evidence.report_data import ReportData
from dsl_train.report import plots, sections, style
from dsl_train.report.tables import as_gain, with_interval

PAGE, NUMBERS = "index.html", "report.json"


def build_report(
    folder: Path, data: ReportData, costs: Sequence[float], seed: int = 0, live: LiveResult | None = None
) -> Path:
    """Compute and write everything; returns the page. `costs` are further prices of a draft token [target steps]."""
    evidence = gather(data, costs, seed)
    advice = recommend(data.tuned_on, data.held_out, data.price, data.predictor)
    return write_report(folder, evidence, advice, live)


def open_report(config: BenchConfig) -> Callable[[Any], Path]:
    """A function that takes the benchmark's result, writes the report and returns its page. What the report needs is
    read now, before anything is timed.

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


def write_report(
    folder: Path, evidence: Evidence, advice: Sequence[Recommendation] = (), live: LiveResult | None = None
) -> Path:
    """Returns the page, which is written last. `advice` is for other engines."""
    figures = [(plate, plate.draw(evidence)) for plate in sections.plates(evidence)]
    shown = [_figure(plate.name, plate.title, plate.how, figure) for plate, figure in figures]
    drawn = {plate.name: figure for plate, figure in figures}
    live_figure = plots.speed_figure(live) if live else None
    if live_figure:
        drawn["live"] = live_figure
    for name, figure in drawn.items():
        style.save_png(figure, folder / f"{name}.png")
    files.write_json(folder / NUMBERS, numbers(evidence, advice, live))
    page = (
        _environment()
        .get_template("page.html")
        .render(
            evidence=evidence,
            figures=shown,
            advice=advice,
            live=live,
            live_svg=Markup(style.to_svg(live_figure, "live")) if live_figure else None,
            live_headline=sections.live_headline(live) if live else None,
            headline=sections.headline(evidence),
            runner_up=sections.runner_up(evidence),
            origin=sections.origin(evidence),
            tuning=sections.tuning(evidence),
            versions=files.software_versions(),
        )
    )
    files.write_text(folder / PAGE, page)
    return folder / PAGE


def numbers(evidence: Evidence, advice: Sequence[Recommendation], live: LiveResult | None) -> dict[str, Any]:
    """Everything the page shows, and where it comes from."""
    return {
        **evidence.to_dict(),
        "recommendations": [asdict(one) for one in advice],
        "live": live.to_dict() if live else None,
        "versions": files.software_versions(),
        "command": files.command_line(),
    }


def _figure(name: str, title: str, how: str, figure: Figure) -> dict[str, Any]:
    return {"name": name, "title": title, "how": how, "svg": Markup(style.to_svg(figure, name))}


def _environment() -> Environment:
    """Texts of models are shown, so everything is escaped; what is missing in the template is an error."""
    environment = Environment(
        loader=PackageLoader("dsl_train.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(gain=as_gain, interval=with_interval, visible=_visible, in_line=_in_line, tied=_tied)
    return environment


def _visible(text: str) -> str:
    """Line ends and empty tokens are seen as well."""
    return text.replace("\n", "\u21b5\n") or "\u2205"


def _tied(text: str) -> str:
    """A number keeps its per cent sign on the same line."""
    return text.replace(" %", "\u00a0%")


def _in_line(text: str) -> str:
    """What is not part of the text must not break its lines."""
    return " ".join(re.split(r"[ \t]+", text.replace("\n", "\u21b5")))
