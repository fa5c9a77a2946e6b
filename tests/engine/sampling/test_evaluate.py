"""Sampled evaluations of the tiny network on hundreds of pictures, against the RUN of all pairs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from gfo.engine.data.spec import DataSpec
from gfo.engine.evaluation.config import EvaluationConfig
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Summary, read_summary
from gfo.engine.progress import Silent, no_progress
from gfo.engine.reporting import report
from gfo.engine.sampling import draw as module
from gfo.engine.sampling.evaluate import evaluate_sample
from gfo.engine.sampling.matrix import sampled_matrix
from gfo.engine.sampling.spec import Claim, SamplingSpec
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError

WIDE = SamplingSpec({"matched": 0.03, "unmatched": 0.03})


@pytest.fixture
def sample(
    tiny_classifier: FrozenClassifier, bank: OccluderBank, data: DataSpec, config: EvaluationConfig
) -> Callable[..., Summary]:
    def sample(out: Path, spec: SamplingSpec = WIDE, config: EvaluationConfig = config, **how: Any) -> Summary:
        return evaluate_sample(tiny_classifier, bank, how.pop("data", data), out, config, spec, **how)

    return sample


@pytest.fixture(scope="module")
def wide(
    tiny_classifier: FrozenClassifier,
    bank: OccluderBank,
    data: DataSpec,
    config: EvaluationConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Summary]:
    """A sampled RUN; copy it to write into it."""
    out = tmp_path_factory.mktemp("wide") / "run"
    return out, evaluate_sample(tiny_classifier, bank, data, out, config, WIDE)


def answers(out: Path, stratum: str) -> dict[tuple[int, int], tuple[int, int, float]]:
    group = zarr.open_group(out / "sample" / "pairs.zarr", mode="r")
    arrays = [np.asarray(group[f"{stratum}/{name}"]) for name in ("image", "row", "prediction", "rank", "margin")]
    return {(i, k): (p, r, m) for i, k, p, r, m in zip(*(a.tolist() for a in arrays), strict=True) if p != -1}


def test_cells_are_those_of_all_pairs_within_their_intervals(
    wide: tuple[Path, Summary], full: tuple[Path, Summary]
) -> None:
    place, whole = full
    out, found = wide
    assert found == read_summary(out / "summary.json")
    assert found.sample is not None
    assert found.clean is not None
    assert whole.clean is not None
    assert found.clean.accuracy == pytest.approx(whole.clean.accuracy)
    assert found.clean.ci95_classes == pytest.approx(whole.clean.ci95_classes, abs=0.05)
    assert found.quarantined == whole.quarantined
    for cell in found.sample.cells:
        if cell.cell == "clean":
            continue
        name, ratio = cell.cell.partition("/")[::2]
        wanted, ours = (_number(one, cell.cell) for one in (whole, found))
        assert abs(cell.value - wanted[0]) <= 2 * cell.half_width  # seeded; replays count how often one is enough
        assert ours[:2] == (pytest.approx(cell.value), pytest.approx(cell.half_width))
        if not ratio:  # those of ratios of three classes are as wide as they are uncertain
            assert ours[2] == pytest.approx(wanted[2], abs=0.1)
        assert cell.wanted is None or cell.half_width <= cell.wanted
        assert 500 <= cell.pairs < cell.total == (850 if name == "matched" else 1700)
    store = RunStore.open(place)
    margins = store.margins(0, len(store))
    for name in ("matched", "unmatched"):
        drawn = answers(out, name)
        assert len(drawn) >= 500
        for (image, row), (prediction, rank, margin) in drawn.items():
            assert (prediction, margin) == (
                store.predictions(image, image + 1)[0, row + 1],
                pytest.approx(margins[image, row + 1], abs=1e-4),
            )
            assert (rank == 0) == (prediction == store.labels[image])
            assert (store.labels[image] == store.run.class_ids[row]) == (name == "matched")


def test_with_all_pairs_it_is_the_full_run(
    sample: Callable[..., Summary], full: tuple[Path, Summary], tmp_path: Path
) -> None:
    found = sample(tmp_path / "run", SamplingSpec({"matched": 1e-6, "unmatched": 1e-6}))
    assert found.sample is not None
    assert [cell.half_width for cell in found.sample.cells] == [0] * 5
    assert [cell.pairs for cell in found.sample.cells] == [850, 850, 1700, 850, 1700]
    for name in ("matched", "unmatched"):
        assert getattr(found, name).accuracy == pytest.approx(getattr(full[1], name).accuracy)
        ratio: Any = f"{name}/clean"
        assert found.ratios[ratio] is not None
        assert full[1].ratios[ratio] is not None
        assert found.ratios[ratio].value == pytest.approx(full[1].ratios[ratio].value)


def _number(summary: Summary, cell: str) -> tuple[float, float | None, object]:
    """Return a cell's value, its half-width and its interval over classes."""
    if "/" in cell:
        ratio: Any = dict(summary.ratios)[cell]
        return ratio.value, ratio.half_width, ratio.ci95_classes
    accuracy = vars(summary)[cell]
    return accuracy.accuracy, accuracy.half_width, accuracy.ci95_classes


