"""What a whole process does with signals: at its start, twice, from a person, and where it stands still."""

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.process.preemption import Preemption
from pipeline.run.run_dir import LEASE, RunDir
from tests.support.commands import ROOT, Ended, command
from tests.support.forkserver import cold
from tests.support.processes import blocks_or_catches, fit_process
from tests.support.runs import FIT

STUCK = ("--model=tests.support.killable.Stuck", "--checkpoints.every_n_steps=1", "--trainer.max_epochs=2")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_between_two_steps_the_signal_is_obeyed_at_the_next(tmp_path: Path, number: signal.Signals) -> None:
    with fit_process(tmp_path, "--model=tests.support.killable.Slowly", "--trainer.max_epochs=50") as process:
        process.until("saved checkpoint step 7 ")
        process.signalled(number)
        assert process.ended() == 75
        assert "Traceback" not in process.said
        step = max(RunDir(str(process.run)).steps()["json"])
        assert f"preempted at step {step};" in process.said
        assert step % 7, "it did not wait for the epoch's end"


@pytest.mark.timeout(90)
def test_in_the_seconds_of_importing_it_is_heard_too(tmp_path: Path) -> None:
    with cold(), fit_process(tmp_path) as process:
        began = time.monotonic()
        listening = Path(f"/proc/{process.process.pid}/status")
        # The signals that are caught, as a mask: SIGTERM is the 15th.
        while not any(
            line.startswith("SigCgt") and int(line.split()[1], 16) >> 14 & 1
            for line in listening.read_text().splitlines()
        ):
            assert time.monotonic() - began < 30
        process.signalled(signal.SIGTERM)
        assert process.ended() == 75
        assert "Traceback" not in process.said
        assert "nothing to save" in process.said
        assert not process.run.exists()


def signalled_at(path: str, kind: str, run: Path, *more: str) -> Ended:
    program = "from tests.support.signalled_start import main; main()"
    arguments = (path, kind, *FIT, "--run_dir", run, *more)
    return command(sys.executable, "-m", "tests.support.statements", program, *arguments)


MOMENTS = (
    "pipeline.cli.main",
    "pipeline.config.parser.CommandLine.__init__",
    "pipeline.cli._open_run",
    "pipeline.run.lease.Lease._take",
    "pipeline.cli._choose_resume_point",
    "pipeline.config.parser.CommandLine.build",
    "pipeline.cli._attach_session",
    "pipeline.process.preemption.Preemption.mark_training",
    "pipeline.training.session.TrainingSession.begin",
)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("path", MOMENTS)
def test_sigterm_at_any_moment_of_a_start_ends_it_with_75(tmp_path: Path, path: str) -> None:
    run = tmp_path / "run"
    ended = signalled_at(path, "once", run)
    assert ended.status == 75, ended.text
    assert "Traceback" not in ended.text
    assert not (run / LEASE).exists(), "the next start need not wait for it to expire"
    assert not list(run.glob("checkpoints/*.ckpt"))
    attempt = RunDir(str(run)).read_json(RunDir.attempt(1))
    assert attempt is None or attempt["status"] == 75


@pytest.mark.timeout(90)
@pytest.mark.parametrize("path", ["pipeline.cli._open_run", "pipeline.training.session.TrainingSession.on_batch_end"])
def test_more_signals_at_any_moment_leave_it_at_75(tmp_path: Path, path: str) -> None:
    ended = signalled_at(path, "storm", tmp_path / "run", "--trainer.max_epochs=20")
    assert ended.status == 75, ended.text
    assert "Traceback" not in ended.text


@pytest.mark.timeout(90)
def test_a_start_that_stands_still_leaves_in_a_second_and_ends_its_attempt(tmp_path: Path) -> None:
    with fit_process(tmp_path, "--data.train=tests.support.killable.Downloads") as process:
        process.until("downloading")
        process.signalled(signal.SIGTERM)
        began = time.monotonic()
        assert process.ended() == 75
        assert time.monotonic() - began < 5
        assert "exiting now: there was nothing to save" in process.said
        attempt = RunDir(str(process.run)).read_json(RunDir.attempt(1))
        assert attempt is not None
        assert (attempt["status"], attempt["last_step"]) == (75, None)
        assert not (process.run / LEASE).exists()


