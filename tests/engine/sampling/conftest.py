"""Populations with answers, drawn from a logistic model or hostile to an estimator, and hundreds of real pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gfo.engine.data.spec import DataSpec
from gfo.engine.engines.choice import EngineChoice
from gfo.engine.evaluation.config import EvaluationConfig
from gfo.engine.evaluation.evaluate import evaluate
from gfo.engine.evaluation.summary import Summary
from gfo.engine.sampling.strata import Population
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier

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
def data(tmp_path_factory: pytest.TempPathFactory, bank: OccluderBank) -> DataSpec:
    """Pictures of random colours, and one file that is no picture."""
    root, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for folder, count in COUNTS.items():
        (root / "val" / folder).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, 3) * 0.6 + rng.integers(0, 100, (18, 18, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / "val" / folder / f"{i:03d}.png")
    (root / "val" / "bee" / "999.png").write_bytes(b"no picture")
    classes = dict(zip(bank.header.folders, bank.class_ids, strict=True))
    (root / "classes.json").write_text(json.dumps(classes))
    return DataSpec(root)


@pytest.fixture(scope="session")
def bank(make_bank: Callable[..., OccluderBank]) -> OccluderBank:
    """Occluders that change answers."""
    made = make_bank()
    return replace(made, occluders=made.occluders * 4, header=replace(made.header, epsilon=32.0))


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
