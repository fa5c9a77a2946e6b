"""NVIDIA's benchmark beside ours: how it is called, and what is read from its output."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfo.bench.rows import BenchRow, PairsFacts
from gfo.bench.trtexec import own_row
from gfo.engine.engines.base import OwnBenchmark

BLANK = BenchRow(stage="bare", engine="trt", unit="pairs/s", facts=PairsFacts())
# Lines of a log of TensorRT 10's trtexec.
SUMMARY = """
[I] === Performance summary ===
[I] Throughput: 507.25 qps
[I] Latency: min = 1.94 ms, max = 2.71 ms, mean = 1.96 ms, median = 1.96 ms, percentile(99%) = 2.02 ms
&&&& PASSED TensorRT.trtexec"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "net.plan").write_bytes(b"plan")
    return tmp_path / "net.plan"


def tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program that stands for trtexec, which needs a GPU, on the PATH."""
    path = folder / "trtexec"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_its_rate_is_in_pairs(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(plan.parent, f'echo "$@" > "{plan.parent}/asked"; cat <<END\n{SUMMARY}\nEND', monkeypatch)
    row = own_row(OwnBenchmark("trtexec", plan, 64), BLANK, 3.4)
    assert row is not None
    assert (row.engine, row.p50, row.available) == ("trtexec", pytest.approx(507.25 * 64), True)
    asked = (plan.parent / "asked").read_text().split()
    assert asked[:2] == [f"--loadEngine={plan}", "--duration=3"]
    assert "--noDataTransfers" in asked


@pytest.mark.parametrize("script", ["echo '[E] no device'; exit 1", "echo '[E] no device'"])
def test_a_failure_is_a_reason(plan: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(plan.parent, script, monkeypatch)
    row = own_row(OwnBenchmark("trtexec", plan, 64), BLANK, 1.0)
    assert row is not None
    assert (row.available, row.p50) == (False, None)
    assert "no device" in row.reason


def test_without_the_tool_there_is_no_row(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(plan.parent))
    assert own_row(OwnBenchmark("tensorrt_rtx", plan, 64), BLANK, 1.0) is None
