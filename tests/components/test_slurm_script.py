"""A job as text: golden files, and what follows from how its nodes end, tried with scripts in Slurm's place.

WRITE_GOLDEN=1 python -m pytest -n 0 tests/components/test_slurm_script.py      rewrites tests/components/golden
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from torchx.specs import AppDef, Role, macros

from components.evaluate import evaluate
from components.slurm_script import OPTIONS, JobScript, seconds_of
from components.train import train
from pipeline.errors import UserError
from tests.support.commands import ROOT
from tests.support.fake_slurm import FakeSlurm

SECRET = "tell-nobody"
DATA = ["type=bind", "src=/data", "dst=/data", "readonly"]


def job(app: AppDef, folder: Path = Path("/shared/jobs/one"), **cfg: Any) -> JobScript:
    return JobScript("one", folder, app.roles[0], cfg)


GOLDEN: dict[str, JobScript] = {
    "train": job(train(run_dir="/shared/run", nodes="2", grace=45, retries=5), time="4:00:00", comment="it's mine"),
    "elastic_gpus": job(
        train("--trainer.max_epochs=3", run_dir="s3://bucket/run", nodes="2:8", gpu=4, cpu=16, env={"A": "b c"}),
        partition="gpu",
        account="team",
        qos="high",
        exclusive=True,
        mail_user="jo@example.com",
        mail_type="END,FAIL",
        nodelist="g[1-4]",
        sbatch_args="--switches 1 --licenses 'x@y'",
    ),
    "evaluate_after": job(evaluate(run_dir="/shared/run", gpu=1), dependency="afterok:12", gres="gpu:a100:1"),
    "pyxis": job(
        train(run_dir="/data/run", image="registry.example.com/team/pipeline:1", mounts=DATA), container="pyxis"
    ),
    "apptainer": job(
        train(run_dir="/data/run", gpu=1, image="team/pipeline:1", mounts=DATA),
        container="apptainer",
        job_dir="/shared/code",
    ),
}


def header(script: str, part: str) -> str:
    """What stands above the part that all jobs have."""
    assert script.endswith((ROOT / "components" / part).read_text())
    return script.removesuffix((ROOT / "components" / part).read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_submitted_equals_the_golden_file(name: str) -> None:
    one = GOLDEN[name]
    text = f"{header(one.batch(), 'slurm_job.sh')}# ---- task.sh\n{header(one.task(), 'slurm_task.sh')}"
    golden = ROOT / f"tests/components/golden/slurm_{name}.txt"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text


def test_each_golden_file_is_compared() -> None:
    found = {path.stem for path in (ROOT / "tests/components/golden").glob("slurm_*")}
    assert found == {f"slurm_{name}" for name in GOLDEN}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_files_are_what_a_shell_reads(name: str, tmp_path: Path) -> None:
    for shell, text in (("bash", GOLDEN[name].batch()), ("sh", GOLDEN[name].task())):
        ended = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, check=False)
        assert ended.stderr == ""


@pytest.mark.parametrize(
    ("parameters", "cfg", "words"),
    [
        ({}, {"container": "docker"}, "container='docker' must be one of none, pyxis, apptainer"),
        ({"grace": 50}, {"time": "1"}, "time='1' must be more than 70 seconds"),
        ({}, {"sbatch_args": "'"}, 'sbatch_args="\'": No closing quotation'),
        ({"mounts": ["type=bind", "src=/a", "dst=/b"]}, {}, "mounts=/a:/b: without a container"),
        ({"mounts": ["type=volume", "src=a", "dst=/b"]}, {}, "Slurm's nodes have folders only"),
        ({"env": {"A-B": "1"}}, {}, "env='A-B' is no name of a variable"),
    ],
)
def test_a_mistake_is_named_before_anything_is_submitted(
    parameters: dict[str, Any], cfg: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as error:
        job(train(run_dir="/shared/run", **parameters), **cfg)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        *(("3", 180), ("1:30", 90), ("2:00:10", 7210), ("1-0", 86_400), ("1-2:3", 93_780), ("1-2:3:4", 93_784)),
        *(("UNLIMITED", None), ("soon", None)),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(limit: str, seconds: int | None) -> None:
    assert seconds_of(limit) == seconds


def test_the_documentation_lists_each_run_option() -> None:
    text = (ROOT / "docs/slurm.md").read_text()
    for name, (_, default, explanation) in OPTIONS.items():
        shown = f"`{default}`" if default not in (None, "") else ""
        assert f"| `{name}` | {shown} | {explanation} |" in text


def test_what_only_a_node_knows_is_filled_in_there(tmp_path: Path) -> None:
    role = Role("any", image="", entrypoint="echo", args=[f"{macros.app_id}-{macros.replica_id} $HOME 'x'"])
    role.env = {"WHO": f"a{macros.app_id}"}
    ended, _ = run_task(job(AppDef("any", [role]), tmp_path), tmp_path)
    assert ended.stdout == "7-1 $HOME 'x'\n"


# ---- what a node runs


def run_task(one: JobScript, folder: Path) -> tuple["subprocess.CompletedProcess[str]", str]:
    process = start_task(one, folder)
    out, err = process.communicate(timeout=60)
    found = folder / "ended/2-1"
    return subprocess.CompletedProcess([], process.returncode, out, err), found.read_text() if found.exists() else ""


def start_task(one: JobScript, folder: Path) -> "subprocess.Popen[str]":
    (folder / "ended").mkdir()
    known = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "PIPELINE_SLURM_START": "2"}
    return subprocess.Popen(
        ["sh", "-c", one.task()],
        env={**os.environ, **known, "PIPELINE_SLURM_FOLDER": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def program(text: str) -> AppDef:
    return AppDef("any", [Role("any", image="", entrypoint="sh", args=["-c", text])])


@pytest.mark.parametrize("status", [0, 2, 75, 127])
def test_a_node_leaves_its_status(status: int, tmp_path: Path) -> None:
    ended, record = run_task(job(program(f"exit {status}"), tmp_path), tmp_path)
    assert ended.returncode == status
    assert record.split()[1:] == [str(status), "1"]
    assert abs(int(record.split()[0]) / 1e9 - time.time()) < 60


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_to_a_node_reaches_its_program_which_is_waited_for(number: signal.Signals, tmp_path: Path) -> None:
    text = "trap 'sleep 0.2; exit 75' TERM; touch ready; while :; do sleep 0.05; done"
    one = job(program(f"cd {tmp_path}; {text}"), tmp_path)
    process = start_task(one, tmp_path)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert (tmp_path / "ended/2-1").read_text().split()[1] == "75"


def test_a_node_that_is_stopped_before_it_has_a_handler_was_preempted(tmp_path: Path) -> None:
    process = start_task(job(program(f"touch {tmp_path}/ready; exec sleep 60"), tmp_path), tmp_path)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_apptainer_runs_the_command_in_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = FakeSlurm(tmp_path, monkeypatch)
    started = 'until [ "$1" = oras://host/team/one:1 ]; do echo "$1"; shift; done; shift; exec "$@"'
    commands.answers("apptainer", "", script=started)
    app = program("exit 3")
    app.roles[0].image = "oras://host/team/one:1"
    ended, record = run_task(job(app, tmp_path, container="apptainer"), tmp_path)
    assert ended.stdout.split() == ["exec", "--pwd", "/app", "--bind", f"{tmp_path}:{tmp_path}"]
    assert record.split()[1] == "3"


# ---- what follows from how the nodes end


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path, monkeypatch)


def ends(slurm: FakeSlurm, tmp_path: Path, *plan: str, left: int = 3600, **parameters: Any) -> tuple[int, str]:
    """How a job ends, and what it has said."""
    app = train(run_dir="/shared/run", **{"nodes": "2", "retries": 1, "grace": 10, **parameters})
    ended = slurm.run_job(tmp_path / "job", job(app, tmp_path / "job").batch(), *plan, left=left)
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def starts(slurm: FakeSlurm) -> int:
    return sum(call.startswith("srun ") for call in slurm.calls)


def requeued(slurm: FakeSlurm) -> bool:
    return "scontrol requeue 7" in slurm.calls


@pytest.mark.parametrize(
    ("plan", "status", "count"),
    [
        (("0 0",), 0, 1),
        (("2 2",), 2, 1),
        (("1 2",), 2, 1),
        (("75 2",), 2, 1),
        (("130 75",), 130, 1),
        (("75 75", "75 75", "75 75", "0 0"), 0, 4),
        (("0 75", "0 0"), 0, 2),
        (("1 75", "0 0"), 0, 2),
        (("1 1", "75 75", "137 1", "0 0"), 137, 3),
        (("75 1", "75 137", "75 1", "0 0"), 0, 4),
        (("lost", "0 0"), 0, 2),
        (("lost", "lost", "0 0"), 1, 2),
    ],
)
def test_the_statuses_of_the_nodes_mean_what_they_mean_everywhere(
    slurm: FakeSlurm, tmp_path: Path, plan: tuple[str, ...], status: int, count: int
) -> None:
    assert ends(slurm, tmp_path, *plan)[0] == status
    assert starts(slurm) == count
    assert not requeued(slurm)
    assert f"status={status}\n" in (tmp_path / "job/state").read_text()


def test_the_first_start_that_is_done_ends_an_elastic_job(slurm: FakeSlurm, tmp_path: Path) -> None:
    assert ends(slurm, tmp_path, "75 0", nodes="1:2")[0] == 0


def test_near_its_time_limit_a_job_stops_its_nodes_and_is_requeued(slurm: FakeSlurm, tmp_path: Path) -> None:
    _, said = ends(slurm, tmp_path, "ask 75 75", left=25)
    assert requeued(slurm)
    assert "time limit: stopping the nodes" in said
    assert "status=75" in (tmp_path / "job/state").read_text()
    assert ends(slurm, tmp_path, "", "0 0")[0] == 0, "goes on as the second start"
    assert "start 2 on n[1-2]" in (tmp_path / "job/train-0.2.log").read_text()


def test_a_limit_that_comes_before_the_nodes_are_started_is_no_crash(slurm: FakeSlurm, tmp_path: Path) -> None:
    ends(slurm, tmp_path, "early", left=25)
    assert requeued(slurm)
    assert "crashes=0\nstatus=75\n" in (tmp_path / "job/state").read_text()


def test_a_signal_long_before_the_limit_changes_nothing(slurm: FakeSlurm, tmp_path: Path) -> None:
    status, said = ends(slurm, tmp_path, "ask 0 0", left=120)
    assert (status, requeued(slurm)) == (0, False)
    assert "stopping" not in said


def test_a_crash_near_the_limit_is_counted_and_goes_on_in_the_next_job(slurm: FakeSlurm, tmp_path: Path) -> None:
    ends(slurm, tmp_path, "ask 1 1", left=25)
    assert requeued(slurm)
    assert "crashes=1" in (tmp_path / "job/state").read_text()


def test_what_slurm_ends_is_left_to_slurm(slurm: FakeSlurm, tmp_path: Path) -> None:
    status, _ = ends(slurm, tmp_path, "term 75 75", "0 0")
    assert (status, starts(slurm), requeued(slurm)) == (75, 1, False)
    assert "cancelled=slurm" in (tmp_path / "job/state").read_text()


def test_a_cancelled_job_stops_its_nodes_and_removes_itself(slurm: FakeSlurm, tmp_path: Path) -> None:
    status, said = ends(slurm, tmp_path, "cancel 75 75", "0 0")
    assert (status, starts(slurm), requeued(slurm)) == (75, 1, False)
    assert "cancelled: stopping the nodes" in said
    assert "scancel 7" in slurm.calls


def test_a_job_that_was_cancelled_between_two_allocations_starts_nothing(slurm: FakeSlurm, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/cancelled").touch()
    assert ends(slurm, tmp_path, "0 0")[0] == 130
    assert starts(slurm) == 0
    assert "scancel 7" in slurm.calls


@pytest.mark.parametrize(("state", "counted"), [("allocated", True), ("down*", False), ("allocated*", False)])
def test_a_lost_node_costs_no_retry(slurm: FakeSlurm, tmp_path: Path, state: str, counted: bool) -> None:
    slurm.answers("sinfo", f"n1 allocated\nn2 {state}\n")
    ends(slurm, tmp_path, "1 1", "0 0")
    assert requeued(slurm) is not counted
    assert f"crashes={int(counted)}\n" in (tmp_path / "job/state").read_text()


def test_a_secret_is_in_no_file_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    one = job(train(run_dir="/shared/run", secrets=["MY_KEY"]), container="pyxis")
    assert SECRET not in one.batch() + one.task()
