"""Bad input at the commands: one line that names the file, the value and the mend, exit code 2, and nothing is lost."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from safetensors.torch import save_file
from torchvision.datasets.folder import pil_loader

from gfo.engine.data.files import PictureFiles
from gfo.engine.evaluation.store import RunStore
from gfo.export.bank import OccluderBank
from gfo.export.preprocessing import Preprocessing

Command = Callable[..., list[object]]
Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]
Groups = Callable[[list[object]], list[list[str]]]


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def margins_of(out: Path) -> Any:
    """float32 [image, occluder]: unlike top-1 it differs from picture to picture."""
    return zarr.open_array(out / "predictions.zarr" / "margin", mode="r")[:]


# Missing and empty folders, classes that nobody knows


@pytest.mark.parametrize("split", ["train", "val"])
def test_folders_that_are_missing_or_empty(
    split: str, own_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, train: Command, evaluate: Command
) -> None:
    def command() -> list[object]:
        if split == "train":
            return train(own_data, tmp_path / "out" / "bank.safetensors")
        return evaluate(own_data, tiny_bank, tmp_path / "out", "--classes", "all")

    for picture in (own_data / split / "bee").iterdir():
        picture.unlink()
    refused(command(), own_data / split / "bee", "holds no pictures; fill it or remove the folder")
    for folder in (own_data / split).iterdir():
        shutil.rmtree(folder)
    refused(command(), own_data / split, "holds no class folders; expected")
    (own_data / split).rmdir()
    refused(command(), own_data / split, "no such folder; --data must hold")
    shutil.rmtree(own_data)
    refused(command(), own_data / split, "no such folder; --data must hold")
    assert not (tmp_path / "out").exists()


def test_a_wnid_that_the_model_does_not_know(own_data: Path, tmp_path: Path, refused: Refused, train: Command) -> None:
    (own_data / "classes.json").unlink()
    (own_data / "train" / "ant").rename(own_data / "train" / "n01443537")
    (own_data / "train" / "bee").rename(own_data / "train" / "n00000001")
    model = ["--model", "torchvision/squeezenet1_1", "--weights", "random", "--input-size", 64]
    command = train(own_data, tmp_path / "b", *model, "--classes", "n01443537,n00000001")
    refused(command, own_data, "n00000001 is not in the ImageNet-1k synset list", "--class-map")


def test_classes_that_data_or_model_do_not_know(
    own_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, train: Command, evaluate: Command
) -> None:
    refused(train(own_data, tmp_path / "b", "--classes", "zebra"), "--classes zebra", "ant, bee, cat")
    shutil.rmtree(own_data / "val" / "bee")
    refused(evaluate(own_data, tiny_bank, tmp_path / "run"), tiny_bank, "bee has no folder", "--classes")
    (own_data / "classes.json").write_text('{"ant": 3, "bee": 0, "cat": 5}')
    refused(train(own_data, tmp_path / "b"), own_data / "classes.json", "cat is 5", "0..4")
    (own_data / "classes.json").write_text('{"ant": 1, "bee": 0, "cat": 4}')
    command = evaluate(own_data, tiny_bank, tmp_path / "run", "--classes", "ant,cat")
    refused(command, tiny_bank, "ant as class 3, here it is 1", "class map")


# Banks


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "timm/resnet18"}, "made for model timm/resnet18, not python:gfo_tiny:network; train a bank"),
        ({"weights_hash": "sha256:0"}, "made for weights sha256:0, not sha256:"),
        (
            {"preprocessing": Preprocessing(20, 22), "occluders": torch.zeros(3, 20, 20, 3)},
            "made for preprocessing input_size 20, not 16",
        ),
        ({"class_ids": (3, 0, 5)}, "class id 5, the model has outputs 0..4; train a bank"),
        (
            {"occluders": torch.full((3, 16, 16, 3), float("nan"))},
            "the occluder of ant holds NaN or infinity; train it",
        ),
        ({"epsilon": 4.0}, "an occluder reaches 8 but ε is 4; train the bank again"),
    ],
)
def test_banks_for_something_else(
    changes: dict[str, Any],
    named: str,
    make_bank: Callable[..., OccluderBank],
    tiny_data: Path,
    tmp_path: Path,
    refused: Refused,
    evaluate: Command,
) -> None:
    make_bank(**changes).save(tmp_path / "bank.safetensors")
    command = evaluate(tiny_data, tmp_path / "bank.safetensors", tmp_path / "run")
    refused(command, tmp_path / "bank.safetensors", named)
    assert not (tmp_path / "run").exists()


def test_banks_that_are_none(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, refused: Refused, evaluate: Command
) -> None:
    bank = tmp_path / "bank.safetensors"
    refused(evaluate(tiny_data, bank, tmp_path / "run"), bank, "bank not found; create one with gfo-train")
    bank.write_bytes(tiny_bank.read_bytes()[:-1])
    refused(evaluate(tiny_data, bank, tmp_path / "run"), bank, "not a readable safetensors file", "again")
    save_file({"x": torch.zeros(1)}, bank)
    refused(evaluate(tiny_data, bank, tmp_path / "run"), bank, "not an occluder bank; create one with gfo-train")


# Numbers and names out of range


@pytest.mark.parametrize(
    ("option", "value", "mend"),
    [
        ("--epsilon", "0", "above 0 and at most 255"),
        ("--epsilon", "-1", "above 0 and at most 255"),
        ("--epsilon", "255.5", "above 0 and at most 255"),
        ("--epsilon", "nan", "above 0 and at most 255"),
        ("--epsilon", "inf", "above 0 and at most 255"),
        ("--epsilon", "ten", "--help"),
        ("--kappa", "-1", "at least 0"),
        ("--kappa", "nan", "at least 0"),
        ("--norm", "l1", "linf, l2"),
        ("--epochs", "0", "at least 1"),
        ("--batch-size", "0", "at least 1"),
        ("--classes-together", "0", "at least 1"),
        ("--optimizer", "sgd", "momentum, adam"),
        ("--step", "0", "above 0"),
        ("--momentum", "1", "at most 1"),
        ("--per-class", "0", "at least 1"),
        ("--held-out", "-1", "at least 0"),
        ("--held-out", "6", "hold out fewer"),
        ("--classes", "random:4", "random:1 to random:3"),
        ("--precision", "int8", "auto or one of fp32, bf16, fp16"),
        ("--device", "tpu", "auto, cpu, cuda"),
        ("--loader", "dalli", "auto, dali, pillow"),
        ("--impl", "cuda", "auto, reference, triton"),
        ("--input-size", "0", "at least 1"),
        ("--resize", "8", "--resize"),
        ("--interpolation", "nearest", "bilinear, bicubic"),
        ("--mean", "0.5,0.5", "three numbers"),
        ("--mean", "nan,0,0", "--mean"),
        ("--std", "1,1,0", "--std"),
        ("--seed", "-1", "--help"),
        ("--weights", "IMAGENET1K_V1", "a file"),
        ("--weights", "nowhere.pth", "no such file"),
        ("--class-map", "nowhere.json", "class map"),
        ("--weights-key", "ema", "--weights default has no entries"),
        ("--model", "resnet50", "torchvision/<name>"),
        ("--model", "python:sys:exit", "SystemExit"),
        ("--model", "python:os:path", "it is called without arguments"),
        ("--no-such-option", "1", "--help"),
    ],
)
def test_train_names_what_is_out_of_range(
    option: str, value: str, mend: str, tiny_data: Path, tmp_path: Path, refused: Refused, train: Command
) -> None:
    named = option if option == "--no-such-option" else value.split(",")[0]
    refused(train(tiny_data, tmp_path / "out" / "bank.safetensors", option, value), named, mend)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "mend"),
    [
        ("--split", "test", "train, val"),
        ("--engine", "tensorflow", "expected one of auto, torch"),
        ("--precision", "int4", "fp32, bf16, fp16, int8"),
        ("--pictures", "some", "all, fitted, held-out, preserved, unseen"),
        ("--pictures", "fitted", "choose others"),
        ("--per-class", "0", "at least 1"),
        ("--batch-size", "0", "at least 1"),
        ("--workers", "0", "at least 1"),
        ("--classes", "zebra", "its folders are"),
        ("--device", "tpu", "auto, cpu, cuda"),
        ("--loader", "dalli", "auto, dali, pillow"),
        ("--shard", "3", "expected I/N"),
        ("--shard", f"0/{'9' * 5000}", "expected I/N"),
        ("--shard", "3/3", "I from 0 to N - 1"),
        ("--input-size", "20", "input_size 16, not 20"),
        ("--until", "x", "expected a half-width"),
        ("--until", "noise=0.1", "no cell is called 'noise'"),
        ("--claim", "matched<0.1", "expected claims"),
        ("--max-pairs", "2000", "limits --until and --claim"),
    ],
)
def test_eval_names_what_is_out_of_range(
    option: str,
    value: str,
    mend: str,
    tiny_data: Path,
    tiny_bank: Path,
    tmp_path: Path,
    refused: Refused,
    evaluate: Command,
) -> None:
    refused(evaluate(tiny_data, tiny_bank, tmp_path / "run", option, value), value, mend)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gfo-train", "gfo-eval", "gfo-report"])
def test_a_command_without_its_options_says_which(name: str, refused: Refused) -> None:
    refused([name], "Missing", f"(see {name} --help)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_code_3(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, train: Command, evaluate: Command
) -> None:
    for command in (train(tiny_data, tmp_path / "b"), evaluate(tiny_data, tiny_bank, tmp_path / "run")):
        code, _, err = run(*command, "--device", "cuda")
        assert code == 3
        assert err.count("\n") == 1
        assert "--device cuda" in err
        assert "use cpu" in err


def test_weights_that_do_not_fit_name_the_keys(
    tiny_data: Path, tmp_path: Path, refused: Refused, tiny: Any, train: Command
) -> None:
    state = tiny.network().state_dict()
    del state["head.bias"]
    save_file(state | {"head.weight": torch.zeros(4, 32), "tail": torch.zeros(1)}, tmp_path / "w.safetensors")
    refused(
        train(tiny_data, tmp_path / "b", "--weights", tmp_path / "w.safetensors"),
        tmp_path / "w.safetensors",
        "head.weight is [4, 32], the model has [5, 32]; tail is not in the model; head.bias is missing",
        "give this model's weights",
    )


# Pictures that are none


def spoil(folder: Path) -> dict[str, str]:
    """Spoil three of a class's six pictures: {file name: what its reason says}."""
    (folder / "0.jpg").write_bytes((folder / "0.jpg").read_bytes()[:-200])
    (folder / "1.png").write_bytes(b"")
    (folder / "2.jpg").write_text("a letter")
    return {"0.jpg": "truncated", "1.png": "cannot identify", "2.jpg": "cannot identify"}


