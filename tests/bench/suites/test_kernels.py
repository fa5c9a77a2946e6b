"""The kernel benchmark: nothing wrong gets a speed, what cannot run says why, and the JSON is what it promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gfo.bench import kernel_cases
from gfo.bench.commands.bench import main
from gfo.bench.kernel_cases import CASES
from gfo.bench.kernel_data import Sizes
from gfo.bench.suites import kernels
from gfo.bench.suites.kernels import ENGINES, NO_GPU, distance, kernel_rows
from gfo.kernels.score import Score, score

HAVE_GPU = torch.cuda.is_available()
TINY = Sizes(size=5, pairs=6, occluders=3, classes=7)
GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAVE_GPU, reason="no CUDA GPU here")]
BOTH = dict.fromkeys(ENGINES, TINY)
OPTIONS = ("--size", "5", "--pairs", "6", "--occluders", "3", "--classes", "7", "--seconds", "0.001")
OPERATIONS = {
    "occlude",
    "occlude_grid",
    "occlude + gradient",
    "margin_loss + gradient",
    "momentum_step",
    "adam_step",
    "score",
}


@pytest.fixture(autouse=True)
def no_large_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfo.bench.ceilings.bandwidth", lambda device: 1e9)


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """The exit code."""
    monkeypatch.setattr("sys.argv", ["gfo-bench", "kernels", *options])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def broken_score(*_: object, **__: object) -> Score:
    raise RuntimeError("no such operation on this device\nand a long stack")


@pytest.mark.parametrize("sizes", [TINY, Sizes(size=1, pairs=1, occluders=4, classes=2)], ids=["tiny", "one"])
@pytest.mark.parametrize("make", CASES)
def test_every_reference_equals_its_formula(make: Any, sizes: Sizes):
    case = make(sizes, "cpu")
    formula, operation = case.formula(lambda function: function), case.operation("reference")
    wanted = formula()
    assert distance(operation(), wanted, case.rounding).wrong == ""
    assert distance(formula(), wanted, 0).wrong == ""  # the formula leaves its inputs as they are
    assert case.minimum > 0


def test_every_operation_is_there_in_its_precisions():
    cases = [make(TINY, "cpu") for make in CASES]
    assert {case.kernel for case in cases} == OPERATIONS
    for name in ("occlude", "occlude_grid", "occlude + gradient"):
        assert [case.precision for case in cases if case.kernel == name] == ["fp32", "bf16"]


def test_minimum_counts_every_input_and_result_once():
    picture, pixels = 5 * 5 * 3, 6 * 5 * 5 * 3
    by_name = {(case.kernel, case.precision): case.minimum for case in (make(TINY, "cpu") for make in CASES)}
    assert by_name["occlude", "fp32"] == pixels + 3 * picture * 4 + pixels * 4
    assert by_name["occlude_grid", "bf16"] == 2 * picture + 3 * picture * 4 + pixels * 2
    assert by_name["momentum_step", "fp32"] == 5 * 3 * picture * 4
    assert by_name["adam_step", "fp32"] == 7 * 3 * picture * 4
    assert by_name["score", "fp32"] == 6 * 7 * 4


def test_difference_allows_rounding_and_no_more():
    wanted = torch.tensor([1.0, -4.0, 0.0])
    unit = 4 * 2.0**-23
    assert distance((wanted + 2 * unit,), (wanted,), 2).wrong == ""
    assert "rounding" in distance((wanted + 3 * unit,), (wanted,), 2).wrong
    assert "rounding" in distance((torch.tensor([1.0, -4.0, float("nan")]),), (wanted,), 2).wrong
    half = torch.tensor([1.0], dtype=torch.bfloat16)
    assert distance((half + 2**-7,), (half,), 2).wrong == ""  # its neighbour
    assert distance((half + 2**-6,), (half,), 2).wrong


def test_the_largest_distance_is_a_rows(monkeypatch: pytest.MonkeyPatch):
    right, off = kernel_cases.occlude, 3 * 2.0**-23
    monkeypatch.setattr(kernel_cases, "occlude", lambda pairs, how, **options: right(pairs, how, **options) + off)
    case = kernel_cases.occlude_case(TINY, "cpu", "fp32")
    _, rows = kernels.checked(case, "cpu", ("eager", "reference"))
    assert rows["reference"].passed
    assert rows["reference"].facts.max_error == pytest.approx(off, abs=2**-22)  # of values up to 2.6
    assert rows["eager"].facts.max_error is None
    monkeypatch.setattr(kernel_cases, "occlude", lambda pairs, how, **options: right(pairs, how, **options) * torch.nan)
    (wrong,) = (kernels.checked(case, "cpu", ("eager", "reference"))[1]["reference"],)
    assert (wrong.passed, wrong.facts.max_error) == (False, None)  # not 0, and JSON has no number for it


def test_difference_wants_the_same_integers_shapes_and_dtypes():
    wanted = torch.tensor([3, 4])
    assert distance((wanted,), (wanted,), 9).wrong == ""
    assert distance((torch.tensor([3, 5]),), (wanted,), 9).wrong
    assert distance((torch.tensor([3]),), (wanted,), 9).wrong
    assert distance((wanted.float(),), (wanted,), 9).wrong
    empty = torch.zeros(0)
    assert distance((empty,), (empty,), 9).wrong == ""


def test_rows_are_complete():
    rows, ceilings = kernel_rows(BOTH, seconds=1e-3)
    assert ceilings["cpu"] == 1e9
    assert len(rows) == len(CASES) * sum(map(len, ENGINES.values()))
    assert {row.stage for row in rows} == {"kernel"}
    for row in rows:
        assert row.data == "synthetic"
        assert row.facts.kernel
        assert row.sizes
    for row in (row for row in rows if row.device == "cpu"):
        assert row.available, row.reason
        assert row.passed
        assert None not in (row.rounds, row.facts.bandwidth_share, row.facts.extra_mb)
        assert row.p20 is not None
        assert row.p50 is not None
        assert row.p80 is not None
        assert 0 < row.p20 <= row.p50 <= row.p80
        assert (row.ratio is None) == (row.facts.max_error is None) == (row.engine == "eager")
        assert row.ratio is None or row.ratio.to == "eager"


@pytest.mark.skipif(HAVE_GPU, reason="a GPU is here")
def test_without_a_gpu_its_rows_say_so():
    rows = [row for row in kernel_rows(BOTH, seconds=1e-3)[0] if row.device == "cuda"]
    assert {row.engine for row in rows} == {"eager", "compile", "triton"}
    assert {row.facts.kernel for row in rows} == OPERATIONS
    for row in rows:
        assert (row.available, row.reason, row.passed) == (False, NO_GPU, None)
        assert (row.p20, row.p50, row.p80, row.ratio, row.facts.bandwidth_share) == (None,) * 5


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not HAVE_GPU, reason="no CUDA GPU here")
def test_on_a_gpu_the_kernels_equal_the_formulas():
    rows = [row for row in kernel_rows(BOTH, seconds=1e-2)[0] if row.device == "cuda"]
    for row in rows:
        assert row.passed, f"{row.facts.kernel} {row.precision} {row.engine}: {row.reason}"
        assert row.p50


def test_a_wrong_result_has_no_speed(monkeypatch: pytest.MonkeyPatch):
    def one_rank_off(*arguments: Any, **options: Any) -> Score:
        right = score(*arguments, **options)
        return right._replace(rank=right.rank + (torch.arange(len(right.rank)) == 1))

    monkeypatch.setattr(kernel_cases, "score", one_rank_off)
    rows = {
        row.engine: row
        for row in kernel_rows(BOTH, seconds=1e-3)[0]
        if (row.facts.kernel, row.device) == ("score", "cpu")
    }
    wrong = rows["reference"]
    assert (wrong.available, wrong.passed) == (False, False)
    assert "differs from the formula by up to 1" in wrong.reason
    assert (wrong.p20, wrong.p50, wrong.p80, wrong.ratio, wrong.facts.bandwidth_share, wrong.rounds) == (None,) * 6
    assert rows["eager"].p50


def test_the_gate_would_notice_one_occluder_swapped(monkeypatch: pytest.MonkeyPatch):
    right = kernel_cases.occlude
    monkeypatch.setattr(
        kernel_cases,
        "occlude",
        lambda pairs, how, **options: right(pairs._replace(bank=pairs.bank.flip(0)), how, **options),
    )
    rows = [row for row in kernel_rows(BOTH, seconds=1e-3)[0] if (row.device, row.engine) == ("cpu", "reference")]
    assert {row.facts.kernel for row in rows if not row.available} == {"occlude", "occlude_grid", "occlude + gradient"}


def test_a_failed_check_exits_with_4_and_still_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(kernel_cases, "score", broken_score)
    assert run(monkeypatch, *OPTIONS) == 4
    out = capsys.readouterr().out
    (row,) = (
        row for row in json.loads(out.splitlines()[-1])["rows"] if row["passed"] is False and row["device"] == "cpu"
    )
    assert row["reason"] == "failed: no such operation on this device"
    assert row["p50"] is None
    assert f"score fp32 reference cpu: {row['reason']}" in out.splitlines()


def test_a_device_that_fails_from_then_on_is_a_row_after_those_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(kernel_cases, "CASES", (CASES[0], fails, CASES[1]))
    assert run(monkeypatch, *OPTIONS, "--check", "--device", "cpu") == 4
    first, last = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (first["kernel"], first["passed"]) == ("occlude", True)
    assert (last["available"], last["passed"]) == (False, False)
    assert last["reason"] == "failed: RuntimeError: CUDA error: an illegal memory access was encountered"


def test_json_is_the_last_line_and_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    file = tmp_path / "new" / "kernels.json"
    assert run(monkeypatch, *OPTIONS, "--json", str(file)) == 0
    out = capsys.readouterr().out
    assert file.read_text() == out.splitlines()[-1] + "\n"
    facts = json.loads(file.read_text())
    assert facts["schema"] == 1
    assert facts["environment"]["copy_bytes_per_second_cpu"] == 1e9
    assert facts["environment"]["threads"] == torch.get_num_threads()
    assert "load_average" in facts["environment"]
    assert {row["kernel"] for row in facts["rows"]} == OPERATIONS
    assert "synthetic" in out.splitlines()[0]
    assert HAVE_GPU or NO_GPU in out
    assert [entry.name for entry in file.parent.iterdir()] == ["kernels.json"]


@pytest.mark.parametrize(("device", "pictures"), [("cpu", 64), pytest.param("cuda", 512, marks=GPU)])
def test_a_device_gets_as_many_pairs_as_fill_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, pictures: int
):
    small = ("--size", "5", "--occluders", "3", "--classes", "7", "--device", device)
    assert run(monkeypatch, *small, "--check") == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert max(row["pictures"] for row in rows if row["kernel"] == "occlude") == pictures
    assert {row["device"] for row in rows} == {device}
    assert all(row["passed"] and row["max_error"] <= row["allowed_error"] for row in rows)


@pytest.mark.parametrize(
    "options",
    [
        ("--seconds", "0"),
        ("--seconds", "-1"),
        ("--seconds", "nan"),
        ("--seconds", "inf"),
        ("--seconds", "two"),
        ("--size", "0"),
        ("--pairs", "-3"),
        ("--occluders", "0"),
        ("--classes", "1"),
        ("--json", "."),
        ("--json", f"{__file__}/kernels.json"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_2_before_anything_runs(
    options: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(kernels, "kernel_rows", lambda *_, **__: pytest.fail("ran"))
    assert run(monkeypatch, *options) == 2
    told = capsys.readouterr()
    (line,) = told.err.strip().splitlines()
    assert options[0].removeprefix("--") in line
    assert told.out == ""


def test_what_does_not_fit_into_memory_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    monkeypatch.setattr(kernels, "kernel_rows", full)
    assert run(monkeypatch, "--size", "9", "--json", str(tmp_path / "kernels.json")) == 2
    assert "--size 9" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
