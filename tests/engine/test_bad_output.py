"""Output that cannot be written, or that is there already: one line, exit code 2, and what was computed is kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from gfo.engine.evaluation.store import RunStore

Command = Callable[..., list[object]]
Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]
Groups = Callable[[list[object]], list[list[str]]]


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def margins_of(out: Path) -> Any:
    """float32 [image, occluder]: unlike top-1 it differs from picture to picture."""
    return zarr.open_array(out / "predictions.zarr" / "margin", mode="r")[:]


# Output that cannot be written


def test_an_output_below_a_file(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, run: Run, train: Command, evaluate: Command
) -> None:
    (tmp_path / "file").touch()
    mend = "check the path, its permissions and the free space"
    refused(train(tiny_data, tmp_path / "file" / "b.safetensors"), tmp_path / "file", "Not a directory", mend)
    refused(evaluate(tiny_data, tiny_bank, tmp_path / "file" / "run"), tmp_path / "file", "Not a directory", mend)
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "run"))[0] == 0
    refused(["gfo-report", tmp_path / "run", "--out", tmp_path / "file" / "x"], tmp_path / "file", "Not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_output(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, train: Command, evaluate: Command
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    refused(train(tiny_data, folder / "b.safetensors"), folder, "Permission denied", "check the path")
    refused(evaluate(tiny_data, tiny_bank, folder / "run"), folder, "Permission denied", "check the path")


def test_an_output_that_is_a_folder(tiny_data: Path, tmp_path: Path, refused: Refused, train: Command) -> None:
    refused(train(tiny_data, tmp_path), tmp_path, "is a folder; name the bank's file in it")
    refused(train(tiny_data, Path()), "--out .", "is a folder")


@pytest.mark.parametrize(
    ("most", "file", "left"), [(8000, "bank.safetensors", []), (4096, "epoch-3.safetensors", None)]
)
def test_a_full_disk_while_training_loses_no_class(
    most: int,
    file: str,
    left: list[list[str]] | None,
    tiny_data: Path,
    tmp_path: Path,
    run: Run,
    small_disk: Callable[[int], None],
    train: Command,
    groups_trained: Groups,
) -> None:
    assert run(*train(tiny_data, tmp_path / "whole.safetensors", "--epochs", 2, "--classes-together", 1))[0] == 0
    command = train(tiny_data, tmp_path / "bank.safetensors", "--epochs", 2, "--classes-together", 1)
    small_disk(most)  # a part takes 3 kB, an epoch's state 6 kB, the bank 9 kB
    code, out, err = run(*command)
    small_disk(0)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("gfo-train: ")
    for named in (file, "File too large", "the free space"):
        assert named in last
    assert "Traceback" not in err
    assert not (tmp_path / "bank.safetensors").exists()
    assert not list(tmp_path.rglob("*.partial"))
    trained = groups_trained(command)
    assert trained == ([["ant"], ["bee"], ["cat"]] if left is None else left)
    assert (tmp_path / "bank.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def full_at(name: str, start: int) -> Callable[[Any, Any, Any], None]:
    """zarr's write, with a disk that is full at this block of this array."""
    original = zarr.Array.__setitem__

    def write(array: Any, where: Any, values: Any) -> None:
        if array.basename == name and where.start == start:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(array, where, values)

    return write


def test_a_picture_mended_after_a_broken_write_is_no_longer_quarantined(
    own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, evaluate: Command
) -> None:
    picture = own_data / "val" / "ant" / "0.jpg"
    content = picture.read_bytes()
    picture.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", full_at("margin", 0))
        assert run(*evaluate(own_data, tiny_bank, tmp_path / "run"))[0] == 2
    picture.write_bytes(content)
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "run"))[0] == 0
    summary = summary_of(tmp_path / "run")
    assert (summary["read"], summary["quarantined_count"]) == (18, 0)


def test_a_full_disk_while_evaluating_loses_no_block(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, evaluate: Command
) -> None:
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 8)  # 8 pictures a block
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "whole"))[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", full_at("margin", 8))
        code, out, err = run(*evaluate(tiny_data, tiny_bank, tmp_path / "run"))
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith(f"gfo-eval: {tmp_path / 'run' / 'predictions.zarr'}: No space left on device; check")
    assert RunStore.open(tmp_path / "run").pending() == [8, 16]
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "run"))[0] == 0
    np.testing.assert_array_equal(margins_of(tmp_path / "run"), margins_of(tmp_path / "whole"))
    assert summary_of(tmp_path / "run")["clean"] == summary_of(tmp_path / "whole")["clean"]


