"""gfo-bench's command line: what is refused, and how its suites are found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from gfo.bench.suites import SUITES
from gfo.bench.suites.base import Suite

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "tensorflow"), "--engine tensorflow: expected some of auto, torch"),
        (("--stages", "bare,fast"), "--stages fast: expected some of bare, pairs"),
        (("--precision", "int4"), "--precision int4: expected some of fp32"),
        (("--seconds", "0"), "--seconds 0.0: expected a number above 0"),
        (("--images", "nowhere"), "--images nowhere: no such folder"),
        (("--occluders", "0"), "--occluders 0: expected at least 1"),
        (("--occluders", "nowhere.safetensors"), "--occluders nowhere.safetensors: bank not found; give a number"),
        (("--engine", "onnxruntime", "--precision", "bf16"), "--precision bf16: engine onnxruntime has fp32"),
        (("--engine", "torch,all"), "--engine all: expected some of auto, torch"),
        (("--seed", "99999999999999999999"), "--seed"),
        (("--occluders", "100000000000"), "--occluders 100000000000: do not fit into the memory"),
        (("--stages", "bare", "--workers", "1"), "--workers 1: decode in end-to-end"),
        (("--plot", "/proc/nope/a.png", "--json", "b.json"), "/proc/nope/a.png: No such file"),
        (("--workers", "1,0"), "--workers 0: expected numbers of threads"),
        (("--plot", "a.svg"), "name a .png file"),
        (("--json", "."), "is a folder"),
        (("nowhere",), "nowhere"),
    ],
)
def test_what_is_refused(run: Callable[..., Any], words: tuple[str, ...], said: str) -> None:
    code, out, err = run(*MODEL, *words)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scaling", *MODEL, "--points", "2x2", "--occluders", "7"), "--occluders 7: --points says how many"),
        (("scaling", *MODEL, "--points", "2x2", "--occluders", "zero:1"), "2 occluders are more than the bank's 1"),
        (("scaling", *MODEL, "--points", "10x0"), "--points 10x0: expected occluders x pictures"),
        (("scaling", *MODEL, "--workers", "1"), "--workers"),
        (("scaling", *MODEL, "--plot", "a.png"), "--plot"),
        (("loaders", *MODEL, "--loader", "pil"), "--loader pil: expected some of dali, pillow, decoded-cache"),
        (("loaders", *MODEL, "--precision", "bf16"), "--precision"),
        (("loaders", "--seconds", "nan"), "--seconds nan: expected a number above 0"),
        (("kernels", *MODEL), "--model"),
        (("train", *MODEL, "--engine", "torch"), "--engine"),
        (("train", "--json", "."), "is a folder"),
        (("compile", "--seconds", "1"), "--seconds"),
    ],
)
def test_what_a_suite_refuses(run: Callable[..., Any], words: tuple[str, ...], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (("--scaling", "2x2"), "gfo-bench scaling --points"),
        (("--loader", "dali", "--train"), "gfo-bench loaders --loader"),
        (("--train",), "gfo-bench train"),
        (("--kernels",), "gfo-bench kernels"),
    ],
)
def test_replaced_options_name_the_new_way(run: Callable[..., Any], words: tuple[str, ...], instead: str) -> None:
    code, out, err = run(*MODEL, *words)
    assert (code, out) == (2, "")
    assert instead in err
    assert err.count("\n") == 1


def test_options_before_a_suite_are_refused(run: Callable[..., Any]) -> None:
    code, out, err = run("--baseline", "--seconds", "1", "scaling")
    assert (code, out) == (2, "")
    assert "--seconds, --baseline: not read by scaling" in err


@pytest.mark.parametrize("name", SUITES.names)
def test_help_of_a_suite_has_headings_and_loads_nothing_heavy(name: str) -> None:
    code = f"""
import sys
sys.argv = ["gfo-bench", {name!r}, "--help"]
from gfo.bench.commands.bench import main
try:
    main()
finally:
    print("LOADED", *sorted({{"torch", "numpy", "scipy", "PIL", "triton"}} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert f"gfo-bench {name}" in ended.stdout
    assert "─ Output ─" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "LOADED"


def test_every_suite_is_one_class() -> None:
    assert all(issubclass(suite, Suite) for suite in SUITES.classes())
