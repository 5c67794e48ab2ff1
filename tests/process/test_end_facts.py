"""The end of a job is told once, by one of its processes: the agent of the lowest rank that is left, else rank 0."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.process import end_facts
from pipeline.process.started_runs import FOLDER
from tests.support.agent_harness import Nodes
from tests.support.commands import Ended, command
from tests.support.runs import FIT
from tests.support.webhook import Webhook, webhook

PIPELINE = (sys.executable, "-m", "pipeline")
AGENT = (sys.executable, "-m", "pipeline.agent", "--nproc_per_node=2", "--standalone")
SECRET = "S3CRET"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(end_facts, "_known", {})
    with webhook() as served:
        yield served


def events(hook: Webhook) -> list[tuple[str, int]]:
    return [(each["event"], each["status"]) for each in hook.told]


def without_secret(folder: Path, *ended: Ended) -> None:
    """The URL stands neither in what was printed nor in any file of the run."""
    assert not any(SECRET in each.text for each in ended)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.timeout(180)
def test_one_process_tells_of_its_end_with_the_run_and_without_the_secret(hook: Webhook, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = command(*PIPELINE, *FIT, "--run_dir", run, "--notify", hook.url)
    assert ended.status == 0, ended.text
    (told,) = hook.told
    assert (told["event"], told["status"], told["attempt"], told["step"]) == ("finished", 0, 1, 14)
    assert (told["run_dir"], told["command"], told["reason"]) == (str(run), "fit", "step 14, epoch 2")
    assert Path(told["links"]["attempt"]).exists()
    assert "notify" not in (run / "fit.yaml").read_text()

    ended_2 = command(*PIPELINE, *FIT, "--run_dir", run, "--trainer.max_epoch=3", env={"PIPELINE_NOTIFY": hook.url})
    assert ended_2.status == 2
    assert events(hook)[1:] == [("failed", 2)]
    model = "--model=tests.support.models.FailsToTrain"
    crashed = command(*PIPELINE, *FIT, model, "--run_dir", tmp_path / "crashed", f"--notify={hook.url}")
    assert crashed.status == 1
    assert events(hook)[2:] == [("failed", 1)]
    assert hook.told[2]["reason"] == "crash: RuntimeError: the model is broken"
    without_secret(tmp_path, ended, ended_2, crashed)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_agent_tells_once_of_a_rank_that_is_killed_again_and_again(hook: Webhook, tmp_path: Path) -> None:
    more = ("--model=tests.support.killable.Noting", f"--model.notes={tmp_path / 'notes'}", "--model.die_at=5")
    line = (*FIT, *more, "--run_dir", tmp_path / "run", "--notify", hook.url)
    ended = command(*AGENT, "--max_restarts=1", "-m", "pipeline", *line, timeout=150)
    assert ended.status == 137, ended.text
    (told,) = hook.told
    assert (told["event"], told["status"], told["attempt"]) == ("failed", 137, 2)
    assert told["reason"].startswith("rank 0 on ")
    assert "killed by SIGKILL" in told["reason"]
    assert told["run_dir"] == str(tmp_path / "run")
    without_secret(tmp_path, ended)


def test_a_target_that_is_none_is_said_at_once_and_kept_secret(app: Callable[..., Ended], tmp_path: Path) -> None:
    ended = app(*FIT, "--run_dir", tmp_path / "run", "--notify", f"ftp://host/{SECRET}")
    assert ended.status == 2
    assert "notify='ftp://host/...' must be http://<host>/<path>" in ended.err
    assert SECRET not in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["finished", "crashed", "all stopped", "one stopped"])
def test_of_two_agents_one_tells(how: str, hook: Webhook, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, "2", "--max-restarts=0", "--shutdown-timeout=5", join=4)
    try:
        nodes.begin("a", "b", PIPELINE_NOTIFY=hook.url)
        if how == "finished":
            nodes.finish()
        elif how == "crashed":
            nodes.tell("b", "kill")
        else:
            for name in "ab" if how == "all stopped" else "b":
                nodes.send(name, signal.SIGTERM)
        statuses = nodes.statuses("a", "b", seconds=60)
        said = nodes.err()
    finally:
        nodes.end()
    expected = {"finished": ("finished", 0), "crashed": ("failed", 137)}.get(how, ("preempted", 75))
    assert events(hook) == [expected], (statuses, said)
    assert SECRET not in said


def test_a_rank_that_does_not_speak_tells_nothing(hook: Webhook) -> None:
    line = ["fit", "--notify", hook.url]
    end_facts.tell_own_end(line, 0, "x", {"RANK": "1"})
    end_facts.tell_own_end(line, 0, "x", {FOLDER: "/x"})
    end_facts.tell_own_end(["runs", *line[1:]], 0, "x", {})
    end_facts.tell_own_end(
        line, 1, "x", {"RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "2"}
    )
    assert hook.asked == 0
    end_facts.tell_own_end(
        line, 1, "x", {"RANK": "0", "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_MAX_RESTARTS": "2"}
    )
    assert events(hook) == [("failed", 1)]


def test_what_rank_0_knew_outlasts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_facts, "_known", {})
    assert end_facts.noted_by_workers(str(tmp_path)) == {}
    end_facts.note({FOLDER: str(tmp_path), "RANK": "1"}, step=1)
    assert end_facts.noted_by_workers(str(tmp_path)) == {}
    end_facts.note({FOLDER: str(tmp_path), "RANK": "0"}, step=2, run_dir="r")
    assert end_facts.noted_by_workers(str(tmp_path)) == {"step": 2, "run_dir": "r"}
    Path(tmp_path, "end.json").write_text("{")
    assert end_facts.noted_by_workers(str(tmp_path)) == {}
    Path(tmp_path, "end.json").write_text(json.dumps([1]))
    assert end_facts.noted_by_workers(str(tmp_path)) == {}
