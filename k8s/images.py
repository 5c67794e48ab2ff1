"""Images that are patched with a folder of code, built here and pushed to where the cluster finds them."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

from docker.errors import DockerException
from torchx.specs import Role

from k8s.pods import Object
from pipeline.errors import UserError


def patched(
    made: Iterable[Object],
    workspaces: Mapping[str, str],
    cfg: Mapping[str, Any],
    patch: Callable[[Role, str, Mapping[str, Any]], None],
) -> list[Object]:
    """The objects of a run with patched images.

    Args:
        made: The objects.
        workspaces: By role, the folder.
        cfg: The run options.
        patch: Builds the image of a role with a folder over it, pushes it, and gives the role its name.

    Raises:
        UserError: There is no Docker engine, or it cannot do that.
    """
    found = deepcopy(list(made))
    names: dict[tuple[str, str], str] = {}
    for container in _containers(found):
        workspace = workspaces.get(container["name"])
        if workspace is None:
            continue
        key = (container["image"], workspace)
        if key not in names:
            role = Role(name=container["name"], image=container["image"])
            try:
                patch(role, workspace, cfg)
            except (DockerException, RuntimeError) as error:
                raise UserError(
                    f"image_repo={cfg.get('image_repo')!r}: {container['image']} cannot be patched with {workspace} "
                    f"and pushed ({error}): start a Docker engine here and log in there, or leave image_repo out"
                ) from error
            names[key] = role.image
        container["image"] = names[key]
    return found


def _containers(made: Iterable[Object]) -> Iterable[Object]:
    """The containers of all pod templates."""
    for one in made:
        specs = [one["spec"]] if one["kind"] == "Job" else []
        specs += [job["template"]["spec"] for job in one["spec"].get("replicatedJobs", ())]
        for spec in specs:
            yield from spec["template"]["spec"]["containers"]
