"""The training session between two batches, on a state that no trainer stands behind."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint.commit import read_record
from pipeline.checkpoint.saver import SaveFailed, Saver
from pipeline.errors import LeaseLost, Preempted, UserError
from pipeline.process.host_memory import HostMemory
from pipeline.process.preemption import Preemption
from pipeline.process.topology import Topology
from pipeline.run.goodput import SAVING, Goodput
from pipeline.run.run_dir import RunDir
from pipeline.training.memory_checkpoints import MemoryCheckpoints, Uncommitted
from pipeline.training.save_policy import Boundary, SavePolicy
from pipeline.training.session import TrainingSession
from pipeline.training.state.run_state import KEY, RunState, read_run_state
from pipeline.training.stop_vote import StopVote
from tests.support.checkpoints import a_record
from tests.support.host_memory import host_memory


@dataclass
class State:
    """What a session asks of a trainer's state; notes what it was told."""

    known: dict[str, Any] = field(default_factory=dict)
    is_restoring: bool = False
    is_global_zero: bool = True
    world_size: int = 1
    validates: bool = False
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    model: torch.nn.Module = field(default_factory=lambda: torch.nn.Linear(2, 2))
    logged: list[dict[str, float]] = field(default_factory=list)

    def broadcast(self, value: bool) -> bool:
        return value

    def metrics(self) -> dict[str, Any]:
        return self.known

    def log(self, figures: dict[str, float], step: int) -> None:
        self.logged.append(figures)

    def preview(self) -> dict[str, Any]:
        return self.held

    def restore(self) -> None:
        self.calls.append("restore")
        self.is_restoring = False

    def ended(self, at: Boundary) -> dict[str, Any] | None:
        return {"by": "max_steps", "asked": {"max_steps": at.step}} if at.kind == "end" else None

    def resume_epoch(self) -> None:
        self.calls.append("resume epoch")

    def after_batch(self) -> None:
        self.calls.append("after batch")

    def of_rank(self) -> dict[str, Any]:
        return {"random": 1, "sums": {}, "metrics": {}}

    def capture(self, at: Boundary, standing: dict[str, Any] | None = None) -> tuple[dict[str, Any], RunState]:
        self.calls.append(f"capture {at.step}" + (" standing" if standing else ""))
        position = 8 * at.batches
        state = RunState({}, at.epoch, at.batches, position, None, [], {}, at.kind == "validation")
        return {"state_dict": {"w": torch.tensor([float(at.step)])}, KEY: state.to_dict()}, state


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def session(run: RunDir | None, state: State | None = None, **more: Any) -> TrainingSession:
    state = state or State()
    policy = more.pop("policy", SavePolicy(every_n_steps=2))
    saver = (
        None
        if run is None
        else Saver(run, budget=more.pop("budget", 60.0), before_commit=more.pop("held", lambda: None))
    )
    made = TrainingSession(state, StopVote(Preemption()), Goodput(), policy, saver, **more)  # type: ignore[arg-type]
    made.begin(0)
    return made


def steps(run: RunDir) -> list[int]:
    return sorted(run.steps()["json"])


def at(step: int, **more: Any) -> Boundary:
    return Boundary(step, more.pop("epoch", 0), more.pop("batches", step), **more)


def reasons(run: RunDir, step: int) -> list[str]:
    record = read_record(run, step)
    assert record is not None
    return record.reason


def test_it_saves_what_the_policy_says_and_restores_after_that(run: RunDir) -> None:
    state = State()
    found = session(run, state)
    for step in range(1, 5):
        found.at_boundary(at(step))
        assert found.saver is not None
        found.saver.finish()
    assert steps(run) == [2, 4]
    assert state.calls == ["restore", "capture 2", "restore", "restore", "capture 4", "restore"]
    record = read_record(run, 4)
    assert record is not None
    assert (record.position, record.reason, record.world_size) == (32, ["steps"], 1)
    assert read_run_state(run.url_of(RunDir.checkpoint(4))) == RunState({}, 0, 4, 32, None, [], {})


