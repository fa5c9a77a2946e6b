"""Random changes of fitted pictures: what they may draw, and that a draw depends on its seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gfo.engine.data.folders import ClassFolder
from gfo.engine.training.augment import AUGMENTATIONS, augmented
from gfo.engine.training.batches import Batches, ClassPictures, Fitted
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.groups import cut
from gfo.export.errors import InputError


def pictures(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@settings(max_examples=20)
@given(
    count=st.integers(1, 4),
    size=st.integers(8, 24),
    names=st.lists(st.sampled_from(sorted(AUGMENTATIONS)), unique=True),
    seed=st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
)
def test_shapes_stay_and_a_seed_gives_the_same_draw(count: int, size: int, names: list[str], seed: list[int]) -> None:
    images = pictures(count, size)
    before, state = images.clone(), torch.get_rng_state()
    found = augmented(images, names, seed)
    torch.rand(3)  # whatever anybody else has drawn meanwhile
    assert torch.equal(found, augmented(images, names, seed))
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    torch.set_rng_state(state)
    augmented(images, names, seed)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_flip_mirrors_about_half_of_the_pictures_and_nothing_else() -> None:
    images = pictures(200, 8)
    found = augmented(images, ["flip"], [1])
    mirrored = torch.tensor([torch.equal(a, b.flip(1)) for a, b in zip(found, images, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(found, images, strict=True)])
    assert bool((mirrored ^ same).all())
    assert 70 < int(mirrored.sum()) < 130


def test_a_crop_is_a_part_of_at_least_half_the_picture_scaled_up() -> None:
    """On a ramp, columns of a crop are a ramp between two of its values, of which scaling keeps the order."""
    ramp = torch.arange(100, dtype=torch.uint8)[None, None, :, None].expand(50, 100, 100, 3).contiguous()
    found = augmented(ramp, ["crop"], [0]).to(torch.int64)
    assert bool((found.diff(dim=2) >= 0).all())
    span = (found[:, 0, -1, 0] - found[:, 0, 0, 0] + 1).double()
    # Area ≥ 0.5 and a ratio of at most 4/3: a side of at least sqrt(0.5 · 3/4).
    assert float(span.min()) >= 100 * (0.5 * 0.75) ** 0.5 - 2
    assert len(span.unique()) > 10


@pytest.mark.parametrize("names", [("crop",), ("flip", "crop")])
def test_an_occluder_sees_the_same_pictures_whatever_is_trained_beside_it(names: Sequence[str]) -> None:
    def fitted(class_id: int, index: int) -> Fitted:
        return Fitted([ClassPictures(ClassFolder(f"f{class_id}", class_id, ()), pictures(5, 12, class_id))], index)

    cut = Batches(share=2, rounds=3, augment=names)
    alone = [batch.images for batch in cut.of([fitted(7, 1)], 1, 3)]
    beside = [batch.images for batch in cut.of([fitted(2, 1), fitted(7, 2)], 1, 3)]
    assert all(torch.equal(a, b[2:]) for a, b in zip(alone, beside, strict=True))
    later = [batch.images for batch in cut.of([fitted(7, 1)], 2, 3)]
    assert not torch.equal(torch.cat(alone).sort(dim=0).values, torch.cat(later).sort(dim=0).values)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("blur",), "--augment blur: expected some of crop,flip"),
        (("",), "--augment '': expected some of crop,flip"),
        (("flip", "flip"), "--augment flip,flip: names flip twice; leave one out"),
    ],
)
def test_wrong_names(names: tuple[str, ...], line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}$"):
        TrainConfig(epsilon=8.0, augment=names)


def test_training_moves_its_pictures_if_asked() -> None:
    splits = {3: (["train/a/1.png", "train/a/2.png"], [])}
    assert [cut(TrainConfig(epsilon=8.0, augment=names), splits)[1].augment for names in ((), ("flip",))] == [
        (),
        ("flip",),
    ]


def test_only_a_bank_of_changed_pictures_says_so() -> None:
    assert "augment" not in TrainConfig(epsilon=8.0).header()
    assert TrainConfig(epsilon=8.0, augment=("flip",)).header()["augment"] == ["flip"]