def test_a_program_that_is_signalled_while_it_starts_or_ends_never_dies_of_it(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pipeline", "verify", "--run_dir", str(tmp_path / "none")]
    for _ in range(3):
        with cold(), (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(line, cwd=ROOT, stdout=said, stderr=said)
        while not blocks_or_catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        assert process.returncode == 75, (tmp_path / "said").read_text()


@pytest.mark.timeout(90)
def test_a_terminal_that_is_closed_is_a_request_to_stop(tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = [sys.executable, "-m", "pipeline", *FIT, "--model=tests.support.killable.Chatty", "--trainer.max_epochs=99"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*line, "--run_dir", str(run)], cwd=ROOT, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    said = b""
    while b"step 3\r\n" not in said:
        said += os.read(ours, 4096)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 75
    steps = RunDir(str(run)).steps()["json"]
    assert steps
    assert max(steps) % 7, "it did not wait for the epoch's end"


@pytest.mark.timeout(90)
def test_who_stands_still_leaves_in_a_few_seconds_and_says_what_is_durable(tmp_path: Path) -> None:
    with fit_process(tmp_path, *STUCK) as process:
        process.until("stuck")
        process.signalled(signal.SIGTERM)
        assert process.ended(20) == 75, "long before its grace of 30 s is over"
        assert "exiting now: step 3 is durable" in process.said


@pytest.mark.timeout(90)
def test_a_second_signal_is_obeyed_at_once(tmp_path: Path) -> None:
    with fit_process(tmp_path, *STUCK, "--grace=600") as process:
        process.until("stuck")
        process.signalled(signal.SIGTERM)
        time.sleep(1.2)
        process.signalled(signal.SIGTERM)
        began = time.monotonic()
        assert process.ended(20) == 75
        assert time.monotonic() - began < 3
        assert "exiting now: step 3 is durable" in process.said


@pytest.mark.timeout(90)
def test_a_person_is_obeyed_without_a_save(tmp_path: Path) -> None:
    with fit_process(tmp_path, *STUCK) as process:
        process.until("stuck")
        process.signalled(signal.SIGINT)
        assert process.ended(20) == 130
        assert "Traceback" not in process.said
        attempt = RunDir(str(process.run)).read_json(RunDir.attempt(1))
        assert attempt is not None
        assert (attempt["status"], attempt["last_step"]) == (130, 3)


@pytest.mark.timeout(90)
def test_a_save_that_takes_longer_than_the_grace_is_named(tmp_path: Path) -> None:
    with fit_process(
        tmp_path, "--model=tests.support.killable.Slowly", "--trainer.max_epochs=100", "--grace=3"
    ) as process:
        process.until("saved checkpoint step 7")
        # From now on no save comes to its end, as on a storage that is away.
        folder = process.run / "checkpoints"
        folder.rename(process.run / "away")
        folder.write_text("in the way")
        process.signalled(signal.SIGTERM)
        assert process.ended(20) == 75
        assert "exiting now: step 7 is durable, step " in process.said
        assert "was still being uploaded" in process.said


@pytest.mark.timeout(90)
@pytest.mark.parametrize("every", ["--checkpoints.every_n_steps=1", "--checkpoints.every_n_steps=7"])
def test_a_preemption_in_an_outage_says_where_it_stopped_once_that_step_is_durable(tmp_path: Path, every: str) -> None:
    slowly = ("--model=tests.support.killable.Slowly", "--trainer.max_epochs=100", "--trainer.logger=false")
    with fit_process(tmp_path, *slowly, every, "--grace=60") as process:
        process.until_committed(7)
        folder, away = process.run / "checkpoints", process.run / "away"
        folder.rename(away)
        folder.write_text("in the way")
        if every.endswith("=1"):
            process.until(" skipped: storage failing")  # several steps are behind what is durable
        process.signalled(signal.SIGTERM)
        time.sleep(1.5)
        assert process.process.poll() is None, process.said
        assert "preempted at step" not in process.said
        folder.unlink()
        away.rename(folder)
        assert process.ended(60) == 75
    (said,) = re.findall(r"preempted at step (\d+)", process.said)
    assert max(RunDir(str(process.run)).steps()["json"]) == int(said) > 7
    order = [process.said.index(words) for words in (f"saved checkpoint step {said}", "goodput ", "preempted at step")]
    assert order == sorted(order), "what happened first is said first"
    attempt = RunDir(str(process.run)).read_json(RunDir.attempt(1))
    assert attempt is not None
    assert (attempt["status"], attempt["last_step"]) == (75, int(said))


def test_who_ends_because_another_rank_was_asked_takes_its_own_first_signal_for_the_first() -> None:
    program = (
        "import os, signal, time\n"
        "from pipeline.process.preemption import Preemption\n"
        "with Preemption() as preemption:\n"
        "    preemption.mark_training()\n"
        "    preemption.begin_final_save()\n"
        "    time.sleep(1.5)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.5)\n"
        "    print('saved')\n"
    )
    ended = command(sys.executable, "-c", program)
    assert (ended.status, ended.out) == (0, "saved\n"), ended.text


def test_code_that_takes_the_wakeup_of_signals_or_a_handler_gives_them_back() -> None:
    async def runs_a_loop() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGUSR2, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: None)
            loop.remove_signal_handler(number)

    preemption = Preemption()
    preemption.mark_opened()
    with preemption:
        asyncio.run(runs_a_loop())
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "as asyncio leaves it"
        preemption.heartbeat()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.asked
        preemption._asked = preemption._first = None  # or it would end the tests


def test_code_that_keeps_the_wakeup_of_signals_leaves_the_flag() -> None:
    async def runs_a_loop(preemption: Preemption) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.asked

    preemption = Preemption()
    preemption.mark_opened()
    with preemption:
        asyncio.run(runs_a_loop(preemption))
        preemption._asked = None
