"""Rejections by the cluster's API as a sentence: the object, the verb, the namespace, and how to fix it."""

import json
import re
from typing import NamedTuple

from pipeline.errors import UserError

_ROLES = {"poddisruptionbudgets": "keep-nodes", "jobsets": "jobset", "workloads": "kueue"}
"""The component of k8s/cluster/ whose Role allows a resource that not everybody needs."""


class ApiRequest(NamedTuple):
    """A request to the cluster, in the words of its roles.

    Attributes:
        verb: Such as `create`.
        kind: Such as `Job`.
        namespace: The namespace.
        name: The name of the object; empty for all of them.
        subresource: Such as `log`.
    """

    verb: str
    kind: str
    namespace: str
    name: str = ""
    subresource: str = ""


class ApiError(UserError):
    """The cluster has rejected a request.

    Attributes:
        status: The HTTP status; 0 for a certificate that is not trusted.
        attempts: How often the request was sent.
    """

    attempts = 1

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


def api_error(request: ApiRequest, plural: str, status: int, reason: str, body: str | None = None) -> ApiError:
    """Return a rejected request as an error.

    Args:
        request: The request.
        plural: The plural of its kind.
        status: The HTTP status.
        reason: Its reason phrase.
        body: A `Status` of Kubernetes as JSON, or the text of a proxy.
    """
    resource = f"{plural}/{request.subresource}" if request.subresource else plural
    return ApiError(status, _sentence(request, resource, status, message_of(body) or reason))


def message_of(body: str | None) -> str:
    """Return the message in a `Status` of Kubernetes as JSON, or the beginning of another text."""
    try:
        content = json.loads(body or "")
    except ValueError:
        return " ".join((body or "").split())[:300]
    return str(content.get("message", "")) if isinstance(content, dict) else ""


def _sentence(request: ApiRequest, resource: str, status: int, reason: str) -> str:
    verb, where = request.verb, f"namespace {request.namespace!r}"
    what = f"{request.kind} {request.name!r}" if request.name else resource
    if status == 0:
        return f"the cluster's certificate is not trusted ({reason}): ask its owner for a kubeconfig that holds its CA"
    if status == 401:
        return f"the cluster does not accept your credentials ({reason}): log in again, as for kubectl"
    if status == 403 and re.search(r"cannot \w+ resource|no access|RBAC", reason):
        return (
            f"{where}: you may not {verb} {resource} ({reason}): ask the cluster's owner for `{verb} {resource}` in "
            f"this namespace; {_role_of(resource)}"
        )
    if status == 403 and "exceeded quota" in reason:
        return f"{where}: {what} exceeds its quota ({reason}): ask for less, end another run, or ask the owner for more"
    if status == 404 and verb == "create" and "namespaces" in reason:
        return f"{where} does not exist ({reason}): choose one by namespace=, or have it created; {_role_of('')}"
    if status == 404 and verb == "create":
        return f"{where}: this cluster has no {request.kind} ({reason}): install it, or choose kind=job"
    if status == 404:
        return f"{where}: {what} does not exist ({reason})"
    if status == 409 and verb == "create":
        return f"{where}: {what} exists already: choose another app_id, or keep using the run that has this one"
    outcomes = {400: "was not understood", 403: "was rejected", 409: "conflicts with a change", 422: "is not valid"}
    return f"{where}: {verb} {what} {outcomes.get(status, f'failed with {status}')}: {reason}"


def _role_of(resource: str) -> str:
    component = _ROLES.get(resource)
    return f"k8s/cluster/{f'components/{component}' if component else ''} holds the Role with all that is needed"