def test_without_a_run_directory_nothing_is_saved_and_a_preemption_ends_training_all_the_same() -> None:
    state = State()
    found = session(None, state)
    found.at_boundary(at(2))
    found.vote.preemption.ask()
    with pytest.raises(Preempted, match="preempted at step 3"):
        found.at_boundary(at(3))
    found.at_end(at(4, kind="end"))
    assert state.calls == ["restore"]


def test_a_preemption_saves_the_step_and_waits_until_it_is_durable(run: RunDir) -> None:
    found = session(run)
    found.vote.preemption.ask()
    with pytest.raises(Preempted, match="preempted at step 1"):
        found.at_boundary(at(1))
    assert steps(run) == [1]
    assert reasons(run, 1) == ["preemption"]
    assert found.vote.preemption._final_save, "from here on the whole grace is for the save"


def test_an_accumulated_step_is_finished_before_training_stops(run: RunDir) -> None:
    found = session(run)
    found.vote.preemption.ask()
    found.at_boundary(at(1, batches=3, accumulating=True))
    assert steps(run) == []
    with pytest.raises(Preempted):
        found.at_boundary(at(2, batches=4))
    assert steps(run) == [2]


def test_a_resumed_run_that_is_stopped_before_its_first_step_saves_nothing_again(run: RunDir) -> None:
    found = session(run, State(is_restoring=True), resumed_step=6)
    found.vote.preemption.ask()
    with pytest.raises(Preempted, match="before a new one"):
        found.at_boundary(at(6))
    assert steps(run) == []


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    with host_memory() as made:
        yield made


def resumed_from_memory(run: RunDir, why: list[str], **more: Any) -> TrainingSession:
    """A session of a run that resumes at step 4 of its memory; step 2 is committed."""
    before = session(run)
    for step in (1, 2):
        before.at_boundary(at(step))
    before._finish()
    checkpoint, state = State().capture(at(4))
    record = replace(a_record(4), reason=why, position=state.position)
    uncommitted = Uncommitted(record, lambda: checkpoint)
    saver = Saver(run, budget=60.0)
    saver.committed = 2
    policy = SavePolicy(every_n_steps=2)
    found = TrainingSession(
        *(State(is_restoring=True), StopVote(Preemption()), Goodput(), policy, saver),  # type: ignore[arg-type]
        **{"resumed_step": 2, "uncommitted": uncommitted, **more},
    )
    found.begin(4)
    return found


def test_a_state_in_memory_that_was_due_is_committed_as_it_is_resumed_and_not_once_more(run: RunDir) -> None:
    found = resumed_from_memory(run, ["steps"])
    found.at_boundary(at(4))
    found._finish()
    assert steps(run) == [2, 4]
    assert reasons(run, 4) == ["steps"]
    record = read_record(run, 4)
    assert record is not None
    assert (record.position, record.bytes > 0, record.sha256.startswith("sha256:")) == (32, True, True)
    found.at_boundary(at(5))
    found.at_boundary(at(6))
    found._finish()
    assert steps(run) == [2, 4, 6]


def test_a_state_in_memory_that_was_not_due_is_no_commit(run: RunDir) -> None:
    found = resumed_from_memory(run, [])
    for step in (4, 5, 6):
        found.at_boundary(at(step))
    found._finish()
    assert steps(run) == [2, 6]


def test_a_state_in_memory_is_durable_when_it_is_stopped_before_its_first_step(run: RunDir) -> None:
    found = resumed_from_memory(run, [])
    found.vote.preemption.ask()
    with pytest.raises(Preempted, match="preempted at step 4, before a new one"):
        found.at_boundary(at(4))
    assert steps(run) == [2, 4]
    assert reasons(run, 4) == ["preemption"]


