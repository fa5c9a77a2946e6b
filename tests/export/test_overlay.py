"""The occluder as a transform of tensors, against plain arithmetic in float64."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.occluded import OccludedClassifier
from gfo.kernels.occlude import Normalisation, occlude
from gfo.kernels.pairs import Pairs

G = torch.Generator().manual_seed(0)
BYTES = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=G)
BYTES[0, :, :2], BYTES[0, :, 2:4] = 0, 255
CLASSES = torch.tensor([4, 3, 4, 0])  # the tiny bank's rows are of 3, 0, 4
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def bank(make_bank: Callable[..., OccluderBank]) -> OccluderBank:
    """Occluders of many sizes, so that a third of the pixels leaves the range."""
    return make_bank(
        occluders=torch.randn(3, 16, 16, 3, generator=torch.Generator().manual_seed(1)) * 60, epsilon=300.0
    )


def truth(bank: OccluderBank, images: Tensor, classes: Tensor) -> Tensor:
    """Pixel by pixel, in 0 … 255 and float64."""
    out = images.double().numpy().copy()
    for picture, class_id in enumerate(classes.tolist()):
        added = bank.occluders[bank.class_ids.index(class_id)].double().numpy()
        for channel in range(3):
            out[picture, channel] = np.minimum(np.maximum(out[picture, channel] + added[..., channel], 0), 255)
    return torch.from_numpy(out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_are_those_of_the_formula(bank: OccluderBank, dtype: torch.dtype) -> None:
    images = (BYTES / 255).to(dtype)
    found, wanted = bank.apply(images, CLASSES), truth(bank, images.double() * 255, CLASSES) / 255
    assert (found.dtype, found.shape) == (dtype, images.shape)
    assert 0.1 < float(((found == 0) | (found == 1)).double().mean()) < 0.9
    # Values of at most 1 + 1: a quotient and a sum in float32 or better, and the rounding to the dtype.
    computed = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert float((found.double() - wanted).abs().max()) <= 2 * computed + torch.finfo(dtype).eps / 2
    assert torch.equal(images, (BYTES / 255).to(dtype))  # not written into


def test_bytes_are_those_of_the_formula_to_the_nearest_integer(bank: OccluderBank) -> None:
    for images in (BYTES, BYTES.contiguous(memory_format=torch.channels_last), BYTES.flip(0)):
        found, wanted = bank.apply(images, CLASSES), truth(bank, images, CLASSES)
        assert (found.dtype, found.stride()) == (torch.uint8, torch.empty_like(images).stride())
        assert float((found.double() - wanted).abs().max()) <= 0.5 + 255 * 2**-23
    assert bank.apply(BYTES[:0], 3).shape == (0, 3, 16, 16)
    assert bank.apply(BYTES[:0] / 255, CLASSES[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("images", [BYTES, BYTES / 255])
def test_one_class_one_picture_and_a_transform_of_one_argument(bank: OccluderBank, images: Tensor) -> None:
    whole = bank.apply(images, 4)
    assert torch.equal(whole, bank.apply(images, torch.full((4,), 4)))
    alike: list[Any] = [torch.tensor(4), np.int64(4)]
    for class_id in alike:
        assert torch.equal(whole, bank.apply(images, class_id))
    assert torch.equal(whole[1], functools.partial(bank.apply, class_id=4)(images[1]))
    mixed = bank.apply(images, CLASSES)
    assert torch.equal(mixed[0], whole[0])
    assert torch.equal(mixed[1], bank.apply(images[1], 3))
    assert torch.equal(mixed[3], bank.apply(images[3], 0))


def test_a_model_behind_it_gives_the_logits_of_the_occluded_classifier(
    bank: OccluderBank, tiny_classifier: FrozenClassifier
) -> None:
    how = tiny_classifier.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    logits = tiny_classifier.network((bank.apply(BYTES / 255, CLASSES) - mean) / std)
    rows = torch.tensor([1 + bank.class_ids.index(class_id) for class_id in CLASSES.tolist()])
    pictures = BYTES.permute(0, 2, 3, 1).contiguous()
    wanted = OccludedClassifier(tiny_classifier)(pictures, torch.arange(4), rows, bank.occluders)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_the_formula(bank: OccluderBank) -> None:
    # No pixel within a step of the bounds, where the clamp has a kink.
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=G)
    sums = images + bank.occluders[[2, 0]].permute(0, 3, 1, 2) / 255
    near = (sums.abs() < 1e-3) | ((sums - 1).abs() < 1e-3)
    images = torch.where(near, (images + 0.01) % 1, images).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bank.apply(x, CLASSES[:2]), images, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: bank.apply(x, 3).square(), images, fast_mode=True)


def test_the_bounds_count_as_inside_as_they_do_in_training(make_bank: Callable[..., OccluderBank]) -> None:
    added = torch.tensor([0.0, 8.0, -8.0])[:, None, None, None].expand(3, 16, 16, 3).contiguous()
    bank = make_bank(occluders=added)
    values, scale = torch.tensor([0, 255, 100], dtype=torch.uint8), Normalisation((1.0,) * 3, (0.0,) * 3)
    for (row, class_id), value in itertools.product(enumerate(bank.class_ids), values):
        images = (value / 255).expand(1, 3, 16, 16).clone().requires_grad_()
        (ours,) = torch.autograd.grad(bank.apply(images, class_id).sum(), images)
        occluders = added[row : row + 1].clone().requires_grad_()
        first, picture = torch.zeros(1, dtype=torch.int64), value.expand(1, 16, 16, 3).contiguous()
        occluded = occlude(Pairs(picture, occluders, first, first + 1), scale, impl="reference")
        (theirs,) = torch.autograd.grad(occluded.sum(), occluders)
        assert torch.equal(ours.permute(0, 2, 3, 1), theirs)


@pytest.mark.parametrize(
    ("images", "class_id", "named"),
    [
        (BYTES, 7, "class_id 7: the bank has no occluder of this class; it has those of 3, 0, 4"),
        (BYTES, -1, "class_id -1: "),
        (BYTES, torch.tensor([4, 3, 9, 0]), "class_id 9: "),
        (BYTES, CLASSES[:2], r"each of 4 pictures, got int64 \[2\]"),
        (BYTES, CLASSES[:, None], r"got int64 \[4, 1\]"),
        (BYTES[0], CLASSES[:1], r"each of a single picture, got int64 \[1\]"),
        (BYTES, CLASSES.int(), r"got int32 \[4\]"),
        (BYTES, CLASSES.double(), r"got float64 \[4\]"),
        (BYTES, "ant", "got str"),
        (BYTES, 3.0, "got float"),
        (BYTES, [3, 0, 4, 4], "got list"),
        (BYTES[..., 1:], 3, r"images: expected \[B, 3, 16, 16\] or .* got \[4, 3, 16, 15\]; resize"),
        (BYTES.permute(0, 2, 3, 1), 3, r"got \[4, 16, 16, 3\]; .* channels first"),
        (BYTES[None], 3, r"got \[1, 4, 3, 16, 16\]"),
        (BYTES[0, 0], 3, r"got \[16, 16\]"),
        (BYTES.long(), 3, "expected uint8, or floats in 0..1, got int64"),
        (BYTES > 3, 3, "got bool"),
        (BYTES.numpy(), 3, "expected a tensor, got ndarray"),
        (BYTES.float(), 3, "expected in 0..1, got 0 to 255; .* divide"),
        (BYTES / 127.5 - 1, 3, "got -1 to 1; apply occluders before the normalisation"),
        ((BYTES / 255).masked_fill(BYTES == 7, float("nan")), 3, "got nan"),
    ],
)
def test_what_it_does_not_take_is_named(bank: OccluderBank, images: Any, class_id: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        bank.apply(images, class_id)


def test_rounding_outside_the_range_is_let_through_and_clamped(bank: OccluderBank) -> None:
    images = (BYTES / 255) * (1 + 1e-6) - 1e-7
    found = bank.apply(images, 3)
    assert (float(found.min()), float(found.max())) == (0.0, 1.0)
