"""The page: whole, self-contained, and safe whatever a run has written into its files."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.report.command import make_report
from pipeline.commands.report.page import render
from pipeline.commands.report.run_facts import read_facts
from pipeline.commands.report.sections import run_section
from pipeline.errors import UserError
from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import without
from tests.support.event_logs import write_events
from tests.support.reported import receipt, reported

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_report([reported(str(tmp_path_factory.mktemp("run")))])


def test_nothing_is_fetched(page: str) -> None:
    found = Elements(page)
    (policy,) = (each["content"] for each in found.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert all(each.get("src", "data:").startswith("data:") for each in found.of("img"))  # type: ignore[union-attr]
    assert all("src" not in each for each in found.of("script"))
    assert all((each["href"] or "").startswith("#") for each in found.of("a"))
    assert [each["href"] for each in found.of("link")] == ["data:,"]


def test_every_figure_has_its_text(page: str) -> None:
    plots = [each for each in Elements(page).of("div") if each.get("class") == "plot"]
    assert len(plots) >= 8
    assert len({each["id"] for each in plots}) == len(plots)
    for each in plots:
        assert each["role"] == "img"
        assert len(each["aria-label"] or "") > 40
        assert f'id="{each["id"]}-data"' in page
    assert page.count("In words and numbers") == len(plots)


def test_plotlys_code_is_there_once_and_only_where_there_is_a_figure(page: str, tmp_path: Path) -> None:
    assert page.count("plotly.js v") == 1
    empty = make_report([RunDir(str(tmp_path))])
    assert "plotly.js v" not in empty
    assert len(empty) < 100_000
    assert "script-src &#39;none&#39;" in empty


def attacked(tmp_path: Path) -> RunDir:
    run = reported(str(tmp_path / "run<script>alert(1)<"), learning_rate=ATTACK)
    run.write_json(RECEIPT, receipt(metrics={ATTACK: 1.0}, unproven=[ATTACK], checkpoint=ATTACK))
    record = run.read_json(RunDir.attempt(2))
    assert record
    more: dict[str, Any] = {"reason": ATTACK, "host": ATTACK, "versions": {ATTACK: ATTACK}, "revision": ATTACK}
    run.write_json(RunDir.attempt(2), {**record, **more})
    write_events(tmp_path / "run<script>alert(1)<" / "logs", 3_000_000_000, [(ATTACK, 1, 1.0), (ATTACK, 2, 2.0)])
    return run


def test_nothing_that_a_run_says_becomes_an_element(tmp_path: Path, page: str) -> None:
    hostile = make_report([attacked(tmp_path)])
    kinds = {tag for tag, _ in Elements(page).elements}
    found = Elements(hostile)
    assert {tag for tag, _ in found.elements} <= kinds
    assert not [attributes for _, attributes in found.elements if "onerror" in attributes]
    scripts = [each for each in found.of("script") if "type" not in each]
    assert len(scripts) == 1, "the page's own, which starts plotly's"
    assert hostile.count("alert(1)") > 5, "it is shown, as text"
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', hostile, re.DOTALL):
        assert "<" not in data


def test_without_its_packages_the_message_says_which_command_gives_them(tmp_path: Path) -> None:
    section = run_section(read_facts(RunDir(str(tmp_path))), None)
    assert section
    for package in ("plotly", "jinja2"):
        without(
            (package,),
            "from pipeline.commands.report.page import render\n"
            "try: render([])\n"
            "except Exception as error: assert \"pip install 'torchx-lightning-pipeline[report]'\" in str(error)\n"
            "else: raise AssertionError",
        )


def test_a_page_of_a_run_without_anything_says_so(tmp_path: Path) -> None:
    text = Elements(render([run_section(read_facts(RunDir(str(tmp_path))), None)])).text
    for words in ("Nothing was logged.", "Nothing is proven", "None is recorded.", "There is none."):
        assert words in text
    assert issubclass(UserError, Exception)
