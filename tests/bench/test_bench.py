"""gfo-bench as its user runs it, on a tiny network: what is printed, refused, and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gfo.bench.commands import bench
from gfo.bench.suites import loaders
from gfo.bench.suites import pairs as throughput
from gfo.bench.workload import Work
from gfo.engine.data.source import PictureSource
from gfo.engine.engines.torch import TorchEngine
from gfo.export.bank import OccluderBank
from gfo.export.classifier import load_classifier
from gfo.export.models.spec import ModelSpec

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.2")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["gfo-bench", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            bench.main()
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    return run


def rows_of(out: str) -> list[dict[str, Any]]:
    document = json.loads(out.splitlines()[-1])
    assert document["schema"] == 1
    return document["rows"]


def test_stages_of_every_engine(run: Run, tiny_data: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        *MODEL, "--engine", "all", "--images", tiny_data / "val", "--occluders", 3, "--baseline", "--pictures", 20,
        "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert code == 0
    rows = rows_of(out)
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
    for engine in ("torch", "onnxruntime", "openvino"):
        own = [row for row in rows if row["engine"] == engine and row["stage"] != "baseline"]
        assert [row["stage"] for row in own] == ["bare", "pairs", "end-to-end"]
        assert all(0 < row["p20"] <= row["p50"] <= row["p80"] for row in own)
        assert [row["ratio"] and row["ratio"]["to"] for row in own] == [None, "bare", "bare"]
        assert all(row["to_plain"]["median"] > 0 for row in own)
        assert own[0]["ceiling_share"] > 0
    assert sum(row["stage"] == "baseline" for row in rows) == len({row["engine"] for row in rows if row["available"]})
    if not torch.cuda.is_available():
        (trt,) = [row for row in rows if row["engine"] == "trt"]
        assert (trt["available"], trt["p50"]) == (False, None)
        assert trt["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_trt_alone_is_an_error_without_a_gpu(run: Run) -> None:
    code, out, err = run("--engine", "trt")
    assert (code, out) == (3, "")
    assert err.startswith("gfo-bench: --engine trt")
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_engine_at_all_is_3(run: Run) -> None:
    code, out, err = run(*MODEL, "--device", "cuda")
    assert (code, out) == (3, "")
    assert "CUDA" in err
    code, out, _ = run(*MODEL, "--device", "cuda", "--engine", "torch,trt")
    assert code == 3
    assert [row["available"] for row in rows_of(out)] == [False, False]


def test_an_engine_that_is_wrong_has_no_speed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_differs", lambda *_: ("differs from PyTorch: by a lot", True))
    code, out, _ = run(*MODEL, "--engine", "torch", "--occluders", 2)
    assert code == 4
    assert [(row["passed"], row["p50"]) for row in rows_of(out)] == [(False, None)] * 3


def test_the_gate_sees_a_wrong_engine(tiny_classifier: Any, tiny_data: Path) -> None:
    from gfo.engine.engines import open_engine

    work = Work(tiny_classifier, torch.zeros(2, 16, 16, 3), tiny_data, [], "")
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    with open_engine("torch", tiny_classifier, "fp32", "cpu")[0] as engine:
        engine.load_bank(work.occluders)
        # Of zeros no engine could take the wrong ones.
        assert throughput._differs(engine, work, images) == ("", False)
        engine.load_bank(torch.full((2, 16, 16, 3), 40.0))
        assert "differs from PyTorch" in throughput._differs(engine, work, images)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "resnet50", "vgg16"])
def test_the_gate_can_tell_with_random_weights(name: str) -> None:
    from gfo.engine.engines import open_engine

    classifier = load_classifier(ModelSpec(f"torchvision/{name}", "random", input_size=64))
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (4, 64, 64, 3), generator=generator) * 20.0 - 10
    images = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=generator)
    for precision in ("fp32", "bf16"):
        with open_engine("torch", classifier, precision, "cpu")[0] as engine:
            engine.load_bank(signs)
            assert throughput._differs(engine, Work(classifier, signs, Path(), [], ""), images) == ("", True)


def test_answers_are_counted_once(tiny_classifier: Any, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []

    def once(calls: dict[str, Callable[[], object]], **_: object) -> dict[str, np.ndarray]:
        """A second each, and what each has scored."""
        for name, call in calls.items():
            scored.clear()
            call()
            found[name] = sum(scored)
        return {name: np.ones(1) for name in calls}

    found: dict[str, int] = {}
    original = TorchEngine.score
    monkeypatch.setattr(throughput, "measure", once)
    monkeypatch.setattr(
        TorchEngine, "score", lambda self, *pairs: scored.append(len(pairs[1])) or original(self, *pairs)
    )
    paths = loaders.picture_paths(tiny_data / "val")
    work = Work(tiny_classifier, torch.ones(3, 16, 16, 3), tiny_data / "val", paths, "", pictures=11)
    stages = ("pairs", "end-to-end", "baseline")
    rows = throughput.throughput_rows(work, ["torch"], ["fp32"], stages=stages, seconds=0.1)
    assert {row.stage: row.p50 for row in rows} == {"pairs": 11 * 4, "end-to-end": 11 * 4, "baseline": 11}
    assert (found["pairs"], found["end-to-end"]) == (11 * 4, 11 * 4)
    (row,) = throughput.throughput_rows(work, ["torch"], ["fp32"], points=[(2, 7)], seconds=0.1)
    assert (row.p50, found["2 x 7"]) == (7 * 3, 7 * 3)


def test_files_that_are_no_pictures_are_not_counted(run: Run, tiny_data: Path, tmp_path: Path) -> None:
    paths = sorted((tiny_data / "val").glob("*/*"))
    for i in range(33):
        name = tmp_path / f"{i:02}{paths[0].suffix}"
        name.write_bytes(paths[i % len(paths)].read_bytes() if i < 32 else b"a word")
    words = ("--engine", "torch", "--images", tmp_path, "--occluders", 2, "--pictures", 33, "--stages", "end-to-end")
    code, out, err = run(*MODEL, *words)
    assert (code, out) == (2, "")
    assert "1 of 33 files are no pictures" in err


def test_some_stages(run: Run) -> None:
    words = ("--engine", "torch", "--occluders", 2, "--pictures", 4)
    code, out, _ = run(*MODEL, *words, "--stages", "pairs,bare")
    assert code == 0
    assert [(row["stage"], row["pictures"]) for row in rows_of(out)] == [("bare", None), ("pairs", 4)]
    assert "a large fp32 convolution runs at" in out
    code, out, _ = run(*MODEL, *words, "--stages", "pairs,end-to-end")
    assert code == 0
    assert [row["ratio"] and row["ratio"]["to"] for row in rows_of(out)] == [None, "pairs"]


def test_what_cannot_be_told_is_said(run: Run) -> None:
    code, out, _ = run(*MODEL, "--engine", "torch", "--occluders", "zero:2", "--stages", "bare")
    assert code == 0
    (row,) = rows_of(out)
    assert row["p50"] > 0
    assert row["reason"].startswith("unchecked: with these weights and occluders")
    assert f"torch: {row['reason']}" in out


def test_scaling(run: Run, tiny_data: Path) -> None:
    code, out, _ = run(*MODEL, "--engine", "torch", "--images", tiny_data / "val", "--scaling", "2x4,5x4,2x9")
    assert code == 0
    rows = rows_of(out)
    assert [(row["occluders"], row["pictures"]) for row in rows] == [(2, 4), (5, 4), (2, 9)]
    assert [row["ratio"] and row["ratio"]["to"] for row in rows] == [None, "2 x 4", "2 x 4"]


def test_threads_that_decode(run: Run, tiny_data: Path) -> None:
    words = ("--engine", "torch", "--images", tiny_data / "val", "--occluders", 2, "--pictures", 4, "--workers", "1,3")
    code, out, _ = run(*MODEL, *words, "--baseline")
    assert code == 0
    rows = rows_of(out)
    assert [row["stage"] for row in rows] == ["bare", "pairs", "end-to-end", "end-to-end", "baseline"]
    assert [row["workers"] for row in rows] == [None, None, 1, 3, None]
    assert [row["ratio"] and row["ratio"]["to"] for row in rows] == [None, "bare", "bare", "bare", None]


def test_the_first_occluders_of_a_bank(run: Run, tiny_data: Path, tiny_bank: Path) -> None:
    words = (*MODEL, "--engine", "torch", "--stages", "pairs", "--images", tiny_data / "val")
    held = len(OccluderBank.load(tiny_bank).occluders)
    code, out, _ = run(*words, "--occluders", f"{tiny_bank}:{held - 1}")
    assert code == 0
    assert rows_of(out)[0]["occluders"] == held - 1
    code, _, err = run(*words, "--occluders", f"{tiny_bank}:{held + 1}")
    assert code == 2
    assert f"holds {held}; ask for at most as many" in err


def test_loaders_are_checked_and_timed(run: Run, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "_AWKWARD", ((3, 2), (40, 31)))
    words = (*MODEL, "--images", tiny_data / "val", "--loader", "pillow,decoded-cache")
    code, out, _ = run(*words)
    assert code == 0
    assert {(row["engine"], row["max_difference"]) for row in rows_of(out)} == {("pillow", 0), ("decoded-cache", 0)}
    assert all(row["p50"] > 0 for row in rows_of(out))
    original = loaders.differences
    monkeypatch.setattr(loaders, "differences", lambda *a: (original(*a)[0] + 2, 0.1))
    code, out, _ = run(*words)
    assert code == 4
    assert all(row["p50"] is None and "2 grey levels" in row["reason"] for row in rows_of(out))


def test_differences_are_found(tmp_path: Path) -> None:
    from gfo.engine.data.loading import open_source
    from gfo.engine.data.spec import DataSpec
    from gfo.export.preprocessing import Preprocessing

    Image.new("RGB", (9, 9), (10, 10, 10)).save(tmp_path / "a.png")
    source: PictureSource = open_source(DataSpec(tmp_path, loader="pillow", workers=1), Preprocessing(8, 8))
    grey = np.full((8, 8, 3), 10, np.uint8)
    assert loaders.differences(source, ["a.png"], [grey]) == (0, 0.0)
    assert loaders.differences(source, ["a.png"], [grey + 3]) == (3, 3.0)
    assert loaders.differences(source, ["a.png"], [None])[0] == 255


def test_training_steps(run: Run) -> None:
    code, out, _ = run(*MODEL, "--train", "--precision", "fp32,bf16")
    assert code == 0
    assert [row["stage"] for row in rows_of(out)] == ["train-baseline", "train", "train"]


def test_the_plot(run: Run, tmp_path: Path) -> None:
    code, _, _ = run(*MODEL, "--engine", "torch", "--occluders", 2, "--plot", tmp_path / "plot.png")
    assert code == 0
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "tensorflow"), "--engine tensorflow: expected some of auto, torch"),
        (("--stages", "bare,fast"), "--stages fast: expected some of bare, pairs"),
        (("--precision", "int8"), "--precision int8: expected some of fp32"),
        (("--seconds", "0"), "--seconds 0.0: expected a number above 0"),
        (("--images", "nowhere"), "--images nowhere: no such folder"),
        (("--occluders", "0"), "--occluders 0: expected at least 1"),
        (("--occluders", "nowhere.safetensors"), "--occluders nowhere.safetensors: no such bank; give a number"),
        (("--engine", "onnxruntime", "--precision", "bf16"), "--precision bf16: engine onnxruntime has fp32"),
        (("--engine", "torch,all"), "--engine all: expected some of auto, torch"),
        (("--seed", "99999999999999999999"), "--seed"),
        (("--occluders", "100000000000"), "--occluders 100000000000: do not fit into the memory"),
        (("--scaling", "2x2", "--occluders", "7"), "--occluders 7: --scaling says how many"),
        (("--stages", "bare", "--workers", "1"), "--workers 1: decode in end-to-end"),
        (("--plot", "/proc/nope/a.png", "--json", "b.json"), "/proc/nope/a.png: No such file"),
        (("--loader", "pil"), "--loader pil: expected some of pillow, dali, decoded-cache"),
        (("--loader", "dali", "--train"), "--train: not read beside --loader; leave one of them out"),
        (("--workers", "1,0"), "--workers 0: expected numbers of threads"),
        (("--scaling", "10x0"), "--scaling 10x0: expected occluders x pictures"),
        (("--scaling", "2x2", "--workers", "1"), "--workers: not read beside --scaling"),
        (("--scaling", "2x2", "--plot", "a.png", "--baseline"), "--baseline, --plot: not read beside --scaling"),
        (("--kernels",), "--model, --weights: not read beside --kernels"),
        (("--train", "--engine", "torch"), "--engine: not read beside --train"),
        (("--loader", "pillow", "--precision", "bf16"), "--precision: not read beside --loader"),
        (("--plot", "a.svg"), "name a .png file"),
        (("--json", "."), "is a folder"),
    ],
)
def test_what_is_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    code, out, err = run(*MODEL, *words)
    assert (code, out) == (2, "")
    assert said in err
