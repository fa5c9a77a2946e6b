"""Clusters that do not open, and a queue whose jobs run here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gfo.engine.cluster import clusters as module
from gfo.engine.cluster.clusters import open_cluster
from gfo.engine.cluster.spec import ClusterSpec
from gfo.engine.progress import TerminalProgress, no_progress
from gfo.export.errors import EngineUnavailable, InputError

pytest.importorskip("distributed")

JOBS = """
jobqueue:
  slurm:
    cores: 1
    memory: 2GiB
    processes: 1
    interface: lo
    job-script-prologue: ["export GFO_TEST_JOB=$SLURM_JOB_ID"]
"""
# They stand for Slurm's own: a job is a process of this machine, and its number that of the process.
SBATCH = """#!/bin/sh
cp "$1" "{folder}/script-$$"
SLURM_JOB_ID=$$ setsid sh "{folder}/script-$$" >/dev/null 2>&1 &
echo $! >>"{folder}/jobs"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -TERM -- -"$1" 2>/dev/null
echo "$1" >>"{folder}/cancelled"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put commands `sbatch` and `scancel` on the path; return the file that describes a job."""
    pytest.importorskip("dask_jobqueue")
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(script.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "jobs.yaml").write_text(JOBS)
    return tmp_path / "jobs.yaml"


@pytest.mark.slow
def test_jobs_of_a_queue_are_workers(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_cluster(ClusterSpec("slurm:2", slurm), TerminalProgress()) as client:
        client.wait_for_workers(2, timeout=60)
        names = client.run(os.getenv, "GFO_TEST_JOB")
        assert len(set(names.values())) == 2
        assert None not in names.values()
    said = capsys.readouterr().err
    assert "cluster slurm:2: waiting for the first job to start; http" in said
    jobs = (slurm.parent / "jobs").read_text().split()
    assert set((slurm.parent / "cancelled").read_text().split()) >= set(jobs[:2])


def test_a_queue_that_is_not_there(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(EngineUnavailable, match=r"--cluster slurm:1: takes no job \(.*sbatch"),
        open_cluster(ClusterSpec("slurm:1", slurm), no_progress),
    ):
        pass


def test_a_queue_that_takes_no_job(slurm: Path) -> None:
    (slurm.parent / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpus' >&2\nexit 1\n"
    )
    with (
        pytest.raises(EngineUnavailable, match=r"--cluster slurm:2: takes no job \(sbatch: error: invalid partition"),
        open_cluster(ClusterSpec("slurm:2", slurm), no_progress),
    ):
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Dask's cluster is not whole
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("jobqueue: [", "not YAML"),
        ("just words", "expected sections of Dask's configuration, as jobqueue:"),
        ("jobqueue: {slurm: {memory: 2GiB}}", "does not describe a job .*cores"),
    ],
)
def test_a_file_that_describes_no_job(text: str, named: str, slurm: Path) -> None:
    slurm.write_text(text)
    with (
        pytest.raises(InputError, match=f"--cluster-config {slurm}: {named}"),
        open_cluster(ClusterSpec("slurm:1", slurm), no_progress),
    ):
        pass


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECT_SECONDS", 1)
    with (
        pytest.raises(EngineUnavailable, match=r"--cluster tcp://127\.0\.0\.1:1: no scheduler answers .*; start one"),
        open_cluster(ClusterSpec("tcp://127.0.0.1:1"), no_progress),
    ):
        pass


def test_without_a_cluster_dask_is_not_imported() -> None:
    code = (
        "import sys, gfo.engine.evaluation.evaluate, gfo.engine.training.train, gfo.engine.cluster.spec; "
        "print('distributed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
