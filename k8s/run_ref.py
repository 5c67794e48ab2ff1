"""A run by its name: where it is, and its objects at one moment."""

from typing import NamedTuple

from k8s.api_errors import ApiError
from k8s.cluster_api import Cluster
from k8s.fields import label
from k8s.pods import LABEL_APP_ID
from k8s.snapshot import RunSnapshot

_JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"


class RunRef(NamedTuple):
    """A run in a cluster.

    Attributes:
        cluster: The cluster.
        namespace: The namespace there.
        name: The name there, without the namespace.
    """

    cluster: Cluster
    namespace: str
    name: str

    @property
    def selector(self) -> dict[str, str]:
        """The labels of all objects of the run."""
        return {LABEL_APP_ID: self.name}

    def snapshot(self) -> RunSnapshot | None:
        """Return the objects of the run; None if there are none."""
        jobs = self.cluster.items("Job", self.namespace, self.selector)
        # The pods after the Jobs, so that the pod that has ended a Job is among them.
        pods = self.cluster.items("Pod", self.namespace, self.selector) if jobs else []
        job_set = None
        if not jobs or label(jobs[0], _JOBSET_LABEL):
            try:
                job_set = self.cluster.read("JobSet", self.namespace, self.name)
            except ApiError:
                if not jobs:
                    return None
        return RunSnapshot(jobs, pods, job_set) if jobs or job_set else None
