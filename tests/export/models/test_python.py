"""A user's own function: whatever its module or the function does ends in one line that says where."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gfo.export.classifier import load_classifier
from gfo.export.errors import InputError
from gfo.export.models.spec import ModelSpec

MODULE = """
import sys

def wants(pictures): ...
def says(): raise ValueError("first line\\nsecond line")
def mute(): raise RuntimeError
def own():
    class Own(Exception): ...
    raise Own("mine")
def deep(): deep()
def leaves(): sys.exit(0)
def interrupted(): raise KeyboardInterrupt
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_here", raising=False)
    return "mine_here"


@pytest.mark.parametrize("weights", ["default", "random", "w.safetensors"])
@pytest.mark.parametrize(
    ("function", "named"),
    [
        ("wants", r"TypeError: wants\(\) missing 1 required positional argument: 'pictures'; it is called without"),
        ("says", r"ValueError: first line \(mine_here\.py, line 5\); it is called without"),
        ("mute", r"RuntimeError \(mine_here\.py, line 6\); it is called without"),
        ("own", r"Own: mine \(mine_here\.py, line 9\)"),
        ("deep", r"RecursionError: maximum .* \(mine_here\.py, line 10\)"),
        ("leaves", r"SystemExit: 0 \(mine_here\.py, line 11\)"),
        ("number", "TypeError: 'int' object is not callable"),
        ("sys", "TypeError: 'module' object is not callable"),
    ],
)
def test_a_function_that_fails_is_one_line(
    function: str, named: str, weights: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"x": torch.zeros(1)}, "w.safetensors")
    with pytest.raises(InputError, match=f"--model python:{module}:{function}: {named}") as caught:
        load_classifier(ModelSpec(f"python:{module}:{function}", weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["default", "random"])
def test_an_interruption_stays_one(weights: str, module: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_classifier(ModelSpec(f"python:{module}:interrupted", weights))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("import sys; sys.exit('no')", r"SystemExit: no \(spoiled_here\.py, line 1\)"),
        ("\n1 / 0", r"ZeroDivisionError: division by zero \(spoiled_here\.py, line 2\)"),
        ("def (", r"SyntaxError: invalid syntax \(spoiled_here\.py, line 1\)"),
        ("open('/nowhere')", r"FileNotFoundError: .*'/nowhere' \(spoiled_here\.py, line 1\)"),
        ("import nowhere", r"ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_module_that_fails_is_one_line(
    text: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spoiled_here.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"{named}.*; the module must be importable from here"):
        load_classifier(ModelSpec("python:spoiled_here:network"))


@pytest.mark.parametrize("model", ["python:os:path", "python:sys:exit", "python:.:f", "python:torch.nn:Linear"])
def test_what_is_no_function_of_a_network_is_one_line(model: str) -> None:
    with pytest.raises(InputError, match=f"--model {model}: (TypeError|SystemExit)"):
        load_classifier(ModelSpec(model))


def test_a_function_that_returns_something_else_is_refused_with_weights_too(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"returned str, expected a torch\.nn\.Module"):
        load_classifier(ModelSpec("python:gfo_tiny:no_module", str(tmp_path / "w.safetensors")))
