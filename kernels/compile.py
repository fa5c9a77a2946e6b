"""`python -m gfo.kernels.compile`: every kernel compiled ahead of time, without a GPU, and what came of it.

Registers and spills are the words of ptxas, run with Triton's own options; the widths of loads and stores are read from
the PTX. A spill, or a variant that does not compile, is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._triton import Variant

FILES = ("occlude", "occlude_backward", "margin_loss", "occluder_step", "score")
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")

_FAILED, _BAD_INPUT, _UNAVAILABLE, _INTERRUPTED = 1, 2, 3, 130
_FILE_WIDTH = 160

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfsu](\d+)\b")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant on one target. All but what names it is None where it does not compile.

    Attributes
    ----------
    kernel, variant, target
        As `occlude`, `bf16, 3 channels`, `sm_90`.
    registers
        Of a thread.
    spills
        Bytes of local memory that a thread stores and loads because its registers are too few.
    shared, cubin
        Bytes of shared memory that a program takes, and of the binary.
    loads, stores
        Bytes that one instruction of a thread moves between registers and global memory: every width that occurs,
        widest first. Lone words of 8 bytes are left out; they are entries of index lists.
    moved, minimum, per
        As in `Variant`, in bytes.
    error
        Why it does not compile; else None.
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
        """What is wrong with it; None if nothing is."""
        return self.error or (f"spills {self.spills} bytes" if self.spills else None)


# ---- one variant


def variants(file: str) -> list[Variant]:
    """Of one file of this folder, in its order."""
    from importlib import import_module

    return list(import_module(f".{file}", __package__).variants())


def compile_variant(variant: Variant, target: str) -> Row:
    """Compile it, or say why that fails."""
    named = _named(variant, target)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where ptxas fails Triton prints the whole program
            made = compiled(variant, target)
        ptx: str = made.asm["ptx"]
        report, cubin = assemble(ptx, target, variant.fusion)
    except Exception as error:  # noqa: BLE001 (compilers raise what they like; the row says that it failed)
        return Row(**named, error=_reason(error))
    return Row(
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
    """What Triton makes of it, or of an earlier run in its cache."""
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
    """The report of `ptxas -v` and the cubin, with the options that Triton gives it: the cubin is the same as Triton's.

    Triton keeps no report, and with a warm cache does not even run ptxas.
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
    """Bytes of the accesses to global memory of a kind, `ld` or `st`; see `Row`."""
    found = {
        int(count or 1) * int(bits) // 8
        for access, count, bits in _ACCESS.findall(ptx)
        if access == kind and not (bits == "64" and not count)
    }
    return sorted(found, reverse=True)


def _reason(error: BaseException) -> str:
    """The line that says it. Triton wraps one error for each function called, and quotes the source first."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = str(getattr(error, "error_message", None) or error) or type(error).__name__
    lines = [" ".join(line.split()) for line in words.splitlines()]
    return next((line for line in lines if line.startswith("ptxas ")), lines[0])


# ---- all of them


def compile_all(targets: Sequence[str]) -> list[Row]:
    """A row for every variant of every kernel and target, over all cores that this process may use."""
    import multiprocessing
    import signal
    from concurrent.futures import ProcessPoolExecutor

    from rich.console import Console
    from rich.progress import track

    places = [(file, i, v) for file in FILES for i, v in enumerate(variants(file))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    console = Console(stderr=True)
    # Ctrl-C is for this process alone, which then starts no more of them.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, spawn, initializer=signal.signal, initargs=quiet) as pool:
        waited = [(v, t, pool.submit(_compile_place, file, i, t)) for file, i, v in places for t in targets]
        try:
            shown = track(waited, "compiling", console=console, transient=True, disable=not console.is_terminal)
            return [_row(*one) for one in shown]
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _compile_place(file: str, number: int, target: str) -> Row:
    """In another process, which is told where a variant is: kernels do not travel."""
    return compile_variant(variants(file)[number], target)


def _row(variant: Variant, target: str, future: Future[Row]) -> Row:
    from concurrent.futures.process import BrokenProcessPool

    try:
        return future.result()
    except BrokenProcessPool:
        return Row(**_named(variant, target), error="the compiler crashed or was killed, on this one or one beside it")


# ---- the command


def _print_table(rows: Sequence[Row], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(highlight=False, width=_FILE_WIDTH)
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = [name for name in asdict(rows[0]) if name != "error"]
    for name in columns:
        text = name in ("kernel", "variant", "target", "per")
        table.add_column(name, overflow="fold", justify="left" if text else "right")
    for row in rows:
        cells = asdict(row)
        table.add_row(*("FAILED" if name == "registers" and row.error else _cell(cells[name]) for name in columns))
    console.print(table)


def _cell(value: str | int | list[int] | None) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else value or ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _leave(f"{message} (see {self.prog} --help)", _BAD_INPUT)


def _leave(message: str, code: int) -> NoReturn:
    print(f"python -m gfo.kernels.compile: {message}", file=sys.stderr)
    sys.exit(code)


def _targets(text: str) -> list[str]:
    targets = [target.strip() for target in text.split(",")]
    for target in targets:
        if target not in TARGETS:
            raise argparse.ArgumentTypeError(f"{target!r}: expected some of {','.join(TARGETS)}")
    return list(dict.fromkeys(targets))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m gfo.kernels.compile",
        description="Compile every kernel in every variant, without a GPU; exit code 1 if one fails or spills.",
    )
    parser.add_argument(
        "--targets", type=_targets, default=list(TARGETS), help=f"GPU architectures; default {','.join(TARGETS)}."
    )
    parser.add_argument("--json", action="store_true", help="One plain line of JSON last, with every row.")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Compile, print the table, and give the exit code."""
    arguments = _arguments(words)
    from ._triton import HAVE_TRITON, INTERPRETED, triton

    if not HAVE_TRITON:
        _leave("Triton is not installed, and there is none for every system; pip install triton", _UNAVAILABLE)
    if INTERPRETED:
        _leave("TRITON_INTERPRET is set, so that nothing would be compiled; unset it", _BAD_INPUT)
    try:
        rows = compile_all(arguments.targets)
    except KeyboardInterrupt:
        _leave("interrupted", _INTERRUPTED)
    bad = [row for row in rows if row.complaint]
    _print_table(rows, f"Kernels, compiled by Triton {triton.__version__}")
    print(f"{len(rows)} variants, {len(bad)} failed or spilled")
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
    for row in bad:
        print(f"{row.kernel}, {row.variant}, {row.target}: {row.complaint}", file=sys.stderr)
    return _FAILED if bad else 0


if __name__ == "__main__":
    sys.exit(main())
