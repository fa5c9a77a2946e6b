"""All pairs against a brute-force loop through the unfolded network in float64; selection, resuming, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import Tensor, nn

from gfo.engine.data.spec import DataSpec
from gfo.engine.engines.base import Listed
from gfo.engine.engines.choice import EngineChoice
from gfo.engine.engines.torch import TorchEngine
from gfo.engine.evaluation import all_pairs
from gfo.engine.evaluation.config import EvaluationConfig
from gfo.engine.evaluation.evaluate import evaluate as evaluate_pairs
from gfo.engine.evaluation.evaluate import evaluate_strengths
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.strengths import noise_row
from gfo.engine.evaluation.summary import Summary, read_summary
from gfo.engine.progress import Silent, no_progress
from gfo.export.bank import OccluderBank, picture_key
from gfo.export.bank_header import BankHeader
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing
from gfo.kernels.score import Score

SIZE, EPSILON = 12, 30.0
# Of each picture: clean, three occluders and noise. Passes of as many pairs are the same however parts are cut, and
# give the same bits.
ROWS = 5
IDS = {"ant": 0, "bee": 3, "cat": 1, "dog": 2}
PREPROCESSING = Preprocessing(SIZE, SIZE, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


IN_TORCH = EvaluationConfig(EngineChoice("torch"))


class Lines(Silent):
    """A progress that keeps its lines."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def evaluated(model: FrozenClassifier, bank: Path, root: Path, out: Path, engine: str = "torch", **how: Any) -> Summary:
    """Evaluate val; `how` holds fields of DataSpec and EvaluationConfig, and the precision.

    The other engines export their graph in every call, and have tests of their own.
    """
    data = {name: how.pop(name) for name in ("classes", "class_map", "loader") if name in how}
    choice = EngineChoice(engine, how.pop("precision", None))
    return evaluate_pairs(model, bank, DataSpec(root, **data), out, EvaluationConfig(choice, **how))


