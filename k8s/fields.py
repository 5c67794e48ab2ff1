"""Reading fields of Kubernetes objects, most of which may be absent."""

from typing import Any

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as in YAML."""


def name_of(thing: Object) -> str:
    """Return the name of an object."""
    return str(thing["metadata"]["name"])


def label(thing: Object, name: str) -> str:
    """Return the value of a label; empty if it is absent."""
    return str(thing["metadata"].get("labels", {}).get(name, ""))


def annotation(thing: Object, name: str) -> str:
    """Return the value of an annotation; empty if it is absent."""
    return str(thing["metadata"].get("annotations", {}).get(name, ""))


def condition(thing: Object, *types: str, status: str = "True") -> Object:
    """Return the first condition of some types with a status; empty if there is none."""
    conditions = thing.get("status", {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] in types and one["status"] == status), {})


def phase_of(pod: Object) -> str:
    """Return the phase of a pod."""
    return str(pod["status"].get("phase", "Pending"))
