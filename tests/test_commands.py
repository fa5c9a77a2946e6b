"""What holds for every console script: `--help` is there and light, usage errors are one line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

SCRIPTS: dict[str, str] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
    "scripts"
]
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "triton",
    "numpy",
    "pandas",
    "xarray",
    "zarr",
    "matplotlib",
    "scipy",
    "sklearn",
    "PIL",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nvidia.dali",
    "tensorrt",
    "tensorrt_rtx",
)

RUN = """
import sys
from importlib import import_module
try:
    getattr(import_module({module!r}), {function!r})()
finally:
    print("LOADED", *sorted(name for name in sys.modules if name in {heavy!r}))
"""


# The least that a terminal and a system can offer.
POOR = {"PYTHONIOENCODING": "ascii:strict", "COLUMNS": "²", "LINES": "0", "TERM": "dumb", "NO_COLOR": "1"}


def run_script(name: str, *options: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a console script as the installed one does, and print the heavy modules that it loaded at the end."""
    module, function = SCRIPTS[name].split(":")
    code = RUN.format(module=module, function=function, heavy=HEAVY)
    how = {"stdout": subprocess.PIPE, **how, "env": os.environ | POOR}
    return subprocess.run(
        [sys.executable, "-c", code, *options], stderr=subprocess.PIPE, text=True, check=False, timeout=60, **how
    )


def close_standard_files() -> None:
    """Begin a process as a shell does with `<&- >&-`."""
    os.closerange(0, 2)


def test_all_scripts_are_here():
    names = ("train", "export", "eval", "report", "demo", "doctor", "bench")
    assert set(SCRIPTS) == {f"gfo-{name}" for name in names}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_loads_nothing_heavy(name: str):
    ended = run_script(name, "--help")
    assert ended.returncode == 0, ended.stderr
    assert name in ended.stdout
    assert ended.stdout.isascii()
    assert ended.stdout.splitlines()[-1] == "LOADED", "a module of this list takes longer to load than --help may take"


@pytest.mark.parametrize("name", SCRIPTS)
def test_unknown_option_is_one_line_and_2(name: str):
    ended = run_script(name, "--no-such-option", preexec_fn=close_standard_files)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith(f"{name}: ")
    assert "--no-such-option" in line


def test_output_that_cannot_be_written():
    # Not `run_script`, which prints a line after the command.
    module, function = SCRIPTS["gfo-report"].split(":")
    command = [sys.executable, "-c", f"from {module} import {function}; {function}()", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("gfo-report: standard output")
    assert "No space left on device" in line


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
def test_a_limit_on_the_address_space_that_the_libraries_do_not_survive_is_one_line() -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    ended = run_script("gfo-report", "nowhere", "--out", "nowhere", preexec_fn=limit)
    why = "not enough memory: the limit on the address space (ulimit -v) is 2097152 KiB, the libraries need 4505600"
    assert (ended.returncode, ended.stderr) == (5, f"gfo-report: {why}; raise it\n")
    assert run_script("gfo-report", "--help", preexec_fn=limit).returncode == 0
