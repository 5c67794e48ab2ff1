"""A Kubernetes API server for tests: kmock's, with what the scheduler relies on besides.

Selectors, dry runs, logs that are followed, faults, and the shipped Roles, which are enforced. Objects change only as
a test says: it plays the controllers and the nodes.
"""

import asyncio
import copy
import re
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp.web
import kmock

from tests.support.k8s_parts import ROLES, Object, Rule, rules_of, status_of

BUILT_IN = ("jobs", "services", "pods", "events", "poddisruptionbudgets")
PLURALS = {"Job": ("batch/v1", "jobs"), "Pod": ("v1", "pods"), "Service": ("v1", "services"), "Event": ("v1", "events")}
PLURALS["PodDisruptionBudget"] = ("policy/v1", "poddisruptionbudgets")
PLURALS["JobSet"] = ("jobset.x-k8s.io/v1alpha2", "jobsets")
PLURALS["Workload"] = ("kueue.x-k8s.io/v1beta1", "workloads")


@dataclass
class Fault:
    """What is answered instead, to requests that fit, so many times.

    Attributes:
        request: A regular expression for `VERB resource name`.
        status: The HTTP status; 0 closes the connection, -1 closes it once the request has been done.
        message: The words.
        headers: Of the answer.
        times: How often.
    """

    request: str
    status: int
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1