class Ended(Silent):
    """Interrupts at the second look."""

    def __init__(self) -> None:
        self.looks = 0

    def event(self, name: str, **facts: object) -> None:
        self.looks += name == "look"
        if self.looks == 2:
            raise KeyboardInterrupt


def test_it_resumes_with_the_same_pairs(
    sample: Callable[..., Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SamplingSpec({"unmatched": 0.015}, (Claim("unmatched", False, 0.05),))
    whole = sample(tmp_path / "whole", spec)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "run", spec, progress=Ended())
    begun = answers(tmp_path / "run", "unmatched")
    assert 0 < len(begun) < len(answers(tmp_path / "whole", "unmatched"))
    found = sample(tmp_path / "run", spec)
    assert (found.sample, found.unmatched, found.classes) == (whole.sample, whole.unmatched, whole.classes)
    assert begun.items() <= answers(tmp_path / "run", "unmatched").items()
    assert found.pairs < whole.pairs

    def broken(*args: object) -> None:
        raise AssertionError("nothing is left to evaluate")

    monkeypatch.setattr(module, "_evaluated", broken)
    again = sample(tmp_path / "run", spec)
    assert (again.sample, again.unmatched) == (whole.sample, whole.unmatched)


def test_a_narrower_width_goes_on_and_another_seed_draws_others(
    sample: Callable[..., Summary], tmp_path: Path, config: EvaluationConfig
) -> None:
    sample(tmp_path / "run", SamplingSpec({"unmatched": 0.04}))
    wide = answers(tmp_path / "run", "unmatched")
    found = sample(tmp_path / "run", SamplingSpec({"unmatched": 1e-6}))
    narrow = answers(tmp_path / "run", "unmatched")
    assert wide.items() < narrow.items()
    assert found.matched is None
    assert found.classes == ()
    sample(tmp_path / "other", SamplingSpec({"unmatched": 0.04}), replace(config, seed=1))
    assert answers(tmp_path / "other", "unmatched").keys() != wide.keys()
    with pytest.raises(InputError, match="seed 0, not 1"):
        sample(tmp_path / "run", SamplingSpec({"unmatched": 0.04}), replace(config, seed=1))


def test_claims_are_decided_and_right(
    sample: Callable[..., Summary], full: tuple[Path, Summary], tmp_path: Path
) -> None:
    assert full[1].matched is not None
    assert full[1].clean is not None
    matched, clean = full[1].matched.accuracy, full[1].clean.accuracy
    claims = (
        Claim("matched", True, matched + 0.15),
        Claim("matched/clean", False, (matched + 0.15) / clean),
        Claim("clean", False, clean / 2),
    )
    whole = sample(tmp_path / "run", SamplingSpec(claims=claims))
    found = whole.sample
    assert found is not None
    assert [claim.decision for claim in found.claims] == ["yes", "no", "yes"]
    assert [claim.pairs_needed for claim in found.claims] == [None, None, None]
    low, high = found.claims[0].sequence
    assert low <= matched <= high <= matched + 0.15
    cell, shown = found.cells[1], whole.matched
    assert shown is not None
    assert shown.half_width == cell.half_width == max(high - cell.value, cell.value - low)
    assert found.claims[1].sequence == pytest.approx((low / clean, high / clean))
    assert found.cells[1].pairs < 850


def test_the_most_pairs_leave_a_claim_undecided(sample: Callable[..., Summary], tmp_path: Path) -> None:
    first = sample(tmp_path / "run", SamplingSpec({"unmatched": 0.03}))
    assert first.unmatched is not None
    claim = Claim("unmatched", True, first.unmatched.accuracy + 0.001)
    found = sample(tmp_path / "run", SamplingSpec({"unmatched": 1e-3}, (claim,), max_pairs=1000)).sample
    assert found is not None
    (decided,) = found.claims
    assert (decided.decision, found.cells[1].pairs) == ("undecided", 1000)
    assert decided.pairs_needed is not None
    assert 1000 < decided.pairs_needed <= 1700
    assert [cell.cell for cell in found.short] == ["unmatched"]


def test_a_decoded_cache_gives_the_same_answers(
    sample: Callable[..., Summary],
    wide: tuple[Path, Summary],
    data: DataSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "cache"))
    found = sample(tmp_path / "cached", data=replace(data, decoded_cache=True))
    assert found.sample == wide[1].sample
    assert len(list((tmp_path / "cache" / "pictures").iterdir())) == 1


