"""The facts about a machine that decide what runs on it and how fast: system, CPU, GPUs, versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ..engine.data import LOADERS
from ..engine.engines import ENGINES

# Distributions of the project itself, as pip names them. Versions are read without importing: some packages take
# seconds to load, some need a driver.
_OWN: Final = ("torch", "torchvision", "timm", "triton", "onnx", "onnxscript")
# Instruction sets that speed up convolutions, as Linux names them.
_ISA_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
_ARM_FLAGS = ("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2")
_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def environment() -> dict[str, Any]:
    """Return the facts as plain JSON types; None or empty where there is nothing."""
    return {
        "gfo": package_version("gfo"),
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": _cpu(),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
        "packages": {name: package_version(name) for name in packages()},
    }


def packages() -> tuple[str, ...]:
    """Return the distributions that matter here: the project's own, and those of every engine and loader."""
    needed = (package for found in (*ENGINES.classes(), *LOADERS.classes()) for package in found.packages)
    return tuple(dict.fromkeys((*_OWN, *needed)))


def package_version(distribution: str) -> str | None:
    """Return the version of an installed distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit of the checkout that holds this file, with `-dirty` where files differ.

    None for an installed package.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def load_average() -> float | None:
    """Return the load of the last minute; None where the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpu() -> dict[str, Any]:
    from ..engine.machine import worker_count

    facts = _cpuinfo()
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {
        "model": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": worker_count(),
        "flags": [flag for flag in (*_ISA_FLAGS, *_ARM_FLAGS) if flag in flags],
    }


def _cpuinfo() -> dict[str, str]:
    """Return the facts of Linux's first core; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):  # not POSIX, or unknown there
        return None


def _gpus() -> list[dict[str, str]]:
    """Return what the NVIDIA driver lists, one entry for each GPU; empty without a driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = ([field.strip() for field in line.split(",")] for line in listed.splitlines() if line.strip())
    return [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows]
