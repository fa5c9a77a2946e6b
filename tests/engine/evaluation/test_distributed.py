"""An evaluation on a cluster is that of one process, also where workers die; nothing is lost, nothing counted twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from gfo.engine import EngineChoice, EvaluationConfig, evaluate_strengths
from gfo.engine import cluster as cluster_module
from gfo.engine.data.spec import DataSpec
from gfo.engine.evaluation import distributed as module
from gfo.engine.evaluation.all_pairs import ToDo, Work
from gfo.engine.evaluation.distributed import Filled, Remote, Shared, fill_here, open_here
from gfo.engine.evaluation.passes import Passes
from gfo.engine.evaluation.station import Job, open_station
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Summary
from gfo.engine.progress import TerminalProgress, no_progress
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import EngineUnavailable, InputError, Unreachable
from gfo.export.models.spec import ModelSpec
from gfo.kernels.score import Score

distributed = pytest.importorskip("distributed")

ARRAYS = ("prediction", "rank", "margin", "reason", "stamp")
MODEL = ModelSpec("python:gfo_tiny:network")
CONFIG = EvaluationConfig(EngineChoice("torch", device="cpu"), batch_size=8, max_quarantined=0.2)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 18 pictures: nine blocks. A worker takes the blocks of a store that is there."""
    monkeypatch.setattr("gfo.engine.evaluation.store._MOST", 2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a worker has on two cores: sums of more threads are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def created(folder: Path, bank: Path, data: DataSpec, config: EvaluationConfig = CONFIG) -> Path:
    """A RUN without answers."""
    with open_station(Job(MODEL, bank, data, folder, config), no_progress):
        pass
    return folder


def answers(run: Path) -> dict[str, str]:
    group = zarr.open_group(run / "predictions.zarr", mode="r")
    return {name: repr(np.asarray(group[name][:]).tolist()) for name in ARRAYS}  # type: ignore[index]


def numbers(summary: Summary) -> dict[str, object]:
    measured = ("pairs", "seconds", "pairs_per_second", "peak_rss_mb")
    return {key: value for key, value in summary.to_dict().items() if key not in measured}


@pytest.fixture
def spoiled(own_data: Path) -> DataSpec:
    """A picture of one colour, over which a worker may die, and one that is none."""
    Image.new("RGB", (40, 40), (200, 200, 200)).save(own_data / "val" / "bee" / "3.png")
    (own_data / "val" / "cat" / "0.jpg").write_bytes(b"none")
    return DataSpec(own_data)


@pytest.fixture
def deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Say how often workers are to die; without a number, how many deaths are left."""
    left = tmp_path / "deaths"
    monkeypatch.setenv("GFO_TINY_DEATHS", str(left))

    def deaths(count: int | None = None) -> int:
        if count is not None:
            left.write_text(str(count))
        return int(left.read_text())

    return deaths


def test_two_workers_answer_as_one_process(
    spoiled: DataSpec, tiny_bank: Path, tmp_path: Path, deaths: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """At two strengths, with a worker that dies: another one takes its blocks."""
    deaths(0)
    config = replace(CONFIG, strengths=(0.5, 1.0))
    alone = evaluate_strengths(MODEL, tiny_bank, spoiled, tmp_path / "alone", config)
    created(tmp_path / "run", tiny_bank, spoiled, config)
    deaths(1)
    both = replace(config, cluster="local:2")
    found = evaluate_strengths(MODEL, tiny_bank, spoiled, tmp_path / "run", both, TerminalProgress())
    assert deaths() == 0
    said = capsys.readouterr().err
    assert "cluster local:2: 2 workers" in said
    assert "evaluating again" not in said  # nothing was left for the end
    for strength in ("0.5", "1"):
        assert answers(tmp_path / "run" / strength) == answers(tmp_path / "alone" / strength)
    for strength in config.strengths:
        assert numbers(found[strength]) == numbers(alone[strength])
        assert found[strength].pairs == alone[strength].pairs


def test_what_kills_every_worker_is_given_up_and_all_else_is_there(
    spoiled: DataSpec, tiny_bank: Path, tmp_path: Path, deaths: Callable[..., int]
) -> None:
    """A scheduler that runs already; then the cause is gone, and the same command resumes in one process."""
    run = created(tmp_path / "run", tiny_bank, spoiled)
    (lost,) = [
        start for start in RunStore.open(run).starts() if "val/bee/3.png" in RunStore.open(run).paths[start : start + 2]
    ]
    deaths(100)
    with (
        __import__("dask").config.set({"distributed.scheduler.allowed-failures": 2}),
        distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None, silence_logs=50) as running,
    ):
        config = replace(CONFIG, cluster=running.scheduler_address)
        said = r"3 workers have died over each of 1 files of the run, the first from val/bee/"
        with pytest.raises(Unreachable, match=said):
            evaluate_strengths(MODEL, tiny_bank, spoiled, run, config)
    assert deaths() == 97
    assert RunStore.open(run).pending() == [lost]
    deaths(0)
    alone = evaluate_strengths(MODEL, tiny_bank, spoiled, tmp_path / "alone", CONFIG)
    assert numbers(evaluate_strengths(MODEL, tiny_bank, spoiled, run, CONFIG)[1.0]) == numbers(alone[1.0])
    assert answers(run) == answers(tmp_path / "alone")


def test_what_a_dead_worker_has_written_is_not_evaluated_again(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path
) -> None:
    job = Job(MODEL, tiny_bank, DataSpec(tiny_data), tmp_path / "run", CONFIG)
    with open_station(job, no_progress) as station:
        station.fill([ToDo([0, 2, 4, 6], [0, 2, 4, 6])])
    shared = Shared("again", job)
    store = RunStore.open(tmp_path / "run", writable=True)
    store.write(2, Score(*(torch.zeros(10, dtype=t) for t in (torch.int64, torch.int64, torch.float32))), {}, [1, 1])
    (tmp_path / "run" / "predictions.zarr" / "rank" / "c.2.0").unlink()
    # Of changed pictures, not whole, not there: 2 pictures of 5 rows each.
    assert fill_here(shared, [ToDo([0, 2, 4, 6, 8], [0, 2, 4, 6, 8])]).pairs == 3 * 10
    assert fill_here(shared, [ToDo([0, 2, 4, 6, 8], [0, 2, 4, 6, 8])]).pairs == 0
    module._stopped.add("again")
    with pytest.raises(module._Stopped):
        fill_here(shared, [ToDo([10, 12], [10, 12])])
    assert RunStore.open(tmp_path / "run").pending() == [10, 12, 14, 16]
    asyncio.run(module.close_here("again"))
    assert not module._places


class _AtWork:
    """How many tasks of `counted` run at a time, and the most that there were."""

    now = most = 0
    lock = threading.Lock()


def counted(shared: object, todo: list[ToDo]) -> Filled:
    """In place of `fill_here`: take a moment, and return the unit's first picture for the pairs."""
    for step in (1, -1):
        with _AtWork.lock:
            _AtWork.now += step
            _AtWork.most = max(_AtWork.most, _AtWork.now)
        time.sleep(0.02)
    return Filled(todo[0].own[0], {})


@pytest.mark.parametrize("workers", [1, 3])
def test_every_unit_is_handed_out_once_and_each_worker_has_one(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fill_here", counted)
    _AtWork.most = 0
    units = [[ToDo([i], [i])] for i in range(10)]
    how = {"processes": False, "threads_per_worker": 2, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(workers, **how) as running, distributed.Client(running) as client:
        remote = object.__new__(Remote)
        remote.__dict__.update(_client=client, _spec="", _shared=None)
        found = [(unit, what.pairs) for unit, what in remote._results(units)]  # type: ignore[union-attr]
    assert sorted(pairs for _, pairs in found) == list(range(10))
    assert all(unit[0].own == [pairs] for unit, pairs in found)
    assert 1 <= _AtWork.most <= workers


def test_a_units_blocks_share_a_file(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gfo.engine.evaluation.store._SHARDS", 3)
    monkeypatch.setattr("gfo.engine.evaluation.store.READ_TOGETHER", 2)
    config = replace(CONFIG, strengths=(0.5, 1.0))
    run = created(tmp_path / "run", tiny_bank, DataSpec(tiny_data), config)
    shared = Shared("", Job(MODEL, tiny_bank, DataSpec(tiny_data), run, config))
    remote = Remote(None, "", shared, module.Opened({}, Passes(8, False), [], None), no_progress)
    todo = remote.to_do()
    todo[0] = replace(todo[0], pending=[2, 4, 16])
    todo[1] = replace(todo[1], pending=[4, 8])
    units = remote._units(todo)
    assert [[one.pending for one in unit] for unit in units] == [[[2, 4], [4]], [[], [8]], [[16], []]]
    assert [unit[0].own for unit in units] == [[2, 4], [8], [16]]
    # Rows of a picture: clean once, three occluders and noise at each strength.
    assert [Work(remote.stores, unit).pairs_left for unit in units] == [4 + 4 * (4 + 2), 2 + 4 * 2, 2 + 4 * 2]


# ---- bad input


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("local:0", "expected local:1 to local:"),
        ("local:1000", "expected local:1 to local:"),
        ("local:two", "expected local:1 to local:"),
        ("local:", "expected local, local:N, or the scheduler's address"),
        ("host:8786", "expected local, local:N, or the scheduler's address"),
        ("tcp:host", "expected local, local:N, or the scheduler's address"),
    ],
)
def test_a_cluster_that_is_none(spec: str, named: str) -> None:
    with pytest.raises(InputError, match=f"--cluster {spec}: {named}"):
        replace(CONFIG, cluster=spec)


def test_a_cluster_shares_out_itself() -> None:
    with pytest.raises(InputError, match="--cluster local:1: shares the run out itself; leave --shard out"):
        replace(CONFIG, cluster="local:1", shard=(0, 2))


def test_a_scheduler_that_does_not_answer(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_CONNECT_SECONDS", 1)
    config = replace(CONFIG, cluster="tcp://127.0.0.1:1")
    with pytest.raises(EngineUnavailable, match=r"--cluster tcp://127\.0\.0\.1:1: no scheduler answers .*; start one"):
        evaluate_strengths(MODEL, tiny_bank, DataSpec(tiny_data), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_other_processes_need_names(
    tiny_classifier: FrozenClassifier, tiny_data: Path, tiny_bank: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, cluster="local:1")
    with pytest.raises(InputError, match="--cluster: needs a model by its name, and a bank in a file"):
        evaluate_strengths(tiny_classifier, tiny_bank, DataSpec(tiny_data), tmp_path / "run", config)


def test_a_worker_with_other_versions_is_named(tiny_data: Path, tiny_bank: Path, tmp_path: Path) -> None:
    job = Job(MODEL, tiny_bank, DataSpec(tiny_data), tmp_path / "run", CONFIG)
    opened = open_here(Shared("first", job))
    assert set(opened.versions) >= {"gfo", "torch"}
    with pytest.raises(
        InputError, match=f"--cluster: a worker has torch {opened.versions['torch']}, another 1.0; install one"
    ):
        open_here(Shared("second", job, {**opened.versions, "torch": "1.0"}))
    asyncio.run(module.close_here("first"))
    assert not module._places


def test_without_a_cluster_dask_is_not_imported() -> None:
    code = "import sys, gfo.engine.evaluation.evaluate, gfo.engine.cluster; print('distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