def test_eval_quarantines_counts_and_lists(
    own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    code, _, _ = run(*evaluate(own_data, tiny_bank, tmp_path / "whole"))
    assert code == 0
    reasons = spoil(own_data / "val" / "bee")
    command = evaluate(own_data, tiny_bank, tmp_path / "run")
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert f"{own_data}: 3 of 18 files are not pictures, the first: val/bee/0.jpg (OSError: " in line
    assert "allow more with --max-quarantined" in line
    assert not (tmp_path / "run" / "summary.json").exists()
    assert run(*command)[0] == 2  # again
    code, out, _ = run(*command, "--max-quarantined", 0.2)  # what was done is kept
    assert code == 0
    assert "3 quarantined, the first: val/bee/0.jpg" in out
    summary = summary_of(tmp_path / "run")
    assert (summary["read"], summary["quarantined_count"], summary["complete"]) == (15, 3, True)
    assert [item["path"] for item in summary["quarantined"]] == [f"val/bee/{name}" for name in reasons]
    assert all(word in item["reason"] for item, word in zip(summary["quarantined"], reasons.values(), strict=True))
    assert summary["clean"]["pictures"] == 15
    # The rest is what it was: nothing moved up into a gap.
    whole, spoiled = RunStore.open(tmp_path / "whole"), RunStore.open(tmp_path / "run")
    gone = [path.startswith("val/bee/") and Path(path).name in reasons for path in spoiled.paths]
    kept = np.flatnonzero(~np.array(gone))
    assert whole.paths == spoiled.paths
    margins = [margins_of(tmp_path / name)[kept] for name in ("run", "whole")]
    np.testing.assert_allclose(*margins, rtol=0, atol=1e-5)
    assert len(np.unique(margins[1])) == margins[1].size
    assert (spoiled.predictions(0, 18)[gone] == -2).all()


def test_eval_of_a_class_without_a_readable_picture(
    own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    for picture in (own_data / "val" / "bee").iterdir():
        picture.write_bytes(b"")
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "run", "--max-quarantined", 1))[0] == 0
    summary = summary_of(tmp_path / "run")
    assert [row["folder"] for row in summary["classes"]] == ["ant", "cat"]
    assert summary["matched"]["pictures"] == 12
    for folder in ("ant", "cat"):
        for picture in (own_data / "val" / folder).iterdir():
            picture.write_bytes(b"")
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "none", "--max-quarantined", 1))[0] == 0
    summary = summary_of(tmp_path / "none")
    assert (summary["read"], summary["quarantined_count"]) == (0, 18)
    assert summary["clean"] is summary["matched"] is summary["fooling_rate"] is None


