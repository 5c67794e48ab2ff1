"""The cluster's API through the official client: plain objects in and out, and each rejection as a sentence.

Transient errors are retried: a lost connection, a server that is busy (429, after the delay that it asks for) or
failing (5xx); after the timeout `ClusterAway` is raised.

    https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import json
import logging
import os
import re
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

from k8s.api_errors import ApiError, ApiRequest, api_error, message_of
from k8s.fields import Object, annotation, name_of
from pipeline.errors import UserError
from pipeline.process.patience import JITTER

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
"""The path of the API group and the plural of each kind."""

OPTIONAL_KINDS = ("JobSet", "Workload", "EarlierWorkload")
"""Kinds that a cluster may not have."""

REQUEST = "pipeline/request"
"""The annotation that identifies an object created by a request whose response was lost."""

_METHODS = {"create": "POST", "patch": "PATCH", "delete": "DELETE"}
_TRANSIENT = (429, 500, 502, 503, 504)
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10.0, 30.0
"""Seconds."""
_MAX_BACKOFF = 10.0
"""Seconds between two tries, unless the server asks for a delay."""
_KUBELET_AWAY = re.compile(r"/containerLogs/|No agent available|prevented the request from succeeding")
"""What an API server that cannot fetch a log from a kubelet says, directly or through a proxy to the nodes."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_log = logging.getLogger(__name__)
_Query = Mapping[str, str]


class ClusterAway(Exception):
    """The cluster has not answered within the timeout; as far as is known the user need not change anything."""


class NodeAway(ClusterAway):
    """The API server answers, but not the kubelet of the node from which it would have to fetch a log."""


class Patience(NamedTuple):
    """How long a request is retried.

    Attributes:
        total: Seconds until it is given up.
        first: Seconds until the first retry; doubles with each one.
    """

    total: float
    first: float


PATIENCE = Patience(total=60.0, first=0.5)


class _TransientError(Exception):
    """A request is to be retried; `args` are the reason and the delay in seconds that the server asks for, or None."""


