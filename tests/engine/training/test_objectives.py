"""Objectives and optimizers by name: options that are checked, and new ones added from this file alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gfo.engine.training.config import TrainConfig
from gfo.engine.training.objectives import OBJECTIVES
from gfo.engine.training.objectives.base import Objective
from gfo.engine.training.optimizers import OPTIMIZERS
from gfo.engine.training.optimizers.base import Ball, Optimizer
from gfo.export.bank import OccluderBank
from gfo.export.errors import InputError

Command = Callable[..., list[object]]
Run = Callable[..., tuple[int, str, str]]


class Entropy(Objective):
    """The negative entropy of softmax(logits / temperature)."""

    name = "entropy"

    @dataclass(frozen=True)
    class Options:
        temperature: float = 1.0

        def __post_init__(self) -> None:
            if self.temperature <= 0:
                raise InputError(f"temperature {self.temperature}: must be above 0")

    def __init__(self, options: Options) -> None:
        self._temperature = options.temperature

    def header(self) -> dict[str, Any]:
        return {"loss": "negative-entropy", "temperature": self._temperature}

    def loss(self, logits: Tensor, labels: Tensor, *, impl: str) -> Tensor:
        logs = (logits / self._temperature).log_softmax(dim=1)
        return (logs.exp() * logs).sum(dim=1)


class Signs(Optimizer):
    """Steps along the signs of the gradient, without a state."""

    name = "signs"

    def __init__(self, occluders: Tensor, ball: Ball, decay: float, impl: str) -> None:
        self._epsilon = ball.epsilon

    def step(self, occluders: Tensor, gradient: Tensor, size: float, count: int) -> None:
        occluders.sub_(size * gradient.sign()).clamp_(-self._epsilon, self._epsilon)

    def state_dict(self) -> dict[str, Tensor]:
        return {}


def test_an_objective_and_an_optimizer_from_another_file(
    tiny_data: Path, tmp_path: Path, train: Command, run: Run
) -> None:
    options = ("--objective", "entropy", "--objective-option", "temperature=2", "--optimizer", "signs")
    command = train(tiny_data, tmp_path / "bank.safetensors", *options, "--epochs", 2)
    with OBJECTIVES.added("entropy", f"{__name__}:Entropy"), OPTIMIZERS.added("signs", f"{__name__}:Signs"):
        assert run(*command)[0] == 0
        bank = OccluderBank.load(tmp_path / "bank.safetensors")
        objective = bank.header.objective
        assert (objective["loss"], objective["temperature"]) == ("negative-entropy", 2.0)
        assert objective["optimizer"] == "signs"
        assert "kappa" not in objective
        assert 0 < float(bank.occluders.abs().max()) <= 8
        assert "already trained" in run(*command)[2]
        assert "temperature is given twice" in run(*command, "--objective-option", "temperature=3")[2]
        other = ["temperature=3" if word == "temperature=2" else word for word in command]
        assert "temperature 2.0, not 3.0" in run(*other)[2]
        pure = train(tiny_data, tmp_path / "bank.safetensors", "--optimizer", "signs", "--epochs", 2)
        assert "loss negative-entropy, not carlini-wagner-margin" in run(*pure)[2]
        with pytest.raises(InputError, match=r"temperature -1\.0: must be above 0"):
            TrainConfig(epsilon=8, objective="entropy", objective_options={"temperature": "-1"})


_PURE = ("--objective", "pure", "--objective-option", "kappa=5")


def test_kappa_is_short_for_an_option_of_the_objective(
    tiny_data: Path, tmp_path: Path, train: Command, run: Run
) -> None:
    for name, options in {"short": ("--kappa", 5), "long": _PURE}.items():
        assert run(*train(tiny_data, tmp_path / name, *options))[0] == 0
    assert (tmp_path / "short").read_bytes() == (tmp_path / "long").read_bytes()
    assert OccluderBank.load(tmp_path / "short").header.objective["kappa"] == 5.0
    assert TrainConfig(epsilon=8).header()["kappa"] == 10.0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--objective", "smooth"), "--objective smooth: expected one of pure"),
        (
            ("--objective-option", "kapa=5"),
            "--objective-option kapa=5: objective pure has no such option, it has kappa",
        ),
        (("--objective-option", "kappa"), "--objective-option kappa: expected key=value"),
        (("--objective-option", "kappa=much"), "--kappa much: objective pure expects a valid number"),
        (("--objective-option", "kappa=-1"), "--kappa -1.0: must be at least 0"),
        ((*_PURE, "--kappa", 4), "--kappa 4, --objective-option kappa=5: name the same option"),
    ],
)
def test_bad_objectives_are_named(
    options: tuple[object, ...],
    named: str,
    tiny_data: Path,
    tmp_path: Path,
    refused: Callable[..., None],
    train: Command,
) -> None:
    refused(train(tiny_data, tmp_path / "bank.safetensors", *options), named)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_saved_state_goes_on_to_the_same_bits(optimizer: str) -> None:
    g = torch.Generator().manual_seed(0)
    gradients = torch.randn(4, 2, 6, 6, 3, generator=g)

    def begin(occluders: Tensor) -> Optimizer:
        return OPTIMIZERS[optimizer](occluders, Ball(6.0, "linf"), 0.9, "reference")

    def steps(optimizer: Optimizer, occluders: Tensor, counts: range) -> None:
        for count in counts:
            optimizer.step(occluders, gradients[count - 1], 0.5, count)

    whole = torch.zeros(2, 6, 6, 3)
    straight = begin(whole)
    steps(straight, whole, range(1, 3))
    resumed = whole.clone()
    second = begin(resumed)
    second.load_state_dict({"occluders": resumed, **straight.state_dict()})
    steps(straight, whole, range(3, 5))
    steps(second, resumed, range(3, 5))
    assert torch.equal(resumed, whole)
