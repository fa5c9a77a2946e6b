"""Training against a plain loop written from the paper, and what a user may rely on: seeds, resuming, refusals."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gfo.engine.data.spec import DataSpec
from gfo.engine.progress import Silent, no_progress
from gfo.engine.training import groups as training
from gfo.engine.training.batches import ClassPictures
from gfo.engine.training.config import TrainConfig, split_pictures
from gfo.engine.training.objectives.pure import Pure
from gfo.engine.training.optimizers import OPTIMIZERS
from gfo.engine.training.train import train
from gfo.export.bank import OccluderBank, picture_key
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing
from gfo.export.records import save_record

SIZE, FOLDERS, PICTURES = 12, ("ant", "bee", "cat"), 6
PREPROCESSING = Preprocessing(SIZE, SIZE, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
KAPPA = 5.0
CONFIG = TrainConfig(
    epsilon=6.0,
    epochs=3,
    batch_size=6,
    classes_together=2,
    objective_options={"kappa": KAPPA},
    precision="fp32",
)
Killed = Callable[..., AbstractContextManager[None]]
EVERY_OPTIMIZER = pytest.mark.parametrize("optimizer", OPTIMIZERS.names)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(72, 4)
        )


@pytest.fixture(scope="module")
def classifier() -> FrozenClassifier:
    return FrozenClassifier.from_module(network(), PREPROCESSING)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for folder in FOLDERS:
        (root / "train" / folder).mkdir(parents=True)
        for i in range(PICTURES):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / folder / f"{i}.png")
    (root / "classes.json").write_text('{"ant": 0, "bee": 3, "cat": 1}')
    return root


def plain_loop(root: Path, folder: str, label: int, config: TrainConfig) -> Tensor:
    """One class, as the paper has it: float64, autograd through the whole formula, whole-class order from the seed."""
    model = network().double()
    files = sorted((root / "train" / folder).iterdir())
    images = torch.stack([torch.from_numpy(np.array(Image.open(f))) for f in files]).double()
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    d = torch.zeros(SIZE, SIZE, 3, dtype=torch.float64)
    v, s = torch.zeros_like(d), torch.zeros_like(d)
    share = config.batch_size // config.classes_together
    per_epoch = math.ceil(len(images) / share)
    for step in range(config.epochs * per_epoch):
        epoch, batch = divmod(step, per_epoch)
        g = torch.Generator().manual_seed(config.seed * 1_000_003 + label * 1009 + epoch)
        order = torch.cat([torch.randperm(len(images), generator=g) for _ in range(2)])
        x = images[order[batch * share : (batch + 1) * share]]
        d.requires_grad_(True)
        inputs = ((x + d).clamp(0, 255) / 255 - mean) / std
        logits = model(inputs.permute(0, 3, 1, 2))
        others = logits.clone()
        others[:, label] = -math.inf
        loss = (logits[:, label] - others.amax(1)).clamp(min=-KAPPA).sum()
        (gradient,) = torch.autograd.grad(loss, d)
        if config.optimizer == "adam":
            v = config.momentum * v + (1 - config.momentum) * gradient
            s = 0.999 * s + 0.001 * gradient**2
            m = v / (1 - config.momentum ** (step + 1))
            update = m / ((s / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        else:
            v = config.momentum * v + gradient / gradient.abs().mean()
            update = v.sign()
        alpha = config.step * config.epsilon * 0.5 * (1 + math.cos(math.pi * step / (config.epochs * per_epoch)))
        d = (d.detach() - alpha * update).clamp(-config.epsilon, config.epsilon)
    return d


def assert_trained_alike(one: Tensor, other: Tensor, optimizer: str) -> None:
    """Equal but where a gradient is next to 0: there rounding decides the sign of a whole step with momentum.

    Adam divides by the gradient's size, so that an error δ of a gradient g moves a pixel by about δ / |g| of a step: a
    few in a hundred by more than a hundredth, and most by far less.
    """
    tolerance, share = (1e-4, 0.99) if optimizer == "momentum" else (1e-2, 0.95)
    assert torch.isclose(one, other, rtol=0, atol=tolerance).double().mean() > share


@EVERY_OPTIMIZER
def test_equals_the_plain_loop(optimizer: str, classifier: FrozenClassifier, pictures: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    bank = train(classifier, DataSpec(pictures, classes="ant,bee"), tmp_path / "bank.safetensors", config)
    assert bank.class_ids == (0, 3)
    for row, (folder, label) in enumerate((("ant", 0), ("bee", 3))):
        wanted = plain_loop(pictures, folder, label, config)
        # (Random pixels hold few exact 0 and 255, where the two clamps differ by design.)
        assert_trained_alike(bank.occluders[row].double(), wanted, optimizer)
    assert bank.occluders.abs().max() <= CONFIG.epsilon


def test_it_takes_the_evidence_away(classifier: FrozenClassifier, pictures: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, epsilon=40.0, epochs=20, norm="linf")
    bank = train(classifier, DataSpec(pictures), tmp_path / "bank.safetensors", config)
    for row, folder in enumerate(bank.header.folders):
        files = sorted((pictures / "train" / folder).iterdir())
        x = torch.stack([torch.from_numpy(PREPROCESSING.load_uint8(f).copy()) for f in files]).float()
        mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)

        @torch.no_grad()
        def margin(pixels: Tensor, label: int = bank.class_ids[row], mean: Tensor = mean, std: Tensor = std) -> float:
            logits = network()(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
            others = [j for j in range(4) if j != label]
            return float((logits[:, label] - logits[:, others].amax(1)).mean())

        noise = torch.randint(0, 2, x.shape[1:], generator=torch.Generator().manual_seed(0)) * 80.0 - 40.0
        occluded = margin((x + bank.occluders[row]).clamp(0, 255))
        assert occluded < margin(x) - 0.2
        assert occluded < margin((x + noise).clamp(0, 255)) - 0.2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path, norm: str
) -> None:
    config = replace(CONFIG, norm=norm, epsilon=6.0 if norm == "linf" else 60.0)
    banks = [
        train(classifier, DataSpec(pictures), tmp_path / f"{i}.safetensors", replace(config, seed=seed))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(banks[0].occluders, banks[1].occluders)
    assert not torch.equal(banks[0].occluders, banks[2].occluders)
    assert banks[0].hash == banks[1].hash != banks[2].hash


@EVERY_OPTIMIZER
@pytest.mark.parametrize("steps", [1, 5, 6, 7, 10])
def test_a_stopped_run_resumes_to_the_same_bytes(
    classifier: FrozenClassifier,
    pictures: Path,
    tmp_path: Path,
    killed_after: Killed,
    steps: int,
    optimizer: str,
) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    whole, out = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    train(classifier, DataSpec(pictures), whole, config)
    with killed_after(steps):
        train(classifier, DataSpec(pictures), out, config)
    assert not out.exists()
    config = replace(config, precision="auto")  # keeps the precision that it was started with
    train(classifier, DataSpec(pictures), out, config)
    assert out.read_bytes() == whole.read_bytes()
    assert not out.with_name(out.name + ".parts").exists()


def test_what_was_begun_before_there_was_a_choice_of_optimizer_goes_on_with_momentum(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path, killed_after: Killed
) -> None:
    out, adam = tmp_path / "bank.safetensors", replace(CONFIG, optimizer="adam")
    whole = train(classifier, DataSpec(pictures), tmp_path / "whole.safetensors", CONFIG)
    with killed_after(5):
        train(classifier, DataSpec(pictures), out, CONFIG)
    begun = tmp_path / "bank.safetensors.parts" / "config.json"
    stored = json.loads(begun.read_text())
    del stored["header"]["objective"]["optimizer"]
    del stored["sha256"]
    begun.write_text(json.dumps(stored))
    with pytest.raises(InputError, match="optimizer momentum, not adam"):
        train(classifier, DataSpec(pictures), out, adam)
    bank = train(classifier, DataSpec(pictures), out, CONFIG)
    assert bank.hash == whole.hash

    objective = {key: value for key, value in bank.header.objective.items() if key != "optimizer"}
    old = replace(bank, header=replace(bank.header, objective=objective))
    old.save(out)
    with pytest.raises(InputError, match="optimizer momentum, not adam"):
        train(classifier, DataSpec(pictures), out, adam)
    assert train(classifier, DataSpec(pictures), out, CONFIG).hash == old.hash


@pytest.mark.parametrize("lost", ["header", "precision", "fitted", "held_out"])
def test_a_damaged_record_of_what_was_begun_is_named(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path, killed_after: Killed, lost: str
) -> None:
    with killed_after(1):
        train(classifier, DataSpec(pictures), tmp_path / "bank.st", CONFIG)
    begun = tmp_path / "bank.st.parts" / "config.json"
    stored = {k: v for k, v in json.loads(begun.read_text()).items() if k not in (lost, "sha256")}
    save_record(begun, stored)
    with pytest.raises(InputError, match=f"config.json: {lost}: Field required; remove .*bank.st.parts to start over"):
        train(classifier, DataSpec(pictures), tmp_path / "bank.st", CONFIG)


def spoiled_pictures(parts: Path, data: Path) -> str:
    Image.new("RGB", (SIZE, SIZE)).save(data / "train" / "ant" / "2.png")
    return "0.safetensors: removed (pictures have changed since); its classes are trained again"


def spoiled_epoch(parts: Path, data: Path) -> str:
    """Of pictures that have changed, although the class in work has none finished."""
    Image.new("RGB", (SIZE, SIZE)).save(data / "train" / "cat" / "0.png")
    return "epoch-1.safetensors: removed (pictures have changed since); its classes are trained again"


def swapped_parts(parts: Path, data: Path) -> str:
    shutil.copy(parts / "3.safetensors", parts / "0.safetensors")
    return "0.safetensors: removed (of another training or class); its classes are trained again"


def damaged_part(parts: Path, data: Path) -> str:
    content = bytearray((parts / "3.safetensors").read_bytes())
    content[-5] ^= 1
    (parts / "3.safetensors").write_bytes(content)
    return "3.safetensors: removed (its checksum does not match); its classes are trained again"


@pytest.mark.parametrize("spoil", [spoiled_pictures, spoiled_epoch, swapped_parts, damaged_part])
def test_what_no_longer_belongs_to_a_checkpoint_is_made_again(
    classifier: FrozenClassifier,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_after: Killed,
    spoil: Callable[[Path, Path], str],
) -> None:
    data, out, said = shutil.copytree(pictures, tmp_path / "data"), tmp_path / "bank.st", list[str]()
    monkeypatch.setattr(type(no_progress), "say", lambda _, line: said.append(line))
    with killed_after(8):  # the first two classes are done after 6 steps
        train(classifier, DataSpec(data), out, CONFIG)
    named = spoil(tmp_path / "bank.st.parts", data)
    train(classifier, DataSpec(data), out, CONFIG)
    assert f"{tmp_path / 'bank.st.parts'}/{named}" in said
    train(classifier, DataSpec(data), tmp_path / "whole.st", CONFIG)
    assert out.read_bytes() == (tmp_path / "whole.st").read_bytes()


def test_parts_without_the_record_of_what_was_begun_are_of_another_training(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path, killed_after: Killed
) -> None:
    out, other = tmp_path / "bank.st", replace(CONFIG, seed=4)
    with killed_after(8):
        train(classifier, DataSpec(pictures), out, CONFIG)
    (tmp_path / "bank.st.parts" / "config.json").unlink()
    train(classifier, DataSpec(pictures), out, other)
    train(classifier, DataSpec(pictures), tmp_path / "whole.st", other)
    assert out.read_bytes() == (tmp_path / "whole.st").read_bytes()


def test_finished_classes_are_not_trained_again(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bank.safetensors"
    first = train(classifier, DataSpec(pictures), out, CONFIG)

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "_train_group", fail)
    assert train(classifier, DataSpec(pictures), out, CONFIG).hash == first.hash


def test_pictures_are_split_and_remembered(classifier: FrozenClassifier, pictures: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, held_out=2, pictures_per_class=3, epochs=1)
    bank = train(classifier, DataSpec(pictures), tmp_path / "bank.safetensors", config)
    loaded = OccluderBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(loaded.fitted, bank.fitted)
    assert len(bank.fitted) == 3 * len(FOLDERS)
    assert len(bank.held_out) == 2 * len(FOLDERS)
    keys = {picture_key(f"train/{folder}/{i}.png") for folder in FOLDERS for i in range(PICTURES)}
    assert {*bank.fitted.tolist(), *bank.held_out.tolist()} <= keys
    assert not {*bank.fitted.tolist()} & {*bank.held_out.tolist()}
    with pytest.raises(InputError, match="--held-out 6"):
        split_pictures([f"train/ant/{i}.png" for i in range(6)], 0, replace(CONFIG, held_out=6))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon": 7.0}, "epsilon 6.0, not 7.0"),
        ({"objective_options": {"kappa": 1.0}}, "kappa 5.0, not 1.0"),
        ({"optimizer": "adam"}, "optimizer momentum, not adam"),
        ({"seed": 4}, "seed 0, not 4"),
    ],
)
def test_another_configuration_is_refused_by_name(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    out = tmp_path / "bank.safetensors"
    before = train(classifier, DataSpec(pictures), out, replace(CONFIG, epochs=1))
    with pytest.raises(InputError, match=named):
        train(classifier, DataSpec(pictures), out, replace(CONFIG, epochs=1, **change))
    assert OccluderBank.load(out).hash == before.hash


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_stop_the_training(pictures: Path, tmp_path: Path, broken: float) -> None:
    """The sign of NaN is 0 and a NaN logit looks fooled: unnoticed, a bank of zeros would report success."""
    frozen = FrozenClassifier.from_module(network(), PREPROCESSING)
    with torch.no_grad():
        frozen.network[5].bias[2] = broken  # type: ignore[index]
    with pytest.raises(InputError, match="not finite; check the weights"):
        train(frozen, DataSpec(pictures), tmp_path / "bank.safetensors", CONFIG)
    assert not (tmp_path / "bank.safetensors").exists()


def test_a_finished_bank_of_another_precision_is_refused(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bank.safetensors"
    config = replace(CONFIG, epochs=1, precision="bf16")
    bank = train(classifier, DataSpec(pictures), out, config)
    assert bank.header.objective["precision"] == "bf16"
    assert bank.header.objective["device"] == "cpu"
    with pytest.raises(InputError, match="precision bf16, not fp32"):
        train(classifier, DataSpec(pictures), out, replace(config, precision="fp32"))
    assert train(classifier, DataSpec(pictures), out, replace(config, precision="auto")).hash == bank.hash


def test_an_occluder_depends_on_its_own_class_alone(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path
) -> None:
    every = train(classifier, DataSpec(pictures), tmp_path / "all.st", CONFIG)
    pairs = train(classifier, DataSpec(pictures, classes="bee,cat"), tmp_path / "pair.st", CONFIG)
    for class_id in pairs.class_ids:
        one = every.occluders[every.class_ids.index(class_id)]
        other = pairs.occluders[pairs.class_ids.index(class_id)]
        # Other company in a batch may round otherwise; see above.
        assert torch.isclose(one, other, rtol=0, atol=1e-4).float().mean() > 0.99


def test_batches_are_never_larger_than_asked(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sizes = Pure.loss, []

    def watch(objective: Pure, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        sizes.append(len(logits))
        return original(objective, logits, labels, impl=impl)

    monkeypatch.setattr(Pure, "loss", watch)
    config = replace(CONFIG, batch_size=2, classes_together=3, epochs=1)
    train(classifier, DataSpec(pictures), tmp_path / "bank.safetensors", config)
    assert max(sizes) == 2


def test_classes_in_work_are_all_that_is_in_memory(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sizes = training._train_group, []

    def watch(run: Any, work: list[ClassPictures], *rest: Any) -> None:
        sizes.append([c.folder.folder for c in work])
        original(run, work, *rest)

    monkeypatch.setattr(training, "_train_group", watch)
    train(classifier, DataSpec(pictures), tmp_path / "bank.safetensors", CONFIG, no_progress)
    assert sizes == [["ant", "bee"], ["cat"]]


@EVERY_OPTIMIZER
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_references_and_kernels_train_the_same_occluders(
    norm: str, optimizer: str, classifier: FrozenClassifier, pictures: Path, tmp_path: Path
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    epsilon = 8.0 if norm == "linf" else 80.0
    config = replace(CONFIG, epochs=2, norm=norm, epsilon=epsilon, optimizer=optimizer, device=device)
    first, second = (
        train(classifier, DataSpec(pictures), tmp_path / f"{impl}.st", replace(config, impl=impl)).occluders
        for impl in ("reference", "triton")
    )
    assert first.abs().max() > 1
    assert_trained_alike(first, second, optimizer)


class _Lines(Silent):
    """A progress that keeps its lines."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def test_it_says_once_which_implementation_runs_and_why(
    classifier: FrozenClassifier, pictures: Path, tmp_path: Path
) -> None:
    for impl, said in (
        ("auto", "kernels reference: the kernels require CUDA, the device is cpu"),
        ("reference", "as requested"),
    ):
        lines, config = _Lines(), replace(CONFIG, epochs=1, device="cpu", impl=impl)
        bank = train(classifier, DataSpec(pictures), tmp_path / f"{impl}.st", config, lines)
        assert [said in line for line in lines.said].count(True) == 1
        assert "impl" not in bank.header.objective