@pytest.mark.usefixtures("no_waits")
def test_storage_that_is_lost_on_the_way_ends_the_run_and_the_same_command_resumes(
    own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a network drive goes away: no picture of it is set aside, and none is forgotten."""
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 4)  # 4 pictures a block
    read, before = PictureFiles.read, run(*evaluate(own_data, tiny_bank, tmp_path / "whole"))[0]

    def lost(files: PictureFiles, path: str) -> bytes:
        if path.startswith("val/cat/"):
            raise OSError(errno.EIO, "Input/output error", str(files.root / path))
        return read(files, path)

    command = evaluate(own_data, tiny_bank, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(PictureFiles, "read", lost)
        code, out, err = run(*command)
    assert (before, code, out) == (0, 5, "")
    line = err.splitlines()[-1]
    assert f"{own_data}/val/cat/0.jpg: cannot be read now (OSError: [Errno 5] Input/output error" in line
    assert "the same command resumes" in line
    assert RunStore.open(tmp_path / "run").pending() == [12, 16]
    assert not (tmp_path / "run" / "summary.json").exists()
    code, _, err = run(*command)
    assert code == 0
    assert "resuming: 12 of 18 pictures are done" in err
    assert summary_of(tmp_path / "run")["quarantined_count"] == 0
    np.testing.assert_allclose(margins_of(tmp_path / "run"), margins_of(tmp_path / "whole"), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("no_waits")
def test_a_finished_run_outlives_its_pictures(
    own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    """A picture that is not there has not changed."""
    far = tmp_path / "far"
    (own_data / "val" / "bee").rename(far)
    (own_data / "val" / "bee").mkdir()
    for picture in far.iterdir():
        (own_data / "val" / "bee" / picture.name).symlink_to(picture)
    command = evaluate(own_data, tiny_bank, tmp_path / "run")
    assert run(*command)[0] == 0
    before = summary_of(tmp_path / "run")
    far.rename(tmp_path / "offline")
    code, _, err = run(*command)
    assert (code, RunStore.open(tmp_path / "run").pending()) == (0, [])
    assert "changed" not in err
    assert summary_of(tmp_path / "run")["matched"] == before["matched"]


@pytest.mark.usefixtures("no_waits")
def test_training_does_not_leave_out_what_it_could_not_reach(
    own_data: Path, tmp_path: Path, run: Run, train: Command
) -> None:
    (own_data / "train" / "bee" / "0.jpg").unlink()
    (own_data / "train" / "bee" / "0.jpg").symlink_to(own_data / "gone.jpg")
    code, out, err = run(*train(own_data, tmp_path / "bank.safetensors", "--epochs", 1))
    assert (code, out) == (5, "")
    assert "train/bee/0.jpg: cannot be read now (FileNotFoundError" in err
    assert not (tmp_path / "bank.safetensors").exists()


@pytest.mark.parametrize("share", [-0.1, 1.5, "nan"])
def test_a_share_that_is_none(
    share: object, tiny_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    code, _, err = run(*evaluate(tiny_data, tiny_bank, tmp_path / "run", "--max-quarantined", share))
    assert code == 2
    assert "--max-quarantined" in err


def test_train_leaves_out_what_it_cannot_read_and_says_so(
    own_data: Path, tmp_path: Path, run: Run, train: Command
) -> None:
    reasons = spoil(own_data / "train" / "bee")
    code, _, err = run(*train(own_data, tmp_path / "bank.safetensors"))
    assert code == 0
    assert "3 pictures could not be read" in err
    assert "train/bee/0.jpg" in err
    quarantined = OccluderBank.load(tmp_path / "bank.safetensors").header.objective["quarantined"]
    assert [item["path"] for item in quarantined] == [f"train/bee/{name}" for name in reasons]


def test_train_on_a_class_without_a_readable_picture_keeps_the_others(
    own_data: Path, tmp_path: Path, run: Run, train: Command, groups_trained: Groups
) -> None:
    good = {path: path.read_bytes() for path in (own_data / "train" / "bee").iterdir()}
    for path in good:
        path.write_bytes(b"")
    command = train(own_data, tmp_path / "bank.safetensors", "--classes-together", 1)
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("gfo-train: ")
    assert "train/bee: none of its 6 pictures could be read" in last
    assert "fix them or leave the class out" in last
    for path, content in good.items():
        path.write_bytes(content)
    assert groups_trained(command) == [["bee"], ["cat"]]


def odd_pictures(folder: Path) -> None:
    """Grey, CMYK, palette, 16-bit, alpha and EXIF-rotated pictures in place of a class's six."""
    colour = Image.open(folder / "1.png").convert("RGB")
    for picture in folder.iterdir():
        picture.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° before showing
    colour.convert("L").save(folder / "0.png")
    colour.convert("CMYK").save(folder / "1.jpg")
    colour.quantize(16).save(folder / "2.gif")
    Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257).save(folder / "3.png")
    colour.rotate(30, expand=True).convert("RGBA").save(folder / "4.png")
    colour.save(folder / "5.jpg", exif=exif)


def test_odd_pictures_are_answered_as_what_torchvisions_loader_makes_of_them(
    own_data: Path, tiny_bank: Path, tmp_path: Path, run: Run, evaluate: Command
) -> None:
    odd_pictures(own_data / "val" / "bee")
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "odd"))[0] == 0
    assert summary_of(tmp_path / "odd")["quarantined_count"] == 0
    for path in (own_data / "val" / "bee").iterdir():
        loaded = pil_loader(str(path))
        path.unlink()
        loaded.save(path.with_suffix(".png"))
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "plain"))[0] == 0
    np.testing.assert_array_equal(margins_of(tmp_path / "odd"), margins_of(tmp_path / "plain"))


def test_reports_of_nothing(tmp_path: Path, refused: Refused) -> None:
    refused(["gfo-report", tmp_path / "nowhere", "--out", tmp_path / "out"], tmp_path / "nowhere", "gfo-eval")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("{")
    refused(["gfo-report", tmp_path / "run", "--out", tmp_path / "out"], tmp_path / "run")
    assert not (tmp_path / "out").exists()
