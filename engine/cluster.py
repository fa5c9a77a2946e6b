"""Workers of a Dask cluster: processes of this machine, or those of a scheduler that runs already.

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

from ..export.errors import EngineUnavailable, InputError, in_short
from ..export.optional import optional
from ..export.options import whole_number
from .machine import worker_count
from .progress import Progress

_DEATHS = 3  # workers that may die over a task before it is given up
_CONNECT_SECONDS, _JOIN_SECONDS = 10, 60
# Dask would give every library one thread, and make the allocator return memory all the time.
_DASK = {"distributed.nanny.pre-spawn-environ": {}, "distributed.scheduler.allowed-failures": _DEATHS - 1}


def check_cluster(spec: str) -> None:
    """Raise `InputError` unless `--cluster` is `local`, `local:N` or an address of a scheduler."""
    kind, _, rest = spec.partition(":")
    if kind == "local" and (rest or spec == kind):
        count = None if spec == kind else whole_number(rest)
        if spec == kind or (count is not None and 1 <= count <= worker_count()):
            return
        raise InputError(f"--cluster {spec}: expected local:1 to local:{worker_count()}, the cores of this machine")
    if kind not in ("tcp", "tls") or not rest.startswith("//"):
        raise InputError(f"--cluster {spec}: expected local, local:N, or the scheduler's address, as tcp://host:8786")


@contextlib.contextmanager
def open_cluster(spec: str, progress: Progress) -> Iterator[Any]:
    """Yield a `distributed.Client` of a cluster that has a worker.

    `local:N` starts N processes, which share the cores out; `local` starts one for each GPU. They end with the block.

    Raises
    ------
    InputError
        See `check_cluster`; `local` where there is no GPU.
    EngineUnavailable
        Dask is not installed, the scheduler does not answer, or no worker has joined in a minute.
    """
    check_cluster(spec)
    distributed = optional("distributed", f"--cluster {spec}", "cluster")
    import dask

    # It logs tracebacks where connections end; whatever is to be said here is said in a line.
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with dask.config.set(_DASK), contextlib.ExitStack() as stack:
        client = stack.enter_context((_local if spec.startswith("local") else _connected)(distributed, spec))
        progress.say(f"cluster {spec}: {len(client.nthreads())} workers; {client.dashboard_link}")
        yield client


@contextlib.contextmanager
def _local(distributed: Any, spec: str) -> Iterator[Any]:
    gpus = torch.cuda.device_count() if spec == "local" else 0
    if spec == "local" and not gpus:
        raise InputError("--cluster local: starts a worker for each GPU, and there is none; give local:N")
    workers = gpus or int(spec.partition(":")[2])
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
def _connected(distributed: Any, spec: str) -> Iterator[Any]:
    try:
        client = distributed.Client(spec, timeout=_CONNECT_SECONDS)
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
