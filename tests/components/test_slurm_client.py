"""What Slurm's commands print, and what it means."""

from pathlib import Path

import pytest
from torchx.specs import AppState

from components import slurm_client
from components.slurm_client import SlurmError, SlurmState, parsed_account, parsed_job, waiting_for
from pipeline.errors import UserError
from tests.support.fake_slurm import FakeSlurm

# As Slurm 22.05 prints it.
RUNNING = (
    "JobId=1 JobName=t.sh UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901759 Nice=0 Account=(null) "
    "QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "RunTime=00:00:03 TimeLimit=UNLIMITED TimeMin=N/A Partition=main NodeList=n[1-2] BatchHost=n1 NumNodes=2 NumCPUs=2 "
    "CPUs/Task=1 ReqB:S:C:T=0:0:*:* MinMemoryNode=100M Command=/tmp/exp/t.sh WorkDir=/tmp/exp "
    "Comment=it's JobState=FAILED StdOut=/tmp/exp/b-1.log Power= "
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path, monkeypatch)


def test_a_job_is_what_scontrol_says_before_what_a_user_writes() -> None:
    state = parsed_job(RUNNING)
    assert (state.name, state.app_state, state.exit_status, state.reason) == ("RUNNING", AppState.RUNNING, None, "")
    assert state.fields is not None
    assert (state.fields["Restarts"], state.fields["NumNodes"]) == ("2", "2")


@pytest.mark.parametrize(
    ("name", "code", "app_state", "status"),
    [
        ("PENDING", "0:0", AppState.PENDING, None),
        ("COMPLETING", "0:0", AppState.RUNNING, None),
        ("COMPLETED", "0:0", AppState.SUCCEEDED, 0),
        ("FAILED", "2:0", AppState.FAILED, 2),
        ("CANCELLED", "0:9", AppState.CANCELLED, 137),
        ("TIMEOUT", "0:15", AppState.FAILED, 143),
        ("REQUEUE_HOLD", "0:0", AppState.PENDING, 0),
        ("PREEMPTED", "0:0", AppState.FAILED, 0),
    ],
)
def test_each_state_has_its_meaning(name: str, code: str, app_state: AppState, status: int | None) -> None:
    state = parsed_job(RUNNING.replace("RUNNING", name, 1).replace("ExitCode=0:0", f"ExitCode={code}"))
    assert (state.app_state, state.exit_status) == (app_state, status)


def test_accounting_tells_the_last_start_of_a_requeued_job() -> None:
    assert parsed_account("REQUEUED|0:0\nCANCELLED by 1000|0:0\n") == SlurmState("CANCELLED", exit_status=0)
    assert parsed_account("FAILED|2:0\n") == SlurmState("FAILED", exit_status=2)
    assert parsed_account("\n") is None


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "all nodes that it could use are busy (Resources)"),
        ("ReqNodeNotAvail,_UnavailableNodes:n2", "down, drained or reserved (ReqNodeNotAvail,_UnavailableNodes:n2)"),
        ("QOSMaxNodePerUserLimit", "the limit QOSMaxNodePerUserLimit of its QOS is reached"),
        ("AssocGrpGRES", "the limit AssocGrpGRES of its account is reached"),
        ("NewInSlurm99", "NewInSlurm99"),
    ],
)
def test_why_a_job_waits_is_said_in_words(reason: str, words: str) -> None:
    assert words in waiting_for(reason)


def test_what_slurm_refuses_names_our_option(slurm: FakeSlurm) -> None:
    for said, about in {
        "Batch job submission failed: Invalid account or account/partition combination specified": "account, partition",
        "invalid partition specified: nope\nsbatch: error: Invalid partition name specified": "partition",
        "Batch job submission failed: Invalid qos specification": "qos",
        "Batch job submission failed: Invalid feature specification": "constraint",
        "Batch job submission failed: Requested node configuration is not available": "--nodes, --cpu",
        "Memory specification can not be satisfied": "--memory",
        "unrecognized option '--no-such'": "sbatch_args",
        "Batch job submission failed: Invalid generic resource (gres) specification": "gres, --gpu",
    }.items():
        slurm.answers("sbatch", "", err=f"sbatch: error: {said}\n", status=1)
        with pytest.raises(UserError) as error:
            slurm_client.submit(
                "job.sh", [], {"PATH": str(slurm.bin) + ":/bin:/usr/bin", "CALLS": str(slurm.calls_file)}
            )
        assert str(error.value).startswith("Slurm refuses the job (")
        assert about in str(error.value)
        assert "sbatch: error" not in str(error.value)


def test_a_controller_that_does_not_answer_is_no_mistake(slurm: FakeSlurm) -> None:
    away = "Unable to contact slurm controller (connect failure)"
    slurm.answers("sbatch", "", err=f"sbatch: error: Batch job submission failed: {away}\n", status=1)
    slurm.answers("scontrol", "", err=f"slurm_load_jobs error: {away}\n", status=1)
    with pytest.raises(SlurmError, match="Unable to contact"):
        slurm_client.submit("job.sh", [], {"PATH": str(slurm.bin) + ":/bin:/usr/bin", "CALLS": str(slurm.calls_file)})
    with pytest.raises(SlurmError, match="Unable to contact"):
        slurm_client.job("7")


def test_a_job_that_the_controller_has_forgotten_is_looked_up_in_the_accounts_if_there_are_any(
    slurm: FakeSlurm,
) -> None:
    slurm.answers("scontrol", "", err="slurm_load_jobs error: Invalid job id specified\n", status=1)
    slurm.answers("sacct", "FAILED|2:0\n")
    assert slurm_client.job("7") == SlurmState("FAILED", exit_status=2)
    slurm.answers("sacct", "", err="Slurm accounting storage is disabled\n", status=1)
    assert slurm_client.job("7") is None


def test_without_slurms_commands_one_sentence_says_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no scontrol here: run this where Slurm's commands are"):
        slurm_client.job("7")


@pytest.mark.parametrize(
    ("partition", "said", "has"),
    [
        (None, "main* 1\nbig 8000+\n", False),
        ("big", "big 8000+\n", True),
        (None, "main* 8000\n", True),
        ("none", "", True),
    ],
)
def test_memory_is_asked_for_where_slurm_knows_of_any(
    slurm: FakeSlurm, partition: str | None, said: str, has: bool
) -> None:
    slurm.answers("sinfo", said)
    assert slurm_client.has_memory(partition) is has


@pytest.mark.parametrize("text", ["", "\n", "slurm_load_jobs: retrying\n", "JobId=7 JobNa"])
def test_an_answer_without_a_state_is_a_controller_that_is_away(text: str) -> None:
    with pytest.raises(SlurmError, match="there is no JobState"):
        parsed_job(text)
