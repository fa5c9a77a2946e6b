"""`python -m gfo.kernels.compile`, and whether its table tells the truth: every kernel is in it, as the launchers start
it, and moves the bytes that are said."""

from __future__ import annotations

import ast
import inspect
import json
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
from gfo.kernels._pixels import ELEMENTS_224, LAYOUTS
from gfo.kernels._triton import CLASSES_SHOWN, HAVE_TRITON, INTERPRETED, SHORT_NAMES, Variant
from gfo.kernels.margin_loss import margin_loss
from gfo.kernels.occlude import occlude, occlude_grid
from gfo.kernels.occluder_step import NORMS, adam_step, occluder_step
from gfo.kernels.score import score

pytestmark = pytest.mark.skipif(not HAVE_TRITON, reason="needs Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = Path(command.__file__).parent
NUMBERS: dict[str, Any] = {"scale": (0.017, 0.0175, 0.0174), "shift": (-2.1, -2.0, -1.8)}

VARIANTS = [variant for file in command.FILES for variant in command.variants(file)] if HAVE_TRITON else []


def named(variant: Variant) -> str:
    return variant.kernel.fn.__name__


def compiling() -> dict[str, str]:
    """The environment without the interpreter that the other tests run the kernels in."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def run(*words: str, code: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command, or `code` with the same words."""
    python = [sys.executable, *(["-m", "gfo.kernels.compile"] if code is None else ["-c", code])]
    return subprocess.run(
        [*python, *words], capture_output=True, text=True, check=False, timeout=300, env=compiling() | variables
    )


# ---- the list


def launched(file: Path) -> set[str]:
    """Names of the `@jit` functions of a file that are kernels, not parts of kernels."""
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if f.name.endswith("_kernel") and "jit" in map(ast.unparse, f.decorator_list)}


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


def argument_type(value: Any) -> str:
    if isinstance(value, Tensor):
        names = {**SHORT_NAMES, torch.uint8: "u8", torch.int64: "i64"}
        return f"*{names[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32:16" if value % 16 == 0 else "i32"


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
        types = {name: argument_type(value) for name, value in positional.items()}
        found.add(form(kernel, {**types, **keywords}, warps, fusion))

    monkeypatch.setattr(type(VARIANTS[0].kernel), "run", note)
    return found


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


def test_the_variants_are_what_the_launchers_start(launches: set[tuple[Any, ...]]) -> None:
    index = zeros(5, dtype=torch.int64)
    for size in (224, 223):
        images, bank = zeros(1, size, size, 3, dtype=torch.uint8), zeros(1, size, size, 3).requires_grad_()
        for put in (occlude, occlude_grid):
            for dtype in SHORT_NAMES:
                for channels in LAYOUTS:
                    out = put(images, bank, index, index, dtype=dtype, channels=channels, **NUMBERS, impl="triton")
                    out.sum().backward()
        tensors = [zeros(1, size, size, 3) for _ in range(4)]
        for norm in NORMS:
            occluder_step(*tensors[:3], step=1.0, decay=0.9, epsilon=1.0, norm=norm, impl="triton")
            adam_step(*tensors, step=1.0, count=1, epsilon=1.0, norm=norm, impl="triton")
    for classes in CLASSES_SHOWN:
        for dtype in SHORT_NAMES:
            logits = zeros(5, classes, dtype=dtype).requires_grad_()
            score(logits.detach(), index, impl="triton")
            for weight in (None, zeros(5)):
                margin_loss(logits, index, 1.0, weight=weight, impl="triton").sum().backward()
    listed = {form(v.kernel, v.arguments, v.warps, v.fusion) for v in VARIANTS}
    assert launches == listed


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


