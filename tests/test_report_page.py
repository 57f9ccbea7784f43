"""A report's page: it needs nothing but itself, shows everything, and believes no text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_traces import PAIR, write_traces
from test_evidence import COST, all_knowing, written
from test_report import LIVE
from tiny_traces import make_traces

from dsl_train.bench.recommend import Recommendation
from dsl_train.cli.bench import main as bench
from dsl_train.cli.train import main as train
from dsl_train.evidence import evidence as gathering
from dsl_train.evidence.contest import contests
from dsl_train.evidence.evidence import Evidence, gather
from dsl_train.report import sections, speed_plots, style
from dsl_train.report.page import write_report
from dsl_train.traces import decisions
from dsl_train.traces.store import open_traces

ADVICE = [Recommendation("vLLM", {"num_speculative_tokens": 5}, 2.5, 1.4, 0.12)]
FIGURES = (
    "speedup", "prices", "threshold", "along", "distribution", "acceptance", "reliability", "positions", "signals",
    "cost",
)  # fmt: skip
SECTIONS = ("figures", "sample", "engines", "numbers")


class Markup:
    """A tokenizer of a model that writes HTML."""

    def decode(self, ids: list[int]) -> str:
        return "".join("<script>" if i % 2 else "&amp;" for i in ids)


class Elements(HTMLParser):
    """Ids and every attribute that names something to fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("src", "href", "xlink:href", "srcset", "data") and not str(value).startswith("#"):
                self.fetched.append(str(value))


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "load_tokenizer", lambda _: Markup())
        return gather(all_knowing(written("aaaraaaar", "aaraaaaaa"), cost=COST), [0.05, 0.2])


@pytest.fixture(scope="module")
def report(evidence, tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), evidence, ADVICE, LIVE).parent


def page_of(folder: Path) -> str:
    return (folder / "index.html").read_text("utf-8")


def test_the_page_fetches_nothing_and_runs_nothing(report):
    page = page_of(report)
    elements = Elements(page)
    assert elements.fetched == []
    assert elements.tags.isdisjoint({"script", "link", "iframe", "img", "object"})
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_the_page_has_every_section_and_a_figure_is_also_a_file(report):
    elements = Elements(page_of(report))
    assert {*FIGURES, *SECTIONS, "live"} <= set(elements.ids)
    assert {path.stem for path in report.glob("*.png")} == {*FIGURES, "live"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.glob("*.png"))


def test_what_was_not_measured_has_no_section(evidence, tmp_path):
    write_report(tmp_path, replace(evidence, cost=None))
    elements = Elements(page_of(tmp_path))
    assert {"cost", "live", "engines"}.isdisjoint(elements.ids)


def test_texts_of_models_are_shown_as_texts(report):
    page = page_of(report)
    assert "&lt;script&gt;" in page
    assert "&amp;amp;" in page
    assert "<script" not in page


def test_every_token_can_be_reached_without_a_mouse_and_says_its_survival(evidence, report):
    tokens = re.findall(r'<span class="token (\w+)" tabindex="0">', page_of(report))
    rounds = evidence.sample.rounds
    assert tokens == [token.fate for one in rounds for token in one.tokens]
    assert "survival 0.90, draft probability 0.50" in page_of(report)


def test_the_headline_gives_the_gain_with_its_interval(report):
    headlines = re.findall(r'<p class="headline">(.*?)</p>', page_of(report).replace("\xa0", " "))
    assert re.match(r"The learned lookahead gains \+\d+\.\d % \[\+\d+\.\d, \+\d+\.\d\] over the best", headlines[0])
    assert "175 tokens/s, +16.7 % [+5.0, +28.3] over static:4, 1.75 times the target alone" in headlines[1]


def test_all_numbers_are_in_the_json_file(report):
    found = json.loads((report / "report.json").read_text())
    assert found["recommendations"][0]["settings"] == {"num_speculative_tokens": 5}
    assert found["live"]["best_static"] == "static:4"
    assert found["cost"]["c_eff"] == pytest.approx(COST.c_eff)
    assert [contest["c"] for contest in found["contests"]] == pytest.approx([COST.c_eff, 0.05, 0.2])
    assert {"thresholds", "along", "distribution", "acceptance", "reliability", "signals", "sample"} <= set(found)
    assert "torch" in found["versions"]


def test_a_predictor_that_does_not_pay_is_said_to(evidence):
    dear = replace(COST, predictor=0.004)
    losing = replace(evidence, contests=contests(all_knowing(written("aaaraaaar", "aaraaaaaa"), cost=dear), []))
    assert sections.headline(losing).startswith("The learned lookahead does not pay here: -")
    assert "of the way" not in sections.headline(losing)


def test_equal_figures_give_equal_elements(evidence):
    one, two = (style.to_svg(speed_plots.threshold_figure(evidence), "name") for _ in range(2))
    assert one == two
    assert "currentColor" in one


def test_sampled_texts_are_measured_against_what_can_be_known(tmp_path):
    traces = make_traces("aaaraaaar", "aaraaaaaa")
    sequences = tuple(replace(sequence, temperature=0.8) for sequence in traces.sequences)
    walked = decisions.build(replace(traces, sequences=sequences, manifests=({"pair": PAIR},)), 8)
    write_report(tmp_path, gather(all_knowing(walked), []))
    assert "temperature 0.8" in page_of(tmp_path)
    assert "(ceiling)" in page_of(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("trained")
    write_traces(root / "traces", num_prompts=12)
    words = ["--traces", str(root / "traces"), "--output", str(root / "predictor"), "--max_lookahead", "6"]
    assert train([*words, "--hidden", "8", "--epochs", "1"]) == 0
    return root / "traces", root / "predictor"


def test_training_leaves_a_report_on_its_held_out_prompts(trained):
    found = json.loads((trained[1] / "report" / "report.json").read_text())
    assert found["source"]["num_prompts"] == 1
    assert found["source"]["num_tuning_prompts"] == 10
    assert found["source"]["price"] == "assumed"
    assert "1 held-out prompts" in page_of(trained[1] / "report")


def test_the_benchmark_writes_a_report_and_says_where(trained, tmp_path, capsys):
    write_traces(tmp_path / "test", num_prompts=3, seed=5)
    words = ["--mode", "replay", "--traces", str(tmp_path / "test"), "--predictor", str(trained[1])]
    words += ["--policies", "static:2", "learned", "--c", "0.1", "0.3", "--report", str(tmp_path / "report")]
    assert bench(words) == 0
    assert f"report: {tmp_path / 'report' / 'index.html'}" in capsys.readouterr().err
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [contest["c"] for contest in found["contests"]] == [0.1, 0.3]  # the assumed price is not told twice
    assert found["source"]["num_tuning_prompts"] is None
    assert len(open_traces([tmp_path / "test"]).sequences) == found["source"]["num_texts"]


def test_a_report_needs_traces(capsys):
    with pytest.raises(SystemExit):
        bench(["--target", "t", "--draft", "d", "--prompts", "p", "--report", "r"])
    assert "--report needs --traces" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_before_the_work(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--mode", "replay", "--traces", str(trained[0]), "--predictor", str(trained[1])]
    assert bench([*words, "--report", str(tmp_path / "file" / "report")]) == 1
    assert "cannot be made" in capsys.readouterr().err
