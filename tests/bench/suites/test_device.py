"""The device suite: everything is checked before it is timed, and what fails leaves the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gfo.bench import device
from gfo.bench.device import CHECKER, Section, run_sections
from gfo.bench.rows import BenchRow, SelfTestFacts
from gfo.bench.suites.device import DeviceSuite
from gfo.bench.suites.kernels import AWKWARD
from gfo.engine.progress import no_progress

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default")
CHECK = ("kernels", "--check", "--device", "cpu", "--size", "5", "--pairs", "3", "--occluders", "2", "--classes", "4")


@pytest.fixture(autouse=True)
def own_network_in_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2] / "models"), *sys.path]))


def test_right_comes_before_fast() -> None:
    suite = DeviceSuite(engine="torch,openvino", precision="fp32,bf16", seconds=2.0, device="cpu", images="DIR")
    wanted = ["kernel-check", *["self-test"] * 2, *["pairs"] * 4, "kernel", "train"]
    sections = list(suite.sections("cpu"))
    assert [section.name for section in sections] == wanted
    assert sections[0].words == ["kernels", "--check", "--device", "cpu"]
    assert sections[2].words == ["--selftest", "--device", "cpu", "--engine", "openvino"]
    engine = ["--engine", "openvino", "--precision", "bf16", "--device", "cpu", "--baseline"]
    assert sections[6].words == [*engine, "--images", "DIR", "--seconds", "2.0"]
    assert sections[-1].words == ["train", "--precision", "fp32,bf16", "--seconds", "2.0", "--device", "cpu"]
    (checked,) = (section for section in suite.sections("cuda") if section.checked)
    assert checked.name == "memory-check"
    every = DeviceSuite(precision="fp32")
    engines = {
        kind: {section.words[1] for section in every.sections(kind) if section.name == "pairs"}
        for kind in ("cpu", "cuda")
    }
    assert engines == {"cpu": {"torch", "onnxruntime", "openvino"}, "cuda": {"torch", "onnxruntime", "trt"}}


@pytest.mark.slow
def test_every_section_leaves_its_rows(
    run: Callable[..., Any], tiny_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = (*MODEL, "--images", str(tiny_data / "val"), "--seconds", "0.05", "--stages", "pairs,end-to-end")
    few = ("--pictures", "4", "--occluders", "2", "--baseline", "--engine", "torch", "--device", "cpu")
    sections = [Section("kernel-check", "gfo-bench", CHECK), Section("pairs", "gfo-bench", [*own, *few])]
    monkeypatch.setattr(DeviceSuite, "sections", lambda *_: iter(sections))
    ended = run("device", "--device", "cpu", "--json", tmp_path / "device.json")
    assert ended.code == 0
    checks = [row for row in ended.rows if row["stage"] == "kernel-check"]
    assert len(checks) == 10 * (len(AWKWARD) + 1)
    assert all(row["passed"] and row["max_error"] <= row["allowed_error"] for row in checks)
    assert [row["stage"] for row in ended.rows if row["p50"]] == ["pairs", "end-to-end", "baseline"]
    lines = ended.out.splitlines()
    titles = [line.split(".")[0].strip() for line in lines if line.startswith(("Is it right?", "Pairs."))]
    assert titles == ["Is it right?", "Pairs"]
    assert "right: 40 of 40 checks; not run: 0; wrong: 0 rows" in lines
    assert any(line.startswith("torch fp32: end-to-end is ") and line.endswith(" the plain loop") for line in lines)


def fake(monkeypatch: pytest.MonkeyPatch, *ends: tuple[int, str, str] | str) -> None:
    """End the processes of sections like this, one after the other."""
    left = iter(ends)

    def ended(section: Section, *_: object) -> subprocess.CompletedProcess[str] | str:
        how = next(left)
        return how if isinstance(how, str) else subprocess.CompletedProcess([], *how)

    monkeypatch.setattr(device, "_ended", ended)


def found(*sections: Section) -> list[BenchRow[Any]]:
    return run_sections(sections, "cuda", no_progress).rows


@pytest.mark.parametrize(
    ("end", "passed", "reason"),
    [
        ((1, "", "Traceback\nRuntimeError: an illegal memory access"), False, "exit code 1, RuntimeError: an illegal"),
        ((-11, "", ""), False, "killed by SIGSEGV, nothing was said"),
        ((3, "", "gfo-bench: --engine trt: needs CUDA\n"), None, "--engine trt: needs CUDA"),
        ((2, "", "gfo-bench: --precision int8: no\n"), None, "--precision int8: no"),
        ("took more than 1200 s", False, "took more than 1200 s"),
        ((0, "no JSON", ""), False, "exit code 0, nothing was said"),
    ],
)
def test_a_section_without_rows_is_a_row_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, end: Any, passed: bool | None, reason: str
) -> None:
    fake(monkeypatch, end, (3, "", "gfo-bench: no"))
    first, second = found(Section("pairs", "gfo-bench", []), Section("train", "gfo-bench", []))
    assert (first.stage, first.available, first.passed) == ("pairs", False, passed)
    assert first.reason.startswith(reason)
    assert second.stage == "train"


def test_bad_input_is_2_before_anything_runs(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch)
    ended = run("device", *MODEL, "--images", tmp_path)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert str(tmp_path) in ended.err
    assert run("device", "--model", "torchvision/none").code == 2


def test_an_engine_that_returns_nan_is_wrong_and_its_row_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    check = '{"engine": "trt", "device": "H", "kind": "KIND", "precision": "fp16", "passed": false, "reason": "NaN", '
    check += '"max_error": NaN, "allowed_error": 0.1, "agreement": 0.0}'
    out = f'a table\n{{"selftest": [{check.replace("KIND", "cuda")}]}}\n'
    fake(monkeypatch, (4, out, ""))
    (row,) = found(Section("self-test", "gfo-doctor", ["--selftest"]))
    assert (row.engine, row.device, row.passed, row.reason) == ("trt", "cuda", False, "NaN")
    assert row.facts == SelfTestFacts(max_error=None, allowed_error=0.1, agreement=0.0)


@pytest.mark.parametrize(
    ("script", "passed", "reason"),
    [
        ("exit 0", True, ""),
        ('echo "========= Invalid __global__ read of size 4"; exit 99', False, "Invalid __global__ read of size 4"),
        ('echo "========= Invalid __global__ read of size 4"; exit 4', False, "Invalid __global__ read of size 4"),
        ('echo "========= ERROR SUMMARY: 0 errors"', True, ""),
        ('echo "driver too old" >&2; exit 1', None, f"{CHECKER}: exit code 1, driver too old"),
        ("sleep 60", None, f"{CHECKER}: took more than 1 s"),
        (None, None, f"not run here: {CHECKER} is not on the PATH"),
    ],
)
def test_the_memory_checker_has_found_something_where_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, passed: bool | None, reason: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(device, "_LIMIT_SECONDS", 1.0)
    if script is not None:
        (tmp_path / CHECKER).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / CHECKER).chmod(0o755)
    (row,) = found(Section("memory-check", "gfo-bench", CHECK, checked=True))
    assert (row.engine, row.passed, row.reason) == (CHECKER, passed, reason)
    assert row.available is (passed is True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_not_there_is_3(run: Callable[..., Any]) -> None:
    ended = run("device", *MODEL, "--device", "cuda")
    assert (ended.code, ended.out) == (3, "")
    assert "CUDA" in ended.err
