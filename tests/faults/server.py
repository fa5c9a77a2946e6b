"""Run commands in forks of one process that has imported them; `harness.Commands` starts it, with `faults.so`.

A line of JSON on standard input is a list of jobs to run side by side, a line on standard output their exit codes; see
`harness`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

KINDS = ("count", "kill", "tear", "fail", "fail on")
# What training and evaluation import on use: a fork has it already.
_MODULES = (
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "pydantic.type_adapter",
    "rich.progress",
    "safetensors.torch",
    "torchvision.transforms.functional",
    "xarray",
    "gfo.engine.evaluation.evaluate",
    "gfo.engine.training.train",
)
_COMMANDS = {
    "gfo-train": "gfo.engine.commands.train",
    "gfo-export": "gfo.engine.commands.export",
    "gfo-eval": "gfo.engine.commands.evaluate",
    "gfo-report": "gfo.engine.commands.report",
}


def _child(job: dict[str, Any], faults: ctypes.CDLL) -> int:
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        with open(job[name], "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update(job["environment"])
    if job["process"]:
        faults.fault_pid(job["process"])
    sys.argv = job["words"]
    faults.fault_arm(job["below"].encode(), KINDS.index(job["kind"]), job["at"], job["reading"], job["error"])
    try:
        _command(job)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    except BaseException:  # noqa: BLE001 (what Python itself does with it)
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        done = faults.fault_count()
        faults.fault_arm(b"", 0, 0, 0, 0)
        Path(job["count"]).write_text(str(done))
    return 0


def _command(job: dict[str, Any]) -> None:
    exec(compile(job["first"], "<job>", "exec"), {})
    importlib.import_module(_COMMANDS[job["words"][0]]).main()


def _start(job: dict[str, Any], faults: ctypes.CDLL, answers: IO[str]) -> int:
    child = os.fork()
    if child == 0:
        answers.close()
        os._exit(_child(job, faults))
    return child


def _wait(child: int, end: float) -> int:
    """Return the exit code, negative for a signal, −999 where it took too long."""
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -999


def main() -> None:
    """Serve until standard input ends."""
    import torch

    torch.set_num_threads(1)
    for name in (*_MODULES, *_COMMANDS.values(), *sys.argv[2:]):
        importlib.import_module(name)
    faults = ctypes.CDLL(sys.argv[1])
    faults.fault_count.restype = ctypes.c_long
    faults.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        jobs = json.loads(line)
        end = time.monotonic() + max(job["seconds"] for job in jobs)
        children = [_start(job, faults, answers) for job in jobs]
        print(json.dumps([_wait(child, end) for child in children]), file=answers, flush=True)


if __name__ == "__main__":
    main()
