"""Populations with answers, drawn from a logistic model or hostile to an estimator, and hundreds of real pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gfo.engine.data.spec import DataSpec
from gfo.engine.engines.choice import EngineChoice
from gfo.engine.evaluation.config import EvaluationConfig
from gfo.engine.evaluation.evaluate import evaluate
from gfo.engine.evaluation.summary import Summary
from gfo.engine.sampling.strata import Population
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.preprocessing import Preprocessing

COUNTS = {"ant": 330, "bee": 240, "cat": 280}
Made = tuple[Population, np.ndarray]


@pytest.fixture(scope="session")
def made() -> Callable[..., Made]:
    """Build a population and its answers, bool [N, K]: `made(sizes, matched, unmatched, seed)`.

    `sizes` are the pictures of each class; the others shift the logit under an occluder of the own class, and of
    another one. The clean margin tells much of both.
    """

    def made(sizes: list[int], matched: float = -3.0, unmatched: float = -1.0, seed: int = 0) -> Made:
        generator, rows = np.random.default_rng(seed), len(sizes)
        own = np.repeat(np.arange(rows), sizes)
        margin = generator.normal(1.5, 2.0, len(own)) + generator.normal(0, 0.5, rows)[own]
        shifts = np.where(np.eye(rows, dtype=bool)[own], matched, unmatched + generator.normal(0, 0.5, rows))
        right = margin[:, None] + shifts + generator.logistic(0, 1, (len(own), rows)) > 0
        return Population(np.arange(len(own)) * 2, own, margin > 0, margin, rows), right

    return made


@pytest.fixture(scope="session")
def config() -> EvaluationConfig:
    return EvaluationConfig(EngineChoice("torch"), batch_size=32)


@pytest.fixture(scope="session")
def bank(make_bank: Callable[..., OccluderBank]) -> OccluderBank:
    """Occluders that change answers, of the classes that the network tells apart."""
    made = make_bank(class_ids=(2, 1, 3), epsilon=32.0)
    return replace(made, occluders=made.occluders * 4)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_classifier: FrozenClassifier, bank: OccluderBank) -> DataSpec:
    """Pictures of random colours, three of four with the label that the network gives them; one is no picture."""
    root, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    classes = dict(zip(bank.header.folders, bank.class_ids, strict=True))
    left = dict(COUNTS)
    for folder in COUNTS:
        (root / "val" / folder).mkdir(parents=True)
    while any(left.values()):
        pixels = (rng.integers(0, 256, 3) * 0.9 + rng.integers(0, 25, (18, 18, 3))).astype(np.uint8)
        seen = int(tiny_classifier.network(normalised(pixels, tiny_classifier.preprocessing)).argmax())
        alike = [folder for folder, class_id in classes.items() if class_id == seen and rng.random() < 0.75]
        folder = alike[0] if alike else str(rng.choice(list(classes)))
        if left[folder]:
            left[folder] -= 1
            Image.fromarray(pixels).save(root / "val" / folder / f"{left[folder]:03d}.png")
    (root / "val" / "bee" / "999.png").write_bytes(b"no picture")
    (root / "classes.json").write_text(json.dumps(classes))
    return DataSpec(root)


def normalised(pixels: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """Crop a picture of 18 × 18 and normalise it, float32 [1, 3, 16, 16]."""
    x = torch.from_numpy(pixels[1:17, 1:17]).float() / 255
    return ((x - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)).permute(2, 0, 1)[None]


@pytest.fixture(scope="session")
def full(
    tiny_classifier: FrozenClassifier,
    bank: OccluderBank,
    data: DataSpec,
    config: EvaluationConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Summary]:
    """All pairs in fp32."""
    out = tmp_path_factory.mktemp("full") / "run"
    return out, evaluate(tiny_classifier, bank, data, out, config)
