"""The store: opens in xarray, resumes, and never reads back what was not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from gfo.engine.evaluation.store import NOT_DONE, QUARANTINED, RunStore, block_size
from gfo.engine.evaluation.summary import Quarantined, Run, plain
from gfo.export.errors import InputError
from gfo.kernels.score import Score, score

COUNT, IDS = 20, [7, 0, 3]
LABELS = np.repeat(IDS, [8, 8, 4])


def make(folder: Path, run: Run) -> RunStore:
    paths = [f"val/{label}/{i}.png" for i, label in enumerate(LABELS)]
    return RunStore.create(folder, run, paths=paths, labels=LABELS.tolist(), fit=[0, 1] * 10, occluders=[-1, *IDS, -2])


def scores(start: int, n: int) -> Score:
    """Of seeded logits for the `n` pictures from `start`, under 5 rows."""
    logits = torch.randn(n * 5, 9, generator=torch.Generator().manual_seed(start))
    return score(logits, torch.from_numpy(LABELS[start : start + n]).repeat_interleave(5))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 8)  # 8 pictures a block: 8, 8, 4


@pytest.mark.usefixtures("small_blocks")
def test_xarray_reads_what_was_written_and_what_was_not(tmp_path: Path, run_record: Run) -> None:
    store = make(tmp_path, run_record)
    assert store.pending() == [0, 8, 16]
    first, last = scores(0, 8), scores(16, 4)
    store.write(0, first, {2: "OSError: broken"})
    store.write(16, last, {})
    data = xarray.open_zarr(tmp_path / "predictions.zarr")
    assert data.prediction.dims == ("image", "occluder")
    assert data.occluder.values.tolist() == [-1, 7, 0, 3, -2]
    assert data.attrs["data_root"] == "/data"
    assert data.label.values.tolist() == [7] * 8 + [0] * 8 + [3] * 4
    assert data.fit.values.tolist() == [0, 1] * 10
    assert str(data.path.values[9]) == "val/0/9.png"
    wanted = np.full((COUNT, 5), NOT_DONE)
    wanted[:8], wanted[16:] = first.prediction.view(8, 5).numpy(), last.prediction.view(4, 5).numpy()
    wanted[2] = QUARANTINED
    np.testing.assert_array_equal(data.prediction.values, wanted)
    np.testing.assert_array_equal(data.margin.values[16:], last.margin.view(4, 5))
    np.testing.assert_array_equal(data["rank"].values[16:], last.rank.view(4, 5))
    again = RunStore.open(tmp_path)
    assert again.pending() == [8]
    assert again.quarantined() == [Quarantined("val/7/2.png", "OSError: broken")]
    assert again.readable().tolist() == [i != 2 for i in range(COUNT)]
    assert again.run == run_record


@pytest.mark.usefixtures("small_blocks")
def test_a_block_of_class_0_is_done(tmp_path: Path, run_record: Run) -> None:
    store = make(tmp_path, run_record)
    store.write(8, Score(*(torch.zeros(40, dtype=t) for t in (torch.int64, torch.int64, torch.float32))), {})
    assert store.pending() == [0, 16]


@pytest.mark.usefixtures("small_blocks")
def test_a_flipped_byte_is_noticed_and_computed_again(tmp_path: Path, run_record: Run) -> None:
    store = make(tmp_path, run_record)
    for start, n in ((0, 8), (8, 8), (16, 4)):
        store.write(start, scores(start, n), {})
    assert store.pending() == []
    chunk = tmp_path / "predictions.zarr" / "prediction" / "c" / "1" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    store = RunStore.open(tmp_path, writable=True)
    with pytest.raises(InputError, match="damaged"):
        store.predictions(8, 16)
    assert store.pending() == [8]
    store.write(8, scores(8, 8), {})
    np.testing.assert_array_equal(store.predictions(8, 16), scores(8, 8).prediction.view(8, 5))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("part", ["prediction", "rank", "margin", "reason"])
def test_a_part_of_a_block_that_is_missing_is_not_done(tmp_path: Path, run_record: Run, part: str) -> None:
    store = make(tmp_path, run_record)
    for start, n in ((0, 8), (8, 8), (16, 4)):
        store.write(start, scores(start, n), {2: "OSError: broken"})
    chunks = sorted((tmp_path / "predictions.zarr" / part / "c").rglob("*"))
    [chunk for chunk in chunks if chunk.is_file()][1].unlink()
    assert RunStore.open(tmp_path).pending() == [8]
    if part == "prediction":
        with pytest.raises(InputError, match=r"pictures 8\.\.15 are missing .*not all are done\); run the same"):
            store.predictions(8, 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("part", ["prediction", "rank", "margin"])
def test_a_part_of_another_block_is_noticed(tmp_path: Path, run_record: Run, part: str) -> None:
    """Its checksum is right, but it does not go with the others."""
    store = make(tmp_path, run_record)
    for start, n in ((0, 8), (8, 8), (16, 4)):
        store.write(start, scores(start, n), {})
    assert store.pending() == []
    chunks = tmp_path / "predictions.zarr" / part / "c"
    (chunks / "1" / "0").write_bytes((chunks / "0" / "0").read_bytes())
    assert RunStore.open(tmp_path).pending() == [8]


def unseal(run_dir: Path, **attributes: Any) -> None:
    """Change attributes of a store, and take its checksum away, as in older versions."""
    file = run_dir / "predictions.zarr" / "zarr.json"
    facts = json.loads(file.read_text())
    facts["attributes"].pop("sha256", None)
    facts["attributes"] |= attributes
    file.write_text(json.dumps(facts))


@pytest.mark.usefixtures("small_blocks")
def test_another_fill_value_does_not_make_a_block_done(tmp_path: Path, run_record: Run) -> None:
    """Not in the arrays' own records, which are not read, nor where the checksum is gone, too."""
    make(tmp_path, run_record)
    store = tmp_path / "predictions.zarr"
    (store / "prediction" / "zarr.json").write_text("{")
    assert RunStore.open(tmp_path).pending() == [0, 8, 16]
    facts = store / "zarr.json"
    facts.write_text(facts.read_text().replace('"fill_value": -1', '"fill_value": 1'))
    with pytest.raises(InputError, match=r"the checksum of zarr\.json does not match\); remove it"):
        RunStore.open(tmp_path)
    unseal(tmp_path)
    assert RunStore.open(tmp_path).pending() == [0, 8, 16]
    unseal(tmp_path, sha257="0")
    with pytest.raises(InputError, match=r"attributes are .*, sha257"):
        RunStore.open(tmp_path)


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such store"):
        RunStore.open(tmp_path)
    (tmp_path / "predictions.zarr").mkdir()
    with pytest.raises(InputError, match="not a store"):
        RunStore.open(tmp_path)


@pytest.mark.parametrize(
    ("facts", "named"),
    [({"model": 3}, "model: Input should be a valid string, got 3"), ({"split": "test"}, "split: Input should be")],
)
def test_a_run_attribute_that_is_not_valid_is_named(
    tmp_path: Path, run_record: Run, facts: dict[str, Any], named: str
) -> None:
    make(tmp_path, run_record)
    unseal(tmp_path, run={**plain(run_record), **facts})
    with pytest.raises(InputError, match=f"predictions.zarr: {named}"):
        RunStore.open(tmp_path)


def test_an_older_store_has_defaults_for_what_it_lacks(tmp_path: Path, run_record: Run) -> None:
    make(tmp_path, run_record)
    facts = {
        key: value for key, value in plain(run_record).items() if key not in ("artefact", "engine_variant", "impl")
    }
    unseal(tmp_path, run={**facts, "of another version": 1})
    assert RunStore.open(tmp_path).run == run_record


@pytest.mark.parametrize(("rows", "pictures"), [(3, 256), (12, 256), (22, 160), (1002, 32)])
def test_block_size(rows: int, pictures: int) -> None:
    assert block_size(rows) == pictures
