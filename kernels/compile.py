"""Ahead-of-time compilation of every kernel, without a GPU: `compile_all`, which `gfo-bench compile` runs.

Registers and spills are reported by ptxas, run with Triton's own options; the widths of loads and stores are read from
the PTX. A spill, or a variant that does not compile, is a failure.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._triton import Variant

FILES = ("occlude", "occlude_backward", "margin_loss", "momentum_step", "adam_step", "score")
"""Modules of this package that define kernels."""

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
"""GPU architectures: Ampere, Ada, Hopper, and data-centre and consumer Blackwell."""

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfsu](\d+)\b")


@dataclass(frozen=True, kw_only=True)
class CompileRow:
    """One variant on one target. If it does not compile, all but its name and `error` is None.

    Attributes
    ----------
    kernel, variant, target
        Such as `occlude`, `bf16` and `sm_90`.
    registers
        Registers of a thread.
    spills
        Bytes of local memory that a thread stores and loads for lack of registers.
    shared, cubin
        Bytes of shared memory of a program, and of the binary.
    loads, stores
        Bytes that one instruction of a thread moves between registers and global memory: every width that occurs,
        widest first. Single words of 8 bytes are left out; they are entries of index lists.
    moved, minimum, per
        As in `Variant`, in bytes.
    error
        The reason why it does not compile, or None.
    """

    kernel: str
    variant: str
    target: str
    registers: int | None = None
    spills: int | None = None
    shared: int | None = None
    cubin: int | None = None
    loads: list[int] | None = None
    stores: list[int] | None = None
    moved: int | None = None
    minimum: int | None = None
    per: str | None = None
    error: str | None = None

    @property
    def complaint(self) -> str | None:
        """The reason why the variant fails, or None."""
        return self.error or (f"spills {self.spills} bytes" if self.spills else None)


COLUMNS = tuple(field.name for field in fields(CompileRow) if field.name != "error")
"""Fields of a row that a table shows, in its order."""


# ---- one variant


def variants(file: str) -> list[Variant]:
    """Return the kernel variants defined in one module of this package, in definition order."""
    from importlib import import_module

    return list(import_module(f".{file}", __package__).variants())


def compile_variant(variant: Variant, target: str) -> CompileRow:
    """Compile one variant for one target; a failure is reported in the row."""
    named = _named(variant, target)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # if ptxas fails, Triton prints the whole program
            made = compiled(variant, target)
        ptx: str = made.asm["ptx"]
        report, cubin = assemble(ptx, target, variant.fusion)
    except Exception as error:  # noqa: BLE001 (compilers raise any type; the row reports the failure)
        return CompileRow(**named, error=_reason(error))
    return CompileRow(
        **named,
        registers=max(int(count) for count in _REGISTERS.findall(report)),
        spills=sum(int(stored) + int(loaded) for stored, loaded in _SPILLS.findall(report)),
        shared=made.metadata.shared,
        cubin=len(cubin),
        loads=access_widths(ptx, "ld"),
        stores=access_widths(ptx, "st"),
        moved=round(variant.moved),
        minimum=round(variant.minimum),
        per=variant.per,
    )


def _named(variant: Variant, target: str) -> dict[str, Any]:
    name: str = variant.kernel.fn.__name__
    return {"kernel": name.strip("_").removesuffix("_kernel"), "variant": variant.name, "target": target}


def _capability(target: str) -> int:
    return int(target.removeprefix("sm_"))


def compiled(variant: Variant, target: str) -> Any:
    """Compile a variant with Triton, or load it from Triton's cache."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = {name: variant.arguments[name] for name in variant.kernel.arg_names}
    types = {name: a.split(":")[0] if isinstance(a, str) else "constexpr" for name, a in arguments.items()}
    constants = {name: a for name, a in arguments.items() if not isinstance(a, str)}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, a in enumerate(arguments.values())
        if isinstance(a, str) and (a.startswith("*") or a.endswith(":16"))
    }
    return triton.compile(
        ASTSource(variant.kernel, types, constants, aligned),
        target=GPUTarget("cuda", _capability(target), 32),
        options={"num_warps": variant.warps, "enable_fp_fusion": variant.fusion},
    )


def assemble(ptx: str, target: str, fusion: bool) -> tuple[str, bytes]:
    """Run `ptxas -v` and return its report and the cubin.

    The options are Triton's, and so is the cubin, bit for bit. Triton itself keeps no report, and with a warm cache
    does not run ptxas.
    """
    import subprocess
    import tempfile

    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    capability = _capability(target)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        options = ["-v", "-lineinfo", "--regAllocOptLevel=2", f"--gpu-name={sm_arch_from_capability(capability)}"]
        command = [get_ptxas(capability).path, *options, f"--fmad={str(fusion).lower()}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stderr, cubin.read_bytes()


def access_widths(ptx: str, kind: str) -> list[int]:
    """Return the widths in bytes of accesses to global memory, `ld` or `st`, widest first; see `CompileRow`."""
    found = {
        int(count or 1) * int(bits) // 8
        for access, count, bits in _ACCESS.findall(ptx)
        if access == kind and not (bits == "64" and not count)
    }
    return sorted(found, reverse=True)


def _reason(error: BaseException) -> str:
    """Return the line that names the cause: Triton wraps an error once per function called and quotes the source."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = str(getattr(error, "error_message", None) or error) or type(error).__name__
    lines = [" ".join(line.split()) for line in words.splitlines()]
    return next((line for line in lines if line.startswith("ptxas ")), lines[0])


# ---- all variants


def compile_all(
    targets: Sequence[str], report: Callable[[int, int], None] = lambda done, total: None
) -> list[CompileRow]:
    """Compile every variant of every kernel for every target, on all cores that this process may use.

    `report` is called with the number of finished rows and of all rows.
    """
    import multiprocessing
    import signal
    from concurrent.futures import ProcessPoolExecutor

    places = [(file, i, v) for file in FILES for i, v in enumerate(variants(file))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Only this process handles Ctrl-C; it then starts no more compilations.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    rows: list[CompileRow] = []
    with ProcessPoolExecutor(cores, spawn, initializer=signal.signal, initargs=quiet) as pool:
        waiting = [(v, t, pool.submit(_compile_place, file, i, t)) for file, i, v in places for t in targets]
        try:
            for one in waiting:
                rows.append(_row(*one))
                report(len(rows), len(waiting))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return rows


def _compile_place(file: str, number: int, target: str) -> CompileRow:
    """Compile a variant in a worker process, which takes its place in a module: kernels cannot be pickled."""
    return compile_variant(variants(file)[number], target)


def _row(variant: Variant, target: str, future: Future[CompileRow]) -> CompileRow:
    from concurrent.futures.process import BrokenProcessPool

    try:
        return future.result()
    except BrokenProcessPool:
        return CompileRow(
            **_named(variant, target), error="the compiler crashed or was killed, on this variant or one beside it"
        )