@pytest.mark.parametrize("together", [1, 3])
def test_it_says_once_that_the_model_recognises_none_of_the_first_pictures(
    together: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a class map that is off by one: the first step of each group has occluders of zeros."""
    monkeypatch.setattr("gfo.engine.doubts._ENOUGH", 8)

    class Sure(nn.Module):
        def __init__(self, *answers: int) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(12).index_fill_(0, torch.tensor(answers), 5.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits + 0.01 * x.flatten(1)[:, :12]

    for answer, said in ((7, 1), (0, 0)):  # no class, one of three classes
        frozen, lines = FrozenClassifier.from_module(Sure(answer), PREPROCESSING), _Lines()
        config = replace(CONFIG, batch_size=9, classes_together=together, epochs=2)
        train(frozen, DataSpec(pictures), tmp_path / f"{answer}.st", config, lines)
        assert ["clean accuracy is 0.0000, chance is 0.0833" in line for line in lines.said].count(True) == said


def test_an_operation_without_the_precision_leaves_nothing_and_auto_goes_without_it(
    pictures: Path, tmp_path: Path
) -> None:
    class Normalised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.local_response_norm(x.repeat(1, 2, 1, 1), 2).mean(dim=(2, 3))

    frozen = FrozenClassifier.from_module(Normalised(), PREPROCESSING, model="mine")
    config, out = replace(CONFIG, epochs=1, device="cpu"), tmp_path / "bank.st"
    for precision in ("bf16", "fp16"):
        with pytest.raises(InputError, match=f"mine: fails at {precision} on cpu .* in local_response_norm.* fp32$"):
            train(frozen, DataSpec(pictures), out, replace(config, precision=precision))
    lines = _Lines()
    bank = train(frozen, DataSpec(pictures), out, replace(config, precision="auto"), lines)  # nothing was begun
    assert bank.header.objective["precision"] == "fp32"
    assert any("precision fp32: " in line and "; not bf16: mine: fails at bf16" in line for line in lines.said)


def test_a_module_that_the_precision_lacks_is_trained_through_in_float32_and_named(
    pictures: Path, tmp_path: Path
) -> None:
    class Subclassed(nn.LocalResponseNorm):
        """Not rewritten as a convolution, so that bf16 lacks it."""

    convolution = nn.Conv2d(3, 4, 3, padding=1)
    network = nn.Sequential(convolution, Subclassed(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    frozen = FrozenClassifier.from_module(network, PREPROCESSING, model="mine")
    config, lines, measured = replace(CONFIG, epochs=1, device="cpu"), _Lines(), _Lines()
    bank = train(frozen, DataSpec(pictures), tmp_path / "bank.st", replace(config, precision="bf16"), lines)
    named = [line for line in lines.said if line.startswith("in float32, as bf16 fails on cpu: Subclassed 1 (")]
    assert len(named) == 1
    assert bank.header.objective["precision"] == "bf16"
    assert all(bool(occluder.any()) for occluder in bank.occluders)
    train(frozen, DataSpec(pictures), tmp_path / "auto.st", replace(config, precision="auto"), measured)
    assert any(re.match(r"precision .*fp32 \d+ ms, bf16 \d+ ms per step$", line) for line in measured.said)


def test_a_network_that_cannot_be_differentiated_is_one_line(pictures: Path, tmp_path: Path) -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :4]

    frozen = FrozenClassifier.from_module(Detached(), PREPROCESSING, model="mine")
    for precision in ("auto", "fp32"):
        with pytest.raises(InputError, match=r"mine: fails at fp32 on .* for training be differentiable$"):
            train(frozen, DataSpec(pictures), tmp_path / "bank.st", replace(CONFIG, precision=precision))


@pytest.mark.parametrize(("impl", "word"), [("cuda", "--impl cuda: impl: expected one of"), ("", "--impl ")])
def test_an_unknown_implementation_is_bad_input(
    impl: str, word: str, classifier: FrozenClassifier, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=word):
        train(classifier, DataSpec(pictures), tmp_path / "bank.st", replace(CONFIG, impl=impl))
