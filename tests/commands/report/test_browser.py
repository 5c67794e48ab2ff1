"""The page in a real browser: it opens without a complaint or a request, and everybody can read it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.commands.report.command import make_report
from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.browser import DESK, PHONE, chromium, opened
from tests.support.event_logs import write_events
from tests.support.reported import receipt, reported

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page on one run, one on two runs, and one on a run of which nothing is known."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [reported(str(folder / name), scale, learning_rate=scale) for name, scale in (("one", 1.0), ("two", 2.0))]
    (folder / "empty").mkdir()
    found = {}
    for name, several in {"run": runs[:1], "comparison": runs, "empty": [RunDir(str(folder / "empty"))]}.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(make_report(several))
    return found


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [
        pytest.param("run", DESK, "light", id="run-desk-light"),
        pytest.param("run", PHONE, "dark", id="run-phone-dark"),
        pytest.param("comparison", DESK, "dark", id="comparison-desk-dark", marks=pytest.mark.slow),
        pytest.param("comparison", PHONE, "light", id="comparison-phone-light", marks=pytest.mark.slow),
        pytest.param("empty", PHONE, "light", id="empty-phone-light"),
    ],
)
def test_a_page_opens_without_a_complaint_and_everybody_can_read_it(
    browser: Any, pages: dict[str, Path], name: str, size: tuple[int, int], scheme: str
) -> None:
    with opened(browser, pages[name], size, color_scheme=scheme) as found:
        found.scroll_through()
        wide = found.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        found.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        found.scroll_through()
        drawn = found.page.locator(".plot svg.main-svg").count()
        problems = found.violations()
        wide_open = found.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert found.complaints == []
    assert found.requests == []
    assert problems == []
    assert (wide, wide_open) == (0, 0), "nothing is cut off at the right"
    assert bool(drawn) == (name != "empty")


def test_what_a_run_says_is_shown_and_never_run(browser: Any, tmp_path: Path) -> None:
    run = reported(str(tmp_path / "<script>alert(2)<"), learning_rate=ATTACK)
    run.write_json(RECEIPT, receipt(metrics={ATTACK: 1.0}, unproven=[ATTACK]))
    record = run.read_json(RunDir.attempt(2))
    assert record
    run.write_json(RunDir.attempt(2), {**record, "reason": ATTACK})
    write_events(Path(run.path, "logs"), 3_000_000_000, [(ATTACK, 1, 1.0), (ATTACK, 2, 2.0), ("a<b>", 1, 1.0)])
    page = tmp_path / "page.html"
    page.write_text(make_report([run]))
    with opened(browser, page) as found:
        found.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        found.scroll_through()
        text = found.page.locator("body").inner_text()
        images = found.page.locator("img:not([src^='data:'])").count()
    assert found.complaints == []
    assert found.requests == []
    assert images == 0
    assert text.count(ATTACK) >= 4
    assert "<script>alert(2)<" in text


def test_of_a_long_curve_the_peak_is_drawn(browser: Any, tmp_path: Path) -> None:
    run = reported(str(tmp_path))
    values = np.sin(np.arange(50_000) / 500).tolist()
    values[31_313] = 40.0
    points = [("long", step, value) for step, value in enumerate(values)]
    write_events(tmp_path / "logs", 3_000_000_000, points)
    page = tmp_path / "page.html"
    page.write_text(make_report([run]))
    (data,) = re.findall(r'<script type="application/json"[^>]*>([^<]*"long"[^<]*)</script>', page.read_text())
    (trace,) = json.loads(data)["data"]
    assert len(trace["x"]) < 2100
    with opened(browser, page) as found:
        found.scroll_through()
        script = "document.querySelector('.plot[aria-label^=\"long\"]')._fullData[0]._extremes"
        extremes = found.page.evaluate(f"Object.values({script}).flatMap(e => e.max.map(m => m.val))")
    assert 40.0 in extremes
    assert found.complaints == []


def test_a_keyboard_reaches_everything(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["run"]) as found:
        page = found.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.tagName"))
        assert {"A", "BUTTON", "SUMMARY", "DIV"} <= reached
        button = page.locator("button[data-log]").first
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        plot = page.locator(f"#{button.get_attribute('data-log')}")
        assert plot.evaluate("each => each._fullLayout.yaxis.type") == "log"
        page.keyboard.press("Enter")
        assert plot.evaluate("each => each._fullLayout.yaxis.type") == "linear"
        assert found.complaints == []


def test_a_page_prints_with_its_figures_on_light_paper(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["run"], color_scheme="dark") as found:
        data = found.page.pdf(format="A4")
        found.page.emulate_media(media="print")
        background = found.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        shown = found.page.locator(".plot:visible").count()
        drawn = found.page.locator(".plot[data-drawn]:visible").count()
    assert data.startswith(b"%PDF")
    assert background == "rgb(255, 255, 255)"
    assert drawn == shown > 0
    assert found.complaints == []


def test_a_finger_scrolls_the_page_and_is_not_caught_by_a_figure(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["run"], PHONE, has_touch=True, is_mobile=True) as found:
        found.scroll_through()
        modes = found.page.evaluate("[...document.querySelectorAll('.plot[data-drawn]')].map(e => e.layout.dragmode)")
    assert set(modes) == {False}
