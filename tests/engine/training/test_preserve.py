"""Objectives that spare other classes, against plain loops and formulas; which pictures they may meet."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from gfo.engine.data.spec import DataSpec
from gfo.engine.progress import no_progress
from gfo.engine.training.batches import Batch, Batches, ClassPictures, Fitted, Pool
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.objectives import OBJECTIVES
from gfo.engine.training.objectives.preserving import margin
from gfo.engine.training.preserve import PreserveConfig
from gfo.engine.training.train import train
from gfo.export.bank import OccluderBank, picture_key
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing

SIZE, OUTPUTS, PICTURES, KAPPA = 8, 5, 5, 2.0
PREPROCESSING = Preprocessing(SIZE, SIZE, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
Killed = Callable[..., AbstractContextManager[None]]
CLASSES = {"ant": 0, "bee": 3, "cat": 1, "dog": 4}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(96, OUTPUTS))


@pytest.fixture(scope="module")
def classifier() -> FrozenClassifier:
    return FrozenClassifier.from_module(network(), PREPROCESSING)


def write_classes(root: Path, folders: tuple[str, ...], seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for folder in folders:
        (root / "train" / folder).mkdir(parents=True)
        for i in range(PICTURES):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / folder / f"{folder}{seed}{i}.png")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data"), tuple(CLASSES), 0)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("others"), ("bee", "cat", "dog"), 1)


def config(objective: str = "specific", preserve: PreserveConfig | None = None, **changes: Any) -> TrainConfig:
    options = {"kappa": KAPPA, **changes.pop("options", {})}
    base = TrainConfig(epsilon=6.0, epochs=3, batch_size=8, classes_together=2, precision="fp32")
    return replace(base, objective=objective, objective_options=options, preserve=preserve, **changes)


def pixels(paths: list[Path]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths]).double()


def answer(images: Tensor, occluder: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    return network().double()((((images + occluder).clamp(0, 255) / 255 - mean) / std).permute(0, 3, 1, 2))


def free_margin(logits: Tensor, label: int) -> Tensor:
    others = logits.clone()
    others[:, label] = -math.inf
    return logits[:, label] - others.amax(1)


def own_margin(logits: Tensor, label: int) -> Tensor:
    return free_margin(logits, label).clamp(min=-KAPPA)


def kept_loss(logits: Tensor, clean: Tensor, keep: str) -> Tensor:
    best = clean.argmax(1)
    rows = torch.arange(len(best))
    if keep == "cross-entropy":
        return logits.logsumexp(1) - logits[rows, best]
    if keep == "kl":
        p = clean.softmax(1)
        return (p * (p.log() - logits.softmax(1).log())).sum(1)
    return torch.stack(
        [(-free_margin(z[None], int(b))).clamp(min=-KAPPA)[0] for z, b in zip(logits, best, strict=True)]
    )


def plain_loop(data: Path, others: Path, weight: float, keep: str, share: tuple[int, int]) -> Tensor:
    """The class `ant` in float64: `share` pictures of its own and of bee and cat in a step, all of theirs kept."""
    folder, label, (own_share, kept_share) = "ant", CLASSES["ant"], share
    own = pixels(sorted((data / "train" / folder).iterdir()))
    pool = pixels([path for name in ("bee", "cat") for path in sorted((others / "train" / name).iterdir())])
    zero = torch.zeros(SIZE, SIZE, 3, dtype=torch.float64)
    clean = answer(pool, zero)
    classes = torch.tensor([CLASSES[name] for name in ("bee", "cat") for _ in range(PICTURES)])
    allowed = [i for i in range(len(pool)) if classes[i] != label and clean[i].argmax() != label]
    rounds, taken = math.ceil(PICTURES / own_share), list[int]()
    for number in range(100):
        taken += [allowed[i] for i in np.random.default_rng([0, label, number]).permutation(len(allowed))]
    d, v = zero, zero
    for step in range(3 * rounds):
        epoch, batch = divmod(step, rounds)
        g = torch.Generator().manual_seed(label * 1009 + epoch)
        order = torch.cat([torch.randperm(PICTURES, generator=g) for _ in range(2)])
        d = d.detach().requires_grad_(True)
        x = own[order[batch * own_share : (batch + 1) * own_share]]
        kept = taken[step * kept_share : (step + 1) * kept_share]
        loss = own_margin(answer(x, d), label).sum() / own_share
        loss = loss + weight * kept_loss(answer(pool[kept], d), clean[kept], keep).sum() / kept_share
        (gradient,) = torch.autograd.grad(loss, d)
        v = 0.9 * v + gradient / gradient.abs().mean()
        alpha = 0.1 * 6.0 * 0.5 * (1 + math.cos(math.pi * step / (3 * rounds)))
        d = (d.detach() - alpha * v.sign()).clamp(-6, 6)
    return d


@pytest.mark.parametrize(
    ("keep", "weight", "share", "counts"),
    [
        ("cross-entropy", 1.0, 0.5, (2, 2)),
        ("cross-entropy", 3.0, 0.75, (1, 3)),
        ("kl", 2.0, 0.5, (2, 2)),
        ("margin", 1.0, 0.25, (3, 1)),
    ],
)
def test_specific_equals_the_plain_loop(
    classifier: FrozenClassifier,
    data: Path,
    others: Path,
    tmp_path: Path,
    keep: str,
    weight: float,
    share: float,
    counts: tuple[int, int],
) -> None:
    preserve = PreserveConfig((str(others),), share=share, weight=weight, wrong=True)
    how = config(preserve=preserve, options={"keep": keep})
    bank = train(classifier, DataSpec(data, classes="ant,dog"), tmp_path / "bank.st", how)
    # `dog` is of the bank, and left out. Rounding decides the sign of a step where the gradient is next to 0.
    wanted = plain_loop(data, others, weight, keep, counts)
    assert torch.isclose(bank.occluders[0].double(), wanted, rtol=0, atol=1e-4).double().mean() > 0.98
    pure = train(classifier, DataSpec(data, classes="ant,dog"), tmp_path / "pure.st", config("pure"))
    assert not torch.isclose(pure.occluders[0].double(), wanted, rtol=0, atol=1e-4).double().mean() > 0.98


def test_the_bank_says_what_was_preserved_and_classes_of_the_bank_are_left_out(
    classifier: FrozenClassifier, data: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(no_progress), "say", lambda _, line: said.append(line))
    how = config(preserve=PreserveConfig((str(others),), pictures=6, wrong=True), held_out=1)
    train(classifier, DataSpec(data, classes="ant,dog"), tmp_path / "bank.st", how)
    bank = OccluderBank.load(tmp_path / "bank.st")
    assert bank.preserved_classes == (1, 3)
    known = {picture_key(f"train/{name}/{name}1{i}.png") for name in ("bee", "cat") for i in range(PICTURES)}
    assert len(bank.preserved) == 6
    assert set(bank.preserved.tolist()) < known
    assert f"--preserve {others}: 1 classes of the bank are left out (dog); --preserve classes preserves these" in said
    assert any(line.startswith("preserving 6 pictures of 2 classes; the network gets ") for line in said)

    both = config(preserve=PreserveConfig(("classes", "1"), wrong=True), held_out=1)
    bank = train(classifier, DataSpec(data, classes="ant,dog"), tmp_path / "both.st", both)
    assert len(bank.preserved) == 2 * (PICTURES - 1) + PICTURES  # of its own classes only what is fitted
    assert set(bank.fitted.tolist()) < set(bank.preserved.tolist())
    assert not set(bank.held_out.tolist()) & set(bank.preserved.tolist())
    assert {0, 4} < set(bank.preserved_classes)
    assert train(classifier, DataSpec(data), tmp_path / "pure.st", config("pure")).preserved_classes == ()


def test_an_occluder_meets_no_preserved_picture_of_its_own_class() -> None:
    labels = torch.tensor([0, 1, 2, 0, 3, 3])
    clean = torch.eye(5)[[0, 1, 0, 2, 3, 1]]
    pool = Pool(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 2, 2, 3), labels, clean)
    assert pool.for_class(0).tolist() == [1, 4, 5]
    assert pool.for_class(1).tolist() == [0, 2, 3, 4]
    work = [Fitted([_pictures(c)], c + 1) for c in (0, 1)]
    met: dict[int, list[int]] = {1: [], 2: []}
    for epoch in range(3):
        for batch in Batches(share=2, rounds=4, kept=3).of(work, epoch, 0, pool):
            assert len(batch.labels) == 4
            assert batch.occluder_index.tolist() == [1, 1, 2, 2, 1, 1, 1, 2, 2, 2]
            places = batch.images[4:, 0, 0, 0].long()
            assert batch.clean is not None
            assert torch.equal(batch.clean, clean[places])
            for index, place in zip(batch.occluder_index[4:].tolist(), places.tolist(), strict=True):
                met[index].append(place)
    # Each goes on through permutations of all that it may meet: nothing is seen twice before all have been.
    for index, allowed in ((1, [1, 4, 5]), (2, [0, 2, 3, 4])):
        rounds = [sorted(met[index][i : i + len(allowed)]) for i in range(0, 36, len(allowed))]
        assert rounds == [allowed] * len(rounds)


def _pictures(class_id: int) -> ClassPictures:
    from gfo.engine.data.folders import ClassFolder

    return ClassPictures(ClassFolder(str(class_id), class_id, ("x",)), torch.zeros(3, 2, 2, 3, dtype=torch.uint8))


def test_a_batch_of_preserved_pictures_alone_follows_every_second_one() -> None:
    pool = Pool(torch.zeros(4, 2, 2, 3, dtype=torch.uint8), torch.full((4,), 2), torch.eye(3)[[2, 2, 2, 2]])
    cut = Batches(share=4, rounds=5, kept=4, every=2)
    sizes = [(len(b.labels), len(b.images)) for b in cut.of([Fitted([_pictures(0)])], 0, 0, pool)]
    assert sizes == [(4, 4), (4, 4), (0, 4), (4, 4), (4, 4), (0, 4), (4, 4)]
    assert cut.steps == len(sizes)


@pytest.mark.parametrize(("objective", "steps"), [("specific", 2), ("specific", 13), ("agnostic", 5)])
def test_a_stopped_run_resumes_to_the_same_bytes_and_pictures_that_change_start_it_over(
    classifier: FrozenClassifier,
    data: Path,
    others: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_after: Killed,
    steps: int,
    objective: str,
) -> None:
    own, pool = shutil.copytree(data, tmp_path / "data"), shutil.copytree(others, tmp_path / "pool")
    preserve = PreserveConfig((str(pool), "classes"), wrong=True) if objective == "specific" else None
    how, said = config(objective, preserve), list[str]()
    whole, out = (tmp_path / name for name in ("whole.st", "stopped.st"))
    train(classifier, DataSpec(own, classes="ant,cat,dog"), whole, how)
    with killed_after(steps):
        train(classifier, DataSpec(own, classes="ant,cat,dog"), out, how)
    monkeypatch.setattr(type(no_progress), "say", lambda _, line: said.append(line))
    if steps == 13 and objective == "specific":
        Image.new("RGB", (SIZE, SIZE)).save(pool / "train" / "bee" / "bee10.png")
        train(classifier, DataSpec(own, classes="ant,cat,dog"), out, how)
        assert any("pictures have changed since" in line for line in said)
        whole.unlink()
        train(classifier, DataSpec(own, classes="ant,cat,dog"), whole, how)
    else:
        train(classifier, DataSpec(own, classes="ant,cat,dog"), out, how)
    assert out.read_bytes() == whole.read_bytes()
    if preserve is not None:
        with pytest.raises(InputError, match=r"share 0\.5, not 0\.25"):
            train(
                classifier,
                DataSpec(own, classes="ant,cat,dog"),
                out,
                replace(how, preserve=replace(preserve, share=0.25)),
            )
        with pytest.raises(InputError, match=r"preserve .*, not None"):
            train(classifier, DataSpec(own, classes="ant,cat,dog"), out, config("pure"))


def test_agnostic_is_one_occluder_of_all_pictures(classifier: FrozenClassifier, data: Path, tmp_path: Path) -> None:
    bank = train(classifier, DataSpec(data), tmp_path / "bank.st", config("agnostic", batch_size=40, epochs=1))
    assert len(bank.class_ids) == 4
    assert all(torch.equal(bank.occluders[0], other) for other in bank.occluders[1:])
    d = torch.zeros(SIZE, SIZE, 3, dtype=torch.float64, requires_grad=True)
    loss = torch.zeros((), dtype=torch.float64)
    # 40 places for 20 pictures: each of them twice in the one step, which is α · sign(gradient).
    for folder, label in CLASSES.items():
        loss = loss + own_margin(answer(pixels(sorted((data / "train" / folder).iterdir())), d), label).sum()
    (gradient,) = torch.autograd.grad(loss, d)
    assert torch.isclose(bank.occluders[0].double(), -0.6 * gradient.sign(), atol=1e-5).double().mean() > 0.98


def test_only_pictures_that_the_network_gets_right(
    classifier: FrozenClassifier, data: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gfo.engine.training import groups as training

    met, original = list[Batch](), training.Descent.__call__

    def watch(step: Any, batch: Batch, size: float, count: int) -> Any:
        met.append(batch)
        return original(step, batch, size, count)

    monkeypatch.setattr(training.Descent, "__call__", watch)
    zero = torch.zeros(SIZE, SIZE, 3, dtype=torch.float64)
    right = {
        name: answer(pixels(sorted((data / "train" / name).iterdir())), zero).argmax(1) == CLASSES[name]
        for name in CLASSES
    }
    good = [name for name in CLASSES if 0 < int(right[name].sum()) < PICTURES]
    assert good
    how = config(preserve=PreserveConfig(("3",)), correct_only=True, epochs=1, classes_together=1)
    train(classifier, DataSpec(data, classes=good[:1]), tmp_path / "bank.st", how)
    own = pixels(sorted((data / "train" / good[0]).iterdir()))[right[good[0]]]
    for batch in met:
        for image in batch.images[: len(batch.labels)]:
            assert any(torch.equal(image.double(), picture) for picture in own)
        assert batch.clean is not None
        for image, clean in zip(batch.images[len(batch.labels) :], batch.clean, strict=True):
            found = [
                n
                for n in CLASSES
                for i, p in enumerate(pixels(sorted((data / "train" / n).iterdir())))
                if torch.equal(p, image.double()) and right[n][i]
            ]
            assert found
            assert int(clean.argmax()) == CLASSES[found[0]]


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 10**6))
def test_the_losses_are_their_formulas(pictures: int, outputs: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, clean = (torch.randn(pictures, outputs, generator=g) * 5 for _ in range(2))
    labels = torch.randint(0, outputs - 1, (pictures,), generator=g)
    for keep in ("cross-entropy", "kl", "margin"):
        for pairing in (0.0, 0.1):
            made = config("sink", options={"keep": keep, "pairing": pairing, "target": outputs - 1}).make_objective()
            found = made.preserving_loss(logits, clean)
            wanted = kept_loss(logits.double(), clean.double(), keep)
            wanted = wanted + pairing * ((logits - clean).double() ** 2).mean(1)
            torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    z = logits.numpy().astype(np.float64)
    away = [row[y] - np.delete(row, y).max() for row, y in zip(z, labels.tolist(), strict=True)]
    towards = [np.delete(row, outputs - 1).max() - row[outputs - 1] for row in z]
    wanted = (np.maximum(away, 0) + np.maximum(towards, -KAPPA)) / 2
    found = made.loss(logits, labels, impl="reference")
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)
    detached = OBJECTIVES["specific"](OBJECTIVES["specific"].Options(kappa=KAPPA, detach_rival=True))
    np.testing.assert_allclose(detached.loss(logits, labels, impl="reference"), np.maximum(away, -KAPPA), rtol=1e-5)


def test_a_detached_rival_has_no_gradient() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    for detach, wanted in ((False, [1.0, 0.0, -1.0]), (True, [1.0, 0.0, 0.0])):
        (gradient,) = torch.autograd.grad(margin(logits, torch.tensor([0]), detach_rival=detach).sum(), logits)
        assert gradient.tolist() == [wanted]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: config("specific"), "--objective specific: has nothing to preserve; add --preserve FOLDER"),
        (
            lambda: config("pure", PreserveConfig(("4",))),
            "objective pure preserves nothing; use --objective specific or sink",
        ),
        (lambda: config("agnostic", PreserveConfig(("4",))), "objective agnostic preserves nothing"),
        (lambda: PreserveConfig(()), "--preserve: name a folder"),
        (lambda: PreserveConfig(("4",), share=1.0), r"--preserve-share 1\.0: must be above 0 and below 1"),
        (lambda: PreserveConfig(("4",), weight=float("nan")), "--preserve-weight nan: must be above 0"),
        (lambda: PreserveConfig(("4",), pictures=0), "--preserve-pictures 0: must be at least 1"),
        (lambda: PreserveConfig(("4",), every=-1), "--preserve-every -1: must be at least 0"),
        (lambda: PreserveConfig(("4",), every=2, share=0.25), r"--preserve-share 0\.25: is not read with"),
        (lambda: PreserveConfig(("a", "a")), "--preserve a: is named twice"),
        (lambda: PreserveConfig(("4", "5")), "--preserve 4 5: give one number of classes"),
        (
            lambda: config("specific", PreserveConfig(("4",), every=2, weight=3.0)),
            r"--preserve-weight 3\.0: has no effect",
        ),
        (lambda: config("sink"), "--objective sink: needs --objective-option target=N"),
        (lambda: config("specific", PreserveConfig(("4",)), options={"keep": "l2"}), "keep=l2: .* 'cross-entropy'"),
        (lambda: config("specific", PreserveConfig(("4",)), options={"pairing": -1}), "pairing=-1"),
    ],
)
def test_contradictions_are_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make()


def test_an_occluder_of_all_classes_has_no_others_to_preserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would meet preserved pictures of classes that it is to erase."""
    monkeypatch.setattr(OBJECTIVES["specific"], "shared", True)
    with pytest.raises(InputError, match="--preserve: objective specific has one occluder for all classes"):
        config("specific", PreserveConfig(("4",)))


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (
            lambda pool: config(preserve=PreserveConfig(("nowhere",))),
            "--preserve nowhere: no folder with train/<class>",
        ),
        (lambda pool: config(preserve=PreserveConfig(("3",))), "--preserve 3: .* has 2 classes beyond .*; give 1 to 2"),
        (lambda pool: config(preserve=PreserveConfig(("0",))), "--preserve 0: .*; give 1 to 2"),
        (
            lambda pool: config(preserve=PreserveConfig(("2",), pictures=1)),
            "is below the number of classes to preserve, 2",
        ),
        (lambda pool: config(preserve=PreserveConfig((str(pool / "dogs"),))), "has 0 classes beyond .*; name another"),
        (lambda pool: config(preserve=PreserveConfig(("2",)), batch_size=2), "an occluder has 1 picture of a batch"),
        (lambda pool: config(preserve=PreserveConfig(("2",), every=9)), "--preserve-every 9: an epoch has 2 steps"),
        (lambda pool: config("sink", options={"target": 5}), "target=5: the model has outputs 0..4"),
        (lambda pool: config("sink", options={"target": 4}), "target=4: is a class of the bank"),
    ],
)
def test_what_cannot_be_preserved_is_named(
    classifier: FrozenClassifier,
    data: Path,
    tmp_path: Path,
    how: Callable[[Path], TrainConfig],
    named: str,
) -> None:
    write_classes(tmp_path / "dogs", ("dog",), 2)
    with pytest.raises(InputError, match=named):
        train(classifier, DataSpec(data, classes="ant,dog"), tmp_path / "bank.st", how(tmp_path))
    assert not (tmp_path / "bank.st").exists()
    # Nothing is left that would refuse what is done about it.
    train(classifier, DataSpec(data, classes="ant,dog"), tmp_path / "bank.st", config("pure", epochs=1))


