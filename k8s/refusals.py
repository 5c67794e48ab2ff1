"""What the cluster refuses, as a sentence for the user: the object, the verb, the namespace, and what mends it."""

import json
import re
from typing import NamedTuple

from pipeline.errors import UserError

_ROLE = "k8s/cluster/ holds the Role with all that is needed"


class Asked(NamedTuple):
    """What was asked of the cluster, in the words of its roles.

    Attributes:
        verb: Such as `create`.
        kind: Such as `Job`.
        namespace: Where.
        name: Of the object; empty for all of them.
        part: Such as `log`.
    """

    verb: str
    kind: str
    namespace: str
    name: str = ""
    part: str = ""


class Refused(UserError):
    """The cluster has said no.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


def refusal(asked: Asked, plural: str, status: int, reason: str, body: str | None) -> Refused:
    """A refusal as an error.

    Args:
        asked: What was asked.
        plural: What objects of its kind are called.
        status: The HTTP status.
        reason: Its words.
        body: A `Status` of Kubernetes as JSON, or what a proxy on the way has said.
    """
    said = _said(body) or reason
    return Refused(status, _sentence(asked, f"{plural}/{asked.part}" if asked.part else plural, status, said))


def _said(body: str | None) -> str:
    try:
        content = json.loads(body or "")
    except ValueError:
        return " ".join((body or "").split())[:300]
    return str(content.get("message", "")) if isinstance(content, dict) else ""


def _sentence(asked: Asked, resource: str, status: int, said: str) -> str:
    where, what = f"namespace {asked.namespace!r}", f"{asked.kind} {asked.name!r}" if asked.name else resource
    if status == 0:
        return f"the cluster's certificate is not trusted ({said}): ask its owner for a kubeconfig that holds its CA"
    if status == 401:
        return f"the cluster does not know you ({said}): log in again, as for kubectl"
    if status == 403 and re.search(r"cannot \w+ resource|no access|RBAC", said):
        return (
            f"{where}: you may not {asked.verb} {resource} ({said}): ask the cluster's owner for `{asked.verb} "
            f"{resource}` in this namespace; {_ROLE}"
        )
    if status == 403 and "exceeded quota" in said:
        return f"{where}: {what} is beyond its quota ({said}): ask for less, end another run, or ask the owner for more"
    if status == 403 and "violates PodSecurity" in said:
        return f"{where}: {what} is against its pod security ({said}): leave out what it names, such as host_paths"
    if status == 404 and asked.verb == "create" and "namespaces" in said:
        return f"{where} does not exist ({said}): choose one by namespace=, or have it made; {_ROLE}"
    if status == 404 and asked.verb == "create":
        return f"{where}: this cluster knows no {asked.kind} ({said}): install it, or choose kind=job"
    if status == 404:
        return f"{where}: {what} is not there ({said})"
    if status == 409 and asked.verb == "create":
        return f"{where}: {what} exists already: choose another app_id, or go on with the run that has this one"
    words = {400: "is not understood", 403: "is refused", 409: "has changed meanwhile", 422: "is not valid"}
    return f"{where}: {asked.verb} {what} {words.get(status, f'failed with {status}')}: {said}"
