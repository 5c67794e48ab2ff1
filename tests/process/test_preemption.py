"""What a whole process does with signals: at its start, twice, from a person, and where it stands still."""

import signal
import sys
import time
from pathlib import Path

import pytest

from pipeline.run.run_dir import RunDir
from tests.support.commands import command
from tests.support.forkserver import cold
from tests.support.processes import fit_process

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
