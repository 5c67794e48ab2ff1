"""Tells whoever was named by `--notify` how a run has ended: a webhook, or a command. It never fails or delays a run.

The target is a secret: messages name its host, or its program, and nothing else. Uses the standard library alone, for
the agent and the driver on a submitter tell, too.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pipeline.errors import DONE, INTERRUPTED, PREEMPTED, USER_MUST_CHANGE
from pipeline.process.output import print_line

if TYPE_CHECKING:
    import urllib.request

FLAG = "--notify"
VARIABLE = "PIPELINE_NOTIFY"
"""Names the target where the flag does not: a command line is seen by everybody, a secret of the launcher is not."""
LIMIT = 15.0
"""Seconds that telling may take, all tries together."""
_ONE_TRY, _PAUSE, _TRIES = 5.0, 1.0, 2
_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
"""Files of certificate authorities to trust beside the system's, as for a storage; SSL_CERT_FILE replaces those."""
_RESTART_PREEMPTED = ("kubernetes_job", "slurm", "local_docker")
"""Schedulers that start a preempted run again by themselves, and a crashed one while their budget lasts."""
_BUSY = 429
_SERVER_FAILS = 500


@dataclass(frozen=True)
class Notification:
    """How a run has ended.

    Attributes:
        event: `finished`, `failed` or `preempted`.
        status: The exit status.
        reason: One line for people.
        command: What ended, such as `fit`.
        run_dir: The run directory, None where there is none yet.
        attempt: The number of the attempt.
        step: The newest step that is durable.
        host: That tells.
        links: URLs by name.
    """

    event: str
    status: int
    reason: str
    command: str = "fit"
    run_dir: str | None = None
    attempt: int | None = None
    step: int | None = None
    host: str = field(default_factory=socket.gethostname)
    links: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """One line for people."""
        which = f"{self.command} {self.run_dir or ''}".strip()
        attempt = f", attempt {self.attempt}" if self.attempt else ""
        step = "" if self.step is None else f", step {self.step} is durable"
        return f"{self.event}: {which}{attempt} on {self.host}: {self.reason}{step}"

    def as_dict(self) -> dict[str, Any]:
        """Return what is sent: Slack's `text`, and the fields."""
        return {"text": self.text, **asdict(self)}


