"""A kept folder that processes share: what one keeps is whole, whatever others do meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfo.engine.engines.graphs import drop_damaged, note_files
from gfo.engine.engines.kept_folder import private_copy
from gfo.export.errors import InputError


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "files.json"}


def test_what_is_written_is_there_the_next_time(tmp_path: Path) -> None:
    kept = tmp_path / "deep" / "kept"
    with private_copy(kept, tmp_path / "a") as private:
        (private / "x.blob").write_text("x")
        assert not kept.exists()
    with private_copy(kept, tmp_path / "b") as private:
        assert contents(private) == {"x.blob": "x"}
        (private / "y.blob").write_text("y")
    before = kept.stat().st_ino
    with private_copy(kept, tmp_path / "c") as private:
        assert contents(private) == {"x.blob": "x", "y.blob": "y"}
    assert kept.stat().st_ino == before  # nothing new: left as it is
    assert [path.name for path in kept.parent.iterdir()] == ["kept"]


def test_two_workers_on_a_cold_cache_do_not_disturb_each_other(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with private_copy(kept, tmp_path / "a") as first:
        (first / "x.blob").write_text("half")
        with private_copy(kept, tmp_path / "b") as second:
            assert contents(second) == {}
            (second / "x.blob").write_text("whole")
        assert contents(first) == {"x.blob": "half"}
        (first / "x.blob").write_text("whole")
    with private_copy(kept, tmp_path / "c") as third:
        assert contents(third) == {"x.blob": "whole"}


@pytest.mark.parametrize("damaged", ["x.blob", "files.json"])
def test_damaged_files_are_not_used_and_are_made_again(damaged: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with private_copy(kept, tmp_path / "a") as private:
        (private / "x.blob").write_text("x")
    (kept / damaged).write_text("?")
    with private_copy(kept, tmp_path / "b") as private:
        assert contents(private) == {}
        (private / "x.blob").write_text("new")
    assert contents(kept) == {"x.blob": "new"}


def test_a_block_that_raises_keeps_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with private_copy(tmp_path / "kept", tmp_path / "a") as private:
            (private / "x.blob").write_text("x")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 (its own)
        fail()
    assert not (tmp_path / "kept").exists()


def test_a_damaged_folder_that_cannot_be_removed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "model.onnx").write_text("a graph")
    note_files(folder)
    (folder / "model.onnx").write_text("another")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # as for a folder of root's
        with pytest.raises(InputError, match="graph: is damaged and cannot be removed; remove it, or set GFO_CACHE"):
            drop_damaged(folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    drop_damaged(link)
    assert not link.is_symlink()
    assert folder.is_dir()
    drop_damaged(folder)
    assert not folder.exists()
