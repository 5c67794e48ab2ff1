"""An AppDef as Kubernetes objects: plain dicts, a pure function of its arguments.

`kind=job` makes of each role an Indexed Job and a headless Service (`k8s.jobs`), `kind=jobset` one JobSet of all roles
(`k8s.jobset`); both have the same pods (`k8s.pods`), which are replaced depending on their exit statuses
(`pipeline.errors`).
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml
from torchx import __version__
from torchx.specs import AppDef

from k8s import jobs, jobset
from k8s.fields import Object, name_of
from k8s.options import JOBSET, RunOptions
from k8s.pods import Run, selector
from k8s.validation import problems_of
from pipeline.errors import UserError

OWNERS = ("Job", "JobSet")
"""The kinds of objects that own those that follow them in what `objects` returns."""


def objects(app: AppDef, app_id: str, opts: RunOptions, user: str = "") -> list[Object]:
    """Return all objects of a run, in the order in which they must be created.

    What follows a Job or a JobSet belongs to it (see `owned`). A pod that starts before its Service waits for its name.

    Args:
        app: What is to be run.
        app_id: Its name, unique in the namespace; the names of all objects begin with it.
        opts: The run options.
        user: The owner of the run, for a label.

    Raises:
        UserError: It cannot work; names all problems at once.
    """
    if problems := problems_of(app, opts, app_id):
        raise UserError(*problems)
    run = Run(app, app_id, opts, user, __version__)
    made = jobset.jobset_objects(run) if opts.kind == JOBSET else []
    for role in app.roles:
        if opts.kind != JOBSET:
            made += jobs.job_objects(run, role)
        elif opts.keep_nodes:
            budget = jobs.metadata(run, jobs.job_name(app_id, role), role)
            made.append(jobs.disruption_budget(budget, role.num_replicas, selector(run, role)))
    return made


def owned(thing: Object, owner: Object, uid: str) -> Object:
    """Return an object that is deleted with another, which has been created and got a uid."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name_of(owner), "uid": uid}
    return {**thing, "metadata": {**thing["metadata"], "ownerReferences": [reference]}}


def to_yaml(made: Iterable[Object]) -> str:
    """Return objects as a text that `kubectl apply -f -` takes, always with the same order of keys."""
    return yaml.dump_all(made, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=10**6, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Repeats shared parts, and quotes what PyYAML leaves bare and kubectl does not read as a string: `y`, `1e3`."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        plain = re.fullmatch(r"[A-Za-z/]([\w./:-]*[\w/])?", text, re.ASCII) and text.lower() not in _WORDS
        style = None if plain else "'" if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_WORDS = {"y", "n", "yes", "no", "true", "false", "on", "off", "null"}
_Dumper.add_representer(str, _Dumper.represent_text)
