"""Tar files: members are read where they are, and a truncated tar file is refused wherever it ends."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfo.engine.data.files import PictureFiles, TooLarge, tar_members
from gfo.engine.data.pillow import read_picture
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing


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


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"V"])
def test_what_is_no_plain_file_is_refused_not_passed_over(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "0.tar", "w:") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        info = tarfile.TarInfo("b.jpg")
        info.type, info.linkname = kind, "a.jpg"
        tar.addfile(info)
    with pytest.raises(InputError, match=r"member b\.jpg is a link, sparse or no plain file; write the tar file again"):
        tar_members(tmp_path / "0.tar")


def test_folders_in_a_tar_file_are_no_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w:") as tar:
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    assert tar_members(tmp_path / "0.tar") == {}


def test_a_member_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {os.fsdecode(b"caf\xe9.jpg"): b""})
    with pytest.raises(InputError, match=r"member 'caf\\udce9\.jpg' is not named in UTF-8"):
        tar_members(tmp_path / "0.tar")


def test_headers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    def header(pax: dict[str, str], kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.size, info.pax_headers = kind, size, pax
        return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)

    chain = header({}, tarfile.XHDTYPE) * 5000  # each header is said to be followed by the next
    for content in (
        header({}, size=10 << 30),
        header({}, size=-512),
        header({"GNU.sparse.map": "garbage"}),
        header({"GNU.sparse.size": "garbage"}),
        header({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + b"garbage".ljust(512, b"\0"),
        chain,
        header({}, tarfile.GNUTYPE_LONGNAME, size=10 << 30),
    ):
        (tmp_path / "0.tar").write_bytes(content + bytes(1024))
        with pytest.raises(InputError, match=r"0\.tar: (not an uncompressed tar file|member a\.jpg is)"):
            tar_members(tmp_path / "0.tar")


@pytest.mark.parametrize("name", ["large.jpg", "0.tar/large.jpg"])
def test_what_is_too_large_to_be_a_picture_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("gfo.engine.data.files._LARGEST", 1000)
    (tmp_path / "large.jpg").write_bytes(bytes(2000))
    write_tar(tmp_path / "0.tar", {"large.jpg": bytes(2000)})
    with pytest.raises(TooLarge, match=r"0\.0 MB, over the limit"):
        PictureFiles(tmp_path).fetch(name)
    said = read_picture(PictureFiles(tmp_path), name, Preprocessing(16, 18))
    assert said == "TooLarge: 0.0 MB, over the limit of 0.0 MB"


@settings(max_examples=60, derandomize=True, database=None)
@given(
    kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    names=st.lists(st.text("ab/.ä猫\n\udc80", max_size=120), max_size=3),
    types=st.lists(st.sampled_from(list(b"0123456789DKLMNSVXgx\0")), max_size=3),
    pax=st.dictionaries(
        st.sampled_from(["size", "path", "GNU.sparse.map", "mtime", "hdrcharset"]), st.text("19-,=\xff\n"), max_size=2
    ),
    damage=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=3),
    mended=st.booleans(),
)
def test_a_tar_file_is_listed_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    kind: Any,
    names: list[str],
    types: list[int],
    pax: dict[str, str],
    damage: list[tuple[int, int]],
    mended: bool,
) -> None:
    """Whatever is in it. A member that is listed is there, and its name can be written down."""
    content = bytearray()
    for i, name in enumerate(names):
        info = tarfile.TarInfo(name)
        info.type, info.pax_headers = bytes(types[i : i + 1]) or tarfile.REGTYPE, pax
        with contextlib.suppress(ValueError, UnicodeEncodeError):  # what tarfile itself does not write
            content += info.tobuf(kind, errors="surrogateescape")
    for place, value in damage:
        if content:
            content[place % len(content)] = value
    for start in range(0, len(content) if mended else 0, 512):
        block = content[start : start + 512]
        content[start + 148 : start + 156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    root = tmp_path_factory.getbasetemp()
    (root / "any.tar").write_bytes(bytes(content) + bytes(1024))
    with contextlib.suppress(InputError):
        for name in tar_members(root / "any.tar"):
            name.encode()
            PictureFiles(root).read(f"any.tar/{name}")
