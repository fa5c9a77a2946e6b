"""Fixtures that several folders share: a tiny network of a user's own, a tiny data folder, a tiny bank."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

# Where there is no GPU, Triton interprets the kernels; it asks for this when it first sees them.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Side by side each process has a core to itself: threads beyond that would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

from gfo.engine.evaluation.summary import Run
from gfo.export.bank import OccluderBank
from gfo.export.bank_header import BankHeader
from gfo.export.calibration import Calibration
from gfo.export.classifier import FrozenClassifier, load_classifier
from gfo.export.models.spec import ModelSpec
from gfo.export.optional import silence
from gfo.export.preprocessing import Preprocessing
from gfo.export.quantise import quantise

silence()  # some tests import libraries without `optional`

# A test is not timed: an example that takes long on a busy machine is no failure.
settings.register_profile("gfo", deadline=None)
settings.load_profile("gfo")

MODEL = "python:gfo_tiny:network"
# Not alphabetical: a mapping by sorted folder names would be noticed.
CLASS_IDS = {"ant": 3, "bee": 0, "cat": 4}
PICTURES = 6


def pytest_collection_finish() -> None:
    """Spare the garbage collector the libraries: they are a million objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what a test and its fixtures draw without a seed of their own: no test depends on those that ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of our own, and `gfo_tiny` importable here and in subprocesses."""
    models = str(Path(__file__).parent / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GFO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [models, os.environ.get("PYTHONPATH")])))
        patch.setattr(sys, "path", [models, *sys.path])
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operators() -> Iterator[None]:
    """Let PyTorch's exporter parse its table of operators once: it does so in each export, for half of its time."""
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Make PyTorch fill what `torch.empty` gives with NaN, so that an element that a kernel forgets is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The user's module with the tiny network: `network`, `PREPROCESSING`, `OUTPUTS`."""
    return importlib.import_module("gfo_tiny")


@pytest.fixture(scope="session")
def tiny_classifier() -> FrozenClassifier:
    """`MODEL`, frozen: 5 outputs, 16x16 input from a short side of 18."""
    return load_classifier(ModelSpec(MODEL))


def write_picture(path: Path, seed: int, width: int, height: int) -> None:
    """Seeded noise over a seeded colour, in the format of the suffix."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, 3) * 0.6 + rng.integers(0, 100, (height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_pictures(root: Path) -> Path:
    """ROOT/{train,val}/{ant,bee,cat}/ with six PNGs and JPEGs each, of odd sizes around 40x50, and classes.json."""
    for s, split in enumerate(("train", "val")):
        for f, folder in enumerate(CLASS_IDS):
            (root / split / folder).mkdir(parents=True)
            for i in range(PICTURES):
                name = f"{i}.{'png' if i % 2 else 'jpg'}"
                write_picture(root / split / folder / name, 100 * s + 10 * f + i, 50 - i, 39 + 2 * i)
    (root / "classes.json").write_text(json.dumps(CLASS_IDS))
    return root


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`write_pictures` once; don't write into it."""
    return write_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """`write_pictures` for one test, to be spoiled."""
    return write_pictures(tmp_path / "data")


@pytest.fixture(scope="session")
def make_bank(tiny_classifier: FrozenClassifier) -> Callable[..., OccluderBank]:
    """Build a bank that fits `tiny_classifier` and `tiny_data`; keywords change its header, or are occluders."""

    def make(**changes: Any) -> OccluderBank:
        size = tiny_classifier.preprocessing.input_size
        # seed 1: seed 0 begins with the noise row of an evaluation
        signs = torch.randint(0, 2, (len(CLASS_IDS), size, size, 3), generator=torch.Generator().manual_seed(1))
        tensors = {"occluders": (signs * 2 - 1) * 8.0}
        tensors |= {name: changes.pop(name) for name in ("occluders", "fitted", "held_out") if name in changes}
        header: dict[str, Any] = {
            "model": tiny_classifier.model,
            "weights": tiny_classifier.weights,
            "weights_hash": tiny_classifier.weights_hash,
            "preprocessing": tiny_classifier.preprocessing,
            "epsilon": 8.0,
            "norm": "linf",
            "class_ids": tuple(CLASS_IDS.values()),
            "folders": tuple(CLASS_IDS),
        }
        return OccluderBank(header=BankHeader(**(header | changes)), **tensors)

    return make


@pytest.fixture(scope="session")
def tiny_bank(make_bank: Callable[..., OccluderBank], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a random ±8 bank; don't write to it."""
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    make_bank().save(path)
    return path


@pytest.fixture(scope="session")
def int8_classifier(tiny_classifier: FrozenClassifier, make_bank: Callable[..., OccluderBank]) -> FrozenClassifier:
    """`tiny_classifier` with its int8 form, calibrated on noise."""
    pytest.importorskip("nncf")
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return quantise(tiny_classifier, Calibration.draw(images, make_bank().occluders, "noise", 0))


@pytest.fixture(scope="session")
def run_record() -> Run:
    """What a run is, to be changed with `replace`."""
    return Run(
        gfo_version="0.1.0",
        model="m",
        num_classes=10,
        weights="w.pth",
        weights_hash="sha256:w",
        bank="bank.safetensors",
        bank_hash="sha256:b",
        epsilon=8.0,
        norm="linf",
        split="val",
        engine="torch",
        device="cpu",
        precision="fp32",
        loader="pillow",
        seed=0,
        data_root="/data",
        preprocessing=Preprocessing(12, 12),
        class_ids=(0,),
        class_names={"0": "name 0"},
        folders={"0": "f0"},
        pictures="all",
        per_class=None,
    )
