"""NVIDIA's own benchmark beside ours, where it is on the PATH: the plan of the `trt` engine alone, in its own process.

`trtexec` comes with TensorRT, `tensorrt_rtx` with TensorRT for RTX; both take the same options and print the same line.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from .measure import Row

TOOLS = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}
_THROUGHPUT = re.compile(r"Throughput: ([0-9.]+(?:e[+-]?[0-9]+)?) qps")
_WARM_UP_MS, _BEYOND_SECONDS = 500, 120


def trtexec_row(library: str, plan: Path, pairs: int, blank: Row, seconds: float) -> Row | None:
    """Pairs a second of a plan; None where the tool of its library is not installed.

    It does not take turns with the other rows, and gives one rate: the mean over its time.

    Parameters
    ----------
    plan
        A serialized plan, as `TrtEngine.plan_file`.
    pairs
        In a pass of the plan.
    blank
        The row to be filled in.
    """
    tool = shutil.which(TOOLS[library])
    if tool is None or not plan.is_file():
        return None
    row = replace(blank, engine=TOOLS[library], sizes=f"batch {pairs}, in its own process")
    words = [tool, f"--loadEngine={plan}", f"--duration={max(1, round(seconds))}", f"--warmUp={_WARM_UP_MS}"]
    words += ["--noDataTransfers", "--useCudaGraph", "--useSpinWait"]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=seconds + _BEYOND_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return replace(row, available=False, reason=f"{tool}: {type(error).__name__}: {error}".splitlines()[0])
    found = _THROUGHPUT.search(done.stdout)
    if done.returncode or found is None:
        said = next((line for line in reversed((done.stdout + done.stderr).splitlines()) if line.strip()), "")
        return replace(row, available=False, reason=f"{tool}: exit code {done.returncode}, {said.strip()}")
    return replace(row, p50=float(found[1]) * pairs, rounds=1)
