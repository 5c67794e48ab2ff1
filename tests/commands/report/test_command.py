"""`python -m pipeline report`: writes the page beside the run or elsewhere, for one run or several, on any storage."""

from collections.abc import Callable
from pathlib import Path

import pytest

from components.launch import show_report
from pipeline.commands.report.command import write_report
from pipeline.run.run_dir import REPORT, RunDir
from tests.support.commands import QUICK, Ended, assert_one_message, without
from tests.support.reported import reported

App = Callable[..., Ended]


def test_the_page_is_written_into_the_run_on_each_storage(app: App, storage: str) -> None:
    run = reported(storage)
    before = {name: run.read(name) for name in ("fit.yaml", RunDir.attempt(1))}
    ended = app("report", "--run_dir", storage)
    assert ended.status == 0, ended.text
    assert ended.out.strip() == f"{run}/{REPORT}"
    page = (run.read(REPORT) or b"").decode()
    assert "<title>" in page
    assert "200 of 200 test samples were scored, once each" in page
    assert {name: run.read(name) for name in before} == before
    assert app("report", "--run_dir", storage).status == 0, "written again"


def test_a_trained_and_evaluated_run_is_told_whole(app: App, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert app("fit", "--config", "pipeline/configs/digits.yaml", *QUICK, "--run_dir", run).status == 0
    assert app("test", "--run_dir", run).status == 0
    assert app("report", "--run_dir", run).status == 0
    page = (run / REPORT).read_text()
    assert "Every training sample is accounted for: 2 epochs used 2,514 samples" in page
    assert "360 of 360 test samples were scored, once each" in page
    assert page.count('<img src="data:image/png') == 16
    for words in ("train_loss", "val_loss", "pipeline.examples.autoencoder.LitAutoEncoder", "Where the time went"):
        assert words in page
    assert "lightning 2." in page


def test_several_runs_are_compared_on_the_page_of_the_first(app: App, storage: str) -> None:
    runs = [reported(f"{storage}/one"), reported(f"{storage}/two", scale=2.0, learning_rate=0.3)]
    assert app("report", "--run_dir", *(run.label for run in runs)).status == 0
    page = (runs[0].read(REPORT) or b"").decode()
    assert "Flags in which they differ" in page
    assert "model.learning_rate" in page
    assert runs[1].read(REPORT) is None


def test_the_page_can_be_written_elsewhere(app: App, tmp_path: Path, s3: str) -> None:
    run = reported(str(tmp_path / "run"))
    for target in (str(tmp_path / "new" / "page.html"), f"{s3}/{tmp_path.name}/page.html"):
        ended = app("report", "--run_dir", run, "--output", target)
        assert ended.status == 0, ended.text
        assert ended.out.strip() == target
    assert (tmp_path / "new" / "page.html").stat().st_size > 1000
    assert run.read(REPORT) is None


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_folder_without_a_run_is_the_users_mistake(app: App, tmp_path: Path, name: str) -> None:
    assert_one_message(app("report", "--run_dir", tmp_path / name), "holds no run")


def test_a_place_that_cannot_be_written_is_the_users_mistake(app: App, tmp_path: Path) -> None:
    reported(str(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    ended = app("report", "--run_dir", tmp_path / "run", "--output", tmp_path / "file" / "page.html")
    assert_one_message(ended, "cannot be written")


def test_it_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    run = reported(str(tmp_path))
    without(
        ("torch", "lightning", "jsonargparse", "torchx"),
        f"from pipeline.commands.dispatch import main; assert main(['report', '--run_dir', {run.label!r}]) == 0",
    )
    assert (tmp_path / REPORT).exists()


def test_a_folder_of_runs_is_compared_on_a_page_of_its_own(app: App, storage: str) -> None:
    for number in range(1, 5):
        reported(f"{storage}/{number:04d}", learning_rate=0.1 * number)
    RunDir(storage).write_json("sweep.json", {})
    RunDir(storage).write_json("lease.json", {})
    for how in (("report", storage), ("report", "--run_dir", storage)):
        ended = app(*how)
        assert ended.status == 0, ended.text
        assert ended.out.strip() == f"{RunDir(storage).label}/{REPORT}"
    page = (RunDir(storage).read(REPORT) or b"").decode()
    assert all(f"{number:04d}" in page for number in range(1, 5))
    assert page.count("Flags in which they differ") == 1
    assert_one_message(app("report"), "--run_dir, of a run or a folder of runs")


def test_a_report_never_fails_a_launch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reported(str(tmp_path))
    show_report(run.label)
    assert capsys.readouterr().out == f"report  {tmp_path}/{REPORT}\n"
    (tmp_path / REPORT).unlink()
    (tmp_path / REPORT).mkdir()
    (tmp_path / REPORT / "in the way").touch()
    show_report(run.label)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("no report: ")
    monkeypatch.setattr("pipeline.commands.report.command.read_facts", lambda run: 1 / 0)
    show_report(run.label)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_where_its_packages_are_not_installed_a_launch_says_how_to_get_them(tmp_path: Path) -> None:
    run = reported(str(tmp_path))
    for package in ("plotly", "numpy"):
        without(
            (package, "torch", "lightning"),
            "import io, contextlib, components.launch as launch; from pipeline.run.run_dir import RunDir\n"
            "said = io.StringIO()\n"
            f"with contextlib.redirect_stderr(said): launch.show_report({run.label!r})\n"
            "assert \"pip install 'torchx-lightning-pipeline[report]'\" in said.getvalue(), said.getvalue()\n"
            "assert said.getvalue().count(chr(10)) == 1",
        )


def test_the_function_returns_where_the_page_is(storage: str) -> None:
    assert write_report([reported(storage).label]) == f"{RunDir(storage).label}/{REPORT}"
