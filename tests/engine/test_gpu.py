"""What only a GPU can show: the torch engine and training on CUDA agree with the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gfo.engine import EngineChoice, EvaluationConfig, evaluate
from gfo.engine.data import LOADERS
from gfo.engine.data.folders import ClassFolder
from gfo.engine.data.spec import DataSpec
from gfo.engine.devices import deterministic
from gfo.engine.engines import ENGINES
from gfo.engine.engines.torch import TorchEngine
from gfo.engine.evaluation.store import RunStore
from gfo.engine.training.batches import Batches, ClassPictures, Fitted, Pool
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.descent import first_descent
from gfo.engine.training.preserve import PreserveConfig
from gfo.engine.training.train import train
from gfo.export.bank import OccluderBank
from gfo.export.bank_header import BankHeader
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import EngineUnavailable
from gfo.export.preprocessing import Preprocessing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]

SIZE = 32


def classifier() -> FrozenClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 256, 10)
        )
    return FrozenClassifier.from_module(network, Preprocessing(SIZE, SIZE))


def available_engines() -> set[str]:
    """Names of the engines that run on this GPU."""
    found = set()
    for engine in ENGINES.classes():
        with contextlib.suppress(EngineUnavailable):
            engine.precisions("cuda")
            found.add(engine.name)
    return found


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("fp16", 2e-2), ("bf16", 1e-1)])
def test_logits_agree_with_the_cpu(precision: str, tolerance: float) -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8, generator=g)
    bank = torch.randn(3, SIZE, SIZE, 3, generator=g) * 10
    image_index, occluder_index = torch.arange(5).repeat(4), torch.arange(4).repeat_interleave(5)
    logits = []
    for device, p in (("cpu", "fp32"), ("cuda", precision)):
        with TorchEngine(classifier(), p, device) as engine:
            engine.load_bank(bank)
            logits.append(engine.infer(images, image_index, occluder_index).cpu())
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("loader", ["pillow", "dali"])
@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "trt"])
def test_an_evaluation_agrees_with_the_cpus(engine: str, loader: str, tmp_path: Path) -> None:
    if engine not in available_engines() or not LOADERS[loader].installed():
        pytest.skip("not installed, or does not start here")
    rng, pictures = np.random.default_rng(0), tmp_path / "pictures"
    for folder in ("a", "b"):
        (pictures / "val" / folder).mkdir(parents=True)
        for i in range(300):  # blocks of 256
            pixels = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
            Image.fromarray(pixels).save(pictures / "val" / folder / f"{i}.jpg", quality=95)
    (pictures / "classes.json").write_text('{"a": 0, "b": 1}')
    model = classifier()
    header = BankHeader(
        model=model.model,
        weights=model.weights,
        weights_hash=model.weights_hash,
        preprocessing=model.preprocessing,
        epsilon=30.0,
        norm="linf",
        class_ids=(0, 1),
        folders=("a", "b"),
        objective={},
    )
    occluders = (torch.rand(2, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 30
    bank = OccluderBank(occluders, header)
    found = []
    for name, device, how in (("torch", "cpu", "pillow"), (engine, "cuda", loader)):
        config = EvaluationConfig(EngineChoice(name, "fp32", device))
        summary = evaluate(model, bank, DataSpec(pictures, loader=how), tmp_path / device, config)
        assert summary.complete
        found.append(RunStore.open(tmp_path / device).predictions(0, 600))
    assert (found[0] == found[1]).mean() > 0.97  # a GPU decodes a few pixels otherwise


def test_training_runs_and_repeats_on_cuda(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("a", "b"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / folder / f"{i}.png")
    (tmp_path / "classes.json").write_text('{"a": 0, "b": 1}')
    config = TrainConfig(epsilon=8.0, epochs=2, batch_size=8, classes_together=2, precision="fp32")
    cpu, first, second = (
        train(classifier(), DataSpec(tmp_path), tmp_path / f"{i}.st", replace(config, device=device)).occluders
        for i, device in enumerate(("cpu", "cuda", "cuda"))
    )
    assert torch.equal(first, second)
    same = torch.isclose(cpu, first, rtol=0, atol=1e-3)
    assert same.float().mean() > 0.95  # sign steps turn rounding into whole steps where the momentum is next to 0


@pytest.fixture
def waits_are_errors() -> Iterator[Callable[[], None]]:
    """Yield what makes PyTorch raise for a call that waits for the GPU, until the test is over."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("objective", ["pure", "specific"])
def test_an_epoch_waits_for_nothing(objective: str, waits_are_errors: Callable[[], None]) -> None:
    """From the second batch on; how the steps went is read in the end."""
    device = torch.device("cuda")
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 12, SIZE, SIZE, 3), dtype=torch.uint8, generator=g)
    work = [
        Fitted([ClassPictures(ClassFolder(f"f{i}", i, ()), pictures)], i + 1, device)
        for i, pictures in enumerate(images)
    ]
    preserve = PreserveConfig(("classes",)) if objective == "specific" else None
    config = TrainConfig(
        8.0, precision="bf16", batch_size=8, classes_together=2, objective=objective, preserve=preserve, pass_size=3
    )
    pool = Pool(images[0].to(device), torch.full((12,), 5, device=device), torch.randn(12, 10, device=device))
    batches = Batches(2, 6, 2) if preserve else Batches(4, 3)
    step = first_descent(classifier(), config, device, 2)
    step.behind = 100
    with deterministic(device):
        for count, batch in enumerate(batches.of(work, 0, 0, pool if preserve else None), start=1):
            step(batch, 0.1, count)
            waits_are_errors()
    assert all(taken.wrong is not None for taken in step.finish())
