"""What holds for every console script: `--help` is there and light, usage errors are one line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

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


def run_script(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a console script as the installed one does, and print the heavy modules that it loaded at the end."""
    module, function = SCRIPTS[name].split(":")
    code = RUN.format(module=module, function=function, heavy=HEAVY)
    return subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, check=False, timeout=60
    )


def test_all_scripts_are_here():
    names = ("train", "export", "eval", "report", "demo", "doctor", "bench")
    assert set(SCRIPTS) == {f"gfo-{name}" for name in names}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_loads_nothing_heavy(name: str):
    ended = run_script(name, "--help")
    assert ended.returncode == 0, ended.stderr
    assert name in ended.stdout
    assert ended.stdout.splitlines()[-1] == "LOADED", "a module of this list takes longer to load than --help may take"


@pytest.mark.parametrize("name", SCRIPTS)
def test_unknown_option_is_one_line_and_2(name: str):
    ended = run_script(name, "--no-such-option")
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith(f"{name}: ")
    assert "--no-such-option" in line
