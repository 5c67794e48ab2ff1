"""How a run has ended is told to a webhook or a command: within a limit, without an exception, and in secret."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.process.notification import (
    Notification,
    notification,
    redacted,
    target_of,
    target_problem,
    tell,
)
from tests.support.webhook import Webhook, webhook

ENDED = Notification("failed", 137, "rank 1 on node0 killed by SIGKILL", "fit", "s3://b/run", 3, 40, "node0")
SECRET = "S3CRET"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with webhook() as served:
        yield served


def test_a_webhook_gets_slacks_text_and_the_fields(hook: Webhook) -> None:
    assert tell(hook.url, ENDED)
    (told,) = hook.told
    assert told.pop("text") == (
        "failed: fit s3://b/run, attempt 3 on node0: rank 1 on node0 killed by SIGKILL, step 40 is durable"
    )
    assert told == {
        "event": "failed",
        "status": 137,
        "reason": "rank 1 on node0 killed by SIGKILL",
        "command": "fit",
        "run_dir": "s3://b/run",
        "attempt": 3,
        "step": 40,
        "host": "node0",
        "links": {},
    }


def test_a_command_gets_the_same_on_stdin_and_in_its_environment(tmp_path: Path) -> None:
    program = (
        "import json, os, sys; out = json.load(sys.stdin), dict(os.environ); json.dump(out, open(sys.argv[1], 'w'))"
    )
    assert tell(f'{sys.executable} -c "{program}" {tmp_path / "told"}', ENDED)
    content, environment = json.loads((tmp_path / "told").read_text())
    assert content == ENDED.as_dict()
    assert environment["PIPELINE_NOTIFY_STATUS"] == "137"
    assert environment["PIPELINE_NOTIFY_TEXT"] == ENDED.text
    assert tell("true", ENDED), "one that does not read it"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_followed_with_the_same_content(status: int, hook: Webhook) -> None:
    hook.answers = [(status, "/elsewhere")]
    assert tell(hook.url, ENDED)
    assert hook.told[0]["run_dir"] == "s3://b/run"


def test_a_server_that_fails_for_a_moment_is_asked_again(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.process.notification._PAUSE", 0.01)
    hook.answers = [(503, "")]
    assert tell(hook.url, ENDED)
    hook.answers, hook.asked = [(404, "")], 0
    assert not tell(hook.url, ENDED)
    assert hook.asked == 1


def failures(hook: Webhook) -> dict[str, tuple[str, str]]:
    return {
        "status": (hook.url, "it answered with status 404"),
        "nobody": (f"http://127.0.0.1:9/{SECRET}", "Connection refused"),
        "no program": (f"/nowhere/tool {SECRET}", "No such file or directory"),
        "command": (f"sh -c 'exit 3' {SECRET}", "it ended with status 3"),
        "loop": (hook.url, "it answered with status 302"),
    }


@pytest.mark.parametrize("name", ["status", "nobody", "no program", "command", "loop"])
def test_where_it_fails_one_line_says_so_and_not_the_secret(
    name: str, hook: Webhook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.process.notification._PAUSE", 0.01)
    hook.answers = [(404, "")] if name == "status" else [(302, hook.url)] * 30
    target, why = failures(hook)[name]
    assert not tell(target, ENDED)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"was not told that this has failed: {why}")
    assert SECRET not in line


def test_what_does_not_answer_is_left_after_the_limit(hook: Webhook, capsys: pytest.CaptureFixture[str]) -> None:
    hook.slow = 3.0
    began = time.monotonic()
    assert not tell(hook.url, ENDED, seconds=0.3)
    assert not tell("sleep 60", ENDED, seconds=1.2)
    assert time.monotonic() - began < 3.0
    err = capsys.readouterr().err
    assert "http://127.0.0.1/... was not told that this has failed: no answer within 0.3 s" in err
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("https://hooks.slack.com/services/T/B/x", "https://hooks.slack.com/..."),
        ("https://me:S3CRET@host:8/x?token=S3CRET", "https://host/..."),
        ("mail -s S3CRET me", "mail"),
        ("'unfinished S3CRET", "..."),
    ],
)
def test_a_target_is_shown_without_what_is_secret(target: str, shown: str) -> None:
    assert redacted(target) == shown
    assert SECRET not in str(target_problem(target))


@pytest.mark.parametrize(
    "wrong", ["ftp://host/x", "http://", "no-such-program x", "", "'open", "http://a b", "http://h:x/"]
)
def test_what_is_no_target_is_the_users_mistake(wrong: str) -> None:
    assert "must be http://" in str(target_problem(wrong))


def test_what_is_a_target_has_no_problem() -> None:
    for right in ("https://h/x", "http://127.0.0.1:8/x?y=z", "true", "sh -c 'cat > /dev/null'", None):
        assert target_problem(right) is None


def test_the_flag_comes_before_the_variable_and_the_last_one_counts() -> None:
    told = {"PIPELINE_NOTIFY": "https://variable/"}
    assert target_of(["fit"], told) == "https://variable/"
    assert target_of(["fit", "--notify", "a", "--notify=b"], told) == "b"
    assert target_of(["fit", "--notify"], {}) is None


def event(status: int, job: str = "", **facts: Any) -> tuple[str, str] | None:
    what = notification(status, "why", facts, {"TORCHX_JOB_ID": job} if job else {})
    return None if what is None else (what.event, what.reason)


def test_what_is_for_good_is_told_and_nothing_else() -> None:
    assert event(0, result="step 4") == ("finished", "step 4")
    assert event(2) == event(2, "kubernetes_job://s/x") == ("failed", "why")
    assert event(1, "local_cwd://s/x") == event(137) == ("failed", "why")
    assert event(1, "slurm://s/x") == ("failed", "why (slurm starts it again while its retries last)")
    assert event(75) == event(75, "local_cwd://s/x") == ("preempted", "why")
    assert event(75, "kubernetes_job://s/x") is None, "it starts it again"
    assert event(130) is None, "the person knows"


def test_links_lead_to_the_run_and_its_attempt() -> None:
    what = notification(0, "", {"run_dir": "s3://b/r", "attempt": 2, "command": "test"}, {})
    assert what is not None
    assert what.links == {"run_dir": "s3://b/r", "attempt": "s3://b/r/attempts/0002.json"}
    assert what.text.startswith("finished: test s3://b/r, attempt 2 on ")
