"""Several strengths in one pass: what is stored is what separate RUNs store, however the pass was interrupted."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from gfo.engine import EngineChoice, EvaluationConfig, evaluate_strengths
from gfo.engine import evaluate as evaluate_one
from gfo.engine.data.files import PictureFiles
from gfo.engine.data.spec import DataSpec
from gfo.engine.evaluation import strengths
from gfo.engine.evaluation.class_answers import accuracy_matrix
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.strengths import check_strengths, noise_row, scaled_rows
from gfo.engine.evaluation.summary import Summary, read_summary
from gfo.export.bank import OccluderBank
from gfo.export.bank_header import EmbeddedBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.kernels.score import Score

Run = Callable[..., tuple[int, str, str]]
Command = Callable[..., list[object]]
Refused = Callable[..., None]
Evaluated = Callable[..., dict[float, Summary]]

STRENGTHS = (0.5, 4.0)
ARRAYS = ("prediction", "rank", "margin", "reason", "stamp", "fit", "label", "path")
SPEED = ("pairs", "seconds", "pairs_per_second", "peak_rss_mb")
# What the tiny network answers: with the ids of the other tests it would never be right.
IDS = {"ant": 2, "bee": 1, "cat": 3}


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gfo.engine.evaluation.store._MOST", 8)  # of 18 pictures: blocks of 8, 8 and 2
        yield


@pytest.fixture(scope="module")
def class_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "ids.json"
    path.write_text(json.dumps(IDS))
    return path


@pytest.fixture(scope="module")
def evaluated(
    tiny_classifier: FrozenClassifier, make_bank: Callable[..., OccluderBank], tiny_data: Path, class_map: Path
) -> Evaluated:
    bank = make_bank(class_ids=tuple(IDS.values()), objective={"preserve": {"classes": [3]}})

    def evaluated(out: Path, *factors: float, **how: Any) -> dict[float, Summary]:
        data = DataSpec(how.pop("data", tiny_data), class_map=class_map)
        config = EvaluationConfig(EngineChoice("torch"), strengths=factors, **how)
        return evaluate_strengths(tiny_classifier, bank, data, out, config)

    return evaluated


@pytest.fixture(scope="module")
def together(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, Summary]]:
    """RUNs of both strengths; don't write into them."""
    out = tmp_path_factory.mktemp("together")
    return out, evaluated(out, *STRENGTHS)