class ApiServer(kmock.KubernetesEmulator):
    """The server; its methods without `async` are for the test's own thread."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        self.events: list[tuple[int, str, str, Object]] = []
        self.used: set[Rule] = set()
        self.seen: list[str] = []
        self.allowed = rules_of(ROLES)
        self.namespaces = {"default", "team"}
        self.installed: set[str] = {*BUILT_IN, "jobsets", "workloads"}
        self.faults: list[Fault] = []
        self.logs: dict[str, list[tuple[int, str]]] = {}
        self.cuts: dict[str, list[int]] = {}
        self.generation_of_logs = 0
        self.on_change: Callable[[str, Object], None] = lambda _resource, _thing: None
        self.timers: list[threading.Timer] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    # What a test sees and does.

    def objects_of(self, kind: str, namespace: str = "default") -> list[Object]:
        """All objects of a kind."""
        return [
            copy.deepcopy(raw) for plural, where, _, raw in self._all() if (plural, where) == (_plural(kind), namespace)
        ]

    def one(self, kind: str, name: str, namespace: str = "default") -> Object:
        """One object."""
        return next(one for one in self.objects_of(kind, namespace) if one["metadata"]["name"] == name)

    def store(self, kind: str, thing: Object, namespace: str = "default") -> Object:
        """Create an object, or put it in the place of the one of its name."""

        async def put() -> Object:
            key = (PLURALS[kind][1] + "." + _dotted(PLURALS[kind][0]), namespace, thing["metadata"]["name"])
            there = key in self.objects and not self.objects[key].deleted
            stored = copy.deepcopy(thing)
            stored["metadata"].setdefault("namespace", namespace)
            self._stamp(stored)
            if key in self.objects:
                del self.objects[key]
            self.objects[key] = stored
            self._note("MODIFIED" if there else "ADDED", _plural(kind), stored)
            return copy.deepcopy(stored)

        return self.run(put())

    def change(self, kind: str, name: str, change: Object, namespace: str = "default") -> Object:
        """Merge a change into an object."""
        return self.store(kind, _merged(self.one(kind, name, namespace), change), namespace)

    def remove(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete an object."""

        async def remove() -> None:
            self._drop(_plural(kind), namespace, name)

        self.run(remove())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something where the server runs."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def later(self, seconds: float, do: Callable[..., Any], *arguments: Any, **more: Any) -> None:
        """Do something after a while, beside the test."""
        self.timers.append(threading.Timer(seconds, do, arguments, more))
        self.timers[-1].start()

    def say(self, pod: str, *lines: str, at: float | None = None) -> None:
        """Let a pod write lines, a millisecond apart."""
        known = self.logs.setdefault(pod, [])
        start = int((at if at is not None else time.time()) * 1e9)
        known.extend((start + 10**6 * number, line) for number, line in enumerate(lines))

    def cut_open_logs(self) -> None:
        """Lose the connections over which logs are followed."""
        self.generation_of_logs += 1

    def finish(self, job: str, kind: str = "Complete", namespace: str = "default", **condition: str) -> None:
        """Let a Job end."""
        entry = {"type": kind, "status": "True", **condition}
        self.change("Job", job, {"status": {"conditions": [entry]}}, namespace)

    def start_pod(
        self, job: str, index: int = 0, phase: str = "Running", namespace: str = "default", **how: Any
    ) -> str:
        """Create the next pod of a Job's index; its name."""
        owner = self.one("Job", job, namespace)
        template = copy.deepcopy(owner["spec"]["template"])
        name = f"{job}-{index}-{uuid.uuid4().hex[:5]}"
        template["metadata"]["name"] = name
        template["spec"]["nodeName"] = f"node-{index}"
        template["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = str(index)
        self.store("Pod", {"apiVersion": "v1", "kind": "Pod", **template, "status": status_of(phase, **how)}, namespace)
        return name

    def end_pod(self, name: str, code: int = 0, namespace: str = "default", **how: Any) -> None:
        """Let a pod end with a status."""
        phase = "Succeeded" if code == 0 else "Failed"
        pod = self.one("Pod", name, namespace)
        self.store("Pod", {**pod, "status": status_of(phase, code=code, **how)}, namespace)

    # What the server does.

    async def _handle(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        raw = request._raw_request
        assert raw is not None
        resource = request.resource
        if resource is None or resource.plural is None:
            return await super()._handle(request)
        verb = _verb(request)
        plural = f"{resource.plural}/{request.subresource}" if request.subresource else resource.plural
        name = request.name or ((request.data or {}).get("metadata", {}).get("name") if verb == "create" else "") or ""
        self.used.add((resource.group or "", plural, verb))
        self.seen.append(f"{verb} {plural} {name}".strip())
        lost = False
        for fault in self.faults:
            if fault.times and re.fullmatch(fault.request, self.seen[-1]):
                fault.times -= 1
                if fault.status > 0:
                    return _status(fault.status, fault.message, fault.headers)
                if fault.status == 0:
                    _cut(raw)
                    return aiohttp.web.Response()
                lost = True
        if (resource.group or "", plural, verb) not in self.allowed:
            api = f' in API group "{resource.group or ""}" in the namespace "{request.namespace}"'
            return _status(403, f'{plural} is forbidden: User "ada" cannot {verb} resource "{plural}"{api}')
        # Of Kueue only the earlier version is installed here.
        if resource.plural not in self.installed or resource.version == "v1beta2":
            return _status(404, "the server could not find the requested resource")
        response = await self._answer(request, verb, plural)
        if lost:
            _cut(raw)
        return response

    async def _answer(self, request: kmock.Request, verb: str, plural: str) -> aiohttp.web.StreamResponse:
        namespace = request.namespace or ""
        if verb == "create":
            if namespace not in self.namespaces:
                return _status(404, f'namespaces "{namespace}" not found')
            request.data.setdefault("metadata", {})["namespace"] = namespace
            if request.params.get("dryRun"):
                return aiohttp.web.json_response(request.data)
            if any(_key(request) == (kind, where, name) for kind, where, name, _ in self._all()):
                return _status(409, f'{plural} "{_key(request)[2]}" already exists')
            self._stamp(request.data)
        elif verb == "list":
            items = [one for kind, where, _, one in self._all() if (kind, where) == (plural, namespace)]
            fitting = [one for one in items if _fits(one, request.params)]
            if plural in BUILT_IN:
                # Only the items of custom resources say what they are.
                fitting = [{key: one[key] for key in one.keys() - {"apiVersion", "kind"}} for one in fitting]
            return aiohttp.web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": fitting})
        elif plural == "pods/log":
            return await self._log(request)
        if verb == "delete":
            if not self._drop(plural, namespace, request.name or ""):
                return _status(404, f'{plural} "{request.name}" not found')
            return aiohttp.web.json_response({"kind": "Status", "status": "Success"})
        response = await super()._handle(request)
        if verb in ("create", "patch"):
            # None if it was deleted meanwhile.
            for thing in [raw for kind, where, name, raw in self._all() if (kind, where, name) == _key(request)]:
                self._note("ADDED" if verb == "create" else "MODIFIED", plural, thing)
                self.on_change(plural, thing)
        return response

    async def _log(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        name, raw, params = request.name or "", request._raw_request, request.params
        pod = next((one for kind, _, key, one in self._all() if (kind, key) == ("pods", name)), None)
        if pod is None:
            return _status(404, f'pods "{name}" not found')
        if not any(
            one["state"].keys() & {"running", "terminated"} for one in pod["status"].get("containerStatuses", ())
        ):
            return _status(400, f'container in pod "{name}" is waiting to start')
        since = datetime.fromisoformat(params["sinceTime"]).timestamp() * 1e9 if "sinceTime" in params else 0
        # As the server does: by the whole second.
        lines = [line for line in self.logs.get(name, []) if line[0] // 10**9 >= since // 10**9]
        sent = max(0, len(self.logs.get(name, [])) - int(params.get("tailLines", 10**9)))
        sent = max(sent, len(self.logs.get(name, [])) - len(lines))
        response = aiohttp.web.StreamResponse()
        await response.prepare(raw)
        cut = self.cuts[name].pop(0) if self.cuts.get(name) else None
        generation = self.generation_of_logs
        while cut is None or cut >= 0:
            for at, text in self.logs.get(name, [])[sent:]:
                if cut is not None and cut <= 0:
                    # In the middle of a line.
                    await response.write(_stamped(at, text, params)[:20])
                    await asyncio.sleep(0.02)
                    _cut(raw)
                    return response
                cut = cut - 1 if cut is not None else None
                await response.write(_stamped(at, text, params))
                sent += 1
            now = next((one for kind, _, key, one in self._all() if (kind, key) == ("pods", name)), None)
            ended = now is None or now["status"].get("phase") in ("Succeeded", "Failed")
            if params.get("follow") != "true" or (ended and sent == len(self.logs.get(name, []))):
                break
            await asyncio.sleep(0.01)
            if generation != self.generation_of_logs:
                _cut(raw)
                return response
        await response.write_eof()
        return response

    def _all(self) -> Iterator[tuple[str, str, str, Object]]:
        for (resource, namespace, name), thing in list(self._objects.items()):
            if not thing.deleted:
                yield resource.plural or "", namespace or "", name, thing.raw

    def _stamp(self, thing: Object) -> None:
        thing["metadata"].setdefault("uid", uuid.uuid4().hex)
        thing["metadata"].setdefault("creationTimestamp", datetime.now(UTC).isoformat())
        thing.setdefault("status", {})
        if thing.get("kind") == "Job" and not thing["spec"].get("suspend"):
            thing["status"].setdefault("startTime", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))

    def _note(self, kind: str, plural: str, thing: Object) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, kind, plural, copy.deepcopy(thing)))

    def _drop(self, plural: str, namespace: str, name: str) -> bool:
        """Delete an object, and what it owns."""
        for (resource, where, key), thing in list(self._objects.items()):
            if (resource.plural, where, key) == (plural, namespace, name) and not thing.deleted:
                raw = copy.deepcopy(thing.raw)
                self.objects[resource, where, key].delete()
                self._note("DELETED", plural, raw)
                for owned, there, other, one in list(self._all()):
                    if any(
                        owner["uid"] == raw["metadata"]["uid"] for owner in one["metadata"].get("ownerReferences", ())
                    ):
                        self._drop(owned, there, other)
                return True
        return False


@contextmanager
def serving() -> Iterator[tuple[ApiServer, str]]:
    """A server in a thread of its own, and its URL."""
    started = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        async with ApiServer() as api, kmock.Server(api) as server:
            api.loop = asyncio.get_running_loop()
            found.update(api=api, url=str(server.url).rstrip("/"), stop=asyncio.Event())
            started.set()
            await found["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    api = found["api"]
    try:
        yield api, found["url"]
    finally:
        for timer in api.timers:
            timer.cancel()
            timer.join()
        api.loop.call_soon_threadsafe(found["stop"].set)
        thread.join(5)


def _verb(request: kmock.Request) -> str:
    if request.method.value == "GET":
        return "get" if request.name else "list"
    return {"POST": "create", "PATCH": "patch", "DELETE": "delete"}[request.method.value]


def _key(request: kmock.Request) -> tuple[str, str, str]:
    assert request.resource is not None
    name = request.name or request.data["metadata"]["name"]
    return request.resource.plural or "", request.namespace or "", name


def _fits(thing: Object, params: Any) -> bool:
    labels = thing["metadata"].get("labels", {})
    wanted = dict(part.split("=", 1) for part in (params.get("labelSelector") or "").split(",") if part)
    fields = dict(part.split("=", 1) for part in (params.get("fieldSelector") or "").split(",") if part)
    values = {"reason": thing.get("reason"), "involvedObject.uid": thing.get("involvedObject", {}).get("uid")}
    return wanted.items() <= labels.items() and fields.items() <= values.items()


def _status(status: int, message: str, headers: dict[str, str] | None = None) -> aiohttp.web.Response:
    content = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message, "code": status}
    return aiohttp.web.json_response(content, status=status, headers=headers)


def _cut(raw: Any) -> None:
    """Lose the connection."""
    if raw.transport is not None:
        raw.transport.abort()


def _stamped(at: int, text: str, params: Any) -> bytes:
    if params.get("timestamps") != "true":
        return f"{text}\n".encode()
    second = datetime.fromtimestamp(at // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{second}.{at % 10**9:09d}Z {text}\n".encode()


def _plural(kind: str) -> str:
    return PLURALS[kind][1]


def _dotted(version: str) -> str:
    group, _, number = version.rpartition("/")
    return f"{number}.{group}" if group else number


def _merged(thing: Object, change: Object) -> Object:
    found = dict(thing)
    for name, value in change.items():
        found[name] = _merged(found.get(name) or {}, value) if isinstance(value, dict) else value
    return found
