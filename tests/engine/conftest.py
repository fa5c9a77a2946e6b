"""Commands run in this process, for tests of what they say and leave behind."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from gfo.engine.commands import evaluate as eval_command
from gfo.engine.commands import export as export_command
from gfo.engine.commands import report as report_command
from gfo.engine.commands import train as train_command
from gfo.engine.data import files
from gfo.engine.training import groups as training
from gfo.engine.training.batches import ClassPictures

Command = Callable[..., list[object]]
Run = Callable[..., tuple[int, str, str]]

COMMANDS = {
    "gfo-train": train_command.main,
    "gfo-export": export_command.main,
    "gfo-eval": eval_command.main,
    "gfo-report": report_command.main,
}
MODEL = ("--model", "python:gfo_tiny:network")


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask storage that fails again at once."""
    monkeypatch.setattr(files, "_WAITS", (0.0, 0.0))


@pytest.fixture(scope="session")
def train() -> Command:
    """The words of a gfo-train of the tiny network: `train(data, out, *options)`."""
    base = [*MODEL, "--epsilon", 8, "--epochs", 1, "--batch-size", 6, "--precision", "fp32"]
    return lambda data, out, *options: ["gfo-train", *base, "--data", data, "--out", out, *options]


@pytest.fixture(scope="session")
def evaluate() -> Command:
    """The words of a gfo-eval of the tiny network on val, on the engine that needs no export."""
    base = ["gfo-eval", *MODEL, "--split", "val", "--engine", "torch"]
    return lambda data, bank, out, *options: [*base, "--data", data, "--occluders", bank, "--out", out, *options]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit code, standard output, standard error."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            COMMANDS[name]()
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, captured.out, captured.err

    return run


@pytest.fixture
def refused(run: Run) -> Callable[..., None]:
    """Run a command that must refuse: nothing on standard output, one line on standard error, which names all this."""

    def refused(words: Sequence[object], *named: object) -> None:
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert err.startswith(f"{words[0]}: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        for name in named:
            assert str(name) in err

    return refused


@pytest.fixture
def groups_trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[object]], list[list[str]]]:
    """Run a gfo-train to its end, and return the classes that it still had to train, group by group."""

    def groups_trained(words: list[object]) -> list[list[str]]:
        original, trained = training._train_group, []

        def watch(run: Any, work: Sequence[ClassPictures], *rest: Any) -> None:
            trained.append([c.folder.folder for c in work])
            original(run, work, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(training, "_train_group", watch)
            assert run(*words)[0] == 0
        return trained

    return groups_trained


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """`small_disk(n)`: from now on no file may grow beyond n bytes, a write that really fails; 0 lifts it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most or before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