@pytest.fixture(scope="module")
def apart(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> dict[float, tuple[Path, Summary]]:
    """The same, each evaluated alone."""
    folder = tmp_path_factory.mktemp("apart")
    return {one: (folder / f"{one:g}", evaluated(folder / f"{one:g}", one)[one]) for one in STRENGTHS}


def arrays(run: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(run / "predictions.zarr", mode="r")
    return {name: np.asarray(group[name][:]) for name in ARRAYS}  # type: ignore[index, call-overload]


def assert_same_answers(run: Path, other: Path) -> None:
    one, two = arrays(run), arrays(other)
    for name in ARRAYS:
        if name == "margin":
            np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-5)  # passes of other lengths
        else:
            np.testing.assert_array_equal(one[name], two[name], name)


def test_together_they_are_what_they_are_apart(
    together: tuple[Path, dict[float, Summary]], apart: dict[float, tuple[Path, Summary]]
) -> None:
    out, summaries = together
    assert list(summaries) == list(STRENGTHS)
    for strength, summary in summaries.items():
        place, (own, alone) = out / f"{strength:g}", apart[strength]
        assert_same_answers(place, own)
        assert read_summary(place / "summary.json") == summary
        assert (summary.strength, summary.epsilon) == (strength, strength * 8)
        assert summary.frontier == summaries[0.5].frontier
        assert summary.frontier
        assert summary.frontier.strengths == STRENGTHS
        assert summary.pairs == 18 * (1 + 2 * 4)  # clean once
        speed = {name: getattr(summary, name) for name in SPEED}
        assert replace(alone, frontier=summary.frontier, **speed) == summary
    weak, strong = (accuracy_matrix(RunStore.open(out / f"{strength:g}"))[0] for strength in STRENGTHS)
    assert (weak[0] == strong[0]).all()
    assert (weak[1:] != strong[1:]).any()  # the case says something


def test_pictures_are_read_once(evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = list[str](), PictureFiles.read
    monkeypatch.setattr(PictureFiles, "read", lambda self, path: reads.append(path) or read(self, path))
    evaluated(tmp_path / "run", *STRENGTHS, shard=(2, 3))
    assert len(reads) == len(set(reads)) == 2


def test_rows_are_the_bank_scaled_and_noise_as_strong(make_bank: Callable[..., OccluderBank]) -> None:
    bank = make_bank()
    rows = scaled_rows(bank, (0.5, 3.0), seed=4)
    assert rows.dtype == torch.float32
    wanted = [bank.occluders / 2, noise_row(4.0, "linf", 16, 4)[None], bank.occluders * 3]
    torch.testing.assert_close(rows, torch.cat([*wanted, noise_row(24.0, "linf", 16, 4)[None]]))


class _Stopped(BaseException):
    """Stands for a kill at any moment."""


def test_a_stopped_pass_resumes_whatever_is_missing(
    evaluated: Evaluated,
    together: tuple[Path, dict[float, Summary]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (whole, summaries), run = together, tmp_path / "run"
    write, written = RunStore.write, list[int]()

    def stop_at_fourth(self: RunStore, start: int, *rest: Any) -> None:
        if len(written) == 3:
            raise _Stopped
        written.append(start)
        write(self, start, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write", stop_at_fourth)
        with pytest.raises(_Stopped):
            evaluated(run, *STRENGTHS)
    assert [RunStore.open(run / name).pending() for name in ("0.5", "4")] == [[16], [8, 16]]
    resumed = evaluated(run, *STRENGTHS)
    assert {summary.pairs for summary in resumed.values()} == {8 * 5 + 2 * 9}
    # One of them gone, one damaged, and a strength that is new.
    shutil.rmtree(run / "0.5")
    chunk = run / "4/predictions.zarr/prediction/c.1.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    again = evaluated(run, 0.25, *STRENGTHS)
    assert again[4.0].pairs == 18 * (1 + 2 * 4) + 8 * (1 + 4)
    assert again[4.0].frontier == again[0.25].frontier != resumed[4.0].frontier == summaries[4.0].frontier
    for name in ("0.5", "4"):
        assert_same_answers(run / name, whole / name)
    last = evaluated(run, 0.25, *STRENGTHS)
    assert last == again  # nothing left to do: the same numbers, and the speed that was measured


def test_workers_fill_several_strengths_together(
    evaluated: Evaluated, together: tuple[Path, dict[float, Summary]], tmp_path: Path
) -> None:
    whole, summaries = together
    first = evaluated(tmp_path, *STRENGTHS, shard=(0, 2))
    assert [(s.complete, s.remaining, s.frontier) for s in first.values()] == [(False, 8, None)] * 2
    assert not list(tmp_path.rglob("summary.json"))
    last = evaluated(tmp_path, *STRENGTHS, shard=(1, 2))
    for strength, summary in last.items():
        assert summary.frontier == summaries[strength].frontier
        assert_same_answers(tmp_path / f"{strength:g}", whole / f"{strength:g}")


def test_pictures_that_are_none_count_once(evaluated: Evaluated, own_data: Path, tmp_path: Path) -> None:
    (own_data / "val/ant/1.png").write_text("no picture")
    found = evaluated(tmp_path, *STRENGTHS, data=own_data, max_quarantined=1 / 18)
    assert {summary.quarantined_count for summary in found.values()} == {1}
    with pytest.raises(InputError, match="1 of 18 files are not pictures"):
        evaluated(tmp_path, *STRENGTHS, data=own_data, max_quarantined=0)


def test_answers_to_other_pictures_have_no_frontier(
    evaluated: Evaluated, together: tuple[Path, dict[float, Summary]], tmp_path: Path
) -> None:
    run = shutil.copytree(together[0], tmp_path / "run")
    store = RunStore.open(run / "4", writable=True)
    nothing = Score(*(torch.zeros(8 * 5) for _ in range(3)))
    store.write(0, nothing, dict.fromkeys(range(8), "broken"), store._array("stamp")[:8].tolist())  # type: ignore[union-attr, arg-type]
    with pytest.raises(InputError, match=r"4/predictions.zarr: quarantines other pictures than .*0\.5"):
        evaluated(run, *STRENGTHS, max_quarantined=1.0)


def test_what_does_not_fit_into_the_memory_is_refused(
    make_bank: Callable[..., OccluderBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 2 * 4 * 16 * 16 * 3 * 4
    monkeypatch.setattr(strengths, "available", lambda: needed)
    assert scaled_rows(make_bank(), (0.5, 1.0), 0).nbytes == needed
    monkeypatch.setattr(strengths, "available", lambda: needed - 1)
    with pytest.raises(InputError, match=r"--strength 0\.5,1: the bank at these strengths takes .* give fewer"):
        scaled_rows(make_bank(), (0.5, 1.0), 0)
    assert len(scaled_rows(make_bank(), (0.5,), 0)) == 4


def test_the_command_prints_each_strength_and_the_frontier(
    run: Run, evaluate: Command, tiny_data: Path, tiny_bank: Path, tmp_path: Path
) -> None:
    words = evaluate(tiny_data, tiny_bank, tmp_path / "out", "--strength", "0.5,4")
    code, out, _ = run(*words)
    assert code == 0
    lines = out.splitlines()
    assert "strength 0.5, ε = 4" in lines
    assert "strength 4, ε = 32" in lines
    assert str(tmp_path / "out/4/summary.json") in lines
    frontier = json.loads((tmp_path / "out/4/summary.json").read_text())["frontier"]
    marks, shown = [line.split() for line in lines[-2:]]
    assert marks == ["at", "matched/clean", "0.2", "0.3", "0.4"]
    values = [frontier["unmatched"][mark] for mark in marks[2:]]
    assert shown[0] == "unmatched/clean"
    assert " ".join(shown).count("not reached") == values.count(None)
    assert all(f"{value['value']:.4f}" in shown for value in values if value)


@pytest.mark.parametrize(
    ("asked", "mend"),
    [
        ("0", "--strength 0: must be above 0 and finite"),
        ("-0.5", "must be above 0"),
        ("nan,1", "--strength nan: must be above 0 and finite"),
        ("inf", "must be above 0 and finite"),
        ("1,0.5,1.0", "--strength 1,0.5,1: 1 is named twice"),
        ("0.5,,1", "expected numbers separated by commas"),
        ("half", "expected numbers separated by commas"),
        ("0.12345678", "--strength 0.12345678: has more than six digits; use 0.123457"),
        ("1,40", "--strength 40: 40 · ε = 320, no two pictures differ by more than 255; use at most 31.875"),
    ],
)
def test_strengths_that_cannot_be_are_named(
    asked: str, mend: str, refused: Refused, evaluate: Command, tiny_data: Path, tiny_bank: Path, tmp_path: Path
) -> None:
    refused(evaluate(tiny_data, tiny_bank, tmp_path / "run", "--strength", asked), mend)
    assert not (tmp_path / "run").exists()


def test_an_embedded_bank_has_strength_1_only(make_bank: Callable[..., OccluderBank]) -> None:
    header = make_bank(norm="l2").header
    inside = EmbeddedBank(header, "sha256:0")
    check_strengths(inside, (1.0,), 16, "exported")
    for asked in ((0.5,), (0.5, 1.0)):
        with pytest.raises(
            InputError, match=rf"--strength {','.join(f'{x:g}' for x in asked)}: exported embeds its bank"
        ):
            check_strengths(inside, asked, 16, "exported")


def test_the_largest_strength_depends_on_the_norm(make_bank: Callable[..., OccluderBank]) -> None:
    largest = 255 * math.sqrt(3) * 16 / 8
    check_strengths(make_bank(norm="l2"), (largest,), 16, "m")
    for norm, too_much in (("linf", 32.0), ("l2", largest * 1.001)):
        with pytest.raises(InputError, match="no two pictures differ by more"):
            check_strengths(make_bank(norm=norm), (1.0, too_much), 16, "m")


def test_an_out_that_holds_another_kind_of_run_is_refused(
    evaluated: Evaluated, together: tuple[Path, dict[float, Summary]], apart: dict[float, tuple[Path, Summary]]
) -> None:
    several, (one, _) = together[0], apart[4.0]
    for out, asked, said in (
        (one, STRENGTHS, "holds the RUN of a single strength"),
        (one, (0.5,), r"epsilon 32\.0, not 4\.0; strength 4\.0, not 0\.5"),
        (several, (4.0,), r"holds the RUNs of --strength 0\.5, 4; name these"),
        (several, (0.5, 2.0), "holds a RUN of strength 4, too"),
        (several / "4", (4.0,), rf"is one of several RUNs; use --strength 0\.5,4 --out {several}"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(str(out))}: .*{said}"):
            evaluated(out, *asked)
    assert sorted(path.name for path in several.iterdir()) == ["0.5", "4"]


def test_evaluate_takes_one(
    tiny_classifier: FrozenClassifier, tiny_bank: Path, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="call evaluate_strengths"):
        evaluate_one(
            tiny_classifier, tiny_bank, DataSpec(tiny_data), tmp_path / "run", EvaluationConfig(strengths=(0.5, 1.0))
        )


def test_a_strength_that_is_added_has_the_blocks_of_the_others(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a new run would have others."""
    first = evaluated(tmp_path / "run", *STRENGTHS)
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 4)
    monkeypatch.setattr("gfo.engine.evaluation.store._SHARDS", 2)
    again = evaluated(tmp_path / "run", 0.25, *STRENGTHS)
    stores = [RunStore.open(tmp_path / "run" / name) for name in ("0.25", "0.5", "4")]
    assert {(store.block, store.shard) for store in stores} == {(8, 8)}
    assert again[4.0].matched == first[4.0].matched