@pytest.mark.parametrize("channels", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_occlude_and_its_gradient_move_what_the_table_says(
    traffic: Callable[..., int], dtype: torch.dtype, channels: int
) -> None:
    """Two tiles of a grid each way, and a list with the 16 pairs an occluder that the gradient's share counts."""
    size, name = 9, f"{SHORT_NAMES[dtype]}, {channels} channels"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8, generator=generator)
    bank = torch.randn(16, size, size, 3, generator=generator)
    how: dict[str, Any] = {**NUMBERS, "dtype": dtype, "channels": channels, "impl": "triton"}
    share = images[0].numel() / ELEMENTS_224

    occlude_grid(images, bank, torch.arange(8).flip(0), torch.arange(16).flip(0) + 1, **how)
    assert traffic(images, bank) == pytest.approx(8 * 16 * share * moved("occlude_grid", name), rel=1e-12)
    two = bank[:2].clone().requires_grad_()
    out = occlude(images, two, torch.arange(32) % 8, torch.arange(32) % 2 + 1, **how)
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
        occluder_step(*tensors, step=1.0, decay=0.9, epsilon=1.0, norm=norm, impl="triton")
    else:
        adam_step(*tensors, step=1.0, count=1, epsilon=1.0, norm=norm, impl="triton")
    expected = sum(moved(kernel, variant) for kernel, variant in kernels.items())
    assert traffic(*tensors) == pytest.approx(expected * 2 * math.prod(tensors[0].shape[1:]) / ELEMENTS_224, rel=1e-12)


# ---- the table


@pytest.fixture(scope="module")
def hopper() -> subprocess.CompletedProcess[str]:
    return run("--targets", "sm_90", "--json")


@pytest.mark.slow
def test_all_variants_compile_without_spills(hopper: subprocess.CompletedProcess[str]) -> None:
    assert hopper.returncode == 0, hopper.stderr
    assert hopper.stderr == ""
    rows = json.loads(hopper.stdout.splitlines()[-1])["rows"]
    names = [(f"_{row['kernel']}_kernel", row["variant"], row["target"]) for row in rows]
    assert names == [(named(variant), variant.name, "sm_90") for variant in VARIANTS]
    for row, variant in zip(rows, VARIANTS, strict=True):
        assert row["spills"] == 0
        assert 0 < row["registers"] <= 255
        assert row["cubin"] > 0
        assert row["moved"] == round(variant.moved)
        assert row["minimum"] == round(variant.minimum) <= row["moved"]
        assert row["error"] is None


@pytest.mark.slow
def test_aligned_pictures_are_loaded_and_stored_16_bytes_at_a_time(hopper: subprocess.CompletedProcess[str]) -> None:
    rows = json.loads(hopper.stdout.splitlines()[-1])["rows"]
    aligned = [row for row in rows if row["variant"].endswith("3 channels")]
    assert {row["kernel"] for row in aligned} == {"occlude", "occlude_grid", "bank_gradient"}
    for row in aligned:
        # A thread's 8 halves or 4 floats of the output are 8 or 4 bytes of a picture.
        pictures = {"occlude": 4, "occlude_grid": 4, "bank_gradient": 16}[row["kernel"]]
        narrowest = 8 if row["variant"].startswith(("bf16", "fp16")) else 4
        assert row["stores"] == [16], row
        assert row["loads"][0] == 16, row
        assert min(row["loads"]) == max(pictures, narrowest), row


@pytest.mark.slow
def test_the_table_fits_a_page(hopper: subprocess.CompletedProcess[str]) -> None:
    *lines, _ = hopper.stdout.splitlines()
    assert max(map(len, lines)) <= 160
    assert len(lines) > len(VARIANTS)
    for words in ("kernel", "variant", "registers", "spills", "shared", "cubin", "loads", "stores", "moved", "minimum"):
        assert words in "\n".join(lines[:4])


