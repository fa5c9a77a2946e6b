"""`gfo-bench compile`: every kernel compiles without a spill, and a failure is exit code 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gfo.bench.commands import bench
from gfo.kernels import compile as command
from gfo.kernels._triton import HAVE_TRITON, INTERPRETED

pytestmark = pytest.mark.skipif(not HAVE_TRITON, reason="needs Triton")

COMMAND = """
import sys
sys.argv = ["gfo-bench", "compile", *sys.argv[1:]]
from gfo.bench.commands.bench import main
main()
"""
VARIANTS = [variant for file in command.FILES for variant in command.variants(file)] if HAVE_TRITON else []


def run(*words: str, code: str = COMMAND, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command, or `code` with the same words, without the interpreter that the other tests run kernels in."""
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=compiling | variables,
    )


# ---- the table


@pytest.fixture(scope="module")
def hopper() -> subprocess.CompletedProcess[str]:
    return run("--targets", "sm_90")


@pytest.mark.slow
def test_all_variants_compile_without_spills(hopper: subprocess.CompletedProcess[str]) -> None:
    assert hopper.returncode == 0, hopper.stderr
    assert hopper.stderr == ""
    rows = json.loads(hopper.stdout.splitlines()[-1])["rows"]
    names = [(f"_{row['kernel']}_kernel", row["variant"], row["target"]) for row in rows]
    assert names == [(variant.kernel.fn.__name__, variant.name, "sm_90") for variant in VARIANTS]
    for row, variant in zip(rows, VARIANTS, strict=True):
        assert row["spills"] == 0
        assert 0 < row["registers"] <= 255
        assert row["cubin"] > 0
        assert row["moved"] == round(variant.moved)
        assert row["minimum"] == round(variant.minimum) <= row["moved"]
        assert row["error"] is None


@pytest.mark.slow
def test_aligned_pictures_are_loaded_and_stored_16_bytes_at_a_time(hopper: subprocess.CompletedProcess[str]) -> None:
    rows = json.loads(hopper.stdout.splitlines()[-1])["rows"]
    kernels = {"occlude", "occlude_grid", "bank_gradient"}
    aligned = [row for row in rows if row["kernel"] in kernels and not row["variant"].endswith("any size")]
    assert {row["kernel"] for row in aligned} == kernels
    for row in aligned:
        # A thread's 8 halves or 4 floats of the output are 8 or 4 bytes of a picture.
        pictures = {"occlude": 4, "occlude_grid": 4, "bank_gradient": 16}[row["kernel"]]
        narrowest = 8 if row["variant"].startswith(("bf16", "fp16")) else 4
        assert row["stores"] == [16], row
        assert row["loads"][0] == 16, row
        assert min(row["loads"]) == max(pictures, narrowest), row


@pytest.mark.slow
def test_the_table_fits_a_page(hopper: subprocess.CompletedProcess[str]) -> None:
    *lines, _ = hopper.stdout.splitlines()
    assert max(map(len, lines)) <= 160
    assert len(lines) > len(VARIANTS)
    for words in ("kernel", "variant", "registers", "spills", "shared", "cubin", "loads", "stores", "moved", "minimum"):
        assert words in "\n".join(lines[:4])


SPOILED = """
import sys

import triton
import triton.language as tl

from gfo.bench.suites import compile as suite
from gfo.kernels import compile as command
from gfo.kernels._triton import Variant


@triton.jit
def _part(x):
    return x + nothing


@triton.jit
def _unknown_name_kernel(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), _part(tl.load(x)))


@triton.jit
def _unknown_instruction_kernel(x, BLOCK: tl.constexpr):
    z = tl.load(x + tl.arange(0, BLOCK))
    z = tl.inline_asm_elementwise("no.such $0, $1;", "=r,r", [z], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(x + tl.arange(0, BLOCK), z)


@triton.jit
def _spilling_kernel(x, BLOCK: tl.constexpr):
    z = tl.load(x + tl.arange(0, BLOCK))
    tl.store(x + tl.arange(0, BLOCK), z * tl.sum(z, axis=0))  # all must be held until the sum is known


@triton.jit
def _good_kernel(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), 0)


def spoiled():
    for kernel, block in (_unknown_name_kernel, 128), (_unknown_instruction_kernel, 128), (_spilling_kernel, 16384):
        yield Variant(kernel, "here", {"x": "*i32", "BLOCK": block}, 1, "pair", 1.0, 1.0)
    yield Variant(_good_kernel, "here", {"x": "*i32", "BLOCK": 128}, 1, "pair", 1.0, 1.0)


suite.compile_all = lambda targets, report: [command.compile_variant(v, t) for v in spoiled() for t in targets]
sys.argv = ["gfo-bench", "compile", *sys.argv[1:]]
from gfo.bench.commands.bench import main
main()
"""
FAILURES = {
    "unknown_name": ("unknown_name, here, sm_90: ", "nothing is not defined"),
    "unknown_instruction": ("unknown_instruction, here, sm_90: ptxas ", "'.such'"),
    "spilling": ("spilling, here, sm_90: spills ", " bytes"),
}


def test_a_failure_or_a_spill_is_1_and_the_others_still_run(tmp_path: Path) -> None:
    script = tmp_path / "spoiled.py"  # Triton reads the source of a kernel
    script.write_text(SPOILED)
    ended = run("--targets", "sm_90", code=f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert ended.returncode == 1
    for line, words in zip(ended.stderr.splitlines(), FAILURES.values(), strict=True):
        assert all(word in line for word in words), line
    *failed, good = json.loads(ended.stdout.splitlines()[-1])["rows"]
    assert [row["kernel"] for row in failed] == list(FAILURES)
    assert (good["kernel"], good["spills"], good["error"]) == ("good", 0, None)
    assert all(row["error"] or row["spills"] > 0 for row in failed)
    assert ".version" not in ended.stdout, "Triton's own print of the program"


# ---- the command line


@pytest.mark.parametrize("text", ["sm_70x", "sm_10", "sm_90,,sm_80", "", "90", "sm_90a"])
def test_bad_targets_are_one_line_and_2(text: str) -> None:
    ended = run(f"--targets={text}")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    wrong = "" if ",," in text else text
    assert f"--targets {wrong}: expected some of sm_80, sm_89, sm_90, sm_100, sm_120" in line


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
def test_interpreted_there_is_nothing_to_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gfo-bench", "compile"])
    with pytest.raises(SystemExit) as left:
        bench.main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unset it" in line


def test_without_triton_is_3() -> None:
    ended = run(code=f"import sys; sys.modules['triton'] = None; {COMMAND}")
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert "Triton is not installed" in line
