"""A package of its own adds an engine, a loader and an objective through entry points alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import zarr

from gfo.export.bank import OccluderBank

MODULE = '''
"""A third party's engine, loader and objective."""

from dataclasses import dataclass, field

import torch

from gfo.engine.data.pillow import PillowSource
from gfo.engine.data.source import Pictures
from gfo.engine.engines.base import Engine
from gfo.engine.training.objectives.base import Objective
from gfo.export.occluded import OccludedClassifier


class PlainEngine(Engine):
    @dataclass(frozen=True)
    class Options:
        offset: float = field(default=0.0, metadata={"help": "added to every logit"})

    name = "plain"
    devices = ("cpu",)
    device = "cpu"
    impl = "reference"

    @classmethod
    def precisions(cls, device="auto"):
        return ("fp32",)

    def open(self):
        self._model = OccludedClassifier(self.subject, self.precision, impl="reference")

    def _load_bank(self, occluders):
        self._bank = occluders

    @torch.inference_mode()
    def _infer(self, images, image_index, occluder_index):
        return self._model(images, image_index, occluder_index, self._bank) + self.options.offset

    def bare(self, batch):
        return {}

    def close(self):
        del self._model


class MirroredSource(PillowSource):
    name = "mirrored"
    rank = {}

    def read(self, lists):
        for images, quarantined in super().read(lists):
            yield Pictures(images.flip(2).contiguous(), quarantined)


class Negated(Objective):
    @dataclass(frozen=True)
    class Options:
        weight: float = 1.0

    name = "negated"

    def __init__(self, options):
        self._weight = options.weight

    def header(self):
        return {"loss": "label-logit", "weight": self._weight}

    def loss(self, logits, labels, *, impl):
        return self._weight * logits.gather(1, labels[:, None])[:, 0]
'''
ENTRY_POINTS = """
[gfo.engines]
plain = gfo_extra:PlainEngine
broken = gfo_extra:NoSuchEngine

[gfo.loaders]
mirrored = gfo_extra:MirroredSource
broken-loader = gfo_extra:NoSuchLoader

[gfo.objectives]
negated = gfo_extra:Negated

[gfo.suites]
broken-suite = gfo_extra:NoSuchSuite
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds `gfo-extra`."""
    site = tmp_path_factory.mktemp("site")
    facts = site / "gfo_extra-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: gfo-extra\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "gfo_extra.py").write_text(MODULE)
    return site


# Commands one after the other in one process: most of a short one is its start.
COMMANDS = """
import contextlib
import importlib
import io
import json
import sys

for floor, name, words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["gfo", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            importlib.import_module(f"gfo.{floor}.commands.{name}").main()
            code = None
        except SystemExit as left:
            code = left.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(site: Path, *commands: tuple[object, ...], floor: str = "engine") -> list[Ended]:
    """Run console scripts, each a name and its words, in a process that finds the package."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    given = [(floor, name, [str(word) for word in words]) for name, *words in commands]
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
    )
    assert ended.returncode == 0, ended.stderr
    return [Ended(*json.loads(line)) for line in ended.stdout.splitlines()]


def test_a_package_adds_an_engine_a_loader_and_an_objective(
    site: Path, tiny_data: Path, tmp_path: Path, tiny_bank: Path
) -> None:
    shared = ("--model", "python:gfo_tiny:network", "--data", tiny_data)
    bank = tmp_path / "bank.safetensors"
    how = ("--objective", "negated", "--objective-option", "weight=2", "--loader", "mirrored", "--precision", "fp32")
    words = (*shared, "--occluders", tiny_bank, "--split", "val")
    trained, torch, plain, broken, automatic, listed = run(
        site,
        ("train", *shared, *how, "--epsilon", 8, "--epochs", 1, "--batch-size", 6, "--out", bank),
        ("evaluate", *words, "--engine", "torch", "--out", tmp_path / "torch"),
        ("evaluate", *words, "--engine", "plain", "--engine-option", "offset=5", "--out", tmp_path / "plain"),
        ("evaluate", *words, "--engine", "broken", "--out", tmp_path / "broken"),
        ("evaluate", *words, "--out", tmp_path / "automatic"),
        ("evaluate", "--help"),
    )
    assert trained.code == 0, trained.err
    objective = OccluderBank.load(bank).header.objective
    assert (objective["loss"], objective["weight"], objective["loader"]) == ("label-logit", 2.0, "mirrored")

    for ended in (torch, plain):
        assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "plain" / "summary.json").read_text())["engine"] == "plain"
    answers = [
        np.asarray(zarr.open_array(tmp_path / name / "predictions.zarr" / "prediction")) for name in ("torch", "plain")
    ]
    assert np.array_equal(answers[0], answers[1])

    assert "auto, torch, onnxruntime, openvino, trt, plain or broken" in listed.out
    assert "auto, dali, pillow, mirrored or broken-loader" in listed.out
    assert (broken.code, broken.err.count("\n")) == (2, 1)
    assert "cannot load its entry point gfo_extra:NoSuchEngine" in broken.err
    assert automatic.code == 0, automatic.err  # a broken entry point leaves automatic choices alone


def test_the_doctor_and_the_benchmark_of_such_a_package(site: Path) -> None:
    doctor, listed, suite = run(
        site, ("doctor", "--json"), ("bench", "--help"), ("bench", "broken-suite", "--seconds", 1), floor="bench"
    )
    assert doctor.code == 0, doctor.err
    found = json.loads(doctor.out.splitlines()[-1])
    (broken,) = [state for state in found["engines"] if state["engine"] == "broken"]
    assert not broken["available"]
    assert "fix or uninstall gfo-extra" in broken["reason"]
    assert any("--loader broken-loader: cannot load" in note for note in found["notes"])
    assert found["objectives"]["pure"] == {"kappa": 10.0}
    assert found["objectives"]["negated"] == {"weight": 1.0}

    assert listed.code == 0, listed.err
    assert "broken-suite" in listed.out
    assert (suite.code, suite.err.count("\n")) == (2, 1)
    assert "cannot load its entry point gfo_extra:NoSuchSuite" in suite.err
