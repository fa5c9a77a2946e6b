"""`occlude` against the formula in float64, and its gradient against autograd through that formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gfo.kernels.occlude import occlude

SCALE, SHIFT = (0.017, 0.0175, 0.0174), (-2.1, -2.0, -1.8)


class _ClampWithBounds(torch.autograd.Function):
    """clamp(x, 0, 255) whose gradient counts the bounds in; only the mask differs from torch.clamp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 255)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (grad,), (x,) = grad_outputs, ctx.saved_tensors
        return torch.where((x < 0) | (x > 255), 0.0, grad)


def truth(images: Tensor, bank: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
    """The formula, pair by pair, in float64, NCHW."""
    rows = torch.cat([torch.zeros_like(bank[:1]), bank])
    scale, shift = torch.tensor(SCALE, dtype=torch.float64), torch.tensor(SHIFT, dtype=torch.float64)
    inputs = _ClampWithBounds.apply(images[image_index].double() + rows[occluder_index]) * scale + shift
    return inputs.permute(0, 3, 1, 2)


def make(b: int, k: int, p: int, h: int, w: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (b, h, w, 3), dtype=torch.uint8, generator=g)
    images[torch.rand(b, h, w, 3, generator=g) < 0.2] = 0
    images[torch.rand(b, h, w, 3, generator=g) < 0.2] = 255
    # With 12 bits behind the point x + d is exact in float32: no mask turns on how the sum was rounded.
    bank = (torch.randn(k, h, w, 3, generator=g) * 8 * 4096).round() / 4096
    bank[torch.rand(k, h, w, 3, generator=g) < 0.2] = 0.0  # black and white pixels then sit on the bound
    return (
        images,
        bank,
        torch.randint(0, b, (p,), generator=g),
        torch.randint(0, k + 1, (p,), generator=g),
    )


@settings(deadline=None, max_examples=30)
@given(
    b=st.integers(1, 4),
    k=st.integers(1, 5),
    p=st.integers(0, 9),
    h=st.integers(1, 33),
    w=st.integers(1, 33),
    seed=st.integers(0, 999),
)
def test_forward_and_gradient_equal_the_formula(b: int, k: int, p: int, h: int, w: int, seed: int) -> None:
    images, bank, image_index, occluder_index = make(b, k, p, h, w, seed)
    ours, theirs = bank.clone().requires_grad_(), bank.double().requires_grad_()
    out = occlude(images, ours, image_index, occluder_index, scale=SCALE, shift=SHIFT)
    wanted = truth(images, theirs, image_index, occluder_index)
    upstream = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    out.backward(upstream.float())
    wanted.backward(upstream)
    # One add, one multiply, one add in float32 on values up to 255 · 0.0175 + 2.1.
    torch.testing.assert_close(out.detach().double(), wanted.detach(), rtol=0, atol=8 * 2**-24 * 6.6)
    assert ours.grad is not None
    assert theirs.grad is not None
    # Sums of up to p products, each rounded; |upstream · scale| stays below 0.1.
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=(p + 2) * 2**-24)


def test_several_pieces_give_the_same_as_one_pair_at_a_time() -> None:
    images, bank, image_index, occluder_index = make(5, 3, 40, 96, 96, 0)  # 27,648 elements a pair: 5 pieces
    whole = occlude(images, bank, image_index, occluder_index, scale=SCALE, shift=SHIFT)
    single = [
        occlude(images, bank, image_index[i : i + 1], occluder_index[i : i + 1], scale=SCALE, shift=SHIFT)
        for i in range(40)
    ]
    assert torch.equal(whole, torch.cat(single))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_the_rounded_float32(dtype: torch.dtype) -> None:
    images, bank, image_index, occluder_index = make(2, 2, 6, 31, 29, 1)
    full = occlude(images, bank, image_index, occluder_index, scale=SCALE, shift=SHIFT)
    cast = occlude(images, bank, image_index, occluder_index, scale=SCALE, shift=SHIFT, dtype=dtype)
    assert torch.equal(cast, full.to(dtype))
    assert cast.is_contiguous(memory_format=torch.channels_last)


def test_index_0_is_clean_and_an_unused_occluder_has_zero_gradient() -> None:
    images, bank, _, _ = make(2, 2, 0, 4, 4, 2)
    bank.requires_grad_()
    out = occlude(images, bank, torch.tensor([0, 1]), torch.tensor([0, 2]), scale=SCALE, shift=SHIFT)
    clean = images[:1].float() * torch.tensor(SCALE) + torch.tensor(SHIFT)
    torch.testing.assert_close(out[:1].permute(0, 2, 3, 1), clean)
    out.sum().backward()
    assert bank.grad is not None
    assert torch.count_nonzero(bank.grad[0]) == 0
    assert torch.count_nonzero(bank.grad[1]) > 0


def test_black_and_white_pixels_learn() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 1, 3).contiguous()
    bank = torch.zeros(1, 1, 1, 3, requires_grad=True)
    index = torch.tensor([0, 1])
    occlude(images, bank, index, torch.ones_like(index), scale=(1.0,) * 3, shift=(0.0,) * 3).sum().backward()
    assert bank.grad is not None
    assert bank.grad.flatten().tolist() == [2.0, 2.0, 2.0]


def test_the_gradient_has_the_same_bits_twice() -> None:
    images, bank, image_index, occluder_index = make(4, 3, 64, 31, 29, 3)
    grads = []
    for _ in range(2):
        leaf = bank.clone().requires_grad_()
        occlude(images, leaf, image_index, occluder_index, scale=SCALE, shift=SHIFT).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


# opcheck reads .grad of a clone that it made itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck() -> None:
    images, bank, image_index, occluder_index = make(2, 2, 5, 7, 5, 4)
    args = (
        images,
        bank.requires_grad_(),
        image_index,
        occluder_index,
        list(SCALE),
        list(SHIFT),
        torch.float32,
        3,
        False,
        "auto",
        True,
    )
    torch.library.opcheck(torch.ops.gfo.occlude.default, args)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (lambda a: {**a, "images": a["images"].float()}, TypeError, "images: expected uint8"),
        (lambda a: {**a, "bank": a["bank"].double()}, TypeError, "bank: expected float32"),
        (lambda a: {**a, "bank": a["bank"][:, 1:]}, ValueError, "bank: expected float32 [K, 4, 5, 3]"),
        (lambda a: {**a, "image_index": a["image_index"].int()}, TypeError, "image_index: expected int64"),
        (lambda a: {**a, "image_index": a["image_index"] + 9}, ValueError, "image_index: entries"),
        (lambda a: {**a, "occluder_index": a["occluder_index"] - 9}, ValueError, "occluder_index: entries"),
        (lambda a: {**a, "occluder_index": a["occluder_index"][:1]}, ValueError, "occluder_index: expected int64 [3]"),
        (lambda a: {**a, "scale": (1.0,)}, ValueError, "scale and shift"),
    ],
)
def test_bad_arguments(change: Callable[[dict[str, Any]], dict[str, Any]], error: type[Exception], word: str) -> None:
    images, bank, image_index, occluder_index = make(2, 2, 3, 4, 5, 5)
    arguments = change(
        {
            "images": images,
            "bank": bank,
            "image_index": image_index,
            "occluder_index": occluder_index,
            "scale": SCALE,
            "shift": SHIFT,
        }
    )
    with pytest.raises(error) as caught:
        occlude(**arguments)
    assert word in str(caught.value)
