"""The demo meets its floors, says the same everywhere, and resumes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from gfo.bench.commands.demo import main, summary_table
from gfo.bench.demo import run as demo_module
from gfo.bench.demo.run import EPSILONS, DemoResult, demo, demo_rows
from gfo.bench.stages import STAGES
from gfo.engine.evaluation.summary import read_summary
from gfo.export.bank import OccluderBank

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo's folder; its networks go into a cache of their own, where other tests don't find them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GFO_CACHE", str(tmp_path_factory.mktemp("demo-cache")))
        yield tmp_path_factory.mktemp("runs") / "demo"


@pytest.fixture(scope="module")
def result(out: Path) -> DemoResult:
    return demo(out)


@pytest.mark.parametrize("name", EPSILONS)
def test_floors(result: DemoResult, name: str):
    test = result.summaries[name]["val"].to_dict()
    assert test["clean"]["accuracy"] >= 0.95
    assert test["matched"]["accuracy"] <= 0.25
    assert test["unmatched"]["accuracy"] >= 0.75


@pytest.mark.parametrize("name", EPSILONS)
def test_files_hold_the_same_as_the_result(result: DemoResult, out: Path, name: str):
    for split, run in (("val", out / name), ("train", out / name / "train")):
        assert read_summary(run / "summary.json") == result.summaries[name][split]
    assert OccluderBank.load(out / f"{name}.safetensors").hash == result.summaries[name]["val"].bank_hash
    page = (out / "report.html").read_text()
    for cell in ("clean", "matched", "unmatched"):
        assert f"{result.summaries[name]['val'].to_dict()[cell]['accuracy']:.4f}" in page


def test_splits_are_what_they_say(result: DemoResult):
    for summaries in result.summaries.values():
        assert summaries["val"].to_dict()["fit"] == {"unseen": 500, "fitted": 0, "held_out": 0, "preserved": 0}
        fit = {"unseen": 0, "fitted": 1297, "held_out": 0, "preserved": 0}
        assert summaries["train"].to_dict()["fit"] == fit


def test_summary_table_shows_the_summaries(result: DemoResult):
    text = io.StringIO()
    Console(width=100, file=text).print(summary_table(result))
    lines = text.getvalue().splitlines()
    for name, summaries in result.summaries.items():
        row = next(line for line in lines if name in line)
        for cell in ("clean", "matched", "unmatched"):
            assert f"{summaries['val'].to_dict()[cell]['accuracy']:.4f}" in row


def test_same_command_again_computes_nothing(
    result: DemoResult, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    monkeypatch.setattr("gfo.engine.engines.base.Engine.infer", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(demo_module, "demo_rows", lambda *_, **__: [])
    monkeypatch.setattr(demo_module, "report", lambda *_: result.files)  # it only draws
    monkeypatch.setattr("sys.argv", ["gfo-demo", "--out", str(out)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert "Top-1 on the test split" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == before


@pytest.mark.usefixtures("result", "hurried")
def test_a_benchmark_of_its_networks(out: Path) -> None:
    rows = demo_rows(out, seconds=0.1)
    assert [(row.model, row.stage) for row in rows] == [(f"gfo/{name}", s) for name in EPSILONS for s in STAGES]
    assert all(row.p50 for row in rows)


@pytest.mark.usefixtures("result")
def test_another_seed_into_the_same_folder_is_refused(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["gfo-demo", "--out", str(out), "--seed", "1"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "digits-resnet.safetensors" in error
    assert "seed 0, not 1" in error


def test_interrupt_exits_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(root: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "write_digits", interrupt)
    monkeypatch.setattr("os._exit", sys.exit)  # the real one would end the tests
    monkeypatch.setattr("sys.argv", ["gfo-demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 130
