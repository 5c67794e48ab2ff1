"""The cluster's API, spoken by the official client: plain objects in and out, and each refusal in a sentence.

What passes is waited for: a connection that is lost, a server that is busy (429, as long as it says) or ill (5xx). In
the end `ClusterAway` says so. A watch whose past is forgotten (410) starts anew from a list.

    https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import json
import logging
import math
import os
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from k8s.pods import Object
from k8s.refusals import Asked, Refused, refusal
from pipeline.errors import UserError

KINDS = {
    "Job": ("apis/batch/v1", "jobs"),
    "JobSet": ("apis/jobset.x-k8s.io/v1alpha2", "jobsets"),
    "Service": ("api/v1", "services"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "Pod": ("api/v1", "pods"),
    "Event": ("api/v1", "events"),
    "Workload": ("apis/kueue.x-k8s.io/v1beta2", "workloads"),
    # Kueue before 0.14.
    "EarlierWorkload": ("apis/kueue.x-k8s.io/v1beta1", "workloads"),
}
"""Where objects of a kind are found, and what they are called there."""

INSTALLED = ("JobSet", "Workload", "EarlierWorkload")
"""Kinds that a cluster may not have."""

REQUEST = "pipeline/request"
"""The annotation by which an object is known again that was created by a request whose answer was lost."""

_PASSING = (429, 500, 502, 503, 504)
_CONNECT, _ANSWER = 10.0, 30.0
"""Seconds that the server has to take a connection, and to answer."""
_LONGEST = 10.0
"""Seconds between two tries, where the server does not say how many."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_log = logging.getLogger(__name__)


class ClusterAway(Exception):
    """The cluster does not answer, and has not for some time: nothing that the user must change, as far as is known."""


class Patience(NamedTuple):
    """How long is waited.

    Attributes:
        total: Seconds that a request is tried again.
        first: Seconds until the first of these tries; twice as many each time.
    """

    total: float
    first: float


PATIENCE = Patience(total=60.0, first=0.5)


