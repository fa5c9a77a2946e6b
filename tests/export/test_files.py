"""Files are written whole or not at all, and an error names the file that was to be written."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gfo.export.files import ScratchFolder, atomic_folder, atomic_path, load_tensors, save_tensors


def test_the_file_appears_at_the_end_and_parents_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert not target.exists()
        assert partial.is_relative_to(target.parent)  # the same file system: moving is atomic
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_error_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "b.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as partial:
        raise error(partial.write_text("new"))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(tmp_path / "b.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "b.txt")


def test_a_folder_that_cannot_be_made_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as caught, atomic_path(tmp_path / "file" / "x" / "b.txt"):
        pass
    assert caught.value.filename == str(tmp_path / "file" / "x" / "b.txt")


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 8 KiB: a write that really fails, in whatever library makes it.

    Not a fixture: pytest's own output, where it goes into a file, would be cut off, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensors_that_do_not_fit_leave_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "t.safetensors"
    save_tensors(target, {"x": torch.zeros(4)})
    small = target.read_bytes()
    with pytest.raises(OSError, match="too large") as caught, small_disk():
        save_tensors(target, {"x": torch.zeros(10_000)})
    assert caught.value.filename == str(target)
    assert target.read_bytes() == small
    assert list(tmp_path.iterdir()) == [target]


def test_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "b.txt"):
        (tmp_path / "a.txt").read_text()
    assert caught.value.filename == str(tmp_path / "a.txt")


# ---- folders


def test_a_folder_appears_at_the_end_with_the_usual_mode(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with atomic_folder(target) as partial:
        (partial / "c.txt").write_text("new")
        assert not target.exists()
        assert partial.is_relative_to(target.parent)  # on its disk
    assert (target / "c.txt").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]
    (tmp_path / "plain").mkdir()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_error_leaves_no_folder(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), atomic_folder(tmp_path / "b") as partial:
        raise error((partial / "c.txt").write_text("new"))
    assert list(tmp_path.iterdir()) == []


def test_errors_name_the_folder_and_not_the_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "b"
    with pytest.raises(OSError, match="No space left") as caught, atomic_folder(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(target)
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(target) as partial:
        (partial / "missing" / "c.txt").write_text("new")
    assert caught.value.filename == str(target)
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(target):
        (tmp_path / "a.txt").read_text()
    assert caught.value.filename == str(tmp_path / "a.txt")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as caught, atomic_folder(tmp_path / "file" / "x" / "b"):
        pass
    assert caught.value.filename == str(tmp_path / "file" / "x" / "b")


def test_another_process_that_was_faster_is_accepted_or_an_error(tmp_path: Path) -> None:
    target = tmp_path / "b"

    def race(accept: bool | None) -> None:
        with atomic_folder(target, accept=None if accept is None else lambda: accept) as partial:
            (partial / "c.txt").write_text("slower")
            target.mkdir(exist_ok=True)
            (target / "c.txt").write_text("faster")

    race(True)
    for accept in (False, None):
        with pytest.raises(OSError, match="not empty") as caught:
            race(accept)
        assert caught.value.filename == str(target)
    assert (target / "c.txt").read_text() == "faster"
    assert list(tmp_path.iterdir()) == [target]


def test_every_damage_to_a_file_of_tensors_is_noticed(tmp_path: Path) -> None:
    """Each byte in turn: the file is refused, or holds the same (a blank in its header may be another blank)."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([7, -1])}
    path = tmp_path / "t.safetensors"
    save_tensors(path, tensors, {"gfo": "header"})
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            metadata, found = load_tensors(path, tensors)
        except ValueError:
            refused += 1
            continue
        assert metadata == {"gfo": "header"}
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert refused >= len(whole) - 8
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"."):
            load_tensors(path)


def test_tensors_are_in_memory_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.ones(5000)})
    _, tensors = load_tensors(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(10)
    assert torch.equal(tensors["a"], torch.ones(5000))


def test_a_file_of_another_program_has_no_checksum(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "t.safetensors")
    assert load_tensors(tmp_path / "t.safetensors")[1].keys() == {"a"}


def killed_over(path: Path, how: str) -> None:
    """Leave what a writer of `path` leaves that is killed on the way."""
    code = f"""
import os
from pathlib import Path
from gfo.export.files import ScratchFolder, atomic_folder, atomic_path
with {how} as partial:
    (Path(str(partial)) / "x" if Path(str(partial)).is_dir() else Path(partial)).write_text("half")
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", f"path = {str(path)!r}\n{code}"], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_killed_writers_leave_is_removed_by_the_next_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    others = [".a.txt.partial", ".a.txt.short.partial", ".b.txt.abcdefgh.partial", "a.txt.abcdefgh.partial"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".a.txt.linklink.partial").symlink_to(tmp_path / others[0])
    kept = {*others, ".a.txt.linklink.partial", "tmp"}
    for path, how in (
        (tmp_path / "a.txt", "atomic_path(path)"),
        (tmp_path / "c", "atomic_folder(path)"),
        (tmp_path / "tmp", "ScratchFolder()"),
    ):
        killed_over(path, how)
    # A file in a folder, a file in a folder in a folder, and a scratch folder with a file.
    assert len(list(tmp_path.rglob("*"))) == len(kept) + 7
    with atomic_path(tmp_path / "a.txt") as mine, atomic_folder(tmp_path / "c") as folder:
        assert {path.name for path in tmp_path.iterdir()} == kept | {mine.parent.name, folder.parent.name}
        mine.touch()
        shutil.rmtree(folder)  # as a library may that makes its folder anew
        folder.mkdir()
        # The next ones leave alone what is being written.
        with atomic_path(tmp_path / "a.txt") as other, atomic_folder(tmp_path / "c", accept=lambda: True):
            other.touch()
            assert mine.parent.exists()
            assert folder.exists()
        (tmp_path / "c").rmdir()
        with ScratchFolder() as scratch, ScratchFolder() as second:
            assert {path.name for path in (tmp_path / "tmp").iterdir()} == {Path(scratch).name, Path(second).name}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"a.txt", "c"}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_where_there_are_no_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("gfo.export.files.fcntl.flock", refused)
    young, old = (tmp_path / f".a.txt.{name}.partial" for name in ("youngone", "oldoldol"))
    for path in (young, old):
        path.mkdir()
    os.utime(old, (0, 0))
    with atomic_path(tmp_path / "a.txt") as partial:
        partial.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", young.name}
