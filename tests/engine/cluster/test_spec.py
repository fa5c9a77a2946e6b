"""What names a cluster, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfo.engine.cluster.spec import ClusterSpec
from gfo.engine.machine import worker_count
from gfo.export.errors import InputError


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("local:0", "expected local:1 to local:"),
        ("local:1000", "expected local:1 to local:"),
        ("local:two", "expected local:1 to local:"),
        ("local:", "expected local, local:N, the scheduler's address"),
        ("host:8786", "expected local, local:N, the scheduler's address"),
        ("tcp:host", "expected local, local:N, the scheduler's address"),
        ("slurm", "expected slurm:1 to slurm:100000, jobs"),
        ("slurm:many", "expected slurm:1 to slurm:100000, jobs"),
        ("pbs:3", "does not say what a job is; add --cluster-config FILE, Dask's YAML"),
    ],
)
def test_a_cluster_that_is_none(spec: str, named: str) -> None:
    with pytest.raises(InputError, match=f"--cluster {spec}: {named}"):
        ClusterSpec(spec)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--cluster-config .*jobs.yaml: no such file"):
        ClusterSpec("slurm:2", tmp_path / "jobs.yaml")


def test_the_kinds_and_their_counts(tmp_path: Path) -> None:
    config = tmp_path / "jobs.yaml"
    config.write_text("jobqueue: {}")
    most = worker_count()
    local = [ClusterSpec(f"local:{most}"), ClusterSpec("local")]
    others = [ClusterSpec("tcp://host:1"), ClusterSpec("slurm:8", config)]
    assert [(spec.kind, spec.count) for spec in (*local, *others)] == [
        ("local", most),
        ("local", None),
        ("tcp", None),
        ("slurm", 8),
    ]
