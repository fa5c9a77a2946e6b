"""The life of a store with drawn answers: created, filled, looked through, read and summarised, each step timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ..engine.evaluation.metrics import summarize
from ..engine.evaluation.store import CLEAN, NOISE, RunStore
from ..engine.evaluation.summary import STORE, Run
from ..engine.machine import peak_rss_mb
from ..engine.progress import Progress
from ..export.preprocessing import Preprocessing
from ..kernels.score import Score
from .rows import BenchRow, StoreFacts

_CLEAN_ACCURACY, _UNMATCHED_ACCURACY, _MATCHED_ACCURACY = 0.76, 0.55, 0.2
_RIVALS = 20  # wrong answers to the pictures of a class are of so many classes


def store_rows(
    pictures: int, occluders: int, create_at: int | None, folder: Path | None, seed: int, progress: Progress
) -> list[BenchRow[StoreFacts]]:
    """Time each step of a store of `pictures` × (`occluders` + 2) pairs, and the first also at `create_at` pictures.

    Pictures are sorted by class, and classes are equally large, as in ImageNet.
    """
    rows: list[BenchRow[StoreFacts]] = []

    def timed(stage: str, count: int, step: Callable[[], object], where: Path) -> None:
        progress.say(f"{stage}: {count:,} pictures, {occluders:,} occluders")
        start = time.perf_counter()
        step()
        rows.append(_row(stage, (count, occluders), time.perf_counter() - start, where))

    with ExitStack() as stack:

        def place() -> Path:
            return Path(stack.enter_context(TemporaryDirectory(dir=folder)))

        where = place()
        timed("store-create", pictures, lambda: _created(where, pictures, occluders), where)
        store = RunStore.open(where, writable=True)
        timed("store-write", pictures, lambda: _fill(store, seed), where)
        timed("store-pending", pictures, RunStore.open(where).pending, where)
        timed("store-read", pictures, lambda: _must_be_whole(store), where)
        timed("store-summary", pictures, lambda: summarize(store), where)
        if create_at is not None:
            further = place()
            timed("store-create", create_at, lambda: _created(further, create_at, occluders), further)
    return rows


def _row(stage: str, sizes: tuple[int, int], seconds: float, where: Path) -> BenchRow[StoreFacts]:
    pictures, occluders = sizes
    files = [path for path in (where / STORE).rglob("*") if path.is_file()]
    pairs, size = pictures * (occluders + 2), sum(path.stat().st_size for path in files)
    return BenchRow(
        stage=stage,
        engine="zarr",
        pictures=pictures,
        occluders=occluders,
        unit="pairs/s",
        p50=pairs / seconds,
        rounds=1,
        peak_rss_mb=peak_rss_mb(),
        facts=StoreFacts(seconds=seconds, files=len(files), bytes_per_pair=size / pairs),
    )


def _created(folder: Path, pictures: int, occluders: int) -> RunStore:
    labels = np.arange(pictures) * occluders // pictures
    classes = range(occluders)
    names = {str(i): f"n{i:08d}" for i in classes}
    run = Run(
        gfo_version=version("gfo"),
        model="drawn",
        num_classes=occluders,
        weights="drawn",
        weights_hash="drawn",
        bank="drawn",
        bank_hash="drawn",
        epsilon=10.0,
        norm="linf",
        split="train",
        engine="drawn",
        device="cpu",
        precision="fp32",
        loader="drawn",
        seed=0,
        data_root=str(folder),
        preprocessing=Preprocessing(224, 256),
        class_ids=tuple(classes),
        class_names=names,
        folders=names,
        pictures="all",
        per_class=None,
    )
    paths = [f"train/{names[str(label)]}/{names[str(label)]}_{i}.JPEG" for i, label in enumerate(labels.tolist())]
    zeros = np.zeros(pictures, dtype=int).tolist()
    columns = [CLEAN, *classes, NOISE]
    return RunStore.create(folder, run, paths=paths, labels=labels.tolist(), fit=zeros, occluders=columns)


def _fill(store: RunStore, seed: int) -> None:
    """Write every shard, with answers as a network gives them: right, or of one of some rivals of the class."""
    rng = np.random.default_rng(seed)
    classes = len(store.occluders) - 2
    rivals = rng.integers(1, classes, (classes, _RIVALS))  # added to the label, so that none is the label
    chance = rng.random((min(store.shard, len(store)), classes + 2), dtype=np.float32)
    rival = rng.integers(0, _RIVALS, chance.shape, dtype=np.int32)
    logits = np.abs(rng.normal(0, 4, chance.shape)).astype(np.float32) + 1e-3
    behind = rng.geometric(0.3, chance.shape).astype(np.int64)
    for start in range(0, len(store), store.shard):
        labels = store.labels[start : start + store.shard].astype(np.int64)
        accuracy = np.full((len(labels), classes + 2), _UNMATCHED_ACCURACY, dtype=np.float32)
        accuracy[:, [0, -1]] = _CLEAN_ACCURACY
        accuracy[np.arange(len(labels)), labels + 1] = _MATCHED_ACCURACY
        here = slice(0, len(labels))
        right = chance[here] < accuracy
        other = (labels[:, None] + rivals[labels[:, None], rival[here]]) % classes
        prediction = np.where(right, labels[:, None], other)
        rank, margin = np.where(right, 0, behind[here]), np.where(right, logits[here], -logits[here])
        scores = Score(*(torch.from_numpy(part).flatten() for part in (prediction, rank, margin)))
        store.write(start, scores, {}, labels.tolist())


def _must_be_whole(store: RunStore) -> None:
    if store.damaged():
        raise OSError(f"{store.path}: what was written is not what is read")
