"""Tar files: members are read where they are, and a truncated tar file is refused wherever it ends."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from gfo.engine.data.files import PictureFiles, tar_members
from gfo.export.errors import InputError


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w:") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


MEMBERS = {"a.jpg": b"1" * 700, "folder/b.jpg": b"2" * 512, "n" * 150 + ".jpg": b"", "c.cls": b"3"}


def test_members_are_read_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    write_tar(tmp_path / "val" / "0.tar", MEMBERS)
    files = PictureFiles(tmp_path)
    for name, content in MEMBERS.items():
        assert files.read(f"val/0.tar/{name}") == content
    assert list(tar_members(tmp_path / "val" / "0.tar")) == list(MEMBERS)
    with pytest.raises(FileNotFoundError, match=r"val/0\.tar: has no member z\.jpg"):
        files.read("val/0.tar/z.jpg")
    with pytest.raises(FileNotFoundError):
        files.read("val/1.tar/a.jpg")


def test_a_tar_file_is_refused_wherever_it_is_truncated(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "whole.tar", MEMBERS).read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    cut = tmp_path / "cut.tar"
    for length in range(0, end + 1, 128):
        cut.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.tar: not an uncompressed tar file, or truncated after"):
            tar_members(cut)
    cut.write_bytes(content[: end + 512])  # with its end mark, without the padding
    assert len(tar_members(cut)) == len(MEMBERS)


def test_a_tar_file_that_is_truncated_later_is_noticed(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "0.tar", MEMBERS).read_bytes()
    files = PictureFiles(tmp_path)
    files.read("0.tar/a.jpg")
    (tmp_path / "0.tar").write_bytes(content[:1000])
    with pytest.raises(OSError, match=r"0\.tar/a\.jpg: the tar file ends after 488 of its 700 bytes"):
        files.read("0.tar/a.jpg")


def test_other_tar_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an uncompressed tar file"):
        tar_members(write_tar(tmp_path / "z.tar", MEMBERS, "w:gz"))
    with tarfile.open(tmp_path / "twice.tar", "w:") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(InputError, match=r"twice\.tar: holds a\.jpg twice"):
        tar_members(tmp_path / "twice.tar")
    (tmp_path / "text.tar").write_text("no tar" * 200)
    with pytest.raises(InputError, match="not an uncompressed tar file"):
        tar_members(tmp_path / "text.tar")


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", MEMBERS)
    (tmp_path / "a.jpg").write_bytes(b"1")
    seen = {PictureFiles(tmp_path).identity(name) for name in ("a.jpg", "0.tar/a.jpg", "0.tar/folder/b.jpg", "z.jpg")}
    (tmp_path / "a.jpg").write_bytes(b"22")
    assert len({*seen, PictureFiles(tmp_path).identity("a.jpg")}) == 5
