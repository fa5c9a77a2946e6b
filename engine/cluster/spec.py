"""Which cluster: `ClusterSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...export.errors import InputError
from ...export.options import whole_number
from ..machine import worker_count

QUEUES: Final[Mapping[str, str]] = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
    "htcondor": "HTCondorCluster",
}
"""Job queues by their names, with the classes of dask-jobqueue."""


@dataclass(frozen=True)
class ClusterSpec:
    """A Dask cluster, checked when it is made.

    Attributes
    ----------
    name
        `local:N`, which is N processes of this machine; `local`, one for each GPU; the address of a scheduler that runs
        already; or `slurm:N` and the like, N jobs of a queue (`QUEUES`).
    config
        Dask's own YAML file for it. A queue needs one, whose `jobqueue:` section describes a job.

    Raises
    ------
    InputError
        The name is none of these, or the file is missing; a queue lacks one.
    """

    name: str
    config: Path | None = None

    def __post_init__(self) -> None:
        kind, _, rest = self.name.partition(":")
        if kind == "local" and (rest or self.name == kind):
            if self.name != kind:
                self._check_count(worker_count(), "the cores of this machine")
        elif kind in QUEUES:
            self._check_count(100_000, "jobs")
            if self.config is None:
                raise InputError(
                    f"--cluster {self.name}: does not say what a job is; add --cluster-config FILE, Dask's YAML"
                )
        elif kind not in ("tcp", "tls") or not rest.startswith("//"):
            raise InputError(
                f"--cluster {self.name}: expected local, local:N, the scheduler's address, as tcp://host:8786, or a "
                f"queue and its jobs, as slurm:8 ({', '.join(QUEUES)})"
            )
        if self.config is not None and not self.config.is_file():
            raise InputError(f"--cluster-config {self.config}: no such file; write Dask's YAML")

    def _check_count(self, most: int, what: str) -> None:
        count = whole_number(self.name.partition(":")[2])
        if count is None or not 1 <= count <= most:
            raise InputError(f"--cluster {self.name}: expected {self.kind}:1 to {self.kind}:{most}, {what}")

    @property
    def kind(self) -> str:
        """`local`, `tcp`, `tls` or a queue."""
        return self.name.partition(":")[0]

    @property
    def count(self) -> int | None:
        """N, of processes or jobs; None where the name has none."""
        return whole_number(self.name.partition(":")[2])

    def __str__(self) -> str:
        return self.name