class Cluster:
    """One cluster, as one user of it.

    Args:
        api: The official client.
        namespace: Where nothing else is said.
        patience: How long what passes is waited for.
    """

    def __init__(self, api: Any, namespace: str, patience: Patience = PATIENCE) -> None:
        self.namespace = namespace
        self._api = api
        self._patience = patience

    @classmethod
    def connect(cls, kubeconfig: str = "", context: str = "", patience: Patience = PATIENCE) -> "Cluster":
        """The cluster that kubectl would speak to: that of a kubeconfig, else the one whose pod this is.

        Args:
            kubeconfig: A file; empty means that of KUBECONFIG, or the user's.
            context: One of its contexts; empty means the current one.
            patience: How long what passes is waited for.

        Raises:
            UserError: There is none, or it cannot be read.
        """
        configuration = client.Configuration()
        # Tries are counted here.
        configuration.retries = False
        # Each log that is followed has a connection of its own.
        configuration.connection_pool_maxsize = 100
        files = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        try:
            if kubeconfig or context or any(os.path.exists(file) for file in files.split(os.pathsep)):
                config.load_kube_config(files, context=context or None, client_configuration=configuration)
                contexts, current = config.list_kube_config_contexts(files)
                chosen = next((one for one in contexts if one["name"] == context), current)
                namespace = chosen["context"].get("namespace") or "default"
            elif "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(client_configuration=configuration)
                namespace = _POD_NAMESPACE.read_text(encoding="utf-8").strip()
            else:
                raise UserError(
                    f"no cluster is known: there is no kubeconfig ({files}), and this is no pod of one; ask the "
                    "cluster's owner for a kubeconfig, and name it by KUBECONFIG or kubeconfig="
                )
        except (config.ConfigException, OSError) as error:
            where = f"kubeconfig={files!r}" + (f", context={context!r}" if context else "")
            raise UserError(f"{where}: {error}; `kubectl config get-contexts` shows what it holds") from error
        return cls(client.ApiClient(configuration), namespace, patience)

    def close(self) -> None:
        """Let go of the connections."""
        self._api.rest_client.pool_manager.clear()

    def create(self, body: Object, namespace: str, *, dry_run: bool = False) -> Object:
        """Create an object.

        Args:
            body: The object.
            namespace: Where.
            dry_run: Whether the server only says if it would.

        Returns:
            What has come of it: with its uid, and the defaults.

        Raises:
            Refused: The server would not.
            ClusterAway: It does not answer.
        """
        request, name = uuid.uuid4().hex, body["metadata"]["name"]
        metadata = {**body["metadata"], "annotations": {**body["metadata"].get("annotations", {}), REQUEST: request}}
        asked = Asked("create", body["kind"], namespace, name)
        query = {"dryRun": "All"} if dry_run else {}
        tries = count()
        try:
            return self._json("POST", asked, query, {**body, "metadata": metadata}, tries=tries)
        except Refused as error:
            # An earlier try may have done it although its answer was lost. Names of ours are taken by nobody else.
            if error.status != 409 or next(tries) <= 1:
                raise
            found = self.read(body["kind"], namespace, name) if body["kind"] in ("Job", "JobSet") else body
            if found is not body and (found or {}).get("metadata", {}).get("annotations", {}).get(REQUEST) != request:
                raise
            return found or body

    def read(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object; None where there is none, nor its kind."""
        try:
            return self._json("GET", Asked("get", kind, namespace, name))
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def items(self, kind: str, namespace: str, selector: Mapping[str, str], fields: str = "") -> list[Object]:
        """The objects of a kind with some labels and some values of fields; none of a kind that is not installed."""
        query = {"labelSelector": _selector(selector), "fieldSelector": fields}
        try:
            found: list[Object] = self._json("GET", Asked("list", kind, namespace), query)["items"]
        except Refused as error:
            if error.status == 404 and kind in INSTALLED:
                return []
            raise
        return found

    def patch(self, kind: str, namespace: str, name: str, change: Object) -> None:
        """Merge a change into an object."""
        self._json("PATCH", Asked("patch", kind, namespace, name), body=change)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, and what it owns; no matter if it is gone."""
        try:
            self._json("DELETE", Asked("delete", kind, namespace, name), {"propagationPolicy": "Background"})
        except Refused as error:
            if error.status != 404:
                raise

    def log(self, namespace: str, pod: str, query: Mapping[str, str], quiet: float) -> Iterator[bytes]:
        """The log of a pod, in pieces as they come.

        Args:
            namespace: Where the pod is.
            pod: Its name.
            query: What is asked for (`follow`, `timestamps`, `sinceTime`, `tailLines`).
            quiet: Seconds without a line after which the connection counts as lost.

        Raises:
            Refused: The server would not.
            HTTPError: The connection was lost in the middle.
            ClusterAway: The server does not answer.
        """
        asked = Asked("get", "Pod", namespace, pod, "log")
        return _pieces(self._call("GET", asked, query, stream=True, seconds=quiet))

    def pods(self, namespace: str, selector: Mapping[str, str], seconds: float) -> Iterator[list[Object]]:
        """The pods with some labels as they are now, and again whenever one of them has changed, for some time.

        Args:
            namespace: Where they are.
            selector: Their labels.
            seconds: For how long.
        """
        until = time.monotonic() + seconds
        query = {"labelSelector": _selector(selector)}
        while True:
            page = self._json("GET", Asked("list", "Pod", namespace), query)
            known = {pod["metadata"]["uid"]: pod for pod in page["items"]}
            yield list(known.values())
            version = page["metadata"].get("resourceVersion", "")
            while (left := until - time.monotonic()) > 0 and version is not None:
                for event in self._events(namespace, {**query, "resourceVersion": version}, left):
                    changed = event["object"]
                    if event["type"] == "ERROR":
                        # Most often 410: what has been since is forgotten.
                        version = None
                        break
                    version = changed["metadata"].get("resourceVersion", version)
                    if event["type"] == "BOOKMARK":
                        continue
                    known[changed["metadata"]["uid"]] = changed
                    if event["type"] == "DELETED":
                        del known[changed["metadata"]["uid"]]
                    yield list(known.values())
            if left <= 0:
                return

    def _events(self, namespace: str, query: Mapping[str, str], seconds: float) -> Iterator[Object]:
        """What a watch says, until the time is over or the connection is."""
        asked = Asked("watch", "Pod", namespace)
        limits = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(math.ceil(seconds))}
        rest = b""
        try:
            # The server ends it in time; that it does not is a lost connection.
            answer = self._call("GET", asked, {**query, **limits}, stream=True, seconds=seconds + _ANSWER)
            for piece in _pieces(answer):
                *whole, rest = (rest + piece).split(b"\n")
                yield from (json.loads(line) for line in whole if line.strip())
        except Refused as error:
            if error.status != 410:
                raise
            yield {"type": "ERROR", "object": {"code": 410}}
        except HTTPError:
            # It goes on from what it saw last, but not at once, or a server that is going down were asked in circles.
            time.sleep(min(seconds, self._patience.first))

    def _json(
        self,
        method: str,
        asked: Asked,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        tries: Iterator[int] | None = None,
    ) -> Object:
        found: Object = json.loads(self._call(method, asked, query or {}, body, tries=tries).data)
        return found

    def _call(
        self,
        method: str,
        asked: Asked,
        query: Mapping[str, str],
        body: Object | None = None,
        *,
        stream: bool = False,
        seconds: float = _ANSWER,
        tries: Iterator[int] | None = None,
    ) -> Any:
        """Ask until there is an answer; of a stream only its beginning."""
        root, plural = KINDS[asked.kind]
        parts = [root, "namespaces", asked.namespace, plural, "" if method == "POST" else asked.name, asked.part]
        headers = {"Accept": "application/json, */*", "Content-Type": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        until, pause = time.monotonic() + self._patience.total, self._patience.first
        for number in tries or count():
            try:
                response = self._api.call_api(
                    "/" + "/".join(part for part in parts if part),
                    method,
                    query_params=[(name, value) for name, value in query.items() if value],
                    header_params=dict(headers),
                    body=body,
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _preload_content=False,
                    _request_timeout=(_CONNECT, seconds),
                )
                if not stream:
                    # Read now, for the connection may be lost here, too.
                    response.data  # noqa: B018 - a property that reads
                return response
            except ApiException as error:
                if error.status not in _PASSING:
                    raise refusal(asked, plural, error.status, error.reason, error.body) from error
                why, wait = f"{error.status} {error.reason}", _retry_after(error.headers)
            except (HTTPError, OSError) as error:
                why, wait = str(error), None
            except AttributeError as error:
                # Over a handshake that fails the client trips, for there is no answer that it could decode.
                if not isinstance(error.__context__, ApiException):
                    raise
                why, wait = " ".join(error.__context__.reason.split()), None
                if "CERTIFICATE_VERIFY_FAILED" in why:
                    raise refusal(asked, plural, 0, why, None) from error
            if wait is None:
                wait, pause = pause * random.uniform(0.75, 1.25), min(2 * pause, _LONGEST)  # noqa: S311 - not to come all at once
            if time.monotonic() + wait > until:
                raise ClusterAway(
                    f"the cluster at {self._api.configuration.host} does not answer ({why}) although asked "
                    f"{number + 1} times to {asked.verb} {plural}; `kubectl cluster-info` tells whether it is up"
                )
            if number == 0:
                _log.warning("the cluster does not answer (%s): trying again", why)
            time.sleep(wait)
        raise AssertionError


def _pieces(response: Any) -> Iterator[bytes]:
    """The body of an answer as it comes. The connection ends with it, for it cannot be used again."""
    try:
        yield from response.stream(2**16, decode_content=False)
    finally:
        with suppress(HTTPError, OSError):
            response.close()
        response.release_conn()


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _retry_after(headers: Mapping[str, str] | None) -> float | None:
    """The seconds that the server asks for."""
    text = (headers or {}).get("Retry-After", "")
    return float(text) if text.isdecimal() else None