def test_states_are_kept_in_memory_between_two_steps_and_are_no_commits(
    run: RunDir, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryCheckpoints, "due", True)
    monkeypatch.setattr(MemoryCheckpoints, "due_with_save", lambda *_: True)
    keeps = MemoryCheckpoints(memory, Topology(0, 0, 1, 1, 0, 1), {"attempt": 1})
    state = State()
    found = session(run, state, policy=SavePolicy(every_n_steps=3), memory=keeps)

    def kept() -> list[int]:
        return sorted(each.about["record"]["step"] for each in memory.states())

    found.at_boundary(at(0, batches=0))
    assert kept() == [], "there is nothing to keep yet"
    found.at_boundary(at(1))
    found.at_boundary(at(1, batches=2, accumulating=True))
    assert kept() == [1], "no state holds a step that is half done"
    found.at_boundary(at(2))
    assert kept() == [1, 2]
    found.at_boundary(at(3))
    found._finish()
    assert kept() == [2, 3]
    assert steps(run) == [3], "as the policy says"
    records = {each.about["record"]["step"]: each.about["record"]["reason"] for each in memory.states()}
    assert records == {2: [], 3: ["steps"]}
    state.is_restoring = True
    found.at_boundary(at(4))
    assert kept() == [2, 3], "it is not in place yet"


def test_a_committed_step_is_never_written_again(run: RunDir) -> None:
    state = State()
    found = session(run, state, resumed_step=2)
    found.at_boundary(at(2, batches=0, epoch=1, kind="epoch"))
    assert steps(run) == []
    assert state.calls == ["restore"]


def test_a_fit_that_went_back_behind_a_committed_step_stops(run: RunDir) -> None:
    found = session(run, resumed_step=12)
    with pytest.raises(UserError, match=r"went back from step 12, which is committed .* to step 6"):
        found.at_boundary(at(6))
    assert found.saver is not None
    assert found.saver.save({"x": 1}, a_record(13))
    with pytest.raises(AssertionError, match="never written again"):
        found.saver.save({"x": 1}, a_record(13))
    assert steps(run) == [13]


def test_the_end_is_written_into_the_record_of_a_step_that_was_saved_before(run: RunDir) -> None:
    found = session(run)
    found.at_boundary(at(2))
    found.at_end(at(2, kind="end"))
    assert reasons(run, 2) == ["steps", "end"]
    record = read_record(run, 2)
    assert record is not None
    assert record.ended == {"by": "max_steps", "asked": {"max_steps": 2}}
    before = run.read(RunDir.checkpoint(2))
    found.at_end(at(2, kind="end"))
    assert run.read(RunDir.checkpoint(2)) == before


def test_a_lost_lease_is_asked_before_a_record_is_amended(run: RunDir) -> None:
    lost = False

    def held() -> None:
        if lost:
            raise LeaseLost("another writer")

    found = session(run, held=held)
    found.at_boundary(at(2))
    assert found.saver is not None
    found.saver.finish()
    lost = True
    with pytest.raises(LeaseLost):
        found.at_end(at(2, kind="end"))
    assert reasons(run, 2) == ["steps"]


def test_a_validation_that_is_left_comes_first_after_the_resume_and_its_value_is_added_later(run: RunDir) -> None:
    found = session(run, State(validates=True), policy=SavePolicy(), monitor="val_loss")
    found.at_boundary(at(2))
    found.before_validation()
    found.on_validation_start(3)
    found.vote.preemption.ask()
    with pytest.raises(Preempted, match="preempted in the validation after step 3"):
        found.on_validation_batch(lambda: at(3, kind="validation"))
    record = read_record(run, 3)
    assert record is not None
    assert (record.reason, record.monitor) == (["preemption"], None)
    own = read_run_state(run.url_of(RunDir.checkpoint(3)))
    assert own is not None
    assert own.validation_pending
    after = State({"val_loss": torch.tensor(0.25)})
    resumed = session(run, after, policy=SavePolicy(), monitor="val_loss", resumed_step=3)
    resumed.on_validation_logged(3)
    resumed.on_validation_end()
    resumed.at_boundary(at(3))
    record = read_record(run, 3)
    assert record is not None
    assert record.monitor is not None
    assert (record.monitor.name, record.monitor.value) == ("val_loss", 0.25)