def notification(
    status: int, reason: str, facts: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Notification | None:
    """Return what to tell of an end that is for good; None where it is not, or where a person has made it.

    A user's mistake and a run that is done are never started again. A preempted run is, by the schedulers that do so;
    whether a crashed one is depends on a budget that only the scheduler knows, and the reason says that.

    Args:
        status: The exit status of the job, after all restarts in place.
        reason: Why, in words.
        facts: What is known of the run: `command`, `run_dir`, `attempt`, `step`, `result`.
        environment: Where TorchX names the scheduler.
    """
    scheduler = environment.get("TORCHX_JOB_ID", "").partition("://")[0]
    restarts = scheduler in _RESTART_PREEMPTED
    if status == INTERRUPTED or (status == PREEMPTED and restarts):
        return None
    event = {DONE: "finished", PREEMPTED: "preempted"}.get(status, "failed")
    if status == DONE:
        reason = facts.get("result") or reason or "done"
    elif status not in (USER_MUST_CHANGE, PREEMPTED) and restarts:
        reason += f" ({scheduler} starts it again while its retries last)"
    run_dir, attempt = facts.get("run_dir"), facts.get("attempt")
    links = {"run_dir": run_dir} if run_dir else {}
    if run_dir and attempt:
        links["attempt"] = f"{run_dir}/attempts/{attempt:04}.json"
    known: dict[str, Any] = {"run_dir": run_dir, "attempt": attempt, "step": facts.get("step"), "links": links}
    return Notification(event, status, reason, facts.get("command", "fit"), **known)


def target_of(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> str | None:
    """Return whom a command line, or else the environment, names."""
    found = None
    for at, argument in enumerate(arguments):
        if argument == FLAG and at + 1 < len(arguments):
            found = arguments[at + 1]
        elif argument.startswith(f"{FLAG}="):
            found = argument.partition("=")[2]
    return found or environment.get(VARIABLE) or None


def target_problem(target: str | None) -> str | None:
    """Return what is wrong with a target, in words that do not give it away; None if nothing is."""
    if target is None:
        return None
    must = "must be http://<host>/<path>, https://<host>/<path>, or a command that exists here"
    try:
        if "://" in target.partition(" ")[0]:
            url = urlsplit(target)
            is_right = (
                url.scheme in ("http", "https") and bool(url.hostname) and "@" not in url.netloc and " " not in target
            )
            return None if is_right and url.port != 0 else f"notify={redacted(target)!r} {must}"
        words = shlex.split(target)
    except ValueError:
        return f"notify: what is given is neither a URL nor a command in a shell's quotes; it {must}"
    return None if words and shutil.which(words[0]) else f"notify={redacted(target)!r} {must}"


def redacted(target: str) -> str:
    """Return what of a target may be shown."""
    with suppress(ValueError, IndexError):
        if "://" in target.partition(" ")[0]:
            url = urlsplit(target)
            return f"{url.scheme}://{url.hostname or ''}/..."
        return shlex.split(target)[0]
    return "..."


def tell(target: str, what: Notification, seconds: float = LIMIT) -> bool:
    """Tell, within a limit; where that fails, one line says so, and nothing else happens.

    Returns:
        Whether it was told.
    """
    failed = [f"no answer within {seconds:g} s"]

    def run() -> None:
        try:
            _send(target, what, time.monotonic() + seconds)
            failed.clear()
        except Exception as error:  # noqa: BLE001 - whatever happens here, the run has ended as it has
            failed[:] = [_why(error)]

    thread = threading.Thread(target=run, name="notify", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        print_line(f"notify: {redacted(target)} was not told that this has {what.event}: {failed[0]}", level="warning")
    return not failed


def _why(error: Exception) -> str:
    """Return why telling failed; an error's own text may hold a part of the target."""
    import ssl  # noqa: PLC0415 - with urllib, only where somebody is told
    import urllib.error  # noqa: PLC0415

    if isinstance(error, urllib.error.HTTPError):
        return f"it answered with status {error.code}"
    if isinstance(error, subprocess.TimeoutExpired):
        return "it did not end in time, and was killed"
    if isinstance(error, subprocess.CalledProcessError):
        return f"it ended with status {error.returncode}"
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({reason.verify_message})"
    return os.strerror(reason.errno) if isinstance(reason, OSError) and reason.errno else type(reason).__name__


def _send(target: str, what: Notification, until: float) -> None:
    import urllib.error  # noqa: PLC0415

    content = json.dumps(what.as_dict()).encode()
    if "://" not in target.partition(" ")[0]:
        _run(shlex.split(target), what, content, until - time.monotonic())
        return
    for left in reversed(range(_TRIES)):
        try:
            _post(target, content)
            return
        except urllib.error.HTTPError as error:
            if not left or not (error.code == _BUSY or error.code >= _SERVER_FAILS):
                raise
        except OSError:
            if not left:
                raise
        time.sleep(_PAUSE)


def _post(url: str, content: bytes) -> None:
    import ssl  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    context = ssl.create_default_context()
    for name in _BUNDLES:
        if path := os.environ.get(name):
            context.load_verify_locations(cafile=path)
    opener = urllib.request.build_opener(_redirects(), urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method="POST")  # noqa: S310
    with opener.open(request, timeout=_ONE_TRY):
        pass


def _redirects() -> "urllib.request.BaseHandler":
    """Return what follows a redirect with the same content, which urllib would drop, and never from https to http."""
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    class PostAgain(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            new = urljoin(req.full_url, newurl)
            if urlsplit(req.full_url).scheme == "https" and urlsplit(new).scheme != "https":
                raise urllib.error.HTTPError(redacted(new), code, "it redirects to http", headers, fp)
            again = {"Content-Type": "application/json"}
            return urllib.request.Request(new, req.data, again, method="POST", unverifiable=True)  # noqa: S310

    return PostAgain()


def _run(words: list[str], what: Notification, content: bytes, seconds: float) -> None:
    """Run a command with the content on its stdin, and the fields in its environment."""
    fields = {key: value for key, value in what.as_dict().items() if not isinstance(value, dict)}
    named = {f"{VARIABLE}_{key.upper()}": "" if value is None else str(value) for key, value in fields.items()}
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=2, env={**os.environ, **named}, start_new_session=True
    )
    try:
        with suppress(BrokenPipeError):  # it does not read it
            process.communicate(content, timeout=max(0.1, seconds - 1))
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.wait() != 0:
        raise subprocess.CalledProcessError(process.returncode, words[0])
