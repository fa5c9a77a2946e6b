"""WebDataset shards as a split: the same classes and pictures as folders, the same answers, and clear refusals."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from gfo.engine.data.files import PictureFiles
from gfo.engine.data.folders import list_classes
from gfo.export.errors import InputError

CLASS_IDS = {"ant": 3, "bee": 0, "cat": 4}
Command = Callable[..., list[object]]
Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w:") as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))


def to_shards(data: Path, split: str) -> None:
    """Put a split's folders into two shards, its pictures in a mixed order."""
    pictures = sorted((data / split).glob("*/*"), key=lambda path: (path.name, path.parent.name))
    for s in range(2):
        members = []
        for path in pictures[s::2]:
            key = f"{path.parent.name}_{path.stem}"
            members += [
                (f"{key}.cls", str(CLASS_IDS[path.parent.name]).encode()),
                (f"{key}{path.suffix}", path.read_bytes()),
                (f"{key}.json", b"{}"),
            ]
        write_shard(data / split / f"{s:04}.tar", members)
    for folder in CLASS_IDS:
        shutil.rmtree(data / split / folder)


def listed(data: Path, outputs: int = 5, classes: str = "all") -> dict[str, tuple[int, list[bytes]]]:
    found = list_classes(data, "val", classes=classes, model_outputs=outputs, class_map=None, seed=0)
    files = PictureFiles(data)
    return {c.folder: (c.class_id, sorted(files.read(path) for path in c.paths)) for c in found}


def test_the_same_classes_and_pictures_as_folders(own_data: Path) -> None:
    folders, two = listed(own_data), listed(own_data, classes="random:2")
    to_shards(own_data, "val")
    assert listed(own_data) == folders
    assert listed(own_data, classes="random:2") == two
    assert list(listed(own_data, classes="cat,ant")) == ["ant", "cat"]
    (own_data / "classes.json").unlink()
    assert {name: class_id for name, (class_id, _) in listed(own_data).items()} == {"0": 0, "3": 3, "4": 4}
    assert {name: class_id for name, (class_id, _) in listed(own_data, 1000).items()} == {
        "n01440764": 0,
        "n01491361": 3,
        "n01494475": 4,
    }


@pytest.mark.parametrize("loader", ["pillow", "dali"])
def test_the_same_answers_as_from_folders(
    own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command, train: Command, loader: str
) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    found = []
    for kind in ("folders", "shards"):
        if kind == "shards":
            to_shards(own_data, "val")
        assert run(*evaluate(own_data, tiny_bank, tmp_path / kind, "--loader", loader))[0] == 0
        group = zarr.open_group(tmp_path / kind / "predictions.zarr", mode="r")
        # Shards are in another order within a class, so pictures are told by their answers.
        rows = [[int(label), *margin] for label, margin in zip(group["label"][:], group["margin"][:], strict=True)]  # type: ignore[index, arg-type]
        found.append(sorted(rows))
        assert json.loads((tmp_path / kind / "summary.json").read_text())["loader"] == loader
    assert found[0] == found[1]
    to_shards(own_data, "train")
    assert run(*train(own_data, tmp_path / "bank.safetensors", "--loader", loader))[0] == 0


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.cls", b"5"), ("a.jpg", b"")], r"val/0\.tar/a\.jpg is of class 5, the model has outputs 0\.\.4"),
        ([("a.cls", b"-1"), ("a.jpg", b"")], "a.cls holds '-1'; expected a class index"),
        ([("a.cls", b"cat"), ("a.jpg", b"")], "a.cls holds 'cat'; expected a class index"),
        ([("a.jpg", b"")], "sample a has no a.cls"),
        ([("a.cls", b"1")], "sample a has 0 pictures"),
        ([("a.cls", b"1"), ("a.jpg", b""), ("a.png", b"")], "sample a has 2 pictures"),
        ([("README", b"")], "member README has no key or extension"),
    ],
)
def test_shards_that_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], said: str) -> None:
    (tmp_path / "val").mkdir()
    write_shard(tmp_path / "val" / "0.tar", members)
    with pytest.raises(InputError, match=said):
        listed(tmp_path)


def test_commands_refuse_shards_in_one_line(
    own_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, evaluate: Command
) -> None:
    to_shards(own_data, "val")
    command = evaluate(own_data, tiny_bank, tmp_path / "out")
    shard = own_data / "val" / "0001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    refused(command, shard, "cut off after", "fetch it again")
    (own_data / "val" / "ant").mkdir()
    refused(command, "holds class folders and tar shards")
    assert not (tmp_path / "out").exists()
