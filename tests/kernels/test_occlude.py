"""`occlude` of pairs and grids, reference and kernels, against the formula in float64, and its gradient against
autograd through that formula."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gfo.kernels.occlude import Normalisation, occlude
from gfo.kernels.pairs import Grid, Pairs, as_grid

SCALE, SHIFT = (0.017, 0.0175, 0.0174), (-2.1, -2.0, -1.8)
HOW = Normalisation(SCALE, SHIFT)
# One add, one multiply, one add in float32, each rounded by half a unit in 24 bits, on values up to 255 · 0.0175 + 2.1.
FORWARD_TOLERANCE = 3 * 2**-24 * 6.6

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = pytest.mark.parametrize("impl", ["reference", "triton"])
# The interpreter truncates where it should round to bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]


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


def truth(pairs: Pairs) -> Tensor:
    """The formula, pair by pair, in float64, NCHW."""
    images, bank, image_index, occluder_index = pairs
    rows = torch.cat([torch.zeros_like(bank[:1]), bank])
    scale, shift = (torch.tensor(c, dtype=torch.float64, device=images.device) for c in (SCALE, SHIFT))
    inputs = _ClampWithBounds.apply(images[image_index].double() + rows[occluder_index]) * scale + shift
    return inputs.permute(0, 3, 1, 2)


def make(b: int, k: int, p: int, h: int, w: int, seed: int) -> Pairs:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (b, h, w, 3), dtype=torch.uint8, generator=g)
    images[torch.rand(b, h, w, 3, generator=g) < 0.2] = 0
    images[torch.rand(b, h, w, 3, generator=g) < 0.2] = 255
    # With 12 bits behind the point x + d is exact in float32: no mask turns on how the sum was rounded.
    bank = (torch.randn(k, h, w, 3, generator=g) * 8 * 4096).round() / 4096
    bank[torch.rand(k, h, w, 3, generator=g) < 0.2] = 0.0  # black and white pixels then sit on the bound
    image_index, occluder_index = torch.randint(0, b, (p,), generator=g), torch.randint(0, k + 1, (p,), generator=g)
    return Pairs(images.to(DEVICE), bank.to(DEVICE), image_index.to(DEVICE), occluder_index.to(DEVICE))


def rounding(wanted: Tensor, dtype: torch.dtype) -> Tensor:
    """How far the float64 formula, rounded to `dtype`, may be from a float32 computation rounded to `dtype`."""
    if dtype == torch.float32:
        return torch.full_like(wanted, FORWARD_TOLERANCE)
    return wanted.abs() * torch.finfo(dtype).eps + FORWARD_TOLERANCE  # half a unit, and half for a tie turned over


@pytest.mark.usefixtures("poisoned")
@IMPLS
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    b=st.integers(1, 4),
    k=st.integers(1, 5),
    p=st.integers(0, 9),
    h=st.integers(1, 33),
    w=st.integers(1, 33),
    seed=st.integers(0, 999),
)
def test_forward_and_gradient_equal_the_formula(
    impl: str, dtype: torch.dtype, b: int, k: int, p: int, h: int, w: int, seed: int
) -> None:
    pairs = make(b, k, p, h, w, seed)
    ours, theirs = pairs.bank.clone().requires_grad_(), pairs.bank.double().requires_grad_()
    out = occlude(pairs._replace(bank=ours), Normalisation(SCALE, SHIFT, dtype), impl=impl)
    assert out.shape == (p, 3, h, w)
    assert out.is_contiguous(memory_format=torch.channels_last)
    wanted = truth(pairs._replace(bank=theirs))
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    upstream = upstream.to(dtype).double()
    out.backward(upstream.to(dtype))
    wanted.backward(upstream)
    assert bool(((out.double() - wanted).abs() <= rounding(wanted, dtype)).all())
    assert ours.grad is not None
    assert theirs.grad is not None
    # A sum of up to p terms below 5 times a scale of 0.0175, rounded after every term and after the product.
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=(p + 2) * 2**-24 * p * 5 * 0.0175)


@pytest.mark.usefixtures("poisoned")
@IMPLS
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pictures=st.integers(0, 6),
    occluders=st.integers(0, 10),
    h=st.integers(1, 33),
    w=st.integers(1, 33),
    seed=st.integers(0, 999),
)
def test_a_grid_is_the_pair_list_of_every_picture_under_every_occluder(
    impl: str, pictures: int, occluders: int, h: int, w: int, seed: int
) -> None:
    images, bank, _, _ = make(4, 5, 0, h, w, seed)
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 4, (pictures,), generator=g).to(DEVICE)
    columns = torch.randint(0, 6, (occluders,), generator=g).to(DEVICE)
    listed = Pairs(images, bank, rows.repeat_interleave(occluders), columns.repeat(pictures))
    upstream = torch.randn(pictures * occluders, 3, h, w, generator=g).to(DEVICE)
    results = []
    for pairs, way in ((listed, "reference"), (Grid(images, bank, rows, columns), impl)):
        leaf = bank.clone().requires_grad_()
        out = occlude(pairs._replace(bank=leaf), HOW, impl=way)
        out.backward(upstream)
        results.append((out.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])  # the same operations, each rounded once: the same bits
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-6 * max(1, pictures * occluders))


@settings(max_examples=50)
@given(
    pictures=st.lists(st.integers(0, 3), min_size=1, max_size=5, unique=True),
    occluders=st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
def test_as_grid_finds_the_sides_of_a_grid(pictures: list[int], occluders: list[int]) -> None:
    rows, columns = torch.tensor(pictures), torch.tensor(occluders)
    found = as_grid(rows.repeat_interleave(len(columns)), columns.repeat(len(rows)))
    assert found is not None
    assert torch.equal(found[0], rows)
    assert torch.equal(found[1], columns)


@pytest.mark.parametrize(
    ("image_index", "occluder_index"),
    [([], []), ([0, 0, 1], [0, 1, 0]), ([0, 0, 1, 1], [0, 1, 1, 0]), ([0, 0, 1, 2], [0, 1, 0, 1])],
)
def test_as_grid_knows_what_is_no_grid(image_index: list[int], occluder_index: list[int]) -> None:
    lists = (torch.tensor(index, dtype=torch.int64) for index in (image_index, occluder_index))
    assert as_grid(*lists) is None


@pytest.mark.slow
@IMPLS
def test_imagenet_size(impl: str) -> None:
    size = 112 if impl == "triton" and DEVICE == "cpu" else 224  # interpreted, a program takes ten milliseconds
    pairs = make(2, 2, 3, size, size, 11)
    theirs = pairs.bank.double().requires_grad_()
    wanted = truth(pairs._replace(bank=theirs))
    ours = pairs.bank.clone().requires_grad_()
    out = occlude(pairs._replace(bank=ours), HOW, impl=impl)
    out.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(out.detach().double(), wanted.detach(), rtol=0, atol=FORWARD_TOLERANCE)
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=6 * 2**-24 * 3 * 0.0175)


@IMPLS
@pytest.mark.parametrize("kind", [Pairs, Grid])
def test_a_nan_in_the_bank_is_not_hidden(impl: str, kind: type[Pairs] | type[Grid]) -> None:
    images, bank, _, _ = make(1, 1, 0, 2, 2, 0)
    bank[0, 0, 1, 2] = float("nan")
    one = torch.ones(1, dtype=torch.int64, device=DEVICE)
    out = occlude(kind(images, bank, one - 1, one), HOW, impl=impl)
    assert out.isnan().nonzero().tolist() == [[0, 2, 0, 1]]


def test_several_pieces_give_the_same_as_one_pair_at_a_time() -> None:
    images, bank, *lists = make(5, 3, 40, 96, 96, 0)  # 27,648 elements a pair: 5 pieces
    whole = occlude(Pairs(images, bank, *lists), HOW)
    single = [occlude(Pairs(images, bank, *(index[i : i + 1] for index in lists)), HOW) for i in range(40)]
    assert torch.equal(whole, torch.cat(single))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_the_rounded_float32(dtype: torch.dtype) -> None:
    pairs = make(2, 2, 6, 31, 29, 1)
    full = occlude(pairs, HOW)
    cast = occlude(pairs, Normalisation(SCALE, SHIFT, dtype))
    assert torch.equal(cast, full.to(dtype))


@IMPLS
def test_index_0_is_clean_and_an_unused_occluder_has_zero_gradient(impl: str) -> None:
    images, bank, _, _ = make(2, 2, 0, 4, 4, 2)
    bank.requires_grad_()
    lists = (torch.tensor(index, device=DEVICE) for index in ([0, 1], [0, 2]))
    out = occlude(Pairs(images, bank, *lists), HOW, impl=impl)
    clean = images[:1].cpu().float() * torch.tensor(SCALE) + torch.tensor(SHIFT)
    torch.testing.assert_close(out[:1].permute(0, 2, 3, 1).cpu(), clean)
    out.sum().backward()
    assert bank.grad is not None
    assert torch.count_nonzero(bank.grad[0]) == 0
    assert torch.count_nonzero(bank.grad[1]) > 0


@IMPLS
def test_black_and_white_pixels_learn(impl: str) -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8, device=DEVICE).view(2, 1, 1, 1).expand(2, 1, 1, 3).contiguous()
    bank = torch.zeros(1, 1, 1, 3, device=DEVICE, requires_grad=True)
    index = torch.tensor([0, 1], device=DEVICE)
    how = Normalisation((1.0,) * 3, (0.0,) * 3)
    out = occlude(Pairs(images, bank, index, torch.ones_like(index)), how, impl=impl)
    out.sum().backward()
    assert bank.grad is not None
    assert bank.grad.flatten().tolist() == [2.0, 2.0, 2.0]


@IMPLS
def test_the_gradient_has_the_same_bits_twice(impl: str) -> None:
    if impl == "triton" and DEVICE == "cpu":
        pytest.skip("the interpreter has one order of everything")
    pairs = make(4, 3, 64, 31, 29, 3)
    grads = []
    for _ in range(2):
        leaf = pairs.bank.clone().requires_grad_()
        out = occlude(pairs._replace(bank=leaf), HOW, impl=impl)
        out.square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@IMPLS
def test_no_gradient_is_kept_where_none_is_wanted(impl: str) -> None:
    pairs = make(2, 2, 3, 4, 5, 4)
    leaf = pairs.bank.clone().requires_grad_()
    with torch.no_grad():
        assert not occlude(pairs._replace(bank=leaf), HOW, impl=impl).requires_grad
    assert not occlude(pairs, HOW, impl=impl).requires_grad


class _Around(torch.nn.Module):
    """`occlude` with the bank as a parameter, and a layer behind it."""

    def __init__(self, pairs: Pairs, kind: type[Pairs] | type[Grid], validate: bool) -> None:
        super().__init__()
        self.bank, self.kind, self.validate = torch.nn.Parameter(pairs.bank.cpu().clone()), kind, validate
        self.layer = torch.nn.Linear(pairs.bank[0].numel(), 2)

    def forward(self, images: Tensor, image_index: Tensor, occluder_index: Tensor) -> Tensor:
        pairs = self.kind(images, self.bank, image_index, occluder_index)
        return self.layer(occlude(pairs, HOW, impl="reference", validate=self.validate).flatten(1))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", [Pairs, Grid])
@pytest.mark.parametrize("validate", [False, True])
def test_a_compiled_module_is_one_graph_with_the_same_bits(
    kind: type[Pairs] | type[Grid], backend: str, validate: bool
) -> None:
    pairs = make(3, 2, 4, 5, 7, 4)
    module = _Around(pairs, kind, validate)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    images, *lists = (tensor.cpu() for tensor in (pairs.images, pairs.image_index, pairs.occluder_index))
    results = []
    for run in (module, compiled):
        out = run(images, *lists)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), module.bank)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    if validate:
        with pytest.raises(RuntimeError, match="occluder_index: an entry is out of range"):
            compiled(images, lists[0], lists[1] + 9)


@IMPLS
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
        (lambda a: {**a, "bank": a["bank"].mT.contiguous().mT}, ValueError, "bank: expected contiguous memory"),
        (lambda a: {**a, "image_index": a["image_index"].repeat(2)[::2]}, ValueError, "image_index: expected contig"),
        (lambda a: {**a, "dtype": torch.float64}, TypeError, "dtype: expected float32"),
        (lambda a: {**a, "bank": a["bank"].to("meta")}, ValueError, "expected all tensors on one device"),
    ],
)
def test_bad_arguments(
    change: Callable[[dict[str, Any]], dict[str, Any]], error: type[Exception], word: str, impl: str
) -> None:
    arguments = change({**make(2, 2, 3, 4, 5, 5)._asdict(), **HOW._asdict()})
    how = Normalisation(*(arguments.pop(name) for name in HOW._fields))
    with pytest.raises(error) as caught:
        occlude(Pairs(**arguments), how, impl=impl)
    assert word in str(caught.value)


@pytest.mark.skipif(DEVICE == "cuda", reason="Triton can run here")
def test_triton_without_a_gpu_says_what_to_do() -> None:
    code = (
        "import torch; from gfo.kernels.score import score;"
        "score(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), impl='triton')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("ValueError"))
    assert "impl='triton': expected tensors on CUDA, got cpu; use impl='reference'" in line
