"""An evaluation on a cluster is that of one process, also where workers die; nothing is lost, nothing counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from gfo.engine import EngineChoice, EvaluationConfig, evaluate_strengths
from gfo.engine.cluster import worker
from gfo.engine.cluster.spec import ClusterSpec
from gfo.engine.cluster.team import Team
from gfo.engine.cluster.worker import Shared, do_here
from gfo.engine.data.spec import DataSpec
from gfo.engine.evaluation.distributed import EvaluationWork, Facts, Remote
from gfo.engine.evaluation.passes import Passes
from gfo.engine.evaluation.station import Job, open_station
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Summary
from gfo.engine.evaluation.todo import ToDo, Work
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
    both = replace(config, cluster=ClusterSpec("local:2"))
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
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50) as running,
    ):
        config = replace(CONFIG, cluster=ClusterSpec(running.scheduler_address))
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
    shared = Shared("again", EvaluationWork(job))
    store = RunStore.open(tmp_path / "run", writable=True)
    store.write(2, Score(*(torch.zeros(10, dtype=t) for t in (torch.int64, torch.int64, torch.float32))), {}, [1, 1])
    (tmp_path / "run" / "predictions.zarr" / "rank" / "c.2.0").unlink()
    # Of changed pictures, not whole, not there: 2 pictures of 5 rows each.
    assert do_here(shared, [ToDo([0, 2, 4, 6, 8], [0, 2, 4, 6, 8])]).result.pairs == 3 * 10
    assert do_here(shared, [ToDo([0, 2, 4, 6, 8], [0, 2, 4, 6, 8])]).result.pairs == 0
    worker._stopped.add("again")
    with pytest.raises(worker.Stopped):
        do_here(shared, [ToDo([10, 12], [10, 12])])
    assert RunStore.open(tmp_path / "run").pending() == [10, 12, 14, 16]
    asyncio.run(worker.close_here("again"))
    assert not worker._places


def test_a_units_blocks_share_a_file(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gfo.engine.evaluation.store._SHARDS", 3)
    monkeypatch.setattr("gfo.engine.evaluation.store.READ_TOGETHER", 2)
    config = replace(CONFIG, strengths=(0.5, 1.0))
    run = created(tmp_path / "run", tiny_bank, DataSpec(tiny_data), config)
    job, spec = Job(MODEL, tiny_bank, DataSpec(tiny_data), run, config), ClusterSpec("local:1")
    team = Team(None, spec, Shared("", EvaluationWork(job)), Facts(Passes(8, False), None), no_progress)
    remote = Remote(team, job, spec, no_progress)
    todo = remote.to_do()
    todo[0] = replace(todo[0], pending=[2, 4, 16])
    todo[1] = replace(todo[1], pending=[4, 8])
    units = remote._units(todo)
    assert [[one.pending for one in unit] for unit in units] == [[[2, 4], [4]], [[], [8]], [[16], []]]
    assert [unit[0].own for unit in units] == [[2, 4], [8], [16]]
    # Rows of a picture: clean once, three occluders and noise at each strength.
    assert [Work(remote.stores, unit).pairs_left for unit in units] == [4 + 4 * (4 + 2), 2 + 4 * 2, 2 + 4 * 2]


# ---- bad input


def test_a_cluster_shares_out_itself() -> None:
    with pytest.raises(InputError, match="--cluster local:1: shares the run out itself; leave --shard out"):
        replace(CONFIG, cluster=ClusterSpec("local:1"), shard=(0, 2))


def test_a_scheduler_that_does_not_answer(
    tiny_data: Path, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gfo.engine.cluster.clusters._CONNECT_SECONDS", 1)
    config = replace(CONFIG, cluster=ClusterSpec("tcp://127.0.0.1:1"))
    with pytest.raises(EngineUnavailable, match="no scheduler answers"):
        evaluate_strengths(MODEL, tiny_bank, DataSpec(tiny_data), tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_a_worker_that_does_not_see_the_run(tiny_data: Path, tiny_bank: Path, tmp_path: Path) -> None:
    """It would fill one of its own."""
    work = EvaluationWork(Job(MODEL, tiny_bank, DataSpec(tiny_data), tmp_path / "run", CONFIG))
    named = r"predictions\.zarr: not seen by the worker on .*, though another has made it; give a folder that all"
    with pytest.raises(InputError, match=named), work.agreed(Facts(Passes(8, False), None)).open(no_progress):
        pass
    assert not (tmp_path / "run").exists()


def test_other_processes_need_names(
    tiny_classifier: FrozenClassifier, tiny_data: Path, tiny_bank: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, cluster=ClusterSpec("local:1"))
    with pytest.raises(InputError, match="--cluster: needs a model by its name, and a bank in a file"):
        evaluate_strengths(tiny_classifier, tiny_bank, DataSpec(tiny_data), tmp_path / "run", config)
