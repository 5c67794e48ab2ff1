"""All roles as a JobSet: the order of the stages, and its failure policy."""

import re

from tests.support.manifests import both, made


def test_in_a_jobset_evaluation_waits_for_training_and_never_trains_again() -> None:
    (job_set,) = made(both(nodes="2", retries=4), kind="jobset")
    train, evaluate = job_set["spec"]["replicatedJobs"]
    assert evaluate["dependsOn"] == [{"name": "train", "status": "Complete"}]
    assert "dependsOn" not in train
    policy = job_set["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 4
    # The first rule that fits counts.
    mistake, later, deadline, preempted = policy["rules"]
    assert mistake["action"] == later["action"] == deadline["action"] == "FailJobSet"
    assert later["targetReplicatedJobs"] == ["evaluate"]
    assert preempted["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert train["template"]["spec"]["backoffLimit"] == 0
    assert {rule["action"] for rule in train["template"]["spec"]["podFailurePolicy"]["rules"]} == {"FailJob"}
    assert evaluate["template"]["spec"]["backoffLimit"] == 3
    # What a Job says of the pod that ended it, as Kubernetes writes it.
    message = "Container {0} for pod a/b failed with exit code {1} matching FailJob rule at index {2}"
    (pattern,) = mistake["onJobFailureMessagePatterns"]
    for index, status in enumerate((2, 75)):
        assert bool(re.search(pattern, message.format("train", status, index))) == (status == 2)
        rule = train["template"]["spec"]["podFailurePolicy"]["rules"][index]
        assert rule["onExitCodes"]["values"] == [status]
    # The JobSet would create a Job again that is deleted on its own.
    assert all("ttlSecondsAfterFinished" not in one["template"]["spec"] for one in (train, evaluate))
