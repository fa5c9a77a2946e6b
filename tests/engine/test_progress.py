"""Progress where there is no terminal, and as events in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gfo.engine import progress as module
from gfo.engine.events import logged
from gfo.engine.progress import Silent, TerminalProgress

Run = Callable[..., tuple[int, str, str]]


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_without_a_terminal_a_bar_is_a_line_every_half_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """400 of 1,000 were done before: the pace is that of the others."""
    with TerminalProgress().task("all pairs", 1000, 400) as bar:
        for _ in range(8):
            clock.now += 10
            bar.advance(50, "5 pairs/s")
    assert capsys.readouterr().err.splitlines() == [
        "all pairs: 55%, 0:01:30 left, 5 pairs/s",
        "all pairs: 70%, 0:01:00 left, 5 pairs/s",
        "all pairs: 80%, 0:00:40 left, 5 pairs/s",
    ]


def test_nothing_to_do_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress().task("training", 0):
        pass
    assert capsys.readouterr().err == "training: 100%\n"


class Heard(Silent):
    """What reaches the terminal."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def events(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for event in found:
        assert datetime.fromisoformat(event.pop("time")).utcoffset() is not None
    return found


def test_what_is_said_and_what_happens_is_logged(clock: Clock, tmp_path: Path) -> None:
    heard = Heard()
    with logged(heard, tmp_path / "log", "gfo-eval") as progress:
        progress.say("a line\nin two")
        progress.event("block", start=3, path="not UTF-8: \udcff")
        with progress.task("all pairs", 10) as bar:
            clock.now += 31
            bar.advance(4, "fast")
            bar.advance(6)
    assert heard.said == ["a line\nin two"]
    start, *rest = events(tmp_path / "log")
    assert (start["event"], start["command"], set(start)) == (
        "start",
        "gfo-eval",
        {"event", "command", "arguments", "version", "host", "process"},
    )
    assert rest == [
        {"event": "line", "text": "a line\nin two"},
        {"event": "block", "start": 3, "path": "not UTF-8: \udcff"},
        {"event": "progress", "task": "all pairs", "done": 4, "total": 10, "note": "fast"},
        {"event": "progress", "task": "all pairs", "done": 10, "total": 10, "note": "fast"},
        {"event": "end", "error": None},
    ]


@pytest.mark.parametrize(
    ("error", "named"), [(ValueError("bad"), "ValueError: bad"), (KeyboardInterrupt(), "KeyboardInterrupt")]
)
def test_the_end_names_an_error(error: BaseException, named: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), logged(Heard(), tmp_path / "log", "gfo-eval"):
        raise error
    with logged(Heard(), tmp_path / "log", "gfo-eval"):
        pass
    ends = [event["error"] for event in events(tmp_path / "log") if event["event"] == "end"]
    assert ends[0].startswith(named)
    assert ends[1:] == [None]  # the file is appended to


def test_an_evaluation_logs_its_blocks(
    run: Run, own_data: Path, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_data / "val" / "cat" / "0.jpg").write_bytes(b"none")
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 8)
    words: list[object] = ["--model", "python:gfo_tiny:network", "--data", own_data, "--split", "val"]
    words += ["--occluders", tiny_bank, "--engine", "torch", "--max-quarantined", 0.2, "--out", tmp_path / "run"]
    code, _, _ = run("gfo-eval", *words, "--log-json", tmp_path / "log")
    assert code == 0
    found = events(tmp_path / "log")
    blocks = [(event["start"], event["pictures"]) for event in found if event["event"] == "block"]
    assert blocks == [(0, 8), (8, 8), (16, 2)]
    (bad,) = [event for event in found if event["event"] == "quarantine"]
    assert bad["path"] == "val/cat/0.jpg"
    assert (found[0]["event"], found[-1]) == ("start", {"event": "end", "error": None})


def test_a_log_that_cannot_be_written_ends_the_command(run: Run, tiny_data: Path, tmp_path: Path) -> None:
    words: list[object] = ["--model", "python:gfo_tiny:network", "--data", tiny_data, "--epsilon", 8]
    code, out, err = run("gfo-train", *words, "--out", tmp_path / "bank.safetensors", "--log-json", tmp_path)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"gfo-train: {tmp_path}: Is a directory")
