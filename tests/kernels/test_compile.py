"""The list of compiled variants: every kernel is in it, as the launchers start it, and moves the bytes it says."""

from __future__ import annotations

import ast
import inspect
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gfo.kernels import compile as command
from gfo.kernels._pixels import ELEMENTS_224
from gfo.kernels._triton import CLASSES_SHOWN, HAVE_TRITON, INTERPRETED, SHORT_NAMES, Variant
from gfo.kernels.adam_step import adam_step
from gfo.kernels.ball import NORMS
from gfo.kernels.margin_loss import margin_loss
from gfo.kernels.momentum_step import momentum_step
from gfo.kernels.occlude import Normalisation, occlude
from gfo.kernels.pairs import Grid, Pairs
from gfo.kernels.score import score

pytestmark = pytest.mark.skipif(not HAVE_TRITON, reason="needs Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = Path(command.__file__).parent
SCALE, SHIFT = (0.017, 0.0175, 0.0174), (-2.1, -2.0, -1.8)

VARIANTS = [variant for file in command.FILES for variant in command.variants(file)] if HAVE_TRITON else []


def named(variant: Variant) -> str:
    return variant.kernel.fn.__name__


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `code` without the interpreter that the other tests run the kernels in."""
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=compiling | variables,
    )


# ---- the list


def launched(file: Path) -> set[str]:
    """Names of the `@jit` functions of a file that are kernels, not parts of kernels."""
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {
        f.name
        for f in functions
        if f.name.endswith("_kernel") and any(ast.unparse(d).startswith("jit(") for d in f.decorator_list)
    }


def test_every_kernel_has_a_variant_and_its_file_is_in_the_list() -> None:
    found = {file.stem: names for file in KERNELS.glob("*.py") if (names := launched(file))}
    assert set(found) == set(command.FILES)
    for file, names in found.items():
        assert {named(variant) for variant in command.variants(file)} == names, file


def test_variants_have_names_of_their_own_and_all_arguments() -> None:
    assert len({(named(variant), variant.name) for variant in VARIANTS}) == len(VARIANTS)
    for variant in VARIANTS:
        parameters = inspect.signature(variant.kernel.fn).parameters
        assert set(parameters) <= set(variant.arguments)
        for name, parameter in parameters.items():
            constant = not isinstance(variant.arguments[name], str)
            assert constant == ("constexpr" in str(parameter.annotation)), (named(variant), name)


def argument_types(kernel: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What Triton compiles a launch for, by its own rules; interpreted kernels are not what it compiles."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    compiled = JITFunction(kernel.fn, **kernel.kwargs) if INTERPRETED else kernel
    bind = create_function_from_signature(compiled.signature, compiled.params, make_backend(GPUTarget("cuda", 90, 32)))
    _, found, _ = bind(**values)
    types: dict[str, Any] = {}
    for name, (kind, key) in zip(kernel.arg_names, found, strict=True):
        if isinstance(values[name], Tensor):
            assert key == "D", f"{name}: is not aligned"
        types[name] = key if kind == "constexpr" else f"{kind}:16" if kind.startswith("i") and key == "D" else kind
    return types


def form(kernel: Any, arguments: Mapping[str, Any], warps: int, fusion: bool) -> tuple[Any, ...]:
    return kernel.fn.__name__, *((name, arguments[name]) for name in kernel.arg_names), warps, fusion


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Any, ...]]:
    """The forms in which kernels are started, which then do nothing."""
    found: set[tuple[Any, ...]] = set()

    def note(kernel: Any, *values: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        del grid, warmup
        warps, fusion = keywords.pop("num_warps"), keywords.pop("enable_fp_fusion", True)
        positional = dict(zip(kernel.arg_names, values, strict=False))
        found.add(form(kernel, argument_types(kernel, {**positional, **keywords}), warps, fusion))

    monkeypatch.setattr(type(VARIANTS[0].kernel), "run", note)
    return found


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize(("pairs", "occluders"), [(5, 3), (1, 1), (16, 16), (1, 16)])
def test_the_variants_are_what_the_launchers_start(launches: set[tuple[Any, ...]], pairs: int, occluders: int) -> None:
    """For any number of pairs and occluders: no call makes Triton compile in the middle of a run."""
    index = zeros(pairs, dtype=torch.int64)
    for size in (224, 223):
        images, bank = zeros(1, size, size, 3, dtype=torch.uint8), zeros(occluders, size, size, 3).requires_grad_()
        for kind in (Pairs, Grid):
            for dtype in SHORT_NAMES:
                how = Normalisation(SCALE, SHIFT, dtype)
                occlude(kind(images, bank, index, index), how, impl="triton").sum().backward()
        tensors = [zeros(occluders, size, size, 3) for _ in range(4)]
        for norm in NORMS:
            momentum_step(*tensors[:3], step=1.0, decay=0.9, epsilon=1.0, norm=norm, impl="triton")
            adam_step(*tensors, step=1.0, count=1, epsilon=1.0, norm=norm, impl="triton")
    for classes in CLASSES_SHOWN:
        for dtype in SHORT_NAMES:
            logits = zeros(pairs, classes, dtype=dtype).requires_grad_()
            score(logits.detach(), index, impl="triton")
            for weight in (None, zeros(pairs)):
                margin_loss(logits, index, 1.0, weight=weight, impl="triton").sum().backward()
    listed = {form(v.kernel, v.arguments, v.warps, v.fusion) for v in VARIANTS}
    assert sorted(map(str, launches - listed)) == sorted(map(str, listed - launches)) == []


# ---- the bytes


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Give the bytes that interpreted kernels have loaded from the tensors given, and stored in blocks anywhere."""
    if not INTERPRETED:
        pytest.skip("the interpreter counts")
    from triton.runtime.interpreter import InterpreterBuilder

    loaded: list[Any] = []
    stored: list[int] = []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counting_load(self: Any, ptrs: Any, mask: Any, *others: Any) -> Any:
        found = load(self, ptrs, mask, *others)
        if ptrs.data.size > 1:
            loaded.append((ptrs.data[mask.data.astype(bool)], found.data.itemsize))
        return found

    def counting_store(self: Any, ptrs: Any, value: Any, mask: Any, *others: Any) -> Any:
        if ptrs.data.size > 1:
            stored.append(int(mask.data.sum()) * value.data.itemsize)
        return store(self, ptrs, value, mask, *others)

    def count(*tensors: Tensor) -> int:
        total = sum(stored)
        for tensor in tensors:
            start = tensor.data_ptr()
            for addresses, size in loaded:
                inside = (addresses >= start) & (addresses < start + tensor.nbytes)
                total += int(inside.sum()) * size
        loaded.clear()
        stored.clear()
        return total

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counting_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counting_store)
    return count


