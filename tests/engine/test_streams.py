"""Standard streams of few letters, closed or full, and sizes of the terminal that are none."""

from __future__ import annotations

import errno
import io
import os
import sys

import pytest

from gfo.engine import streams


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the files of a process whose standard output was closed before it began."""
    monkeypatch.setattr(sys, "stdout", None)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"e = 8 +- 1, 12 x 12..., - \u732b\xe9\udcff"),
        ("cp1252", "e = 8 ± 1, 12 × 12…, – \\u732bé\\udcff"),
        ("utf-8", "ε = 8 ± 1, 12 × 12…, – 猫é\\udcff"),
    ],
)
def test_any_text_can_be_printed(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, "strict")
    monkeypatch.setattr(sys, "stdout", stream)
    streams.prepare()
    print("ε = 8 ± 1, 12 × 12…, – 猫é\udcff", flush=True)
    assert stream.buffer.getvalue().decode(encoding) == f"{shown}\n"


@pytest.mark.parametrize("size", ["0", "1", "abc", "²", "-1", "9" * 5000, ""])
def test_sizes_that_are_none_are_forgotten(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        monkeypatch.setenv(name, size)
    monkeypatch.setenv("COLUMNS", "40")
    streams.prepare()
    assert os.environ["COLUMNS"] == "40"
    assert "LINES" not in os.environ
    assert "TERMINAL_WIDTH" not in os.environ


@pytest.mark.usefixtures("closed")
def test_a_closed_stream_takes_what_is_printed_and_no_file_gets_its_number() -> None:
    streams.prepare()
    print("lost")
    assert streams.lost() is None


def test_what_a_full_stream_lost_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        print("lost")
        name, error = streams.lost() or ("", OSError())
        assert (name, error.errno) == ("standard output", errno.ENOSPC)
        assert streams.lost() is None