def test_changed_pictures_are_drawn_again(sample: Callable[..., Summary], data: DataSpec, tmp_path: Path) -> None:
    shutil.copytree(data.root, tmp_path / "data")
    own = replace(data, root=tmp_path / "data")
    before = sample(tmp_path / "run", data=own)
    first = tmp_path / "data" / "val" / "ant" / "000.png"
    Image.new("RGB", (18, 18), (255, 0, 0)).save(first)
    found = sample(tmp_path / "run", data=own)
    assert found == replace(
        sample(tmp_path / "other", data=own),
        **{name: getattr(found, name) for name in ("pairs", "seconds", "pairs_per_second", "peak_rss_mb")},
    )
    assert before.sample is not None


def test_damaged_answers_are_evaluated_again(
    sample: Callable[..., Summary], wide: tuple[Path, Summary], tmp_path: Path
) -> None:
    shutil.copytree(wide[0], tmp_path / "run")
    whole = wide[1]
    kept = answers(tmp_path / "run", "matched")
    chunk = tmp_path / "run" / "sample" / "pairs.zarr" / "matched" / "prediction" / "c.0"
    content = bytearray(chunk.read_bytes())
    content[-6] ^= 1
    chunk.write_bytes(bytes(content))
    found = sample(tmp_path / "run")
    assert (found.sample, found.matched) == (whole.sample, whole.matched)
    assert 0 < found.pairs < whole.pairs
    assert answers(tmp_path / "run", "matched") == kept


def test_what_a_sample_cannot_do_is_refused(
    sample: Callable[..., Summary], full: tuple[Path, Summary], tmp_path: Path, config: EvaluationConfig
) -> None:
    for changed, named in (
        (replace(config, shard=(0, 2)), "--shard"),
        (replace(config, strengths=(0.5, 1.0)), "--strength"),
    ):
        with pytest.raises(InputError, match=named):
            sample(tmp_path / "run", config=changed)
    with pytest.raises(InputError, match="holds a RUN of all pairs"):
        sample(full[0])
    (tmp_path / "several" / "0.5" / "predictions.zarr").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds the RUNs of --strength 0\.5"):
        sample(tmp_path / "several")


def test_the_report_marks_what_is_estimated(
    wide: tuple[Path, Summary], full: tuple[Path, Summary], tmp_path: Path
) -> None:
    out, found = wide
    assert found.matched is not None
    assert found.matched.half_width is not None
    written = report([out], tmp_path / "report")
    page = written.page.read_text()
    assert f"{found.matched.accuracy:.4f} ±{found.matched.half_width:.4f}" in page
    assert any("pairs were drawn at random" in note for note in written.notes)
    assert any("Figure S1" in note and "left out" in note for note in written.notes)
    matrix, ids = sampled_matrix(out, found)
    store = RunStore.open(full[0])
    right = store.predictions(0, len(store)) == store.labels[:, None]
    assert ids == list(store.run.class_ids)
    truth = np.array([right[(store.labels == c) & store.readable()].mean(axis=0) for c in ids]).T
    assert matrix[0] == pytest.approx(truth[0])
    assert np.isnan(matrix[-1]).all()
    assert np.abs(matrix[1:-1] - truth[1:-1]).max() < 0.12


def test_clean_claims_alone_have_a_report(sample: Callable[..., Summary], tmp_path: Path) -> None:
    found = sample(tmp_path / "run", SamplingSpec(claims=(Claim("clean", False, 0.01),)))
    assert found.matched is None
    assert found.unmatched is None
    assert report([tmp_path / "run"], tmp_path / "report").page.is_file()


def test_the_command_says_how_sure_it_is(
    run: Callable[..., tuple[int, str, str]],
    evaluate: Callable[..., list[object]],
    refused: Callable[..., None],
    tiny_data: Path,
    tiny_bank: Path,
    tmp_path: Path,
) -> None:
    words = evaluate(tiny_data, tiny_bank, tmp_path / "run", "--until", "0.01", "--claim", "matched<=1")
    code, out, _ = run(*words)
    assert code == 0
    lines = out.splitlines()
    assert "claim matched<=1: yes; 95% at every look " in out
    for cell, pairs in (("clean", 18), ("matched", 18), ("unmatched", 36)):
        assert any(line.startswith(f"{cell} ") and line.endswith(f"all {pairs} pairs, exact") for line in lines)
    assert lines[-1] == str(tmp_path / "run" / "summary.json")
    refused([*words, "--shard", "0/2"], "--until, --claim", "leave --shard out")


def test_silent_by_default(sample: Callable[..., Summary], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample(tmp_path / "run", progress=no_progress)
    assert capsys.readouterr() == ("", "")
