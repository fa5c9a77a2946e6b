"""The suite `replay`: intervals are judged by all pairs of a RUN."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gfo.bench.replay import enlarged, read_answers, truth
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Run
from gfo.kernels.score import Score

CLASSES, PICTURES = 4, 200


@pytest.fixture(scope="module")
def store(run_record: Run, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Answers that the clean margin says much about; the first three pictures are quarantined."""
    rng, ids = np.random.default_rng(0), (5, 2, 7, 0)
    labels = np.repeat(ids, PICTURES)
    names = {str(i): f"name {i}" for i in ids}
    run = replace(run_record, class_ids=ids, class_names=names, folders=names)
    kept = {"paths": [f"{i}.png" for i in range(len(labels))], "labels": labels.tolist(), "fit": [0] * len(labels)}
    store = RunStore.create(tmp_path_factory.mktemp("run"), run, **kept, occluders=[-1, *ids, -2])
    margins = rng.normal(1, 2, (len(labels), 1)) + rng.logistic(0, 0.5, (len(labels), CLASSES + 2))
    margins[:, 1:-1] -= 1 + 2 * (labels[:, None] == np.array(ids))
    right = margins > 0
    for start in store.starts():
        own = slice(start, store.end(start))
        predictions = np.where(right[own], labels[own, None], 9)
        flat = [torch.from_numpy(part).flatten() for part in (predictions, 1 - right[own], margins[own])]
        store.write(
            start, Score(flat[0], flat[1], flat[2].float()), dict.fromkeys(range(3), "broken") if not start else {}
        )
    return store


def test_coverage_is_counted(store: RunStore, run: Callable[..., Any]) -> None:
    folder = store.path.parent
    ended = run("replay", "--runs", folder, "--replays", "40", "--until", "0.03")
    assert ended.code == 0
    rows = {(row["stage"], row["cell"]): row for row in ended.rows}
    assert len(rows) == 4
    total = CLASSES * PICTURES - 3
    for cell, pairs in (("matched", total), ("unmatched", total * (CLASSES - 1))):
        fixed, sequence = rows["replay", cell], rows["replay-sequence", cell]
        assert (fixed["total"], fixed["half_width"], fixed["rounds"]) == (pairs, 0.03, 40)
        assert fixed["coverage"] >= 0.85  # of 38 expected, by chance once in a thousand
        assert abs(fixed["bias"]) < 0.01
        assert 500 <= fixed["drawn"] < pairs
        assert sequence["coverage"] >= 0.85
        assert sequence["half_width"] is None
        assert sequence["drawn"] == pairs


def test_certificates_are_judged_by_all_pairs_in_fp32(store: RunStore, run: Callable[..., Any], tmp_path: Path) -> None:
    cheap = tmp_path / "bf16"
    shutil.copytree(store.path.parent, cheap)
    copy = RunStore.open(cheap, writable=True)
    copy.update_run(replace(copy.run, precision="bf16"))
    flips = np.random.default_rng(1).random((len(copy), CLASSES + 2)) < 0.02
    for start in copy.starts():
        own = slice(start, copy.end(start))
        right = (copy.predictions(start, copy.end(start)) == copy.labels[own, None]) ^ flips[own]
        margins = np.abs(copy.margins(start, copy.end(start))) * np.where(right, 1, -1)
        scores = (np.where(right, copy.labels[own, None], 9), 1 - right, np.nan_to_num(margins))
        flat = [torch.from_numpy(part).flatten() for part in scores]
        broken = dict.fromkeys(range(3), "broken") if not start else {}
        copy.write(start, Score(flat[0], flat[1], flat[2].float()), broken)
    ended = run("replay", "--runs", cheap, "--certified", store.path.parent, "--replays", "40", "--until", "0.02")
    assert ended.code == 0
    total = CLASSES * PICTURES - 3
    assert [(row["cell"], row["total"]) for row in ended.rows] == [
        ("clean", total),
        ("matched", total),
        ("unmatched", total * (CLASSES - 1)),
    ]
    for row in ended.rows:
        assert row["stage"] == "replay-certificate"
        assert row["coverage"] >= 0.85  # of 38 expected, by chance once in a thousand
        assert abs(row["bias"]) < 0.01
        assert 500 <= row["drawn"] < row["total"]
    refused = run("replay", "--runs", store.path.parent, "--certified", cheap)
    assert refused.code == 2
    assert "is in bf16, not in fp32" in refused.err


def test_answers_are_read_as_they_are(store: RunStore) -> None:
    answers = read_answers(store.path.parent)
    predictions = store.predictions(0, len(store))[3:]
    assert np.array_equal(answers.right, (predictions == store.labels[3:, None])[:, 1:-1])
    accuracy = [(predictions[store.labels[3:] == c, i + 1] == c).mean() for i, c in enumerate(store.run.class_ids)]
    assert truth(answers, "matched") == pytest.approx(np.mean(accuracy))


def test_more_classes_are_like_those_of_the_run(store: RunStore) -> None:
    answers = read_answers(store.path.parent)
    found = enlarged(answers, 60, 50, 0)
    assert (len(found.population), found.population.rows, found.right.shape) == (3000, 60, (3000, 60))
    for name in ("matched", "unmatched"):
        assert truth(found, name) == pytest.approx(truth(answers, name), abs=0.05)
    assert found.population.clean == pytest.approx(answers.population.clean, abs=0.05)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--runs: name at least one RUN"),
        (("--runs", "none"), "none"),
        (("--runs", "x", "--replays", "0"), "--replays 0"),
        (("--runs", "x", "--until", "a"), "--until a"),
        (("--runs", "x", "--until", "1"), "--until 1"),
        (("--runs", "x", "--classes", "1"), "--classes 1"),
        (("--runs", "x,y", "--certified", "z"), "--certified z"),
        (("--runs", "x", "--certified", "z", "--classes", "20"), "--classes 20"),
    ],
)
def test_bad_input(run: Callable[..., Any], words: tuple[str, ...], named: str) -> None:
    ended = run("replay", *words)
    assert ended.code == 2
    assert named in ended.err
