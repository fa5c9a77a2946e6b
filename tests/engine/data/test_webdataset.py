"""WebDataset tar files as a split: the same classes and pictures as folders, the same answers, and clear refusals."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from gfo.engine.data.folders import list_classes
from gfo.engine.data.loading import open_source
from gfo.engine.data.spec import DataSpec
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing

CLASS_IDS = {"ant": 3, "bee": 0, "cat": 4}
Command = Callable[..., list[object]]
Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w:") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def to_tars(data: Path, split: str) -> None:
    """Put a split's folders into two tar files, its pictures in a mixed order."""
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
        write_tar(data / split / f"{s:04}.tar", members)
    for folder in CLASS_IDS:
        shutil.rmtree(data / split / folder)


def listed(data: Path, outputs: int = 5, classes: str = "all") -> dict[str, tuple[int, list[bytes]]]:
    spec = DataSpec(data)
    found = list_classes(spec, classes, outputs, seed=0)
    return {c.folder: (c.class_id, sorted(spec.files.read(path) for path in c.paths)) for c in found}


def test_the_same_classes_and_pictures_as_folders(own_data: Path) -> None:
    folders, two = listed(own_data), listed(own_data, classes="random:2")
    to_tars(own_data, "val")
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
    for kind in ("folders", "tars"):
        if kind == "tars":
            to_tars(own_data, "val")
        assert run(*evaluate(own_data, tiny_bank, tmp_path / kind, "--loader", loader))[0] == 0
        group = zarr.open_group(tmp_path / kind / "predictions.zarr", mode="r")
        # Shards are in another order within a class, so pictures are told by their answers.
        rows = [[int(label), *margin] for label, margin in zip(group["label"][:], group["margin"][:], strict=True)]  # type: ignore[index, arg-type]
        found.append(sorted(rows))
        assert json.loads((tmp_path / kind / "summary.json").read_text())["loader"] == loader
    assert found[0] == found[1]
    to_tars(own_data, "train")
    assert run(*train(own_data, tmp_path / "bank.safetensors", "--loader", loader))[0] == 0


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.cls", b"5"), ("a.jpg", b"")], r"val/0\.tar/a\.jpg is of class 5, the model has outputs 0\.\.4"),
        ([("a.cls", b"-1"), ("a.jpg", b"")], r"a\.cls holds '-1' \(2 bytes\); expected a class index"),
        ([("a.cls", b"cat"), ("a.jpg", b"")], r"a\.cls holds 'cat' \(3 bytes\); expected a class index"),
        ([("a.cls", b"9" * 900), ("a.jpg", b"")], r"a\.cls holds '9{40}' \(900 bytes\); expected a class index"),
        ([("a.cls", b"9" * 5000), ("a.jpg", b"")], r"a\.cls holds '…' \(5000 bytes\); expected a class index"),
        ([("a.cls", b""), ("a.jpg", b"")], "a.cls holds ''"),
        ([("a.cls", b"1\0"), ("a.jpg", b"")], r"a\.cls holds '1\\x00'"),
        ([("a.cls", "²".encode()), ("a.jpg", b"")], "a.cls holds '²'"),
        ([("a.jpg", b"")], "sample a has no a.cls"),
        ([("a.cls", b"1")], "sample a has 0 pictures"),
        ([("a.cls", b"1"), ("a.jpg", b""), ("a.png", b"")], "sample a has 2 pictures"),
        ([("README", b"")], "member README has no key or extension"),
    ],
)
def test_tar_files_that_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], said: str) -> None:
    (tmp_path / "val").mkdir()
    write_tar(tmp_path / "val" / "0.tar", members)
    with pytest.raises(InputError, match=said):
        listed(tmp_path)


def test_names_of_tar_files_are_never_shared(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    members = [(f"{i}.{kind}", str(i).encode()) for i in (3, 4) for kind in ("cls", "jpg")]
    write_tar(tmp_path / "val" / "0.tar", members)
    (tmp_path / "classes.json").write_text('{"ant": 3, "bee": 4, "cat": 5, "dog": 5}')
    assert listed(tmp_path) == {"ant": (3, [b"3"]), "bee": (4, [b"4"])}
    (tmp_path / "classes.json").write_text('{"ant": 3, "bee": 4, "cat": 4}')
    with pytest.raises(InputError, match=r"classes\.json: two folders have the same class id"):
        listed(tmp_path)
    (tmp_path / "classes.json").write_text('{"3": 4}')  # and class 3 has no name but its number
    with pytest.raises(InputError, match=r"classes\.json: a name in it is the number of another class"):
        listed(tmp_path)


def test_names_of_members_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    keys = ["/abs", "../../secret", "./a", "x.tar/b", "c\nd", "猫"]
    write_tar(tmp_path / "val" / "0.tar", [(f"{key}.{kind}", b"1") for key in keys for kind in ("cls", "jpg")])
    assert listed(tmp_path) == {"1": (1, [b"1"] * len(keys))}


def test_commands_refuse_tar_files_in_one_line(
    own_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, evaluate: Command
) -> None:
    to_tars(own_data, "val")
    command = evaluate(own_data, tiny_bank, tmp_path / "out")
    tar = own_data / "val" / "0001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    refused(command, tar, "truncated after", "fetch it again")
    (own_data / "val" / "ant").mkdir()
    refused(command, "holds class folders and tar files")
    assert not (tmp_path / "out").exists()


def test_a_class_without_a_readable_picture_is_named_not_its_tar(
    own_data: Path, tmp_path: Path, run: Run, train: Command
) -> None:
    for picture in (own_data / "train" / "bee").iterdir():
        picture.write_bytes(b"")
    to_tars(own_data, "train")
    code, _, err = run(*train(own_data, tmp_path / "bank.safetensors"))
    assert code == 2
    assert "train/bee: none of its 6 pictures could be read" in err


def test_headers_are_parsed_once_for_the_list_and_for_reading(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_tars(own_data, "val")
    opened: list[str] = []
    parse = tarfile.open

    def watched(name: Path, *words: str) -> tarfile.TarFile:
        opened.append(Path(name).name)
        return parse(name, *words)  # type: ignore[call-overload]

    monkeypatch.setattr(tarfile, "open", watched)
    spec = DataSpec(own_data, workers=2)
    paths = [path for folder in list_classes(spec, "all", 5, seed=0) for path in folder.paths]
    blocks = list(open_source(spec, Preprocessing(16, 18)).blocks(paths, 4))
    assert sum(len(block.readable) for block in blocks) == len(paths) == 18
    assert sorted(opened) == ["0000.tar", "0001.tar"]