class Cluster:
    """One cluster, as one user of it.

    Args:
        api: The official client.
        namespace: The default namespace.
        patience: How long requests are retried.
    """

    def __init__(self, api: Any, namespace: str, patience: Patience = PATIENCE) -> None:
        self.namespace = namespace
        self.closed = False
        self._api = api
        self._patience = patience

    @classmethod
    def connect(cls, kubeconfig: str = "", context: str = "", patience: Patience = PATIENCE) -> "Cluster":
        """Return the cluster that kubectl would use: that of a kubeconfig, else the one whose pod this is.

        Args:
            kubeconfig: A file; empty means that of KUBECONFIG, or the user's.
            context: One of its contexts; empty means the current one.
            patience: How long requests are retried.

        Raises:
            UserError: There is none, or it cannot be read.
        """
        configuration = client.Configuration()
        # Retries are this module's; each log that is followed takes a connection.
        configuration.retries = False
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
                    f"no cluster is configured: there is no kubeconfig ({files}), and this is no pod of a cluster; ask "
                    "the cluster's owner for a kubeconfig, and name it by KUBECONFIG or kubeconfig="
                )
        except (config.ConfigException, OSError) as error:
            where = f"kubeconfig={files!r}" + (f", context={context!r}" if context else "")
            raise UserError(f"{where}: {error}; `kubectl config get-contexts` shows what it holds") from error
        return cls(client.ApiClient(configuration), namespace, patience)

    def close(self) -> None:
        """Close the connections; what still waits for an answer is given up."""
        self.closed = True
        self._api.rest_client.pool_manager.clear()

    def create(self, body: Object, namespace: str, *, dry_run: bool = False) -> Object:
        """Create an object and return it as stored, with its uid and the defaults.

        With `dry_run` the server only validates it.

        Raises:
            ApiError: The server rejects it.
            ClusterAway: The server does not answer.
        """
        token, kind, name = uuid.uuid4().hex, body["kind"], name_of(body)
        annotations = {**body["metadata"].get("annotations", {}), REQUEST: token}
        marked = {**body, "metadata": {**body["metadata"], "annotations": annotations}}
        query = {"dryRun": "All"} if dry_run else {}
        try:
            return self._json(ApiRequest("create", kind, namespace, name), query, marked)
        except ApiError as error:
            # An earlier try may have succeeded although its response was lost.
            if error.status != 409 or error.attempts == 1:
                raise
            if kind not in ("Job", "JobSet"):
                # What belongs to a Job of ours has a name that no other run uses.
                return body
            found = self.read(kind, namespace, name)
            if found is None or annotation(found, REQUEST) != token:
                raise
            return found

    def read(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return an object; None if it or its kind does not exist."""
        return self._unless_absent(ApiRequest("get", kind, namespace, name), {})

    def items(self, kind: str, namespace: str, selector: Mapping[str, str], fields: str = "") -> list[Object]:
        """Return the objects of a kind by labels and field selector; none of a kind that is not installed."""
        query = {"labelSelector": _selector(selector), "fieldSelector": fields}
        send = self._unless_absent if kind in OPTIONAL_KINDS else self._json
        return list((send(ApiRequest("list", kind, namespace), query) or {"items": ()})["items"])

    def patch(self, kind: str, namespace: str, name: str, change: Object) -> None:
        """Merge a change into an object."""
        self._json(ApiRequest("patch", kind, namespace, name), {}, change)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object and what it owns, if it exists."""
        self._unless_absent(ApiRequest("delete", kind, namespace, name), {"propagationPolicy": "Background"})

    def log(self, namespace: str, pod: str, query: Mapping[str, str], idle: float) -> Iterator[bytes]:
        """Return the log of a pod in pieces, as they arrive.

        Args:
            namespace: The namespace of the pod.
            pod: Its name.
            query: The query (`follow`, `timestamps`, `sinceTime`, `tailLines`).
            idle: Seconds without data after which the connection counts as lost.

        Raises:
            ApiError: The server rejects the request.
            HTTPError: The connection was lost in the middle.
            NodeAway: The kubelet of the pod's node does not answer the server.
            ClusterAway: The server does not answer.
        """
        return _pieces(self._call(ApiRequest("get", "Pod", namespace, pod, "log"), query, timeout=idle))

    def _unless_absent(self, request: ApiRequest, query: _Query) -> Object | None:
        try:
            return self._json(request, query)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _json(self, request: ApiRequest, query: _Query, body: Object | None = None) -> Object:
        found: Object = json.loads(self._call(request, query, body).data)
        return found

    def _call(self, request: ApiRequest, query: _Query, body: Object | None = None, timeout: float = 0) -> Any:
        """Send a request until it is answered, and return the response; with a `timeout` its body is still to come."""
        until, pause = time.monotonic() + self._patience.total, self._patience.first
        for number in count(1):
            try:
                return self._send(request, query, body, timeout)
            except ApiError as error:
                error.attempts = number
                raise
            except _TransientError as error:
                why, wait = error.args
            if wait is None:
                # Jitter, so that not all clients come back at once.
                wait, pause = pause * JITTER.uniform(0.75, 1.25), min(2 * pause, _MAX_BACKOFF)
            if self.closed or time.monotonic() + wait > until:
                raise ClusterAway(
                    f"the cluster at {self._api.configuration.host} does not answer ({why}) after {number} tries to "
                    f"{request.verb} {KINDS[request.kind][1]}; `kubectl cluster-info` tells whether it is up"
                )
            if number == 1:
                _log.warning("the cluster does not answer (%s): retrying for %g s", why, self._patience.total)
            time.sleep(wait)
        raise AssertionError

    def _send(self, request: ApiRequest, query: _Query, body: Object | None, timeout: float) -> Any:
        """Send a request once."""
        root, plural = KINDS[request.kind]
        name = "" if request.verb == "create" else request.name
        parts = (root, "namespaces", request.namespace, plural, name, request.subresource)
        content = "application/merge-patch+json" if request.verb == "patch" else "application/json"
        try:
            response = self._api.call_api(
                "/" + "/".join(filter(None, parts)),
                _METHODS.get(request.verb, "GET"),
                query_params=[(key, value) for key, value in query.items() if value],
                header_params={"Accept": "application/json, */*", "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=False,
                _request_timeout=(_CONNECT_TIMEOUT, timeout or _READ_TIMEOUT),
            )
            if not timeout:
                # Reads the body now, for the connection may be lost here, too.
                response.data  # noqa: B018
            return response
        except ApiException as error:
            if request.subresource == "log" and _KUBELET_AWAY.search(why := message_of(error.body)):
                raise NodeAway(why) from None
            if error.status not in _TRANSIENT:
                raise api_error(request, plural, error.status, error.reason, error.body) from error
            raise _TransientError(f"{error.status} {error.reason}", _retry_after(error.headers)) from error
        except (HTTPError, OSError) as error:
            raise _TransientError(str(error), None) from error
        except AttributeError as error:
            # A failed TLS handshake has no response, which the client tries to decode.
            if not isinstance(error.__context__, ApiException):
                raise
            why = " ".join(error.__context__.reason.split())
            if "CERTIFICATE_VERIFY_FAILED" in why:
                raise api_error(request, plural, 0, why) from error
            raise _TransientError(why, None) from error


def _pieces(response: Any) -> Iterator[bytes]:
    """Yield the body of a response as it arrives, then close its connection, which cannot be reused."""
    try:
        yield from response.stream(2**16, decode_content=False)
    finally:
        with suppress(HTTPError, OSError):
            response.close()
        response.release_conn()


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Return the delay in seconds that the server asks for."""
    text = (headers or {}).get("Retry-After", "")
    return float(text) if text.isdecimal() else None
