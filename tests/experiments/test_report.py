"""The page: it loads nothing, and its numbers are those of the runs."""

import base64
import json
import re
import statistics
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.report import formatting
from experiments.study import compare
from experiments.study.compare import Group, RunRow, Spread
from experiments.study.measure import Point, RunFigures, mean_and_most, measure
from experiments.study.plan import Case
from experiments.study.study_file import Study, Variant
from tests.experiments.studies import QUADRATIC, write

STUDY = f"""# Dropping and carrying, <compared>.
[study]
base = "base.toml"
name = "Drop & carry"
seeds = [0, 1]
targets_from = "drop"
[study.set]
{QUADRATIC}
[[study.variant]]
name = "drop"
[[study.variant]]
name = "carry"
set = {{"lps.in_flight" = "carry"}}
[[study.axis]]
key = "lps.updates_per_exchange"
label = "K"
values = [4, 16]
"""


class Page(HTMLParser):
    """Collects what a browser would load and what it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("td", "th", "br") and self.rows:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert main(["replay", str(write(folder, STUDY)), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_a_page_loads_nothing(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    images = [each for each in page.loads if each.startswith("data:image/svg+xml;base64,")]
    assert len(images) == page.tags.count("img") >= 4
    assert set(page.loads) - set(images) == set()
    assert "url(" not in text
    for image in images:
        drawing = base64.b64decode(image.partition(",")[2]).decode()
        assert drawing.startswith("<?xml")
        links = re.findall(r'(?:href|src)="([^"]*)"', drawing)
        assert all(link.startswith("#") for link in links)
    assert "Dropping and carrying, &lt;compared&gt;." in text
    assert "Drop &amp; carry" in text


def test_a_page_shows_the_figures_of_the_runs(out: Path) -> None:
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    head, *rows = page.rows
    assert head[:3] == ["", "K", "seeds"]
    assert [row[:3] for row in rows] == [
        ["drop", "4", "2"],
        ["drop", "16", "2"],
        ["carry", "4", "2"],
        ["carry", "16", "2"],
    ]
    found = [
        json.loads((each / "result.json").read_text(encoding="utf-8"))
        for each in sorted((out / "runs").iterdir())
    ]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(head)}
    for place, row in enumerate(rows):
        pair = found[2 * place : 2 * place + 2]
        losses = [each["validation"][-1][2] for each in pair]
        shown, deviation = columns["final loss"][place].split(" ± ")
        assert float(shown) == pytest.approx(statistics.mean(losses), rel=1e-3)
        assert float(deviation) == pytest.approx(statistics.stdev(losses), rel=0.1)
        seconds = statistics.mean(each["elapsed_ms"] for each in pair) / 1e3
        assert float(columns["time to budget, s"][place].split()[0]) == pytest.approx(seconds, 1e-3)
        updates = statistics.mean(each["gps"]["updates"] for each in pair)
        assert float(columns["GPS updates"][place]) == round(updates)
        wan = statistics.mean(each["bytes"]["wan"] for each in pair) / 1e9
        assert float(columns["WAN, GB"][place].split()[0]) == pytest.approx(wan, 1e-3)
        assert row[head.index("relative to drop")].endswith("×") or place >= 2
    # The mean of the variant that sets the target reaches it, whether its single seeds do or not.
    assert columns["relative to drop"][:2] == ["1.000 ×", "1.000 ×"]


def test_equal_runs_give_an_equal_page_and_pictures(out: Path, tmp_path: Path) -> None:
    again = tmp_path / "deep" / "again.html"
    assert main(["report", str(out), "--out", str(again), "--png", str(tmp_path / "png")]) == 0
    assert again.read_bytes() == (out / "report.html").read_bytes()
    assert {path.name for path in (tmp_path / "png").iterdir()} == {
        "drop-carry-loss.png",
        "drop-carry-times.png",
        "drop-carry-along-1.png",
        "drop-carry-staleness.png",
    }
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (tmp_path / "png").iterdir())


def test_runs_and_studies_go_on_one_page(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = sorted(str(path) for path in (out / "runs").iterdir())[:2]
    page = tmp_path / "page.html"
    capsys.readouterr()
    assert main(["report", runs[0], str(out), runs[1], "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"report in {page}\n"
    text = page.read_text(encoding="utf-8")
    assert "Single runs" in text
    assert [row[0] for row in Page(text).rows][-2:] == [Path(each).name for each in runs]


def test_a_folder_without_results_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    (tmp_path / "result.json").write_text("[]", encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(str(tmp_path) in line for line in said)


def run(*losses: float | None, every_ms: float = 100.0) -> RunFigures:
    points = tuple(
        Point(every_ms * place, 10 * place, loss) for place, loss in enumerate(losses, start=1)
    )
    return RunFigures("halos", every_ms * len(losses), 0, 0, 0, 0, 0, 0, 0, 1.0, None, points, {})


def group(*runs: RunFigures | None, trial: int = 0, variant: str = "a") -> Group:
    rows = [
        RunRow(f"{trial}", "search", Case(variant), "", trial, {}, seed, each)
        for seed, each in enumerate(runs)
    ]
    return Group("search", "", Case(variant), trial, rows)


def test_a_target_is_reached_on_the_line_between_two_validations() -> None:
    assert compare.time_to_ms([run(3.0, 2.0, 1.0)], 1.5) == 250.0
    assert compare.time_to_ms([run(3.0, 2.0)], 3.5) == 100.0
    assert compare.time_to_ms([run(3.0, 2.0)], 1.5) is None
    assert compare.time_to_ms([], 1.5) is None
    # The mean of both passes 1.5 at 250 ms, though only one of them does.
    assert compare.time_to_ms([run(3.0, 2.0, 0.4), run(3.0, 2.0, 1.6)], 1.5) == 250.0
    # A target that is the mean final loss is reached, in whatever order it was summed.
    seeds = [run(3.0, 0.1), run(3.0, 0.2), run(3.0, 0.3)]
    assert compare.time_to_ms(seeds, group(*seeds).final_loss) == pytest.approx(200.0)


def test_a_trial_that_failed_or_diverged_is_no_candidate() -> None:
    good, lucky, broken = group(run(2.0)), group(run(1.0), None, trial=1), group(run(None), trial=2)
    assert compare.best_trials([lucky, broken, good]) == {Case("a"): good}
    assert compare.best_trials([lucky, broken]) == {}


def test_a_search_takes_its_target_from_the_best_trial() -> None:
    study = Study(base="x", targets_from="a", variant=(Variant(name="a"), Variant(name="b")))
    every = [group(run(2.0)), group(run(1.5), trial=1), group(run(1.0), variant="b")]
    assert [compare.target(study, every, each) for each in every] == [1.5, 1.5, 1.5]


def test_figures_have_as_many_digits_as_are_significant() -> None:
    assert formatting.number(1234.56) == "1,235"
    assert formatting.number(0.0123456) == "0.01235"
    assert formatting.number(0) == "0"
    assert formatting.with_spread(Spread(2.25, 0.0, 3)) == "2.250"
    assert formatting.with_spread(Spread(2.25, 0.03, 3)) == "2.250 ± 0.030"
    assert formatting.with_spread(Spread(6.75719, 0.00007, 3)) == "6.75719 ± 0.00007"
    assert formatting.with_spread(None) == formatting.NOTHING
    assert formatting.time_unit(599e3).name == "s"
    assert formatting.time_unit(2.4e6).name == "min"
    assert formatting.time_unit(2e8).name == "h"
    assert formatting.byte_unit(149e9).name == "GB"
    assert mean_and_most({0: 1, 4: 3}) == (3.0, 4)


def test_a_daemons_folder_has_no_staleness(out: Path, tmp_path: Path) -> None:
    folder = sorted((out / "runs").iterdir())[0]
    (tmp_path / "result.json").write_bytes((folder / "result.json").read_bytes())
    assert measure(tmp_path).staleness == {}
    assert set(measure(folder).staleness) == {"gps", "lps"}