def test_a_validation_is_not_left_where_nothing_would_resume_nor_beyond_what_all_ranks_have(run: RunDir) -> None:
    found = session(run)
    found.on_validation_start(1)
    found.vote.preemption.ask()
    found.on_validation_batch(lambda: None)
    found.on_validation_batch(lambda: at(3, kind="validation"))  # the second batch: not all ranks may have one
    assert steps(run) == []


def test_a_monitor_that_is_not_logged_is_the_users_mistake_once_the_step_is_durable(run: RunDir) -> None:
    found = session(run, State({"train_loss": torch.tensor(1.0)}), monitor="val_los")
    for boundary in (at(0), at(2)):
        found.at_boundary(boundary)
    with pytest.raises(UserError, match=r"val_los.*logged are: train_loss. Step 3 is saved"):
        found.at_boundary(at(3, epoch=1, batches=0, kind="epoch"))
    assert steps(run) == [2, 3]


def test_a_value_that_is_no_number_is_never_best(run: RunDir) -> None:
    found = session(run, State({"val_loss": torch.tensor(float("nan"))}), monitor="val_loss")
    found.at_end(at(2, kind="end"))
    record = read_record(run, 2)
    assert record is not None
    assert record.monitor is None


def test_a_save_by_time_is_due_once_in_that_time(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("pipeline.training.session.time.monotonic", lambda: clock[0])
    found = session(run, policy=SavePolicy(every_minutes=1.0))
    for step in range(1, 10):
        clock[0] += 25
        found.at_boundary(at(step))
        assert found.saver is not None
        found.saver.finish()
    found.at_end(at(9, kind="end"))
    assert [step for step in steps(run) if "minutes" in reasons(run, step)] == [3, 6, 9]


def test_hyperparameters_that_would_not_load_again_are_refused_when_training_begins(run: RunDir) -> None:
    with pytest.raises(UserError, match=r"hyper_parameters\.width"):
        session(run, State(hyper_parameters={"width": object()}))
    session(None, State(hyper_parameters={"width": object()}))


def test_time_for_saves_is_counted_as_such(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    found = session(run)
    found.goodput.steps(1)
    real = State.capture

    def slow(self: State, *arguments: Any) -> Any:
        time.sleep(0.05)
        return real(self, *arguments)

    monkeypatch.setattr(State, "capture", slow)
    found.at_boundary(at(2))
    counted = found.goodput.as_dict()
    assert counted["seconds"][SAVING] >= 0.05
    assert counted["saves"] == 1


def test_a_crash_lets_the_save_under_way_come_to_its_end_but_not_one_that_failed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(run)
    assert found.saver is not None
    real = found.saver._write
    monkeypatch.setattr(found.saver, "_write", lambda *arguments: (time.sleep(0.2), real(*arguments))[1])
    found.at_boundary(at(2))
    found.on_exception(RuntimeError("broken"))
    assert steps(run) == [2]
    waited: list[bool] = []
    monkeypatch.setattr(found.saver, "finish", lambda: waited.append(True))
    found.on_exception(SaveFailed("away"))
    assert not waited


def test_a_preemption_in_an_outage_waits_for_the_last_step_instead_of_dropping_it(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = session(run)
    assert found.saver is not None
    real, failed = found.saver._write, [0]

    def away(*arguments: Any) -> Any:
        failed[0] += 1
        if failed[0] == 1:
            raise ConnectionError("away")
        return real(*arguments)

    monkeypatch.setattr(found.saver, "_write", away)
    found.at_boundary(at(2))
    while found.saver.failing == 0:
        time.sleep(0.01)
    found.vote.preemption.ask()
    with pytest.raises(Preempted, match="preempted at step 3"):
        found.at_boundary(at(3))
    assert steps(run) == [2, 3]
