"""One training at a time on one bank."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gfo.engine.training import owner
from gfo.engine.training.owner import OWNER, sole_owner
from gfo.export.errors import InputError
from gfo.export.records import save_record

_HOLD = """
import sys, time
from pathlib import Path
from gfo.engine.training.owner import sole_owner
with sole_owner(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_of_the_first_and_a_killed_owner_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "bank.parts"
    with subprocess.Popen([sys.executable, "-c", _HOLD, folder], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        named = f"{folder}: gfo-train on {socket.gethostname()}, process {first.pid}, is at work on it; wait for it"
        with pytest.raises(InputError, match=named), sole_owner(folder):
            pass
        assert (folder / OWNER).exists()
        first.send_signal(signal.SIGKILL)
    with sole_owner(folder), pytest.raises(InputError, match=f"process {os.getpid()}, is at work"), sole_owner(folder):
        pass
    assert not (folder / OWNER).exists()


def test_an_owner_elsewhere_is_believed_for_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file system is shared and its locks are not."""
    save_record(tmp_path / OWNER, {"host": "elsewhere", "process": 7})
    named = r"gfo-train on elsewhere, process 7, was at work on it \d s ago; wait for it, .* 60 s after it was stopped"
    with pytest.raises(InputError, match=named), sole_owner(tmp_path):
        pass
    assert (tmp_path / OWNER).exists()
    silent = (tmp_path / OWNER).stat().st_mtime - 61
    os.utime(tmp_path / OWNER, (silent, silent))
    monkeypatch.setattr(owner, "_BEAT", 0.01)
    with sole_owner(tmp_path):
        os.utime(tmp_path / OWNER, (silent, silent))
        for _ in range(1000):
            if (tmp_path / OWNER).stat().st_mtime > silent:
                break
            owner.threading.Event().wait(0.01)
        else:
            pytest.fail("no heartbeat")
    assert not (tmp_path / OWNER).exists()
