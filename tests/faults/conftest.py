"""What is killed and damaged, and how often: a few times in the suite, thousands of times with GFO_FAULTS=long."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import LONG, Commands, Job, compiler
from scenarios import SMALL_BLOCKS, Material, evaluate

# What reports and exports import on use.
_OTHERS = (
    "gfo.engine.parity.checked_export",
    "gfo.engine.reporting.figures",
    "gfo.engine.reporting.page",
    "gfo.engine.reporting.tables",
    "matplotlib.backends.backend_agg",
    "tabulate",
    "torch.onnx._internal.exporter._core",
)
_COUNTS = Path("build", "faults")


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A process that runs commands in forks."""
    if compiler() is None:
        pytest.skip("needs Linux and a C compiler")
    with Commands(tmp_path_factory.mktemp("commands"), _OTHERS if LONG else ()) as found:
        yield found


@pytest.fixture(scope="session")
def material(
    tiny_data: Path, tiny_bank: Path, commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> Material:
    """Data, a bank and a finished RUN."""
    folder = tmp_path_factory.mktemp("material")
    found = Material(tiny_data, tiny_bank, folder / "run")
    assert commands.run(Job(evaluate(found, folder), folder, first=SMALL_BLOCKS)).code == 0
    return found


@pytest.fixture
def counts(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """Count what was tried and how it ended; a long campaign keeps it for `table.py`."""
    found: Counter[str] = Counter()
    yield found
    if LONG:
        _COUNTS.mkdir(parents=True, exist_ok=True)
        name = request.node.name.replace("/", "-").replace(" ", "-")
        (_COUNTS / f"{name}.json").write_text(json.dumps(found))
