"""The pairs suite on a tiny network: its stages, its gate, and what is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gfo.bench import stages as stages_module
from gfo.bench import throughput
from gfo.bench.gate import check_engine
from gfo.bench.pictures import picture_paths
from gfo.bench.suites.scaling import point_rows
from gfo.bench.throughput import PairsConfig
from gfo.bench.workload import Workload
from gfo.engine.engines.choice import EngineChoice, open_engine
from gfo.engine.engines.torch import TorchEngine
from gfo.engine.progress import no_progress
from gfo.export.bank import OccluderBank
from gfo.export.classifier import load_classifier
from gfo.export.models.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("hurried")

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.05")


def test_stages_of_every_engine(run: Callable[..., Any], tiny_data: Path, tmp_path: Path) -> None:
    ended = run(
        *MODEL, "--engine", "all", "--images", tiny_data / "val", "--occluders", 3, "--baseline", "--pictures", 20,
        "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert ended.code == 0
    rows = ended.rows
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
def test_trt_alone_is_an_error_without_a_gpu(run: Callable[..., Any]) -> None:
    code, out, err = run("--engine", "trt")
    assert (code, out) == (3, "")
    assert err.startswith("gfo-bench: --engine trt")
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_engine_at_all_is_3(run: Callable[..., Any]) -> None:
    ended = run(*MODEL, "--device", "cuda")
    assert (ended.code, ended.out) == (3, "")
    assert "CUDA" in ended.err
    ended = run(*MODEL, "--device", "cuda", "--engine", "torch,trt")
    assert ended.code == 3
    assert [row["available"] for row in ended.rows] == [False, False]


def test_an_engine_that_is_wrong_has_no_speed(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "check_engine", lambda *_: ("differs from PyTorch: by a lot", True))
    ended = run(*MODEL, "--engine", "torch", "--occluders", 2)
    assert ended.code == 4
    assert [(row["passed"], row["p50"]) for row in ended.rows] == [(False, None)] * 3


def test_the_gate_sees_a_wrong_engine(tiny_classifier: Any, tiny_data: Path) -> None:
    work = Workload(tiny_classifier, torch.zeros(2, 16, 16, 3), tiny_data, [], "")
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    with open_engine(EngineChoice("torch", "fp32", "cpu"), tiny_classifier) as engine:
        engine.load_bank(work.occluders)
        # Of zeros no engine could take the wrong ones.
        assert check_engine(engine, work, images) == ("", False)
        engine.load_bank(torch.full((2, 16, 16, 3), 40.0))
        assert "differs from PyTorch" in check_engine(engine, work, images)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "precisions"),
    [("googlenet", 64, ("fp32", "bf16")), ("resnet50", 64, ("bf16",)), ("vgg16", 32, ("fp32",))],
)
def test_the_gate_can_tell_with_random_weights(name: str, size: int, precisions: tuple[str, ...]) -> None:
    classifier = load_classifier(ModelSpec(f"torchvision/{name}", "random", input_size=size))
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (4, size, size, 3), generator=generator) * 20.0 - 10
    images = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8, generator=generator)
    for precision in precisions:
        with open_engine(EngineChoice("torch", precision, "cpu"), classifier) as engine:
            engine.load_bank(signs)
            assert check_engine(engine, Workload(classifier, signs, Path(), [], ""), images) == ("", True)


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
    original = TorchEngine.queue
    monkeypatch.setattr(stages_module, "measure", once)
    monkeypatch.setattr("gfo.bench.measure.measure", once)
    monkeypatch.setattr(
        TorchEngine, "queue", lambda self, *pairs: scored.append(len(pairs[1].labels)) or original(self, *pairs)
    )
    paths = picture_paths(tiny_data / "val")
    work = Workload(tiny_classifier, torch.ones(3, 16, 16, 3), tiny_data / "val", paths, "", pictures=11)
    stages = ("pairs", "end-to-end", "baseline")
    config = PairsConfig([EngineChoice("torch")], seconds=0.1)
    rows = stages_module.throughput_rows(work, config, stages)
    assert {row.stage: row.p50 for row in rows} == {"pairs": 11 * 4, "end-to-end": 11 * 4, "baseline": 11}
    assert (found["pairs"], found["end-to-end"]) == (11 * 4, 11 * 4)
    (row,) = throughput.engine_rows(work, config, ["end-to-end"], lambda run: point_rows(run, [(2, 7)]), no_progress)
    assert (row.p50, found["2 x 7"]) == (7 * 3, 7 * 3)


def test_files_that_are_no_pictures_are_not_counted(run: Callable[..., Any], tiny_data: Path, tmp_path: Path) -> None:
    paths = sorted((tiny_data / "val").glob("*/*"))
    for i in range(33):
        name = tmp_path / f"{i:02}{paths[0].suffix}"
        name.write_bytes(paths[i % len(paths)].read_bytes() if i < 32 else b"a word")
    words = ("--engine", "torch", "--images", tmp_path, "--occluders", 2, "--pictures", 33, "--stages", "end-to-end")
    code, out, err = run(*MODEL, *words)
    assert (code, out) == (2, "")
    assert "1 of 33 files are no pictures" in err


def test_some_stages(run: Callable[..., Any]) -> None:
    words = ("--engine", "torch", "--occluders", 2, "--pictures", 4)
    ended = run(*MODEL, *words, "--stages", "pairs,bare")
    assert ended.code == 0
    assert [(row["stage"], row["pictures"]) for row in ended.rows] == [("bare", None), ("pairs", 4)]
    assert "a large fp32 convolution runs at" in ended.out
    ended = run(*MODEL, *words, "--stages", "pairs,end-to-end")
    assert ended.code == 0
    assert [row["ratio"] and row["ratio"]["to"] for row in ended.rows] == [None, "pairs"]


def test_what_cannot_be_told_is_said(run: Callable[..., Any], tiny_data: Path) -> None:
    words = ("--engine", "torch", "--images", tiny_data / "val", "--occluders", "zero:2", "--stages", "bare")
    ended = run(*MODEL, *words)
    assert ended.code == 0
    (row,) = ended.rows
    assert row["p50"] > 0
    assert row["reason"].startswith("unchecked: with these weights and occluders")
    assert f"torch: {row['reason']}" in ended.out


def test_threads_that_decode(run: Callable[..., Any], tiny_data: Path) -> None:
    words = ("--engine", "torch", "--images", tiny_data / "val", "--occluders", 2, "--pictures", 4, "--workers", "1,3")
    ended = run(*MODEL, *words, "--baseline")
    assert ended.code == 0
    rows = ended.rows
    assert [row["stage"] for row in rows] == ["bare", "pairs", "end-to-end", "end-to-end", "baseline"]
    assert [row["workers"] for row in rows] == [None, None, 1, 3, None]
    assert [row["ratio"] and row["ratio"]["to"] for row in rows] == [None, "bare", "bare", "bare", None]


def test_the_first_occluders_of_a_bank(run: Callable[..., Any], tiny_data: Path, tiny_bank: Path) -> None:
    words = (*MODEL, "--engine", "torch", "--stages", "pairs", "--images", tiny_data / "val")
    held = len(OccluderBank.load(tiny_bank).occluders)
    ended = run(*words, "--occluders", f"{tiny_bank}:{held - 1}")
    assert ended.code == 0
    assert ended.rows[0]["occluders"] == held - 1
    ended = run(*words, "--occluders", f"{tiny_bank}:{held + 1}")
    assert ended.code == 2
    assert f"holds {held}; use at most as many" in ended.err


def test_the_plot(run: Callable[..., Any], tiny_data: Path, tmp_path: Path) -> None:
    words = ("--engine", "torch", "--images", tiny_data / "val", "--occluders", 2, "--plot", tmp_path / "plot.png")
    code, _, _ = run(*MODEL, *words)
    assert code == 0
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
