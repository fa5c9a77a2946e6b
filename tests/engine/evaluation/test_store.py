"""The store: opens in xarray, resumes, and never reads back what was not written."""

from __future__ import annotations

import json
import math
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from hypothesis import given
from hypothesis import strategies as st

from gfo.engine.evaluation.store import NOT_DONE, QUARANTINED, RunStore, block_size, shard_size
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
    chunk = tmp_path / "predictions.zarr" / "prediction" / "c.1.0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    store = RunStore.open(tmp_path, writable=True)
    with pytest.raises(InputError, match="damaged"):
        store.predictions(8, 16)
    assert store.pending() == []
    assert store.damaged() == [8]
    store.write(8, scores(8, 8), {})
    assert store.damaged() == []
    np.testing.assert_array_equal(store.predictions(8, 16), scores(8, 8).prediction.view(8, 5))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("part", ["prediction", "rank", "margin", "reason"])
def test_a_part_of_a_block_that_is_missing_is_not_done(tmp_path: Path, run_record: Run, part: str) -> None:
    store = make(tmp_path, run_record)
    for start, n in ((0, 8), (8, 8), (16, 4)):
        store.write(start, scores(start, n), {2: "OSError: broken"})
    (tmp_path / "predictions.zarr" / part / ("c.1" if part == "reason" else "c.1.0")).unlink()
    assert RunStore.open(tmp_path).damaged() == [8]
    if part == "prediction":
        assert RunStore.open(tmp_path).pending() == [8]
        with pytest.raises(InputError, match=r"pictures 8\.\.15 are missing .*not all are done\); run the same"):
            store.predictions(8, 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("part", ["prediction", "rank", "margin"])
def test_a_part_of_another_block_is_noticed(tmp_path: Path, run_record: Run, part: str) -> None:
    """Its checksum is right, but it does not go with the others."""
    store = make(tmp_path, run_record)
    for start, n in ((0, 8), (8, 8), (16, 4)):
        store.write(start, scores(start, n), {})
    assert store.damaged() == []
    chunks = tmp_path / "predictions.zarr" / part
    (chunks / "c.1.0").write_bytes((chunks / "c.0.0").read_bytes())
    assert RunStore.open(tmp_path).damaged() == [8]


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


# ---- shards


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 pictures, at most 3 files: 4 blocks a shard, and 2 in the last."""
    monkeypatch.setattr("gfo.engine.evaluation.store.READ_TOGETHER", 2)
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 2)
    monkeypatch.setattr("gfo.engine.evaluation.store._SHARDS", 3)


PARTS = ("prediction", "rank", "margin")


def shards_of(run: Path, part: str = "prediction") -> list[str]:
    return sorted(path.name for path in (run / "predictions.zarr" / part).glob("c*"))


def filled(folder: Path, run: Run) -> RunStore:
    """Quarantined: pictures 3 and 18."""
    store, broken = make(folder, run), {2: {1: "OSError: broken"}, 18: {0: "OSError: broken"}}
    for start in range(0, COUNT, 2):
        store.write(start, scores(start, 2), broken.get(start, {}), [start] * 2)
    return store


@pytest.mark.usefixtures("small_shards")
def test_a_shard_holds_several_blocks_and_says_which(tmp_path: Path, run_record: Run) -> None:
    store = make(tmp_path, run_record)
    assert (store.block, store.shard) == (2, 8)
    assert store.pending() == list(range(0, COUNT, 2))
    written: list[int] = []
    for start in (10, 2, 18, 0, 8):
        store.write(start, scores(start, 2), {})
        written.append(start)
        assert store.pending() == RunStore.open(tmp_path).pending() == sorted(set(range(0, COUNT, 2)) - set(written))
    values = xarray.open_zarr(tmp_path / "predictions.zarr").prediction.values
    assert sorted(np.flatnonzero((values == NOT_DONE).all(axis=1))[::2].tolist()) == store.pending()
    for start in written:
        np.testing.assert_array_equal(values[start : start + 2], scores(start, 2).prediction.view(2, 5))
    assert store.damaged(written) == []
    assert shards_of(tmp_path) == ["c.0.0", "c.1.0", "c.2.0"]


@pytest.mark.usefixtures("small_shards")
def test_blocks_that_are_written_together_are_what_they_are_one_by_one(tmp_path: Path, run_record: Run) -> None:
    alone, together = filled(tmp_path / "alone", run_record), make(tmp_path / "together", run_record)
    for start, stop in ((0, 4), (4, 8), (8, 16), (16, 20)):
        parts = [scores(at, 2) for at in range(start, stop, 2)]
        joined = Score(*(torch.cat(values) for values in zip(*parts, strict=True)))
        reasons = {i - start: "OSError: broken" for i in (3, 18) if start <= i < stop}
        together.write(start, joined, reasons, [at // 2 * 2 for at in range(start, stop)])
    assert alone.quarantined() == together.quarantined()
    assert [q.path for q in alone.quarantined([0, 2, 16, 18])] == [alone.paths[3], alone.paths[18]]
    for part in (*PARTS, "stamp", "reason"):
        assert shards_of(tmp_path / "alone", part) == shards_of(tmp_path / "together", part)
        files = [
            [
                (tmp_path / name / "predictions.zarr" / part / shard).read_bytes()
                for shard in shards_of(tmp_path / name, part)
            ]
            for name in ("alone", "together")
        ]
        assert files[0] == files[1]
    assert together.changed(4, [4, 5]) == 1


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("at", "lost"), [(0.01, 1), (-8, 4)])
def test_what_is_damaged_in_a_shard_is_found_and_written_again(
    tmp_path: Path, run_record: Run, part: str, at: float, lost: int
) -> None:
    """A chunk of a block, or the index of the shard, which is at its end."""
    store = filled(tmp_path, run_record)
    assert store.damaged() == []
    file = tmp_path / "predictions.zarr" / part / "c.1.0"
    raw = bytearray(file.read_bytes())
    raw[int(at * len(raw)) if 0 < at < 1 else int(at)] ^= 1
    file.write_bytes(raw)
    store = RunStore.open(tmp_path, writable=True)
    damaged = store.damaged()
    assert len(damaged) == lost
    assert set(damaged) <= {8, 10, 12, 14}
    for start in damaged:
        store.write(start, scores(start, 2), {})
    assert store.damaged() == []
    assert store.pending() == []


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("size", [0, 3, 40])
def test_a_shard_that_is_cut_off_is_written_again(tmp_path: Path, run_record: Run, size: int) -> None:
    store = filled(tmp_path, run_record)
    file = tmp_path / "predictions.zarr" / "prediction" / "c.1.0"
    file.write_bytes(file.read_bytes()[:size])
    store = RunStore.open(tmp_path, writable=True)
    assert store.pending() == [8, 10, 12, 14]
    for start in store.pending():
        store.write(start, scores(start, 2), {})
    assert store.pending() == store.damaged() == []


@pytest.mark.usefixtures("small_shards")
def test_workers_share_shards_out(tmp_path: Path, run_record: Run) -> None:
    store = make(tmp_path, run_record)
    assert store.starts() == list(range(0, COUNT, 2))
    assert store.starts(0, 2) == [0, 2, 4, 6, 16, 18]
    assert store.starts(1, 2) == [8, 10, 12, 14]
    assert store.starts(3, 4) == []


@pytest.mark.usefixtures("small_shards")
def test_writers_of_one_shard_wait_for_each_other(tmp_path: Path, run_record: Run) -> None:
    """Each writes the file anew, with what the other has added."""
    make(tmp_path, run_record)
    start = threading.Barrier(2)

    def write(first: int) -> None:
        store = RunStore.open(tmp_path, writable=True)
        start.wait()
        for _ in range(3):
            for block in range(first, COUNT, 4):
                store.write(block, scores(block, 2), {})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (0, 2)))
    store = RunStore.open(tmp_path)
    assert store.pending() == store.damaged() == []


@given(pictures=st.integers(1, 3_000_000), rows=st.integers(3, 2000))
def test_shards_are_few_and_as_small_as_that_allows(pictures: int, rows: int) -> None:
    block = block_size(rows)
    shard = shard_size(pictures, block)
    assert shard % block == 0
    assert math.ceil(pictures / shard) <= 320
    assert shard == block or math.ceil(pictures / (shard - block)) > 320


def test_a_store_of_an_older_version_has_a_file_for_each_block(tmp_path: Path, run_record: Run) -> None:
    """As written before there were shards."""
    store = make(tmp_path, run_record)
    for name in (*PARTS, "stamp", "reason"):
        array = zarr.open_group(tmp_path / "predictions.zarr")[name]
        assert isinstance(array, zarr.Array)
        zarr.create_array(
            tmp_path / "predictions.zarr",
            name=name,
            shape=array.shape,
            chunks=(8, *array.shape[1:]),
            dtype=str if name == "reason" else array.dtype,
            fill_value=array.fill_value,
            dimension_names=("image", "occluder")[: array.ndim],
            overwrite=True,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(tmp_path / "predictions.zarr")
    unseal(tmp_path)
    store = RunStore.open(tmp_path, writable=True)
    assert (store.block, store.shard) == (8, 8)
    store.write(8, scores(8, 8), {1: "OSError: broken"}, [5] * 8)
    assert store.pending() == [0, 16]
    assert store.damaged([8]) == []
    assert (tmp_path / "predictions.zarr" / "prediction" / "c" / "1" / "0").is_file()
    (tmp_path / "predictions.zarr" / "rank" / "c" / "1" / "0").unlink()
    assert store.damaged([8]) == [8]


@pytest.mark.parametrize("part", [*PARTS, "stamp", "reason"])
def test_the_last_block_may_be_short_and_damage_to_it_is_its_own(
    tmp_path: Path, run_record: Run, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 3, shards of 12: zarr reads what there is of a block that the end of the array cuts."""
    for name, value in (("READ_TOGETHER", 3), ("_MOST", 3), ("_SHARDS", 2)):
        monkeypatch.setattr(f"gfo.engine.evaluation.store.{name}", value)
    store = make(tmp_path, run_record)
    assert (store.block, store.shard) == (3, 12)
    for start in store.starts():
        count = store.end(start) - start
        store.write(start, scores(start, count), {0: "OSError: broken"}, [start] * count)
    folder = tmp_path / "predictions.zarr" / part
    file = folder / ("c.1" if part in ("stamp", "reason") else "c.1.0")
    raw = bytearray(file.read_bytes())
    # The chunk that lies last, before an index of 4 entries of 16 bytes and its checksum of 4.
    raw[-(4 * 16 + 4) - 6] ^= 1
    file.write_bytes(raw)
    store = RunStore.open(tmp_path, writable=True)
    assert store.damaged() == ([] if part == "stamp" else [18])
    assert store.changed(18, [18, 18]) == (2 if part == "stamp" else 0)
    assert [store.changed(start, [start] * 3) for start in (12, 15)] == [0, 0]
    store.write(18, scores(18, 2), {0: "OSError: broken"}, [18] * 2)
    store = RunStore.open(tmp_path)
    assert store.pending() == store.damaged() == []
    assert [store.changed(start, [start] * (store.end(start) - start)) for start in store.starts()] == [0] * 7
