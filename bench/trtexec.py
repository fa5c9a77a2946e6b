"""An engine's own benchmark beside ours, where it is on the PATH: the plan alone, in a process of its own.

`trtexec` comes with TensorRT, `tensorrt_rtx` with TensorRT for RTX; both take the same options and print the same line.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

from ..engine.engines.base import OwnBenchmark
from ..export.errors import last_line
from .rows import BenchRow, PairsFacts

_THROUGHPUT = re.compile(r"Throughput: ([0-9.]+(?:e[+-]?[0-9]+)?) qps")
_WARM_UP_MS, _BEYOND_SECONDS = 500, 120


def own_row(own: OwnBenchmark, blank: BenchRow[PairsFacts], seconds: float) -> BenchRow[PairsFacts] | None:
    """Measure pairs a second of a plan; None where the tool is not installed, or the plan is gone.

    The tool does not take turns with the other rows, and reports one rate: the mean over its time.

    Parameters
    ----------
    own
        The tool, the plan and its pairs, as `Engine.own_benchmark` names them.
    blank
        The row to fill in.
    seconds
        How long it runs, its warm-up not included.
    """
    tool = shutil.which(own.tool)
    if tool is None or not own.plan.is_file():
        return None
    row = replace(blank, engine=own.tool, sizes=f"batch {own.pairs}, in its own process")
    words = [tool, f"--loadEngine={own.plan}", f"--duration={max(1, round(seconds))}", f"--warmUp={_WARM_UP_MS}"]
    words += ["--noDataTransfers", "--useCudaGraph", "--useSpinWait"]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=seconds + _BEYOND_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return replace(row, available=False, reason=f"{tool}: {type(error).__name__}: {error}".splitlines()[0])
    found = _THROUGHPUT.search(done.stdout)
    if done.returncode or found is None:
        said = last_line(done.stdout + done.stderr)
        return replace(row, available=False, reason=f"{tool}: exit code {done.returncode}, {said}")
    return replace(row, p50=float(found[1]) * own.pairs, rounds=1)
