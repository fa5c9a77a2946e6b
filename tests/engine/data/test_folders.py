"""Which classes and files a data folder holds, and which model output each class is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights

from gfo.engine.data.folders import ClassFolder, beside_the_classes, class_name, list_classes, mapped_elsewhere
from gfo.engine.data.spec import DataSpec
from gfo.export.errors import InputError

IDS = {"ant": 3, "bee": 0, "cat": 4, "dog": 1}


def make(root: Path, folders: Sequence[str] = tuple(IDS), files: Sequence[str] = ("b.png", "a.jpg")) -> Path:
    for folder in folders:
        (root / "val" / folder).mkdir(parents=True)
        for file in files:
            (root / "val" / folder / file).touch()
    return root


def classes_of(
    root: Path,
    classes: str | Sequence[str] = "all",
    *,
    model_outputs: int = 5,
    class_map: Path | None = None,
    seed: int = 0,
) -> list[ClassFolder]:
    return list_classes(DataSpec(root, class_map=class_map), classes, model_outputs, seed)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "classes.json").write_text(json.dumps(IDS | {"unused": 99}))
    return make(tmp_path)


def test_all_classes_in_folder_order_with_the_maps_ids_and_sorted_files(root: Path) -> None:
    found = classes_of(root)
    assert [(c.folder, c.class_id) for c in found] == list(IDS.items())
    assert found[1].paths == ("val/bee/a.jpg", "val/bee/b.png")


@pytest.mark.parametrize("classes", ["dog,ant", ["dog", "ant", "dog"]])
def test_chosen_classes_keep_their_ids(root: Path, classes: str | list[str]) -> None:
    assert [(c.folder, c.class_id) for c in classes_of(root, classes)] == [("ant", 3), ("dog", 1)]


def test_random_classes_are_seeded_and_distinct(root: Path) -> None:
    draws = [[c.folder for c in classes_of(root, "random:2", seed=seed)] for seed in range(8)]
    assert draws == [[c.folder for c in classes_of(root, "random:2", seed=seed)] for seed in range(8)]
    assert all(len(set(draw)) == 2 and draw == sorted(draw) for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 1
    assert [c.folder for c in classes_of(root, "random:4")] == list(IDS)


def test_what_is_hidden_or_beside_the_classes_is_not_listed_and_anything_else_is_at_any_depth(root: Path) -> None:
    (root / "val" / "ant" / ".DS_Store").touch()
    (root / "val" / "ant" / "images").mkdir()  # as in Tiny-ImageNet
    (root / "val" / "ant" / "images" / "0.jpg").touch()
    (root / "val" / "ant" / "images" / ".0.jpg").touch()
    (root / "val" / "ant" / ".cache").mkdir()
    (root / "val" / "ant" / ".cache" / "0.jpg").touch()
    assert beside_the_classes(DataSpec(root)) is None
    (root / "val" / "ant" / "notes.txt").touch()
    (root / "val" / ".cache").mkdir()
    (root / "val" / "loose.jpg").touch()
    assert [c.folder for c in classes_of(root)] == list(IDS)
    listed = ("val/ant/a.jpg", "val/ant/b.png", "val/ant/images/0.jpg", "val/ant/notes.txt")
    assert classes_of(root)[0].paths == listed
    line = beside_the_classes(DataSpec(root))
    assert line == f"{root / 'val'}: files beside the class folders are not read (1, the first: loose.jpg)"


def test_wordnet_ids_that_a_class_map_moves_are_said(tmp_path: Path) -> None:
    ids = {"n01440764": 0, "n01443537": 1, "n01484850": 2, "own": 7}
    make(tmp_path, [*ids, "n00001740"])  # the last is of no class of ImageNet-1k
    data = DataSpec(tmp_path, class_map=tmp_path / "map.json")

    def line(outputs: int = 1000, **changed: int) -> str | None:
        data.class_map.write_text(json.dumps({**ids, "n00001740": 9, **changed}))  # type: ignore[union-attr]
        return mapped_elsewhere(data, list_classes(data, "all", outputs, 0), outputs)

    assert line() is None
    assert line(n01443537=2, n01484850=3) == (
        f"{data.class_map}: gives 2 of 4 WordNet ids another output than ImageNet's list of 1,000, the first: "
        "n01443537 is 2 there, 1 in the list"
    )
    assert line(outputs=999, n01443537=5) is None  # another model, other outputs


def test_pictures_are_those_of_torchvisions_image_folder(tmp_path: Path) -> None:
    for name in ("ant/images/a.png", "ant/b.png", "bee/x/y/z.png", "bee/linked"):
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (2, 2)).save(tmp_path / "val" / name)
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "elsewhere" / "far.png")
    (tmp_path / "val" / "bee" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "classes.json").write_text('{"ant": 0, "bee": 1}')
    theirs = sorted(Path(path).relative_to(tmp_path).as_posix() for path, _ in ImageFolder(tmp_path / "val").samples)
    assert sorted(path for c in classes_of(tmp_path) for path in c.paths) == theirs


@pytest.mark.parametrize("linked", [False, True])
def test_a_link_to_a_folder_around_it_is_refused(root: Path, tmp_path: Path, linked: bool) -> None:
    (root / "val" / "ant" / "again").symlink_to(root.resolve() / "val" / "ant")
    if linked:
        (tmp_path / "elsewhere").symlink_to(root)
    with pytest.raises(InputError, match="again: is a link to a folder that contains it"):
        classes_of(tmp_path / "elsewhere" if linked else root)


def test_folders_that_are_linked_to_each_other_are_refused(root: Path) -> None:
    (root / "val" / "ant" / "to-bee").symlink_to(root / "val" / "bee")
    (root / "val" / "bee" / "to-ant").symlink_to(root / "val" / "ant")
    with pytest.raises(InputError, match="ant/to-bee/to-ant: is a folder that its class has already, by a link"):
        classes_of(root)


def test_a_folder_with_the_name_of_a_tar_file_is_refused(root: Path) -> None:
    (root / "val" / "ant" / "x.tar").mkdir()
    with pytest.raises(InputError, match=r"x\.tar: is a folder with the name of a tar file"):
        classes_of(root)


def test_a_class_map_that_is_given_goes_before_the_folders_own(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "map.json"
    other.write_text(json.dumps({"ant": 0, "bee": 1, "cat": 2, "dog": 4}))
    assert [c.class_id for c in classes_of(root, class_map=other)] == [0, 1, 2, 4]


def test_wordnet_folders_map_to_imagenets_outputs(tmp_path: Path) -> None:
    # n01443537 goldfish, n02123045 tabby, n03763968 military uniform, n07920052 espresso
    make(tmp_path, ["n07920052", "n01443537", "n03763968", "n02123045"])
    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]  # torchvision's list, in output order
    ids = [c.class_id for c in classes_of(tmp_path, model_outputs=1000)]
    assert [names[i] for i in ids] == ["goldfish", "tabby", "military uniform", "espresso"]
    assert [class_name(1000, i) for i in ids] == ["goldfish", "tabby", "military uniform", "espresso"]


def test_names_of_other_models_are_their_ids() -> None:
    assert class_name(10, 7) == "7"


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ("zebra", "--classes zebra: .*val has no such folder; its folders are ant, bee, cat, dog"),
        ("", "--classes : .* has no such folder"),
        ("ant,,bee", "has no such folder"),
        ("random:5", "random:1 to random:4"),
        ("random:0", "random:1 to random:4"),
        ("random:x", "random:1 to random:4"),
        ("random:²", "random:1 to random:4"),
        (f"random:{'9' * 5000}", "random:1 to random:4"),
    ],
)
def test_classes_that_are_not_there(root: Path, classes: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        classes_of(root, classes)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"\x80", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        (f'{{"ant": {"9" * 5000}}}', "not JSON"),
        (f'{{"ant": {"9" * 400}, "bee": 0, "cat": 1, "dog": 2}}', "ant is 9{400}, the model has outputs"),
        ('{"ant": Infinity}', "whole numbers"),
        ('{"ant": NaN}', "whole numbers"),
        ('{"ant": 1e0}', "whole numbers"),
        ('{"ant": null}', "whole numbers"),
        ('{"ant": {"ant": 1}}', "whole numbers"),
        ('"ant"', "whole numbers"),
        ("{}", "class folder ant is not in"),
        ('{"ant": 1, "bee": 0, "ant": 3}', "holds 'ant' twice"),
        ('{"\\ud800": 1}', "is not UTF-8"),
        ("[1, 2]", "whole numbers"),
        ('{"ant": "3"}', "whole numbers"),
        ('{"ant": true}', "whole numbers"),
        ('{"ant": 3}', "class folder bee is not in"),
        ('{"ant": 5, "bee": 0, "cat": 1, "dog": 2}', r"ant is 5, the model has outputs 0\.\.4"),
        ('{"ant": -1, "bee": 0, "cat": 1, "dog": 2}', "ant is -1"),
        ('{"ant": 1, "bee": 0, "cat": 1, "dog": 2}', "two folders have the same class id"),
    ],
)
def test_maps_that_do_not_map(root: Path, content: str | bytes, named: str) -> None:
    (root / "classes.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=named) as caught:
        classes_of(root)
    assert "classes.json" in str(caught.value)


def test_a_map_with_a_mark_of_its_encoding_is_read(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps(IDS), encoding="utf-8-sig")
    assert [c.class_id for c in classes_of(root)] == list(IDS.values())


def test_what_is_too_large_to_be_a_map_is_not_read(root: Path) -> None:
    with (root / "classes.json").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(InputError, match=r"classes\.json: not a class map \(100\.0 MB, over the limit of 16\.8 MB\)"):
        classes_of(root)


def test_a_pipe_is_no_map(root: Path) -> None:
    (root / "classes.json").unlink()
    os.mkfifo(root / "pipe.json")
    with pytest.raises(InputError, match=r"pipe\.json: Not a regular file"):
        classes_of(root, class_map=root / "pipe.json")


def test_a_map_that_is_not_there(root: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: No such file"):
        classes_of(root, class_map=root / "nowhere.json")


@pytest.mark.parametrize(
    ("folders", "outputs", "named"),
    [
        (["ant", "bee"], 5, "cannot tell which of the .* model outputs folder ant is"),
        (["ant", "bee"], 1000, "cannot tell which of the .* model outputs folder ant is"),
        (["n01443537", "n02123045"], 21843, "cannot tell"),
        (["n01443537", "n99999999"], 1000, "n99999999 is not in the ImageNet-1k synset list"),
    ],
)
def test_without_a_map_nothing_is_guessed(tmp_path: Path, folders: list[str], outputs: int, named: str) -> None:
    make(tmp_path, folders)
    with pytest.raises(InputError, match=f"{named}.*--class-map"):
        classes_of(tmp_path, model_outputs=outputs)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"val: no such folder; --data must hold val/<class>/<pictures>"):
        classes_of(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match="val: holds no class folders"):
        classes_of(tmp_path)
    make(tmp_path, ["ant"], files=())
    (tmp_path / "classes.json").write_text('{"ant": 0}')
    with pytest.raises(InputError, match="val/ant: holds no pictures"):
        classes_of(tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"caf\xe9/1.jpg"])
def test_a_name_that_is_not_utf8_is_named(root: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(root / "val" / "ant") + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(InputError, match=r"val/ant: name 'caf\\udce9(\.jpg)?' is not UTF-8; rename it"):
        classes_of(root)


def test_a_class_folder_whose_name_is_not_utf8_is_named(tmp_path: Path) -> None:
    folder = os.fsdecode(b"caf\xe9")
    make(tmp_path, [folder])
    (tmp_path / "classes.json").write_text(json.dumps({"café": 0}))
    with pytest.raises(InputError, match=r"val: name 'caf\\udce9' is not UTF-8; rename it"):
        classes_of(tmp_path)


def test_a_data_folder_whose_path_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    for path in (root, tmp_path / "link"):
        with pytest.raises(InputError, match=r"--data .*: its path is not UTF-8, in which results name it; rename the"):
            DataSpec(path)


def test_odd_names_of_classes_are_names(tmp_path: Path) -> None:
    names = ["a b", " c", "d,e", "f\ng", "all", "=1+1", "猫🐈", "<b>"]
    make(tmp_path, names)
    (tmp_path / "classes.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    assert {c.folder: c.class_id for c in classes_of(tmp_path, model_outputs=8)} == dict(
        zip(names, range(8), strict=True)
    )
    assert [c.folder for c in classes_of(tmp_path, "a b, c, <b> ,猫🐈", model_outputs=8)] == [
        " c",
        "<b>",
        "a b",
        "猫🐈",
    ]
    assert [c.folder for c in classes_of(tmp_path, ["d,e", "f\ng"], model_outputs=8)] == ["d,e", "f\ng"]


def test_a_class_folder_with_the_name_of_a_tar_file_is_refused(tmp_path: Path) -> None:
    make(tmp_path, ["x.tar"])
    (tmp_path / "classes.json").write_text('{"x.tar": 0}')
    with pytest.raises(InputError, match=r"val/x\.tar: is a folder with the name of a tar file; rename it"):
        classes_of(tmp_path)


_ATOMS: st.SearchStrategy[object] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 6), st.floats(), st.text("a9\n\0\ud800", max_size=9)
)
_JSON = st.recursive(
    _ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*IDS, "zebra", "\ud800"]), inner),
    max_leaves=8,
)
_IDS = st.dictionaries(st.sampled_from(list(IDS)), st.integers(-1, 5) | st.integers(), min_size=3)


@settings(max_examples=60, derandomize=True, database=None)
@given(value=_JSON | _IDS, damage=st.none() | st.tuples(st.integers(0, 100), st.binary(max_size=3)))
def test_a_map_maps_every_class_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, value: object, damage: tuple[int, bytes] | None
) -> None:
    """Whatever is in it: one output of the model for each class, or one line."""
    root = tmp_path_factory.getbasetemp() / "any-map"
    if not root.exists():
        make(root)
    content = json.dumps(value).encode()
    if damage is not None:
        content = content[: damage[0]] + damage[1] + content[damage[0] + 1 :]
    (root / "classes.json").write_bytes(content)
    with contextlib.suppress(InputError):
        ids = {c.class_id for c in classes_of(root)}
        assert len(ids) == len(IDS)
        assert ids <= set(range(5))
