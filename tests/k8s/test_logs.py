"""The logs of a run: whole lines, each once, across lost connections and the successive pods of a replica."""

import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from torchx.schedulers.api import Stream

from components.train import train
from k8s.cluster_api import ClusterAway, Patience
from k8s.scheduler import KubernetesJob
from pipeline.errors import UserError
from tests.support.api_server import ApiServer, Fault

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def run(scheduler: KubernetesJob) -> str:
    """A run of two nodes."""
    app = train(run_dir="s3://bucket/one", nodes="2", rdzv_port=29_500)
    return scheduler.schedule(scheduler.submit_dryrun(app, scheduler.run_opts().resolve({"app_id": "one"})))


class Reader:
    """Reads a log in a thread."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines: list[str] = []
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.read, args=(iter(lines),), daemon=True)
        self.thread.start()

    def read(self, lines: Iterator[str]) -> None:
        try:
            for line in lines:
                self.lines.append(line.rstrip("\n"))
        except Exception as error:
            self.error = error

    def wait_for(self, count: int) -> list[str]:
        until = time.monotonic() + 10
        while len(self.lines) < count and time.monotonic() < until:
            time.sleep(0.01)
        return self.lines

    def end(self) -> list[str]:
        self.thread.join(10)
        assert not self.thread.is_alive(), self.lines
        assert self.error is None
        return self.lines


def texts(scheduler: KubernetesJob, run: str, k: int = 0, **wanted: Any) -> list[str]:
    return [line.rstrip("\n") for line in scheduler.log_iter(run, "train", k, **wanted)]


def test_a_log_is_followed_through_restarts_to_the_end_of_the_run(
    api: ApiServer, scheduler: KubernetesJob, run: str
) -> None:
    reader = Reader(scheduler.log_iter(run, "train", 1, should_tail=True))
    other, first = api.start_pod("one-train", 0), api.start_pod("one-train", 1)
    api.say(other, "of another")
    api.say(first, "a", "b")
    assert reader.wait_for(2) == ["a", "b"]
    api.say(first, "c")
    api.end_pod(first, 1)
    second = api.start_pod("one-train", 1, phase="Pending", reason="ContainerCreating")
    time.sleep(0.2)
    assert reader.lines == ["a", "b", "c"]
    api.say(second, "d")
    api.change("Pod", second, {"status": {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}})
    reader.wait_for(4)
    api.end_pod(second)
    time.sleep(0.2)
    assert reader.thread.is_alive(), "the run has not ended"
    api.finish("one-train")
    assert reader.end() == ["a", "b", "c", "d"]
    assert texts(scheduler, run, 1) == ["a", "b", "c", "d"], "the same afterwards"


def test_a_lost_connection_repeats_and_loses_no_line(api: ApiServer, scheduler: KubernetesJob, run: str) -> None:
    pod = api.start_pod("one-train", 0)
    lines = [f"line {number}" for number in range(40)]
    # Some of them at the same time.
    api.logs[pod] = [(10**18 + number // 3 * 10**8, line) for number, line in enumerate(lines)]
    api.cuts[pod] = [0, 7, 1, 30]
    reader = Reader(scheduler.log_iter(run, "train", 0, should_tail=True))
    assert reader.wait_for(40) == lines
    api.say(pod, "the last")
    api.end_pod(pod)
    api.finish("one-train")
    assert reader.end() == [*lines, "the last"]
    assert api.seen.count(f"get pods/log {pod}") >= 5
    api.cuts[pod] = [3]
    assert texts(scheduler, run) == [*lines, "the last"]


def test_a_log_that_is_cut_off_repeatedly_is_given_up(
    api: ApiServer, scheduler: KubernetesJob, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k8s.logs._TRIES", 3)
    pod = api.start_pod("one-train", 0)
    api.say(pod, "never")
    api.cuts[pod] = [0] * 9
    with pytest.raises(ClusterAway, match=f"the log of {pod} was cut off 3 times in a row"):
        texts(scheduler, run)
    api.cuts[pod] = [0] * 4
    assert next(iter(scheduler.log_iter(run, "train", 0, should_tail=True))) == "never\n", "who follows is patient"


KUBELET_DOWN = 'Get "https://10.0.0.2:10250/containerLogs/default/p/train?follow=true": dial tcp: connection refused'


def test_a_pod_whose_kubelet_is_down_is_named_with_its_node(
    api: ApiServer, scheduler: KubernetesJob, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    pod = api.start_pod("one-train", 1)
    api.faults = [Fault(f"get pods/log {pod}", 500, KUBELET_DOWN, times=99)]
    with pytest.raises(ClusterAway) as refused:
        texts(scheduler, run, 1)
    words = f"node 'node-1' of pod '{pod}' does not answer ({KUBELET_DOWN}): its log can be read once the node is back"
    assert str(refused.value) == words
    assert refused.value.__suppress_context__, "one traceback where TorchX prints it"
    assert api.seen.count(f"get pods/log {pod}") == 1, "the API server has answered"
    # The pod that took over is read in any case.
    other = api.start_pod("one-train", 1)
    api.say(other, "from another node")
    assert texts(scheduler, run, 1) == ["from another node"]
    assert f"node 'node-1' of pod '{pod}' does not answer" in caplog.text
    assert "its log is left out from here on" in caplog.text


@pytest.mark.parametrize("replaced", [False, True])
def test_a_followed_log_waits_for_a_node_that_does_not_answer(
    api: ApiServer, scheduler: KubernetesJob, run: str, replaced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pod = api.start_pod("one-train", 0)
    api.say(pod, "a", "b")
    api.faults = [Fault(f"get pods/log {pod}", 500, KUBELET_DOWN, times=4)]
    reader = Reader(scheduler.log_iter(run, "train", 0, should_tail=True))
    if replaced:
        api.faults[0].times = 10**6
        time.sleep(0.3)
        pod = api.start_pod("one-train", 0)
        api.say(pod, "c")
    else:
        api.say(pod, "c")
    expected = ["c"] if replaced else ["a", "b", "c"]
    assert reader.wait_for(len(expected)) == expected
    api.end_pod(pod)
    api.finish("one-train")
    assert reader.end() == expected
    assert caplog.text.count("its log goes on once the node is back, or with the pod that replaces this one") == 1


def test_a_followed_log_whose_run_has_ended_does_not_wait_for_a_node(
    api: ApiServer, scheduler: KubernetesJob, run: str
) -> None:
    api.finish("one-train", "Failed", reason="BackoffLimitExceeded")
    pod = api.start_pod("one-train", 0)
    api.faults = [Fault(f"get pods/log {pod}", 500, KUBELET_DOWN, times=99)]
    reader = Reader(scheduler.log_iter(run, "train", 0, should_tail=True))
    reader.thread.join(10)
    assert isinstance(reader.error, ClusterAway)


def test_a_followed_log_outlives_an_outage_of_the_api_server(
    api: ApiServer, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    impatient = KubernetesJob("torchx", poll=0.05, patience=Patience(total=0.2, first=0.02))
    pod = api.start_pod("one-train", 0)
    api.say(pod, "a", "b")
    reader = Reader(impatient.log_iter(run, "train", 0, should_tail=True))
    assert reader.wait_for(2) == ["a", "b"]
    for request in ("get pods/log .*", "list .*"):
        caplog.clear()
        api.faults = [Fault(request, 503, "etcd", times=10**6)]
        # The connection that is open ends as well, in the first round by the fault, then by the pod's end.
        if request == "list .*":
            other = api.start_pod("one-train", 0)
            api.end_pod(pod, 75)
            pod = other
        else:
            api.cut_open_logs()
        until = time.monotonic() + 10
        while "the log of train/0 goes on once it answers" not in caplog.text:
            assert time.monotonic() < until
            assert reader.thread.is_alive(), reader.error
            time.sleep(0.02)
        api.say(pod, f"after {request}")
        api.faults.clear()
        reader.wait_for(3)
    api.end_pod(pod)
    api.finish("one-train")
    assert reader.end() == ["a", "b", "after get pods/log .*", "after list .*"]
    impatient.close()


def test_the_log_of_a_run_that_is_not_there_is_refused_at_once(api: ApiServer, scheduler: KubernetesJob) -> None:
    for follow in (False, True):
        with pytest.raises(UserError, match=r"namespace 'team': there is no run 'nobody', .*jobs list -s kubernetes_j"):
            list(scheduler.log_iter("team:nobody", "train", should_tail=follow))


def test_a_log_that_ends_while_its_pod_runs_is_reopened(api: ApiServer, scheduler: KubernetesJob, run: str) -> None:
    """As when a node rotates its log files, or its kubelet restarts."""
    pod = api.start_pod("one-train", 0)
    api.say(pod, "a")
    api.cuts[pod] = [-1, -1]
    reader = Reader(scheduler.log_iter(run, "train", 0, should_tail=True))
    reader.wait_for(1)
    api.say(pod, "b")
    assert reader.wait_for(2) == ["a", "b"]
    api.finish("one-train")
    api.end_pod(pod)
    assert reader.end() == ["a", "b"]


def test_lines_are_filtered_by_time_and_regex(api: ApiServer, scheduler: KubernetesJob, run: str) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    pod = api.start_pod("one-train", 0)
    for second in range(5):
        api.say(pod, f"step {second}", f"loss {second}", at=start.timestamp() + second)
    third = start + timedelta(seconds=3, milliseconds=1)
    assert texts(scheduler, run, since=third) == ["loss 3", "step 4", "loss 4"]
    assert texts(scheduler, run, until=start) == ["step 0"]
    assert texts(scheduler, run, since=start, until=start + timedelta(milliseconds=500)) == ["step 0", "loss 0"]
    assert texts(scheduler, run, regex="loss [13]") == ["loss 1", "loss 3"]
    assert texts(scheduler, run, regex="s 4$", until=start + timedelta(days=1), should_tail=True) == ["loss 4"]
    assert texts(scheduler, run, since=start.replace(tzinfo=None) - timedelta(days=2), regex="0") == [
        "step 0",
        "loss 0",
    ]
    with pytest.raises(UserError, match="train/2: this run has train/0 to 1"):
        texts(scheduler, run, 2)
    with pytest.raises(UserError, match="eval/0: this run has train/0 to 1"):
        list(scheduler.log_iter(run, "eval", should_tail=True))
    with pytest.raises(ValueError, match="must be combined"):
        texts(scheduler, run, streams=Stream.STDERR)


def test_pods_without_a_log_are_no_error(api: ApiServer, scheduler: KubernetesJob, run: str) -> None:
    assert texts(scheduler, run) == []
    api.start_pod("one-train", 0, phase="Pending", reason="ErrImagePull")
    evicted = api.start_pod("one-train", 0)
    api.change("Pod", evicted, {"status": {"phase": "Failed", "containerStatuses": []}})
    pod = api.start_pod("one-train", 0)
    api.logs[pod] = [(10**18, "progress 1\rprogress 2\r"), (10**18 + 1, "snow \u2603"), (10**18 + 2, "")]
    assert texts(scheduler, run) == ["progress 1\rprogress 2", "snow \u2603", ""]
    api.faults = [Fault("get pods/log .*", 404)]
    assert texts(scheduler, run)[:1] == ["progress 1\rprogress 2"] or texts(scheduler, run) == []
    api.allowed.discard(("", "pods/log", "get"))
    with pytest.raises(UserError, match="you may not get pods/log"):
        texts(scheduler, run)


def test_a_run_that_is_deleted_ends_its_log(api: ApiServer, scheduler: KubernetesJob, run: str) -> None:
    reader = Reader(scheduler.log_iter(run, "train", 0, should_tail=True))
    pod = api.start_pod("one-train", 0)
    api.say(pod, "a")
    reader.wait_for(1)
    api.remove("Job", "one-train")
    api.remove("Pod", pod)
    assert reader.end() == ["a"]
