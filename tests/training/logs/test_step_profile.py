"""A window of steps is profiled on each rank, without a trace in what is trained."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.run.run_dir import RunDir
from pipeline.training.compat import missing
from pipeline.training.logs.step_profile import MEMBERS, Window, folder_of, window, window_problem
from tests.support.commands import Ended, assert_one_message, torchrun
from tests.support.runs import FIT, attempt, fit

App = Callable[..., Ended]


@pytest.mark.parametrize(("text", "steps"), [(None, None), ("false", None), ("true", (10, 15)), ("0:3", (0, 3))])
def test_a_window(text: str | None, steps: tuple[int, int] | None) -> None:
    assert window_problem(text) is None
    assert window(text) == (None if steps is None else Window(*steps))


@pytest.mark.parametrize("text", ["5", "5:5", "7:5", "-1:5", "a:b", "True", "1:2:3", ""])
def test_what_is_no_window_is_one_message(app: App, text: str, tmp_path: Path) -> None:
    assert_one_message(app(*FIT, "--run_dir", tmp_path / "run", f"--profile={text}"), f"profile={text!r} must be ")


def test_nothing_can_be_written_in_a_dry_run(app: App) -> None:
    assert_one_message(app(*FIT, "--trainer.fast_dev_run=true", "--profile=true"), "fast_dev_run writes nothing")


def test_the_private_members_that_record_memory_are_there() -> None:
    assert list(missing(MEMBERS)) == []


def profiled(run: RunDir, rank: int, number: int = 1) -> tuple[dict[str, Any], Any, str]:
    folder = folder_of(number)
    table = run.read_json(f"{folder}/rank-{rank}.json")
    trace, text = run.read(f"{folder}/rank-{rank}.trace.json.gz"), run.read(f"{folder}/rank-{rank}.txt")
    assert table is not None
    assert trace is not None
    assert text is not None
    return table, json.loads(gzip.decompress(trace)), text.decode()


def steps_in(trace: Any) -> int:
    return len({each["name"] for each in trace["traceEvents"] if each.get("name", "").startswith("ProfilerStep#")})


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    step = max(run.steps()["json"])
    path = Path(run.path, RunDir.checkpoint(step))
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return loaded


def test_a_window_of_steps_on_any_storage(app: App, storage: str) -> None:
    run = RunDir(storage)
    ended = fit(app, storage, 2, "--profile=3:6")
    assert ended.status == 0, ended.text
    assert f"profiled steps 3 to 5: {run.url_of(folder_of(1))}" in ended.err
    table, trace, text = profiled(run, 0)
    assert (table["first_step"], table["steps"], table["device"]) == (3, 3, "cpu")
    assert steps_in(trace) == 3
    assert len(table["operators"]) == 10
    assert any(each["name"] == "aten::addmm" for each in table["operators"])
    assert table["operators"][0]["name"] in text
    shares = [each["share"] for each in table["operators"]]
    assert shares == sorted(shares, reverse=True)


def test_a_profile_changes_no_weight_and_a_resumed_attempt_has_its_own(app: App, tmp_path: Path) -> None:
    plain, watched = RunDir(str(tmp_path / "plain")), RunDir(str(tmp_path / "watched"))
    assert fit(app, plain.url, 2).status == 0
    assert fit(app, watched.url, 1, "--profile=0:2").status == 0
    assert fit(app, watched.url, 2, "--profile=1:3").status == 0
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(watched)[name]), name
    first = attempt(watched.url, 2)["first_step"]
    assert profiled(watched, 0, 1)[0]["first_step"] == 0
    assert profiled(watched, 0, 2)[0]["first_step"] == first + 1


def test_a_window_that_training_does_not_reach_is_one_line(app: App, tmp_path: Path) -> None:
    ended = fit(app, str(tmp_path / "run"), 1, "--profile=1000:1001")
    assert ended.status == 0
    assert "nothing was profiled: --profile=1000:1001, and this attempt made 7 steps" in ended.err


def test_a_window_that_training_ends_in_holds_what_there_was(app: App, tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    assert fit(app, run.url, 1, "--profile=5:1000").status == 0
    table, trace, _ = profiled(run, 0)
    assert (table["first_step"], table["steps"]) == (5, 2)
    assert steps_in(trace) == 2


def test_a_storage_that_does_not_take_it_is_a_warning(app: App, tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "profile").write_text("a file in the place of the folder")
    ended = fit(app, str(tmp_path / "run"), 1, "--profile=1:3")
    assert ended.status == 0, ended.text
    assert ended.err.count("the profile was not written to ") == 1


def test_each_rank_is_profiled(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    ended = torchrun(2, "-m", "pipeline", *FIT, "--run_dir", run.url, "--profile=1:3", "--trainer.accelerator=cpu")
    assert ended.status == 0, ended.text
    for rank in range(2):
        table, trace, _ = profiled(run, rank)
        assert (table["rank"], table["steps"], steps_in(trace)) == (rank, 2, 2)


@pytest.mark.parametrize(("name", "kind"), [("simple", "SimpleProfiler"), ("advanced", "AdvancedProfiler")])
def test_a_profiler_of_lightnings_leaves_its_summary_in_the_run(app: App, storage: str, name: str, kind: str) -> None:
    ended = fit(app, storage, 1, f"--trainer.profiler={name}")
    assert ended.status == 0, ended.text
    text = RunDir(storage).read(f"{folder_of(1)}/{kind}.txt")
    assert text is not None
    assert "run_training_epoch" in text.decode()
    assert "run_training_epoch" in ended.err, "and still prints it"
