"""Commands to be killed: what each is called with, where it writes, and what must be the same in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import zarr
from harness import files_below

from gfo.engine.evaluation.store import RunStore
from gfo.export.artefact import Artefact

MODEL = ("--model", "python:gfo_tiny:network")
_MEASURED = ("pairs", "seconds", "pairs_per_second", "peak_rss_mb", "sha256")
# Eight pictures a block, so that a command writes several.
SMALL_BLOCKS = "import gfo.engine.evaluation.store as store; store._MOST = 8; store._SHARDS = 2"


@dataclass(frozen=True)
class Material:
    """What commands read; do not write into it."""

    data: Path
    bank: Path
    run: Path
    """A finished evaluation."""


@dataclass(frozen=True)
class Scenario:
    """A command that writes below a folder.

    Attributes
    ----------
    words
        The command, for its material and the folder.
    result
        What must be the same in the end, from the folder; raises where the command has not ended.
    again
        Exit codes of the same command once it has ended.
    first
        Python code to run before it.
    often
        Whether the suite tries it, not only a long campaign.
    """

    name: str
    words: Callable[[Material, Path], list[object]]
    result: Callable[[Path], Any]
    again: tuple[int, ...] = (0,)
    first: str = ""
    often: bool = False


def _train(material: Material, folder: Path) -> list[object]:
    options = ["--epsilon", 8, "--epochs", 2, "--batch-size", 6, "--classes-together", 2, "--precision", "fp32"]
    return ["gfo-train", *MODEL, *options, "--data", material.data, "--out", folder / "bank.safetensors"]


def evaluate(material: Material, folder: Path, *options: object) -> list[object]:
    """Return the words of an evaluation into `folder/run`."""
    inputs = ["--data", material.data, "--occluders", material.bank]
    return ["gfo-eval", *MODEL, "--split", "val", "--engine", "torch", *inputs, "--out", folder / "run", *options]


def _evaluate_with_cache(material: Material, folder: Path) -> list[object]:
    return evaluate(material, folder, "--decoded-cache")


def _report(material: Material, folder: Path) -> list[object]:
    return ["gfo-report", material.run, "--out", folder / "report"]


def _export(material: Material, folder: Path) -> list[object]:
    return ["gfo-export", *MODEL, "--occluders", material.bank, "--format", "onnx", "--out", folder / "artefact"]


def bank_file(folder: Path) -> bytes:
    """Return the bank's bytes."""
    return (folder / "bank.safetensors").read_bytes()


def answers(folder: Path) -> dict[str, Any]:
    """Return every array of a finished RUN, and its summary without what was measured."""
    store = RunStore.open(folder / "run")
    assert store.pending() == store.damaged() == []
    group = zarr.open_group(folder / "run" / "predictions.zarr", mode="r")
    arrays = {name: repr(array[:].tolist()) for name, array in group.arrays()}  # type: ignore[union-attr]
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return {**arrays, **{key: value for key, value in summary.items() if key not in _MEASURED}}


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file."""
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files_below(folder)}


def artefact(folder: Path) -> dict[str, Any]:
    """Return what the manifest says, once every file is found to be as it says."""
    found = Artefact.load(folder / "artefact").manifest.to_dict()
    assert found["parity"]["status"] == "passed"
    return found


SCENARIOS = (
    Scenario("train", _train, bank_file, often=True),
    Scenario("evaluate", evaluate, answers, first=SMALL_BLOCKS),
    Scenario("evaluate with a decoded cache", _evaluate_with_cache, answers, first=SMALL_BLOCKS, often=True),
    Scenario("report", _report, contents),
    Scenario("export", _export, artefact, again=(0, 2)),
)
