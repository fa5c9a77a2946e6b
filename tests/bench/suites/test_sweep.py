"""`gfo-bench sweep`: real trainings and evaluations of a small network, one file that says what they are."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gfo.bench.sweep import read_sweep, words
from gfo.engine.evaluation.summary import read_summary
from gfo.export.bank import OccluderBank
from gfo.export.errors import InputError

PUBLISHED = Path(__file__).parents[3] / "docs" / "sweeps"
SWEEP = """
seeds = [3, 4]
strengths = [0.5, 1.0]
[models.tiny]
model = "python:gfo_tiny:network"
[train]
data = "{data}"
epochs = 2
batch_size = 6
precision = "fp32"
epsilon = 60
[evaluations.val]
data = "{data}"
split = "val"
engine = "torch"
[experiments.pure]
[experiments.stronger]
epsilon = 90
augment = "flip"
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def pictures(own_data: Path) -> Path:
    """Of which the network gets those of one class right: it answers 2 to nearly all."""
    (own_data / "classes.json").write_text(json.dumps({"ant": 2, "bee": 0, "cat": 4}))
    return own_data


def test_experiments_are_trained_evaluated_and_taken_up_again(
    sweep: Path, pictures: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    command = ("sweep", "--file", sweep, "--data", pictures, "--out", tmp_path / "out")
    first = run(*command)
    assert first.code == 0
    trained = [(row["experiment"], row["seed"]) for row in first.rows]
    assert trained == [("pure", 3), ("stronger", 3), ("pure", 4), ("stronger", 4), ("pure", None), ("stronger", None)]
    for row in first.rows[:4]:
        folder = tmp_path / "out" / "tiny" / row["experiment"] / str(row["seed"])
        bank = OccluderBank.load(folder / "bank.safetensors")
        assert (bank.header.seed, bank.epsilon) == (row["seed"], 90.0 if row["experiment"] == "stronger" else 60.0)
        summary = read_summary(folder / "val" / "1" / "summary.json").to_dict()
        assert row["matched"] == summary["ratios"]["matched/clean"]
        assert row["unmatched"] == summary["ratios"]["unmatched/clean"]
        assert row["frontier"] == summary["frontier"]["unmatched"]
        assert row["clean"] == summary["clean"]["accuracy"]
        assert read_summary(folder / "val" / "0.5" / "summary.json").strength == 0.5
        assert f"$ {row['train']}" in first.err
        assert row["train"].startswith("gfo-train --")
    for name in ("matched", "unmatched"):
        for experiment in (0, 1):
            values = [first.rows[place][name]["value"] for place in (experiment, experiment + 2)]
            assert first.rows[4 + experiment][name]["value"] == pytest.approx(sum(values) / 2)
    assert [row["difference"] is None for row in first.rows] == [True, False] * 3
    for row, baseline in zip(first.rows[1::2], first.rows[::2], strict=True):
        for mark, difference in row["difference"].items():
            ours, theirs = row["frontier"][mark], baseline["frontier"][mark]
            assert (difference is not None) == bool(ours and theirs)
            if difference and ours and theirs:
                assert difference["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert any(row["difference"]["0.4"] for row in first.rows[1::2])
    again = run(*command, "--experiments", "stronger")
    alone = [{**row, "difference": None} for row in first.rows if row["experiment"] == "stronger"]
    assert again.rows == alone
    assert again.err.count("already trained with this configuration") == 2
    fewer = SWEEP.replace("[3, 4]", "[3]").replace("experiments.stronger", "experiments.fewer")
    sweep.write_text(fewer.replace('augment = "flip"', 'classes = "ant,cat"'))
    of_three, of_two = run(*command).rows
    assert of_three["difference"] is of_two["difference"] is None  # of other classes: there is nothing to pair
    assert of_three == first.rows[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("epsilon = 90", "epsilon = -1"), "experiment stronger of tiny: --epsilon -1.0: must be above 0"),
        (("epsilon = 90", "epsilom = 90"), "experiment stronger of tiny: No such option: --epsilom"),
        (("seeds = [3, 4]", "seeds = []"), "sweep.toml: seeds: "),
        (("seeds = [3, 4]", "seeds = [3, 3]"), "sweep.toml: seeds: names one twice"),
        (("epsilon = 90", 'classes = "random:2"'), "sweep.toml: classes = random:N draws others for each seed"),
        (("seeds = [3, 4]", ""), "sweep.toml: seeds: Field required"),
        (("strengths = [0.5, 1.0]", "strengths = [1.0]"), "sweep.toml: strengths: "),
        (("[models.tiny]", "[models.tiny"), "sweep.toml: not TOML"),
        (
            ("[experiments.stronger]", '[experiments."../stronger"]'),
            "sweep.toml: '../stronger' is the name of a folder",
        ),
        (("epsilon = 90", "seed = 7"), "sweep.toml: seed is set by the sweep itself"),
        (("[train]", "[trains]"), "sweep.toml: train"),
        (("epsilon = 60", "epsilon = 2020-01-01"), "sweep.toml: Object of type date is not JSON serializable"),
    ],
)
def test_a_wrong_file_is_named(
    sweep: Path, pictures: Path, tmp_path: Path, run: Callable[..., Any], change: tuple[str, str], named: str
) -> None:
    text = sweep.read_text()
    assert change[0] in text
    sweep.write_text(text.replace(*change))
    chosen = ("--experiments", "stronger") if named.startswith("experiment") else ()
    ended = run("sweep", "--file", sweep, "--data", pictures, "--out", tmp_path / "out", *chosen)
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("gfo-bench: ")
    assert named in ended.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "--file: name a sweep's file"),
        (("--file", "nowhere.toml"), "nowhere.toml: No such file or directory"),
        (("--experiments", "pure,impure"), "--experiments impure: expected some of pure, stronger"),
    ],
)
def test_wrong_options_are_named(sweep: Path, run: Callable[..., Any], options: tuple[str, ...], named: str) -> None:
    given = options if "--file" in options or not options else ("--file", str(sweep), *options)
    ended = run("sweep", *given)
    assert (ended.code, ended.out) == (2, "")
    assert named in ended.err


def test_words_of_a_command() -> None:
    own, common = {"epsilon": 16, "preserve": ["a", "b"], "wrong": False}, {"epsilon": 8, "correct_only": True}
    found = words({"seed": 2}, own, common)
    assert found == ["--epsilon", "16", "--correct-only", "--preserve", "a", "--preserve", "b", "--seed", "2"]


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.toml")), ids=lambda path: path.stem)
def test_published_sweeps_have_options_that_the_commands_know(path: Path) -> None:
    import typer

    from gfo.engine.commands import evaluate, train

    found = read_sweep(path, 'a "quoted" folder')
    assert found.train["data"].startswith('a "quoted" folder')
    for app, tables in ((train.app, found.experiments), (evaluate.app, found.evaluations)):
        known = {name for option in typer.main.get_command(app).params for name in option.opts}
        base = (found.train, *found.models.values()) if app is train.app else found.models.values()
        for name, options in tables.items():
            given = {word for word in words(options, *base) if word.startswith("--")}
            assert given <= known, (name, given - known)
    assert tomllib.loads(path.read_text())
    with pytest.raises(InputError, match="not TOML"):
        read_sweep(Path(__file__), "data")