def test_nothing_right_is_named_and_may_be_asked_for(classifier: FrozenClassifier, data: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    zero = torch.zeros(SIZE, SIZE, 3, dtype=torch.float64)
    (wrong / "train" / "bee").mkdir(parents=True)
    (wrong / "classes.json").write_text(json.dumps(CLASSES))
    for path in sorted((data / "train").glob("*/*")):
        if int(answer(pixels([path]), zero).argmax()) not in (CLASSES["bee"], CLASSES["ant"]):
            shutil.copy(path, wrong / "train" / "bee")
    spec, out = DataSpec(data, classes="ant"), tmp_path / "bank.st"
    asked = config(preserve=PreserveConfig((str(wrong),)), epochs=1)
    with pytest.raises(InputError, match=r"gets none of the .* pictures right; .* keep its wrong answers"):
        train(classifier, spec, out, asked)
    all_of_them = replace(asked, preserve=PreserveConfig((str(wrong),), wrong=True))
    assert len(train(classifier, spec, out, all_of_them).preserved) == len(list((wrong / "train" / "bee").iterdir()))


def test_the_command_passes_them_on(
    tiny_data: Path, tmp_path: Path, train: Callable[..., list[object]], run: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "bank.st"
    how = ("--preserve", "classes", "--preserve-weight", 2, "--preserve-share", 0.25, "--preserve-wrong")
    command = train(tiny_data, out, "--objective", "specific", *how, "--classes-together", 1)
    code, _, err = run(*command)
    assert (code, "preserving" in err) == (0, True)
    found = OccluderBank.load(out)
    kept = found.header.objective["preserve"]
    assert {k: kept[k] for k in ("share", "weight", "wrong", "every")} == {
        "share": 0.25,
        "weight": 2.0,
        "wrong": True,
        "every": 0,
    }
    assert tuple(kept["classes"]) == tuple(sorted(found.class_ids))
    code, _, err = run(*train(tiny_data, tmp_path / "other.st", "--preserve-every", 2))
    assert (code, err.count("\n")) == (2, 1)
    assert "--preserve-every: nothing is preserved" in err


def accuracy(bank: OccluderBank, row: int, data: Path, names: list[str]) -> float:
    paths = [data / name for name in names]
    logits = answer(pixels(paths), bank.occluders[row].double())
    return float((logits.argmax(1) == bank.class_ids[row]).double().mean())


def test_a_class_is_left_at_its_target_and_as_weak_as_that_allows(
    classifier: FrozenClassifier, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(no_progress), "say", lambda _, line: said.append(line))
    zero = torch.zeros(SIZE, SIZE, 3, dtype=torch.float64)
    clean = {n: answer(pixels(sorted((data / "train" / n).iterdir())), zero).argmax(1) == c for n, c in CLASSES.items()}
    best = max(CLASSES, key=lambda name: int(clean[name].sum()))
    before = float(clean[best].double().mean())
    assert before > 0.2
    how = config("pure", epsilon=40.0, epochs=9, target_accuracy=before - 0.2)
    bank = train(classifier, DataSpec(data, classes=[best]), tmp_path / "bank.st", how)
    (reached,) = bank.header.objective["targets"]
    names = [f"train/{best}/{path.name}" for path in sorted((data / "train" / best).iterdir())]
    assert (reached["class_id"], reached["reached"]) == (CLASSES[best], True)
    assert reached["accuracy"] == accuracy(bank, 0, data, names) <= before - 0.2
    assert 0 < reached["strength"] <= 1
    assert reached["epochs"] < 9
    weaker = replace(bank, occluders=bank.occluders * (1 - 1 / 32 / reached["strength"]))
    assert accuracy(weaker, 0, data, names) > before - 0.2
    full = train(
        classifier,
        DataSpec(data, classes=[best]),
        tmp_path / "full.st",
        config("pure", epsilon=40.0, epochs=9, batch_size=8),
    )
    assert float(full.occluders.abs().max()) > float(bank.occluders.abs().max())
    assert not any("miss the target" in line for line in said)

    never = replace(how, target_accuracy=0.0, epsilon=0.01, epochs=1)
    missed = train(classifier, DataSpec(data, classes=[best]), tmp_path / "missed.st", never)
    assert (
        missed.header.objective["targets"][0] | {"reached": False, "strength": 1.0, "epochs": 1}
        == (missed.header.objective["targets"][0])
    )
    assert (
        f"1 of 1 classes miss the target accuracy, the first: class {CLASSES[best]} is left with {before:.3f}" in said
    )


def test_held_out_pictures_judge_where_there_are_some(classifier: FrozenClassifier, data: Path, tmp_path: Path) -> None:
    how = config("pure", epsilon=20.0, held_out=2, target_accuracy=0.5)
    bank = train(classifier, DataSpec(data, classes="bee,cat"), tmp_path / "bank.st", how)
    held_out = set(bank.held_out.tolist())
    for row, reached in enumerate(bank.header.objective["targets"]):
        folder = bank.header.folders[row]
        paths = [f"train/{folder}/{path.name}" for path in sorted((data / "train" / folder).iterdir())]
        judged = [path for path in paths if picture_key(path) in held_out]
        assert len(judged) == 2
        assert accuracy(bank, row, data, judged) == reached["accuracy"]


def test_a_target_resumes_to_the_same_bytes(
    classifier: FrozenClassifier, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: Killed
) -> None:
    how = config("pure", epsilon=12.0, epochs=6, target_accuracy=0.0)
    whole, out, said = tmp_path / "whole.st", tmp_path / "out.st", list[str]()
    monkeypatch.setattr(type(no_progress), "say", lambda _, line: said.append(line))
    bank = train(classifier, DataSpec(data), whole, how)
    assert "2 classes are at the target accuracy without an occluder; theirs are zeros" in said
    assert len({reached["epochs"] for reached in bank.header.objective["targets"]}) > 1  # some stop before others
    for _ in range(40):
        if out.exists():
            break
        with killed_after(3, at_most=True):
            train(classifier, DataSpec(data), out, how)
    assert out.read_bytes() == whole.read_bytes()


def test_a_step_that_is_not_finite_is_skipped_and_several_end_the_training(
    classifier: FrozenClassifier, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gfo.engine.training.objectives.pure import Pure

    said, calls, original = list[str](), 0, Pure.loss
    monkeypatch.setattr(type(no_progress), "say", lambda _, line: said.append(line))
    broken: set[int] = {2}

    def loss(objective: Pure, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        nonlocal calls
        calls += 1
        found = original(objective, logits, labels, impl=impl)
        return found * float("nan") if calls in broken else found

    monkeypatch.setattr(Pure, "loss", loss)
    bank = train(classifier, DataSpec(data, classes="ant"), tmp_path / "bank.st", config("pure", batch_size=2))
    assert "--precision fp32: logits or gradients are not finite; step 2 is skipped" in said
    assert bool(bank.occluders.isfinite().all())
    broken |= {calls + 4, calls + 5, calls + 6}
    with pytest.raises(InputError, match="--precision fp32: logits or gradients are not finite; check the weights"):
        train(classifier, DataSpec(data, classes="ant"), tmp_path / "other.st", config("pure", batch_size=2))


def test_where_nothing_is_preserved_files_are_those_of_older_versions(
    classifier: FrozenClassifier, data: Path, tmp_path: Path, killed_after: Killed
) -> None:
    """Their parts name the checksum of `config.json`, and they refuse a bank with a tensor that they do not know."""
    from safetensors import safe_open

    with killed_after(0):
        train(classifier, DataSpec(data, classes="ant"), tmp_path / "bank.st", config("pure"))
    begun = json.loads((tmp_path / "bank.st.parts" / "config.json").read_text())
    assert set(begun) == {"header", "precision", "fitted", "held_out", "sha256"}
    train(classifier, DataSpec(data, classes="ant"), tmp_path / "bank.st", config("pure"))
    with safe_open(tmp_path / "bank.st", framework="pt") as file:
        assert set(file.keys()) == {"occluders", "fitted", "held_out", "sha256"}


def test_pictures_that_cannot_be_judged_are_no_success(data: Path, tmp_path: Path) -> None:
    """A NaN logit is never the largest: unnoticed, a class would be at its target, and its occluder zeros."""
    from gfo.engine.training.target import Judge
    from gfo.export.occluded import OccludedClassifier

    frozen = FrozenClassifier.from_module(network(), PREPROCESSING)
    with torch.no_grad():
        frozen.network[3].bias[2] = float("nan")  # type: ignore[index]
    judge = Judge(OccludedClassifier(frozen), [Fitted([_pictures_of(SIZE)])], 0.5, torch.device("cpu"), 4)
    with pytest.raises(InputError, match="logits are not finite; check the weights"):
        judge.weakest(0, torch.zeros(SIZE, SIZE, 3), 1)


def _pictures_of(size: int) -> ClassPictures:
    return replace(_pictures(0), images=torch.zeros(3, size, size, 3, dtype=torch.uint8))


def test_steps_of_preserved_pictures_alone_do_not_redeem_failing_ones(
    classifier: FrozenClassifier, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gfo.engine.training.objectives.specific import Specific

    def loss(_: Specific, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        return logits[:, 0] * float("nan")

    monkeypatch.setattr(Specific, "loss", loss)
    how = config(preserve=PreserveConfig(("2",), wrong=True, every=1))
    with pytest.raises(InputError, match="not finite; check the weights"):
        train(classifier, DataSpec(data, classes="ant,dog"), tmp_path / "bank.st", how)
