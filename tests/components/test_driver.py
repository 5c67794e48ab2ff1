"""The driver as an app: its command line and its run options within the cluster."""

import shlex

import pytest

from components.driver import ACCOUNT, driver, options_of


@pytest.mark.parametrize(
    ("given", "inner"),
    [
        (["--run_dir", "s3://b/r", "--detach", "--nodes", "2"], ["--run_dir", "s3://b/r", "--nodes", "2"]),
        (
            ["--name=old", "--driver_image", "d:1", "--driver_args=queue=x", "--on_signal", "cancel", "--cpu=3"],
            ["--cpu=3"],
        ),
        (["--scheduler_args=kubeconfig=/k,queue=q,context=c"], ["--scheduler_args", "queue=q"]),
        (["--scheduler_args", "context=c"], []),
        (["-s", "x", "--", "--detach", "--name=$HOME"], ["-s", "x", "--", "--detach", "--name=$HOME"]),
    ],
)
def test_the_driver_gets_the_arguments_that_mean_something_in_the_cluster(given: list[str], inner: list[str]) -> None:
    (role,) = driver(given, "fox", image="driver:1", env={"A": "1"}, secrets=["KEY"], retries=2).roles
    words = shlex.split(role.args[1].replace("$$", "$"))
    assert words == ["exec", "python", "-m", "components.launch", "--name", "fox", "--on_signal", "leave", *inner]
    assert (role.env["A"], role.max_retries, role.metadata["pipeline"]["secrets"]) == ("1", 2, ["KEY"])


def test_the_driver_runs_where_and_when_its_stages_do_unless_it_has_options_of_its_own() -> None:
    place = {"queue": "q", "queue_priority": "high", "tolerations": ["a"], "node_selector": {"pool": "a"}}
    shared = {**place, "namespace": "team", "ttl": 5, "priority_class": "high"}
    found = options_of({**shared, "service_account": "pods", "gpu_resource": "x", "deadline": 60}, {})
    assert found == {**shared, "service_account": ACCOUNT, "deadline": 0}, "it ends when its stages do"
    own = options_of(shared, {"queue": "", "priority_class": "low"})
    assert own["priority_class"] == "low"
    assert "queue_priority" not in own, "only Kueue reads it"
