"""Opening a Dask cluster: processes of this machine, jobs of a queue, or a scheduler that runs already.

Each worker does one task at a time. Dask restarts what dies here, and gives its task to another worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...export.errors import EngineUnavailable, InputError, in_short, last_line
from ...export.optional import optional
from ..progress import Progress
from .spec import QUEUES, ClusterSpec

_DEATHS = 3  # workers that may die over a task before it is given up
_LOGGERS = ("distributed", "dask_jobqueue", "tornado")
_CONNECT_SECONDS, _JOIN_SECONDS = 10, 60
# Dask would give every library one thread, and make the allocator return memory all the time.
_DASK = {"distributed.nanny.pre-spawn-environ": {}, "distributed.scheduler.allowed-failures": _DEATHS - 1}


@contextlib.contextmanager
def open_cluster(spec: ClusterSpec, progress: Progress) -> Iterator[Any]:
    """Yield a `distributed.Client` of a cluster that has a worker.

    `local:N` starts N processes, which share the cores out; `local` starts one for each GPU; a queue is given N jobs,
    and as many again in place of those that end. All of them end with the block.

    Raises
    ------
    InputError
        `local` where there is no GPU, or a `--cluster-config` that does not describe a job.
    EngineUnavailable
        Dask is not installed, the scheduler does not answer or no worker of it has joined in a minute, or the queue
        takes no job.
    """
    distributed = optional("distributed", f"--cluster {spec}", "cluster")
    import dask

    if spec.kind in QUEUES:
        optional("dask_jobqueue", f"--cluster {spec}", "cluster")  # its defaults are set where it is imported
    # They log tracebacks where connections end; whatever is to be said here is said in a line.
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _LOGGERS]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    kinds = {"local": _local, **dict.fromkeys(QUEUES, _queued)}
    with dask.config.set(_DASK), contextlib.ExitStack() as stack:
        if spec.config is not None:
            stack.enter_context(dask.config.set(dask.config.merge(dask.config.config, _read(spec))))
        client = stack.enter_context(kinds.get(spec.kind, _connected)(distributed, spec, progress))
        progress.say(f"cluster {spec}: {counted(len(client.nthreads()))}; {client.dashboard_link}")
        yield client


def counted(workers: int) -> str:
    """Return how many workers there are, in words."""
    return "1 worker" if workers == 1 else f"{workers} workers"


def _read(spec: ClusterSpec) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(spec.config.read_text(encoding="utf-8")) if spec.config else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--cluster-config {spec.config}: not YAML ({in_short(error)})") from error
    if not isinstance(found, dict):
        raise InputError(f"--cluster-config {spec.config}: expected sections of Dask's configuration, as jobqueue:")
    return found


@contextlib.contextmanager
def _local(distributed: Any, spec: ClusterSpec, progress: Progress) -> Iterator[Any]:
    gpus = 0 if spec.count else torch.cuda.device_count()
    workers = spec.count or gpus
    if not workers:
        raise InputError("--cluster local: starts a worker for each GPU, and there is none; give local:N")
    with contextlib.ExitStack() as stack:
        how = {
            "n_workers": workers,
            "threads_per_worker": 1,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "memory_limit": 0,  # otherwise Dask stops workers that it thinks too large
            "local_directory": stack.enter_context(TemporaryDirectory(prefix="gfo-dask-")),
            "silence_logs": logging.CRITICAL,
        }
        try:
            cluster = stack.enter_context(distributed.LocalCluster(**how))
        except RuntimeError as error:
            raise EngineUnavailable(f"--cluster {spec}: a worker does not start ({in_short(error)})") from error
        client = stack.enter_context(distributed.Client(cluster))
        client.register_plugin(_share(distributed, workers, _visible_gpus(gpus)))
        yield client


@contextlib.contextmanager
def _queued(distributed: Any, spec: ClusterSpec, progress: Progress) -> Iterator[Any]:
    """Submit jobs, and wait for the first to start: in a queue that may take hours."""
    import dask
    import dask_jobqueue

    # Any free port for the dashboard: Dask's own default may be taken by another run.
    options = {"dashboard_address": ":0", **(dask.config.get(f"jobqueue.{spec.kind}.scheduler-options", None) or {})}
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(getattr(dask_jobqueue, QUEUES[spec.kind])(scheduler_options=options))
            cluster.sync(_submit, cluster, spec.count)
            cluster.adapt(minimum_jobs=spec.count, maximum_jobs=spec.count)  # jobs that end are followed by others
        except (ValueError, TypeError) as error:
            raise InputError(
                f"--cluster-config {spec.config}: does not describe a job ({in_short(error)}); see jobqueue.dask.org"
            ) from error
        except (OSError, RuntimeError) as error:
            raise EngineUnavailable(f"--cluster {spec}: takes no job ({last_line(str(error))})") from error
        client = stack.enter_context(distributed.Client(cluster))
        progress.say(f"cluster {spec}: waiting for the first job to start; {client.dashboard_link}")
        client.wait_for_workers(1)
        yield client


async def _submit(cluster: Any, jobs: int) -> None:
    """Submit jobs; raise what the queue says against them, which a public call only logs."""
    from distributed.core import Status

    cluster.scale(jobs=jobs)
    try:
        await cluster._correct_state()
    except BaseException:
        for job in cluster.workers.values():
            if job.status == Status.created:
                job.status = Status.failed  # otherwise the cluster does not close
        raise


@contextlib.contextmanager
def _connected(distributed: Any, spec: ClusterSpec, progress: Progress) -> Iterator[Any]:
    try:
        client = distributed.Client(spec.name, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:  # the latter for tls without certificates
        raise EngineUnavailable(
            f"--cluster {spec}: no scheduler answers ({in_short(error)}); start one with dask scheduler"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_JOIN_SECONDS)
        except TimeoutError as error:
            raise EngineUnavailable(
                f"--cluster {spec}: no worker has joined in {_JOIN_SECONDS} s; start some with dask worker {spec} "
                "--nthreads 1"
            ) from error
        yield client


def _visible_gpus(count: int) -> list[str]:
    """Return the names of the GPUs that PyTorch sees here, as `CUDA_VISIBLE_DEVICES` has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def _share(distributed: Any, workers: int, gpus: list[str]) -> Any:
    """Return a plugin that gives each worker its share of this machine's cores, or a GPU; also restarted ones."""

    class Share(distributed.WorkerPlugin):
        name = "gfo-share"

        def setup(self, worker: Any) -> None:
            """Set up a new worker, before its threads start: they inherit the cores."""
            number = int(worker.name)
            if hasattr(os, "sched_setaffinity"):
                cores = sorted(os.sched_getaffinity(0))
                os.sched_setaffinity(0, cores[number % len(cores) :: workers])
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends the tasks

    return Share()
