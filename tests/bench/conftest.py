"""gfo-bench as its user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from gfo.bench import measure, stages
from gfo.bench.commands import bench


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        document = json.loads(self.out.splitlines()[-1])
        assert document["schema"] == 1
        return document["rows"]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time two rounds without a rest: for tests that do not look at how true a rate is."""
    monkeypatch.setattr(stages, "REST", 0.0)
    monkeypatch.setattr(measure, "MIN_ROUNDS", 2)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run gfo-bench with these words."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["gfo-bench", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            bench.main()
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Ended(left.value.code, captured.out, captured.err)

    return run
