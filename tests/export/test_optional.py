"""Optional libraries: one line where one is missing, and none tells its makers that it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from gfo.export.errors import EngineUnavailable
from gfo.export.optional import optional


def test_a_library_that_is_not_installed() -> None:
    with pytest.raises(EngineUnavailable, match=r"--engine x: no_such_library is not installed; pip install gfo\[x\]"):
        optional("no_such_library", "--engine x", "x")


_IMPORT = """
from gfo.export.optional import optional
optional("{0}", "", "")
"""


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_importing_a_library_writes_nothing_into_the_home_folder(library: str, tmp_path: Path) -> None:
    if find_spec(library) is None:
        pytest.skip(f"needs {library}")
    home = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    told = {"ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "JENKINS_URL", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    subprocess.run([sys.executable, "-c", _IMPORT.format(library)], env=environment | home, check=True)
    assert list(tmp_path.rglob("*")) == []
