"""The suite of training on a tiny network: steps on noise, and the time to an accuracy on pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gfo.bench import ceilings, measure
from gfo.bench.suites import train as suite

MODEL = ("--model", "python:gfo_tiny:network", "--weights", "default", "--seconds", "0.2")
REACH = ("--classes", "bee", "--held-out", "2", "--epsilon", "200", "--judge-every", "4", "--plain-epochs", "3")


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the steps on noise out."""
    monkeypatch.setattr(suite, "training_rows", lambda *_: [])


@pytest.fixture
def recognised(tmp_path: Path) -> Path:
    """A class map under which the network gets every picture of `bee` right."""
    path = tmp_path / "map.json"
    path.write_text('{"bee": 2}')
    return path


def test_training_steps(run: Callable[..., Any], hurried: None) -> None:
    ended = run("train", *MODEL, "--precision", "fp32,bf16")
    assert ended.code == 0
    stages = [(row["stage"], row["precision"], row["ratio"] and row["ratio"]["to"]) for row in ended.rows]
    assert stages == [
        ("train-baseline", "fp32", None),
        ("train", "fp32", "train-baseline"),
        ("train-forward", "fp32", "train"),
        ("train", "bf16", "train-baseline"),
        ("train-forward", "bf16", "train"),
    ]
    assert {(row["pictures"], row["occluders"]) for row in ended.rows} == {(64, 1), (64, 4)}
    train, forward = ended.rows[1:3]
    assert forward["ratio"]["median"] == pytest.approx(forward["p50"] / train["p50"])


def test_share_of_the_ceiling(run: Callable[..., Any], hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass and the gradient with respect to the pictures count, against a convolution of a known rate."""
    flop, seconds, rates = 10**9, 0.5, {"train": 40.0, "train-forward": 80.0, "train-baseline": 20.0}
    monkeypatch.setattr(ceilings, "convolution", lambda *_: (lambda: None, flop))

    def measured(calls: Mapping[str, Any], **_: Any) -> dict[str, np.ndarray]:
        return {name: np.full(3, 64 / rates.get(name.split()[0], 64 / seconds)) for name in calls}

    monkeypatch.setattr(measure, "measure", measured)
    ended = run("train", *MODEL, "--precision", "fp32")
    work = json.loads(ended.out.splitlines()[-1])["environment"]["flops_per_picture"]
    plain, train, forward = ended.rows
    assert train["ceiling_share"] == pytest.approx(2 * work * 40.0 / (flop / seconds))
    assert plain["ceiling_share"] is forward["ceiling_share"] is None


def test_time_to_an_accuracy(run: Callable[..., Any], no_steps: None, tiny_data: Path, recognised: Path) -> None:
    words = ("train", *MODEL, "--precision", "fp32,bf16", *REACH, "--data", tiny_data, "--class-map", recognised)
    ended = run(*words, "--target-accuracy", "0.5", "--epochs", "4")
    assert ended.code == 0
    plain, *ours = ended.rows
    assert [row["stage"] for row in (plain, *ours)] == ["train-reach-baseline", "train-reach", "train-reach"]
    assert [row["precision"] for row in ours] == ["fp32", "bf16"]
    for row in ours:
        assert (row["occluders"], row["pictures"], row["reached"], row["reason"]) == (1, 4, 1, "")
        assert row["clean_accuracy"] == 1
        assert row["accuracy"] <= row["target"] == 0.5
        assert row["image_steps"] % 64 == 0
        assert row["p50"] == pytest.approx(60 / row["seconds"])
        wanted = {"to": "train-reach-baseline", "median": pytest.approx(plain["seconds"] / row["seconds"])}
        assert row["ratio"] == {**wanted, "low": None, "high": None}  # one group of classes tells no interval
    asked = json.loads(ended.out.splitlines()[-1])["environment"]["reach"]
    assert (asked["data"], asked["epochs"], asked["judge_every"]) == (str(tiny_data), 4, 4)


def test_a_target_that_is_not_reached_is_said(
    run: Callable[..., Any], no_steps: None, tiny_data: Path, recognised: Path
) -> None:
    words = ("train", *MODEL, *REACH, "--data", tiny_data, "--class-map", recognised, "--target-accuracy", "0")
    ended = run(*words, "--plain-step", "1e-6", "--epochs", "1", "--epsilon", "1e-3")
    assert ended.code == 0
    assert [(row["stage"], row["reached"]) for row in ended.rows] == [
        ("train-reach-baseline", 0),
        ("train-reach", 0),
    ]
    assert ended.rows[0]["image_steps"] == 3 * 4
    assert "plain loop: 1 of 1 classes do not reach 0" in ended.out
    assert "train-reach at fp32: 1 of 1 classes do not reach 0" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "DATA"), "--data: is not read without --target-accuracy"),
        (("--target-accuracy", "0.1"), "--target-accuracy: is not read without --data"),
        (("--epochs", "3"), "--epochs: is not read without --data and --target-accuracy"),
        (("--data", "DATA", "--target-accuracy", "1.5"), "--target-accuracy 1.5: must be at least 0 and at most 1"),
        (("--data", "DATA", "--target-accuracy", "0.1", "--plain-step", "0"), "--plain-step 0.0: expected a number"),
        (("--data", "DATA", "--target-accuracy", "0.1", "--held-out", "6"), "hold out fewer"),
        (("--data", "DATA", "--target-accuracy", "0.1", "--epsilon", "300"), "--epsilon 300.0: must be"),
        (("--data", "nowhere", "--target-accuracy", "0.1"), "nowhere/train: no such folder"),
        (
            ("--data", "DATA", "--target-accuracy", "0.1", "--held-out", "2", "--classes", "ant,bee"),
            "--target-accuracy 0.1: the held-out accuracy without an occluder is no higher for ant (0), bee (0)",
        ),
    ],
)
def test_what_is_refused(run: Callable[..., Any], tiny_data: Path, words: tuple[str, ...], said: str) -> None:
    code, out, err = run("train", *MODEL, *(str(tiny_data) if word == "DATA" else word for word in words))
    assert (code, out) == (2, "")
    assert said in err