def test_a_full_disk_while_the_store_is_made(
    tiny_data: Path,
    tiny_bank: Path,
    tmp_path: Path,
    run: Run,
    refused: Refused,
    small_disk: Callable[[int], None],
    evaluate: Command,
) -> None:
    small_disk(1000)
    refused(evaluate(tiny_data, tiny_bank, tmp_path / "run"), tmp_path / "run" / "predictions.zarr", "File too large")
    small_disk(0)
    assert list((tmp_path / "run").iterdir()) == []
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "run"))[0] == 0


# What lies there already


def test_a_run_of_another_configuration_is_left_alone(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, refused: Refused, evaluate: Command
) -> None:
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "run"))[0] == 0
    before = (tmp_path / "run" / "summary.json").read_bytes()
    command = evaluate(tiny_data, tiny_bank, tmp_path / "run", "--precision", "bf16")
    refused(command, tmp_path / "run", "precision fp32, not bf16", "another --out or remove it")
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_a_run_whose_data_and_bank_have_moved_goes_on(
    own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "run"))[0] == 0
    before = summary_of(tmp_path / "run")
    moved = own_data.rename(tmp_path / "elsewhere")
    bank = Path(shutil.copy(tiny_bank, tmp_path / "copy.safetensors"))
    assert run(*evaluate(moved, bank, tmp_path / "run"))[0] == 0
    after = summary_of(tmp_path / "run")
    differing = {key for key in after if after[key] != before[key]}
    assert differing <= {"data_root", "bank", "peak_rss_mb", "sha256"}
    assert (
        xarray.open_zarr(tmp_path / "run" / "predictions.zarr").attrs["data_root"] == after["data_root"] == str(moved)
    )


def test_a_bank_of_another_configuration_is_left_alone(
    tiny_data: Path, tmp_path: Path, run: Run, refused: Refused, train: Command
) -> None:
    out = tmp_path / "bank.safetensors"
    assert run(*train(tiny_data, out))[0] == 0
    before = out.read_bytes()
    refused(train(tiny_data, out, "--epsilon", 9), out, "epsilon 8.0, not 9.0", "another --out or remove it")
    refused(train(tiny_data, out, "--classes", "ant"), out, "3 class ids, not the 1 asked for")
    out.write_bytes(before[:-1])
    refused(train(tiny_data, out), out, "not a readable safetensors file")
    assert out.read_bytes() == before[:-1]


def test_damaged_parts_are_named_and_trained_again(
    own_data: Path, tmp_path: Path, run: Run, small_disk: Callable[[int], None], train: Command
) -> None:
    for name in (
        "4.jpg",
        "5.png",
    ):  # fewer than the classes that it shares batches with: alone it would take fewer steps
        (own_data / "train" / "bee" / name).unlink()
    whole, out = tmp_path / "whole.safetensors", tmp_path / "bank.safetensors"
    assert run(*train(own_data, whole))[0] == 0
    small_disk(8000)
    assert run(*train(own_data, out))[0] == 2
    small_disk(0)
    part = tmp_path / "bank.safetensors.parts" / "0.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    code, _, err = run(*train(own_data, out))
    assert code == 0
    assert f"{part}: removed (" in err
    assert "its classes are trained again" in err
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("name", ["prediction", "rank", "margin", "reason"])
def test_damaged_blocks_are_computed_again(
    name: str, own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    (own_data / "val" / "ant" / "0.jpg").write_bytes(b"")
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "run", "--max-quarantined", 0.1))[0] == 0
    before = summary_of(tmp_path / "run")
    (chunk,) = (tmp_path / "run" / "predictions.zarr" / name).glob("c.*")
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    assert RunStore.open(tmp_path / "run").damaged() == [0]
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "run", "--max-quarantined", 0.1))[0] == 0
    assert chunk.read_bytes() == content
    after = summary_of(tmp_path / "run")
    measured = ("seconds", "pairs_per_second", "peak_rss_mb", "sha256")
    assert {k: v for k, v in after.items() if k not in measured} == {
        k: v for k, v in before.items() if k not in measured
    }


def test_a_damaged_summary_is_written_again(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "run"))[0] == 0
    before = summary_of(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text("{")
    assert run(*evaluate(tiny_data, tiny_bank, tmp_path / "run"))[0] == 0
    assert summary_of(tmp_path / "run")["matched"] == before["matched"]


def test_a_store_that_is_none(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, evaluate: Command
) -> None:
    (tmp_path / "run" / "predictions.zarr").mkdir(parents=True)
    command = evaluate(tiny_data, tiny_bank, tmp_path / "run")
    refused(command, tmp_path / "run" / "predictions.zarr", "not a store of gfo-eval", "remove it and evaluate again")
