"""A page in a real Chromium: what it asks for, what it complains about, and what a checker of accessibility says."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "PIPELINE_TEST_BROWSER"
"""Names the browser's program; where it is set, tests fail that could not start it."""
PHONE, DESK = (360, 740), (1280, 900)


@dataclass
class OpenPage:
    """A page that is open in the browser.

    Attributes:
        page: Playwright's.
        requests: URLs that it asked for, but for its own and data URLs.
        complaints: What it wrote to the console as an error or warning, errors that nothing caught, and dialogs.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def scroll_through(self) -> None:
        """Look at all of it, so that every figure that is not folded is drawn."""
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for top in range(0, height + 1, 500):
            self.page.evaluate(f"scrollTo(0, {top})")
            self.page.wait_for_timeout(30)
        undrawn = "[...document.querySelectorAll('.plot')].filter(e => e.checkVisibility() && !e.dataset.drawn).length"
        deadline = time.monotonic() + 30
        while self.page.evaluate(undrawn):  # not `wait_for_function`, which the page's policy refuses
            assert time.monotonic() < deadline, "a figure that was looked at is not drawn"
            self.page.wait_for_timeout(50)

    def violations(self) -> list[str]:
        """What axe-core finds that is serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"][:3]
        ]


def browser_program() -> str:
    """The browser's program; the test is skipped where there is none, unless a variable says that there is one."""
    if named := os.environ.get(VARIABLE):
        return named
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip(f"no Chromium is installed here; apt-get install chromium, or name one by {VARIABLE}")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A Chromium without a window, for some pages."""
    from playwright.sync_api import sync_playwright

    program = browser_program()
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, size: tuple[int, int] = DESK, **context: Any) -> Iterator[OpenPage]:
    """A file in a fresh tab of this size."""
    made = browser.new_context(viewport={"width": size[0], "height": size[1]}, **context)
    page = made.new_page()
    found = OpenPage(page)
    own = path.as_uri()
    page.on("request", lambda asked: asked.url.startswith(("data:", own)) or found.requests.append(asked.url))
    page.on("pageerror", lambda error: found.complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (found.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "console",
        lambda said: said.type in ("error", "warning") and found.complaints.append(f"{said.type}: {said.text}"),
    )
    page.goto(own)
    yield found
    made.close()