SPOILED = """
import sys

import triton
import triton.language as tl

from gfo.kernels import compile as command
from gfo.kernels._triton import Variant


@triton.jit
def _part(x):
    return x + nothing


@triton.jit
def _unknown_name_kernel(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), _part(tl.load(x)))


@triton.jit
def _unknown_instruction_kernel(x, BLOCK: tl.constexpr):
    z = tl.load(x + tl.arange(0, BLOCK))
    z = tl.inline_asm_elementwise("no.such $0, $1;", "=r,r", [z], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(x + tl.arange(0, BLOCK), z)


@triton.jit
def _spilling_kernel(x, BLOCK: tl.constexpr):
    z = tl.load(x + tl.arange(0, BLOCK))
    tl.store(x + tl.arange(0, BLOCK), z * tl.sum(z, axis=0))  # all must be held until the sum is known


@triton.jit
def _good_kernel(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), 0)


def spoiled():
    for kernel, block in {kernels}:
        yield Variant(kernel, "here", {{"x": "*i32", "BLOCK": block}}, 1, "pair", 1.0, 1.0)


command.compile_all = lambda targets: [command.compile_variant(v, t) for v in spoiled() for t in targets]
sys.exit(command.main())
"""


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        ("[(_unknown_name_kernel, 128)]", ["unknown_name, here, sm_90: ", "nothing is not defined"]),
        ("[(_unknown_instruction_kernel, 128)]", ["unknown_instruction, here, sm_90: ptxas ", "'.such'"]),
        ("[(_spilling_kernel, 16384)]", ["spilling, here, sm_90: spills ", " bytes"]),
    ],
)
def test_a_failure_or_a_spill_is_1_and_the_others_still_run(tmp_path: Path, kernels: str, words: list[str]) -> None:
    script = tmp_path / "spoiled.py"  # Triton reads the source of a kernel
    script.write_text(SPOILED.format(kernels=f"{kernels} + [(_good_kernel, 128)]"))
    ended = run(
        "--targets", "sm_90", "--json", code=f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert all(word in line for word in words), line
    rows = json.loads(ended.stdout.splitlines()[-1])["rows"]
    assert [row["kernel"] for row in rows] == [kernels[3:].split("_kernel")[0], "good"]
    assert rows[1]["spills"] == 0
    assert rows[0]["error"] or rows[0]["spills"] > 0
    assert ".version" not in ended.stdout, "Triton's own print of the program"


ASSEMBLED = """
from gfo.kernels import compile as command

for file in command.FILES:
    variant, target = command.variants(file)[0], "sm_90"
    compiled = command.compiled(variant, target)
    _, cubin = command.assemble(compiled.asm["ptx"], target, variant.fusion)
    print(cubin == compiled.asm["cubin"])
"""


def test_what_ptxas_reports_on_is_what_triton_launches(tmp_path: Path) -> None:
    ended = run(code=ASSEMBLED, TRITON_CACHE_DIR=str(tmp_path))  # a cubin holds the time at which its source was saved
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


# ---- the command line


@pytest.mark.parametrize("text", ["sm_70x", "sm_10", "sm_90,,sm_80", "", "90", "sm_90a"])
def test_bad_targets_are_one_line_and_2(text: str) -> None:
    ended = run(f"--targets={text}")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    wrong = "" if ",," in text else text
    assert f"--targets: {wrong!r}: expected some of sm_80,sm_89,sm_90,sm_100,sm_120" in line


def test_interpreted_there_is_nothing_to_compile() -> None:
    ended = run(TRITON_INTERPRET="1")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "unset it" in line


def test_without_triton_is_3() -> None:
    code = "import sys; sys.modules['triton'] = None; from gfo.kernels.compile import main; sys.exit(main())"
    ended = run(code=code)
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert "Triton is not installed" in line


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from gfo.kernels.compile import main
try:
    main()
finally:
    print("LOADED", *sorted({"torch", "triton", "numpy", "rich"} & set(sys.modules)))
"""
    ended = run("--help", code=code)
    assert ended.returncode == 0, ended.stderr
    assert "--targets" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "LOADED"
