"""A role as a Job: the rules for exit statuses, and which replicas must complete."""

from tests.support.manifests import foreign, jobs_of, made, training


def test_rules_for_exit_statuses_are_in_order() -> None:
    (job, _) = made(training(nodes="3", retries=2))
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in rules] == [
        ("FailJob", [2]),
        ("Ignore", [75]),
        ("Ignore", None),
    ]
    assert rules[2]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert job["spec"]["backoffLimit"] == 6
    assert job["spec"]["podReplacementPolicy"] == "Failed"


def test_a_run_with_fewer_nodes_is_done_when_rank_0_is() -> None:
    (elastic, _), (fixed, _) = made(training(nodes="2:4")), made(training(nodes="4"))
    assert elastic["spec"]["completions"] == fixed["spec"]["completions"] == 4
    assert elastic["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert "successPolicy" not in fixed["spec"]
    # Replicas that do not meet each have their own work.
    app = foreign()
    app.roles[1].min_replicas = 1
    assert not any("successPolicy" in job["spec"] for one in made(app) for job in jobs_of(one))
