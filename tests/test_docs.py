"""The documentation: every command runs as it stands there, or is read by its real parser; the site is whole."""

import os
import re
import shlex
import sys
import threading
import uuid
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import chromium
from tests.support.commands import ROOT, command
from tests.support.documented import PAGES, Documented, check, documented

RUN = {
    "commands.md": "every subcommand",
    "store_on_s3.md": "on a real or simulated S3",
    "resume.md": "four runs that go on from one another",
    "evaluate.md": "a run and all ways to score it",
    "debug.md": "one process and two",
    "speed.md": "a profiled run",
    "inspecting.md": "data and summary of the digits",
    "examples.md": "a network written in YAML",
}
"""The pages whose commands run, one after the other, in one place; the others are read by their parsers."""
NOT_RUN = {
    "make test": "this is it",
    "make pipeline": "tests/components/test_launch.py runs it twice and looks at what it prints",
    "make pipeline RUN_DIR=s3://bucket/quickstart": "the same on S3: store_on_s3.md runs each stage of it there",
    "python -m venv .venv": "makes an environment: `make test` has made this one in the same way",
    ". .venv/bin/activate": "changes the shell that reads it",
    "pip install": "downloads packages; tests/test_readme.py holds constraints and extras to what is installed",
    "cd cube": "enters what the command before has written; tests/test_wheel.py runs all that follows there",
    "docker ps --all": "removes the containers of everybody who uses this engine",
    "docker image prune": "removes images of everybody who uses this engine",
    "kubectl apply -k k8s/cluster": "needs a cluster; tests/k8s/test_cluster.py renders all that it applies",
    "kubectl --namespace pipeline create secret": "needs a cluster; tests/k8s/test_cluster.py reads the example",
    "python -m tests.benchmarks": "takes long; tests/test_benchmarks.py runs every subject in a moment",
    "torchx tracker list": "asks for what a run has left; tests/run/test_lineage.py runs it",
    "mkdir -p runs": "nothing of this program",
    "for lr in": "tests/components/sweep/test_command.py runs it",
    "python hydra_fit.py": "tests/components/sweep/test_command.py runs it, without Hydra",
}
"""How the commands begin that are neither run nor read by a parser here, and why."""
COMMANDS = {page.name: documented(page) for page in PAGES}
READ = [each for name, found in COMMANDS.items() if name not in RUN for each in found]


def reason(line: str) -> str | None:
    """Why a command is not run; None for one that is."""
    exact = [why for start, why in NOT_RUN.items() if line == start]
    starts = [why for start, why in NOT_RUN.items() if line.startswith(f"{start} ") and not start.startswith("make")]
    return next(iter([*exact, *starts]), None)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUN)
def test_every_command_of_the_page_runs(page: str, tmp_path: Path, s3: str) -> None:
    unique = uuid.uuid4().hex
    for line in (line for _, line in COMMANDS[page] if reason(line) is None):
        # What it leaves lands in a place of the test's own.
        placed = re.sub(r"(?<![\w/])runs/", f"{tmp_path}/", line).replace("s3://bucket/", f"{s3}/{unique}/")
        ended = command(*shlex.split(placed), timeout=120)
        assert ended.status == 0, f"{line}\n{ended.text}"


@pytest.mark.parametrize("each", READ, ids=lambda each: f"{each.page}: {each.line[:60]}")
def test_every_other_command_is_read_by_its_own_parser(
    each: Documented, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason(each.line) is not None:
        return
    monkeypatch.chdir(ROOT)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "reader's")
    check(each.line)


@pytest.mark.parametrize(
    "line",
    [
        "python -m pipeline fit --trainer.max_epoch=3",
        "python -m pipeline runs --sorted name",
        "python -m components.launch --run_dir s3://bucket/x --nods 2",
        "torchx run -s local_cwd train --run_dir runs/x --nods 2",
        "python -m components.jobs lost",
        "make everything",
        "rm -rf runs",
    ],
)
def test_a_command_that_does_not_exist_fails(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)):
        check(line)


def test_the_commands_are_found_and_every_reason_is_of_one() -> None:
    assert sum(map(len, COMMANDS.values())) > 60
    assert len(COMMANDS["commands.md"]) > 10
    every = [line for found in COMMANDS.values() for _, line in found]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in every), start
    assert not RUN.keys() - COMMANDS.keys()


def test_every_subcommand_has_a_row_in_the_table_of_commands() -> None:
    from pipeline.commands.dispatch import COMMANDS as NEED_NO_MODEL
    from pipeline.commands.dispatch import TRAINING

    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted([*TRAINING, *NEED_NO_MODEL])


def test_the_reference_is_what_the_code_says() -> None:
    ended = command(sys.executable, "docs/tools/reference.py", "--check")
    assert ended.status == 0, ended.text


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder, and logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass


class Resources(HTMLParser):
    """The addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [value for name in ("src", "srcset", "poster") if (value := values.get(name))]
        if tag == "link" and (address := values.get("href")) and values.get("rel") != "canonical":
            self.found.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once: strictly, and with every proxy where nobody listens."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    offline = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    ended = command(sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder, env=offline)
    assert ended.status == 0, ended.text
    return folder


def test_the_pages_of_the_site_name_no_resource_of_somebody_else(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if not page.is_relative_to(site / "source")]
    assert len(pages) > 30
    for page in pages:
        resources = Resources()
        resources.feed(page.read_text())
        assert resources.found, page
        assert not [each for each in resources.found if re.match(r"(\w+:)?//", each)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import\s+[\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_site_is_searched_in_a_browser_and_asks_nobody_else(site: Path) -> None:
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    own = f"http://127.0.0.1:{served.server_port}/"
    asked: list[str] = []
    try:
        with chromium() as browser:
            page = browser.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.goto(f"{own}performance.html")
            page.goto(f"{own}index.html?q=override_optimizer")
            page.locator(".md-search-result__link[href*='resume.html']").first.wait_for(timeout=60_000)
    finally:
        served.shutdown()
        served.server_close()
    assert not [url for url in asked if not url.startswith((own, "data:", "blob:"))]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("docs/rules.md", "# Rules worth knowing\n\n[gone](gone.md)\n"), "gone.md"),
        (("docs/rules.md", "# Rules worth knowing\n\n[gone](resume.md#gone)\n"), "#gone"),
        (("docs/unlisted.md", "# Unlisted\n"), "unlisted.md"),
    ],
    ids=["a link", "an anchor", "a page that is not in nav"],
)
def test_what_leads_nowhere_fails_the_build(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    for path in ROOT.iterdir():
        if path.name not in ("docs", "site", "mkdocs.yml"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    for path in (ROOT / "docs").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copied = tmp_path / path.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, copied) if path.suffix in (".png", ".json", ".svg") else copied.write_bytes(path.read_bytes())
    (tmp_path / change[0]).write_text(change[1])
    ended = command(sys.executable, "-m", "mkdocs", "build", "--strict", cwd=tmp_path)
    assert ended.status == 1
    assert said in ended.text