def moved(kernel: str, variant: str) -> float:
    (found,) = (v.moved for v in VARIANTS if named(v) == f"_{kernel}_kernel" and v.name == variant)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_occlude_and_its_gradient_move_what_the_table_says(traffic: Callable[..., int], dtype: torch.dtype) -> None:
    """Two tiles of a grid each way, and a list with the 16 pairs an occluder that the gradient's share counts."""
    size, name = 9, SHORT_NAMES[dtype]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8, generator=generator)
    bank = torch.randn(16, size, size, 3, generator=generator)
    how = Normalisation(SCALE, SHIFT, dtype)
    share = images[0].numel() / ELEMENTS_224

    occlude(Grid(images, bank, torch.arange(8).flip(0), torch.arange(16).flip(0) + 1), how, impl="triton")
    assert traffic(images, bank) == pytest.approx(8 * 16 * share * moved("occlude_grid", name), rel=1e-12)
    two = bank[:2].clone().requires_grad_()
    out = occlude(Pairs(images, two, torch.arange(32) % 8, torch.arange(32) % 2 + 1), how, impl="triton")
    assert traffic(images, two) == pytest.approx(32 * share * moved("occlude", name), rel=1e-12)
    upstream = torch.ones_like(out)
    out.backward(upstream)
    assert traffic(images, two, upstream) == pytest.approx(32 * share * moved("bank_gradient", name), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_are_read_once(traffic: Callable[..., int], dtype: torch.dtype) -> None:
    name = f"{SHORT_NAMES[dtype]}, 1000 classes"
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    labels = torch.tensor([0, 999, 7])
    score(logits.detach(), labels, impl="triton")
    assert traffic(logits) == 3 * moved("score", name)
    loss = margin_loss(logits, labels, 1.0, impl="triton")
    assert traffic(logits) == 3 * moved("margin", name)
    loss.sum().backward()
    assert traffic(logits) == 3 * moved("margin_gradient", name)


@pytest.mark.parametrize(
    ("norm", "step", "kernels"),
    [
        ("linf", "momentum", {"abs_sum": "linf", "momentum": "linf"}),
        ("l2", "momentum", {"abs_sum": "linf", "momentum": "l2", "move_l2": "l2"}),
        ("linf", "adam", {"adam": "linf"}),
        ("l2", "adam", {"adam": "l2", "shrink": "l2"}),
    ],
)
def test_steps_move_what_the_table_says(
    traffic: Callable[..., int], norm: Any, step: str, kernels: dict[str, str]
) -> None:
    tensors = [torch.randn(2, 33, 35, 3, generator=torch.Generator().manual_seed(i)).square_() for i in range(4)]
    if step == "momentum":
        tensors = tensors[:3]
        momentum_step(*tensors, step=1.0, decay=0.9, epsilon=1.0, norm=norm, impl="triton")
    else:
        adam_step(*tensors, step=1.0, count=1, epsilon=1.0, norm=norm, impl="triton")
    expected = sum(moved(kernel, variant) for kernel, variant in kernels.items())
    assert traffic(*tensors) == pytest.approx(expected * 2 * math.prod(tensors[0].shape[1:]) / ELEMENTS_224, rel=1e-12)


# ---- the compiler


ASSEMBLED = """
from gfo.kernels import compile as command

for file in command.FILES:
    variant, target = command.variants(file)[0], "sm_90"
    compiled = command.compiled(variant, target)
    _, cubin = command.assemble(compiled.asm["ptx"], target, variant.fusion)
    print(cubin == compiled.asm["cubin"])
"""


def test_what_ptxas_reports_on_is_what_triton_launches(tmp_path: Path) -> None:
    ended = run(ASSEMBLED, TRITON_CACHE_DIR=str(tmp_path))  # a cubin holds the time at which its source was saved
    assert ended.stdout.split() == ["True"] * len(command.FILES), ended.stderr


@pytest.mark.parametrize(
    ("instruction", "widths"),
    [
        ("ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", [16]),
        ("ld.global.L1::evict_last.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ];", [8]),
        ("@%p1 ld.global.v8.b32 { %r1 }, [ %rd1 + 0 ];", [32]),
        ("ld.global.nc.v4.f32 { %r1 }, [ %rd1 ];", [16]),
        ("ld.global.b8 { %rs1 }, [ %rd1 + 0 ];", [1]),
        ("ld.global.v2.b64 { %rd1, %rd2 }, [ %rd3 + 0 ];", [16]),
        ("ld.global.b64 { %rd1 }, [ %rd2 + 0 ];", []),
        ("ld.shared.v4.b32 { %r1 }, [ %r2 + 0 ];", []),
        ("st.global.v4.b32 [ %rd1 + 0 ], { %r1 };", []),
    ],
)
def test_widths_are_read_from_the_ptx(instruction: str, widths: list[int]) -> None:
    assert command.access_widths(f"\t{instruction}\n", "ld") == widths