def evaluate(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Return what `summary.json` holds."""
    return evaluated(*arguments, **options).to_dict()


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5, bias=False)
        ).eval()
        nn.init.normal_(model[1].running_mean, std=0.5)  # type: ignore[arg-type]
    return model


@pytest.fixture(scope="module")
def classifier() -> FrozenClassifier:
    return FrozenClassifier.from_module(network(), PREPROCESSING)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for folder, count in zip(IDS, (9, 12, 8, 5), strict=True):
        (root / "val" / folder).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / folder / f"{i:02d}.png")
    (root / "classes.json").write_text(json.dumps(IDS))
    return root


@pytest.fixture
def bank(classifier: FrozenClassifier, tmp_path: Path) -> Path:
    folders = ("ant", "bee", "cat")
    header = BankHeader(
        model=classifier.model,
        weights=classifier.weights,
        weights_hash=classifier.weights_hash,
        preprocessing=PREPROCESSING,
        epsilon=EPSILON,
        norm="linf",
        class_ids=tuple(IDS[f] for f in folders),
        folders=folders,
        objective={"preserve": {"classes": [1, 2]}},
    )
    occluders = (torch.rand(3, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * EPSILON
    fitted = torch.tensor([picture_key(f"val/bee/{i:02d}.png") for i in range(4)])
    held_out = torch.tensor([picture_key(f"val/{f}/08.png") for f in ("ant", "bee")])
    preserved = torch.tensor(
        [picture_key(f"val/{picture}.png") for picture in ("cat/01", "bee/00", "dog/03", "dog/04")]
    )
    path = tmp_path / "bank.safetensors"
    OccluderBank(occluders, header, fitted, held_out, preserved).save(path)
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 8)  # 8 pictures a block


def brute_force(root: Path, paths: list[str], bank: OccluderBank, seed: int) -> np.ndarray:
    """Top-1 of every pair, one picture at a time, in float64 with BatchNorm as it is."""
    model = network().double()
    noise = noise_row(EPSILON, "linf", SIZE, seed).double()
    rows = [torch.zeros_like(noise), *bank.occluders.double(), noise]
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    answers = []
    for path in paths:
        x = torch.from_numpy(np.array(Image.open(root / path))).double()
        inputs = torch.stack([((x + d).clamp(0, 255) / 255 - mean) / std for d in rows]).permute(0, 3, 1, 2)
        answers.append(model(inputs).argmax(1).tolist())
    return np.array(answers)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_pair_equals_brute_force(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, batch_size: int
) -> None:
    found = evaluated(classifier, bank, pictures, tmp_path / "run", "auto", batch_size=batch_size, seed=5)
    summary = found.to_dict()
    store = RunStore.open(tmp_path / "run")
    assert store.paths == sorted(
        f"val/{f}/{p.name}" for f in ("ant", "bee", "cat") for p in (pictures / "val" / f).iterdir()
    )
    wanted = brute_force(pictures, store.paths, OccluderBank.load(bank), 5)
    np.testing.assert_array_equal(store.predictions(0, len(store)), wanted)
    assert len(np.unique(wanted)) > 2  # the case says something
    assert summary["complete"]
    assert summary["read"] == 29
    assert summary["pairs"] == 29 * 5
    right = wanted[:, 0] == store.labels
    by_class = [right[store.labels == i].mean() for i in (0, 3, 1)]
    assert summary["clean"]["accuracy"] == pytest.approx(np.mean(by_class), abs=1e-6)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()).keys() == {*summary, "sha256"}
    assert read_summary(tmp_path / "run" / "summary.json") == found


def test_classes_beyond_the_bank_go_into_cells_of_their_own(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path
) -> None:
    own = evaluate(classifier, bank, pictures, tmp_path / "own")
    every = evaluate(classifier, bank, pictures, tmp_path / "all", classes="all")
    assert own["clean_other"] is own["unmatched_other"] is None
    assert every["clean_other"]["pictures"] == 5
    for cell in ("clean", "matched", "unmatched", "noise"):
        assert every[cell]["accuracy"] == own[cell]["accuracy"]


def test_the_preserved_classes_of_the_bank_are_in_the_summary(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path
) -> None:
    summary = evaluated(classifier, bank, pictures, tmp_path / "run", classes="all")
    assert summary.preserved_classes == (1, 2)  # cat, of the bank, and dog, beyond it
    assert summary.fit.preserved == 3  # bee/00 is fitted, too
    assert summary.unmatched_preserved
    assert summary.unmatched_preserved.pictures == 8 + 5
    assert summary.unmatched_unseen
    assert summary.unmatched_unseen.pictures == 9 + 12


@pytest.mark.parametrize(
    ("selection", "count"), [("all", 29), ("fitted", 4), ("held-out", 2), ("preserved", 1), ("unseen", 22)]
)
def test_pictures_by_what_the_bank_used_them_for(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, selection: str, count: int
) -> None:
    classes = {"fitted": "bee", "held-out": "ant,bee", "preserved": "cat"}.get(selection)
    summary = evaluate(classifier, bank, pictures, tmp_path / "run", pictures=selection, classes=classes)
    assert summary["read"] == count
    assert sum(summary["fit"].values()) == count
    if selection != "all":
        assert summary["fit"][selection.replace("-", "_")] == count


def test_per_class_is_a_seeded_draw(classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path) -> None:
    paths = []
    for i, seed in enumerate((0, 0, 1)):
        evaluate(classifier, bank, pictures, tmp_path / str(i), per_class=3, seed=seed)
        paths.append(RunStore.open(tmp_path / str(i)).paths)
    assert paths[0] == paths[1] != paths[2]
    assert len(paths[0]) == 9


class _Stopped(BaseException):
    """Stands for a kill at any moment."""


def stop_at_third_part(patch: pytest.MonkeyPatch) -> None:
    """Raise `_Stopped` where the third part would be queued."""
    original, parts = all_pairs.queue_part, []

    def queue_part(*args: object) -> object:
        if len(parts) == 2:
            raise _Stopped
        parts.append(args)
        return original(*args)  # type: ignore[arg-type]

    patch.setattr(all_pairs, "queue_part", queue_part)


def test_a_stopped_run_keeps_its_blocks_and_resumes(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(classifier, bank, pictures, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at_third_part(patch)
        with pytest.raises(_Stopped):
            evaluate(classifier, bank, pictures, tmp_path / "run")
    assert RunStore.open(tmp_path / "run").pending() == [16, 24]
    assert not (tmp_path / "run" / "summary.json").exists()
    summary = evaluate(classifier, bank, pictures, tmp_path / "run")
    assert summary["pairs"] == 13 * 5  # what was left
    whole, run = RunStore.open(tmp_path / "whole"), RunStore.open(tmp_path / "run")
    np.testing.assert_array_equal(run.predictions(0, 29), whole.predictions(0, 29))
    again = evaluate(classifier, bank, pictures, tmp_path / "run")
    assert again == summary  # nothing left to do: the same numbers, and the speed that was measured


class _Ahead:
    """Makes the torch engine one that runs ahead: verdicts are garbage until somebody has waited for them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self._late: list[Callable[[], None]] = []
        queue, fetch = TorchEngine.queue, TorchEngine.fetch

        def queue_late(engine: TorchEngine, images: Tensor, pairs: Listed) -> Score:
            found = Score(*(torch.full((len(pairs.labels),), -7, dtype=kind) for kind in _KINDS))

            def run() -> None:
                for target, values in zip(found, queue(engine, images, pairs), strict=True):
                    target.copy_(values)

            self.events.append("queue")
            self._late.append(run)
            return found

        def fetch_late(engine: TorchEngine, scores: Sequence[Score]) -> Callable[[], Score]:
            until = len(self._late)

            def wait() -> Score:
                self.events.append("wait")
                for i in range(until):  # what was queued later has not run
                    self._late[i]()
                    self._late[i] = _nothing
                engine_of_host = SimpleNamespace(runs_ahead=False)
                return fetch(engine_of_host, scores)()  # type: ignore[arg-type]

            return wait

        patch.setattr(TorchEngine, "runs_ahead", True)
        patch.setattr(TorchEngine, "_together", lambda _engine, tensors: [tensor.clone() for tensor in tensors])
        patch.setattr(TorchEngine, "queue", queue_late)
        patch.setattr(TorchEngine, "fetch", fetch_late)


_KINDS = (torch.int64, torch.int64, torch.float32)


def _nothing() -> None:
    """Stand for what has run."""


# Readable pictures of the four blocks: 8, 0, 7, 5, each under 5 rows, in passes of 16 pairs. As parts of their own: the
# first is fetched with nothing behind it, as the second has no pass.
@pytest.mark.parametrize(("passes_ahead", "events"), [(1, "qqq w qqq qq w w"), (5, "qqq qqqq w w"), (99, "qqqqqqq w")])
def test_a_device_that_runs_ahead_is_waited_for_once_a_part_with_the_next_part_queued(
    passes_ahead: int,
    events: str,
    classifier: FrozenClassifier,
    pictures: Path,
    bank: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    evaluate(classifier, bank, pictures, tmp_path / "all")
    paths = RunStore.open(tmp_path / "all").paths
    for path in (*paths[8:16], paths[17]):  # the whole second part, and one of the third
        (broken / path).write_text("no picture")
    evaluate(classifier, bank, broken, tmp_path / "whole", max_quarantined=1.0, batch_size=ROWS)
    with monkeypatch.context() as patch:
        ahead = _Ahead(patch)
        patch.setattr(all_pairs, "_PASSES_IN_A_PART", passes_ahead)
        evaluate(classifier, bank, broken, tmp_path / "ahead", max_quarantined=1.0, batch_size=16)
        seen = "".join(event[0] for event in ahead.events)
        evaluate(classifier, bank, broken, tmp_path / "alike", max_quarantined=1.0, batch_size=ROWS)
    whole, late, alike = (RunStore.open(tmp_path / out) for out in ("whole", "ahead", "alike"))
    for name in ("prediction", "rank", "margin"):
        found = [np.asarray(zarr.open_array(store.path / name, mode="r")[:]) for store in (whole, alike, late)]
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_allclose(found[0], found[2], atol=1e-5)  # its passes are longer, and may round otherwise
    assert [entry.path for entry in late.quarantined()] == [entry.path for entry in whole.quarantined()]
    assert seen == events.replace(" ", "")


def test_what_is_on_its_way_to_a_device_that_runs_ahead_survives_an_interruption(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Ahead(monkeypatch)
    monkeypatch.setattr(all_pairs, "_PASSES_IN_A_PART", 1)
    stop_at_third_part(monkeypatch)
    with pytest.raises(_Stopped):
        evaluate(classifier, bank, pictures, tmp_path / "run", batch_size=16)
    assert RunStore.open(tmp_path / "run").pending() == [16, 24]


def test_several_strengths_on_a_device_that_runs_ahead(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluationConfig(EngineChoice("torch"), batch_size=16, strengths=(0.5, 1.0))
    evaluate_strengths(classifier, bank, DataSpec(pictures), tmp_path / "whole", config)
    evaluate_strengths(classifier, bank, DataSpec(pictures), tmp_path / "ahead", replace(config, strengths=(0.5, 2.0)))
    shutil.rmtree(tmp_path / "ahead" / "2")
    (tmp_path / "ahead" / "0.5" / "predictions.zarr" / "prediction" / "c.1.0").unlink()
    _Ahead(monkeypatch)
    # One block of both, three of the second alone.
    evaluate_strengths(
        classifier, bank, DataSpec(pictures), tmp_path / "ahead", config
    )  # one block of both, three of 1
    for strength in ("0.5", "1"):
        for name in ("prediction", "rank", "margin"):
            one, other = (
                np.asarray(zarr.open_array(tmp_path / out / strength / "predictions.zarr" / name, mode="r")[:])
                for out in ("whole", "ahead")
            )
            np.testing.assert_allclose(one, other, atol=1e-5)  # the passes of a block without the first are other ones


@pytest.mark.parametrize(("failing", "also"), [(8, False), (24, False), (8, True)])
def test_a_block_that_cannot_be_written_ends_the_run_and_the_others_are_kept(
    failing: int,
    also: bool,
    classifier: FrozenClassifier,
    pictures: Path,
    bank: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = RunStore.write

    def full(store: RunStore, start: int, *rest: Any) -> None:
        if start == failing:
            raise OSError(28, "No space left on device", str(store.path))
        write(store, start, *rest)

    monkeypatch.setattr(RunStore, "write", full)
    if also:
        stop_at_third_part(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        evaluate(classifier, bank, pictures, tmp_path / "run")
    pending = RunStore.open(tmp_path / "run").pending()
    assert failing in pending
    assert min(pending) == failing


def test_shards_and_resumed_runs_share_a_folder_of_decoded_pictures(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "cache"))
    data = DataSpec(pictures, decoded_cache=True)
    for shard in ((0, 2), (1, 2)):
        evaluate_pairs(classifier, bank, data, tmp_path / "run", replace(IN_TORCH, shard=shard))
    (tmp_path / "run" / "predictions.zarr" / "rank" / "c.2.0").unlink()
    evaluate_pairs(classifier, bank, data, tmp_path / "run", IN_TORCH)
    assert len(list((tmp_path / "cache" / "pictures").iterdir())) == 1


def test_blocks_that_are_read_in_parts_are_the_same(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(classifier, bank, pictures, tmp_path / "whole", batch_size=ROWS)
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    (broken / "val/bee/03.png").write_text("no picture")
    monkeypatch.setattr(all_pairs, "READ_TOGETHER", 2)
    evaluate(classifier, bank, pictures, tmp_path / "parts", batch_size=ROWS)
    summary = evaluate(classifier, bank, broken, tmp_path / "broken parts", batch_size=ROWS)
    assert [entry["path"] for entry in summary["quarantined"]] == ["val/bee/03.png"]
    whole, parts, rest = (
        np.asarray(zarr.open_array(tmp_path / out / "predictions.zarr" / "margin", mode="r")[:])
        for out in ("whole", "parts", "broken parts")
    )
    np.testing.assert_array_equal(parts, whole)
    place = RunStore.open(tmp_path / "whole").paths.index("val/bee/03.png")
    assert np.isnan(rest[place]).all()
    np.testing.assert_array_equal(np.delete(rest, place, 0), np.delete(whole, place, 0))


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_workers_fill_one_run_together(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, shards: int
) -> None:
    whole = evaluated(classifier, bank, pictures, tmp_path / "whole")
    left, pairs, answer = 29, 0, None
    for i in reversed(range(shards)):  # 4 blocks, of 8, 8, 8 and 5 pictures
        answer = evaluated(classifier, bank, pictures, tmp_path / "run", shard=(i, shards))
        own = sum((8, 8, 8, 5)[i::shards])
        left, pairs = left - own, pairs + answer.pairs
        assert answer.complete == (left == 0)
        assert answer.remaining == left
        assert answer.read == 29 - left
        assert (answer.clean is None) == bool(left)
        assert (tmp_path / "run" / "summary.json").exists() == (left == 0)
    assert pairs == 29 * 5
    assert answer
    speed = ("pairs", "seconds", "pairs_per_second", "peak_rss_mb")
    assert answer == replace(whole, **{key: getattr(answer, key) for key in speed})


def test_auto_resumes_with_the_loader_that_a_run_has(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nvidia.dali")
    evaluate(classifier, bank, pictures, tmp_path / "run", loader="dali", shard=(0, 2))
    assert evaluate(classifier, bank, pictures, tmp_path / "run")["loader"] == "dali"
    with pytest.raises(InputError, match="loader dali, not pillow"):
        evaluate(classifier, bank, pictures, tmp_path / "run", loader="pillow")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"precision": "bf16"}, "precision fp32, not bf16"),
        ({"per_class": 2}, "per_class"),
    ],
)
def test_another_configuration_into_the_same_run_is_refused(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    before = evaluate(classifier, bank, pictures, tmp_path / "run")
    with pytest.raises(InputError, match=named):
        evaluate(classifier, bank, pictures, tmp_path / "run", **change)
    assert read_summary(tmp_path / "run" / "summary.json").to_dict() == before


@pytest.mark.parametrize("array", ["label", "fit", "occluder"])
def test_a_store_that_lost_a_coordinate_is_refused(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, array: str
) -> None:
    """A chunk that is gone reads as its fill value: without a look the summary would be of other classes."""
    before = evaluate(classifier, bank, pictures, tmp_path / "run")
    (chunk,) = (tmp_path / "run" / "predictions.zarr" / array).glob("c*")
    chunk.unlink()
    with pytest.raises(InputError, match="a chunk of path, label, fit or occluder is missing"):
        evaluate(classifier, bank, pictures, tmp_path / "run")
    assert read_summary(tmp_path / "run" / "summary.json").to_dict() == before


def test_a_picture_that_has_changed_is_evaluated_again(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = shutil.copytree(pictures, tmp_path / "data")
    said: list[str] = []
    monkeypatch.setattr(type(no_progress), "say", lambda _, line: said.append(line))
    evaluate(classifier, bank, pictures, tmp_path / "run")
    store = RunStore.open(tmp_path / "run")
    changed, other = pictures / store.paths[5], pictures / store.paths[0]
    Image.open(other).convert("RGB").save(changed, "PNG")
    evaluate(classifier, bank, pictures, tmp_path / "run")
    assert "evaluating again the blocks of pictures that have changed since (1)" in said
    evaluate(classifier, bank, pictures, tmp_path / "fresh")
    for name in ("prediction", "rank", "margin"):
        again, fresh = (
            zarr.open_array(tmp_path / run / "predictions.zarr" / name, mode="r")[:] for run in ("run", "fresh")
        )
        np.testing.assert_array_equal(again, fresh)
    said.clear()
    evaluate(classifier, bank, pictures, tmp_path / "run")
    assert not any("changed" in line for line in said)


def test_classes_are_called_as_their_folders(
    classifier: FrozenClassifier, pictures: Path, bank: Path, tmp_path: Path
) -> None:
    summary = evaluate(classifier, bank, pictures, tmp_path / "run")
    assert summary["class_names"] == {"0": "ant", "3": "bee", "1": "cat"}
    assert {row["name"] for row in summary["classes"]} == {"ant", "bee", "cat"}
    wrong = {row["top_wrong_label"]["name"] for row in summary["classes"] if row["top_wrong_label"]}
    assert wrong <= {"ant", "bee", "cat", "2", "4"}  # outputs without a folder go by their index


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_not_an_answer(
    factor: float, pictures: Path, tmp_path: Path, bank: Path
) -> None:
    class Overflow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :5] * torch.tensor(factor if self.broken else 1.0)

        broken = False

    module = Overflow()
    frozen = FrozenClassifier.from_module(module, PREPROCESSING)
    stored = OccluderBank.load(bank)
    header = BankHeader(**{**vars(stored.header), "weights_hash": frozen.weights_hash})
    OccluderBank(stored.occluders, header).save(bank)
    frozen.network.broken = True  # type: ignore[assignment]
    with pytest.raises(InputError, match="NaN or infinity"):
        evaluate(frozen, bank, pictures, tmp_path / "run")


def test_an_operation_that_the_precision_lacks_leaves_no_run(bank: Path, pictures: Path, tmp_path: Path) -> None:
    class Normalised(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.local_response_norm(x.repeat(1, 2, 1, 1), 2).mean(dim=(2, 3))

    frozen = FrozenClassifier.from_module(Normalised(), PREPROCESSING)
    stored = OccluderBank.load(bank)
    header = BankHeader(**{**vars(stored.header), "weights_hash": frozen.weights_hash})
    OccluderBank(stored.occluders, header).save(bank)
    with pytest.raises(InputError, match=r"fails at bf16 on cpu .* in local_response_norm, .*; use --precision fp32"):
        evaluated(frozen, bank, pictures, tmp_path / "run", precision="bf16")
    assert not (tmp_path / "run").exists()


def test_it_says_where_the_accuracy_is_far_below_the_published_one(
    classifier: FrozenClassifier, bank: Path, pictures: Path, tmp_path: Path
) -> None:
    for published, said in ((None, 0), (0.99, 1)):
        frozen, lines = replace(classifier, accuracy=published, doubt="took one of two"), Lines()
        evaluate_pairs(frozen, bank, DataSpec(pictures), tmp_path / f"{published}", IN_TORCH, lines)
        assert ["the authors of the weights report" in line for line in lines.said].count(True) == said
        assert lines.said.count("took one of two") == 1


@pytest.mark.parametrize(("epsilon", "norm"), [(4.0, "linf"), (90.0, "l2")])
def test_noise_is_on_the_sphere_and_seeded(epsilon: float, norm: str) -> None:
    row = noise_row(epsilon, norm, 16, 3)
    radius = row.abs() if norm == "linf" else row.norm()
    torch.testing.assert_close(radius, torch.full_like(radius, epsilon))
    assert torch.equal(row, noise_row(epsilon, norm, 16, 3))
    assert not torch.equal(row, noise_row(epsilon, norm, 16, 4))
    assert abs(float(row.sign().mean())) < 0.1
