"""Commands that are killed, torn or refused at any file operation: the same command ends with the same bytes."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from pathlib import Path

import pytest
from harness import LONG, Commands, Fault, Job, Outcome, age, leftovers, sample
from scenarios import SCENARIOS, Material, Scenario

EVERY = pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.often or LONG], ids=lambda one: one.name)
_SUITE, _MOST = 2, 100  # tries of a kind of fault


class Bench:
    """One scenario: its folder, anew for each try, and how it ends undisturbed."""

    def __init__(self, commands: Commands, material: Material, scenario: Scenario, folder: Path) -> None:
        self.commands, self.scenario, self.folder = commands, scenario, folder
        self.words = scenario.words(material, folder / "out")
        self.whole = self.run()
        assert self.whole.code == 0, self.whole.err
        self.result = scenario.result(folder / "out")

    def anew(self) -> None:
        """Remove what there is; the decoded cache, too."""
        shutil.rmtree(self.folder)
        (self.folder / "out").mkdir(parents=True)

    def run(self, fault: Fault | None = None) -> Outcome:
        """Run the command with a fault below the folder."""
        cache = {"GFO_CACHE": str(self.folder / "cache")}
        first = self.scenario.first
        return self.commands.run(Job(self.words, self.folder, fault or Fault(), first, environment=cache))

    def check_end(self) -> None:
        """Run the command again, undisturbed: it ends, with the same result, and leaves nothing behind."""
        age(self.folder)
        again = self.run()
        assert again.code in self.scenario.again, again.err
        assert self.scenario.result(self.folder / "out") == self.result
        assert leftovers(self.folder) == []


@pytest.fixture
def bench(commands: Commands, material: Material, scenario: Scenario, tmp_path: Path) -> Bench:
    (tmp_path / "b" / "out").mkdir(parents=True)
    return Bench(commands, material, scenario, tmp_path / "b")


def most(scenario: Scenario) -> int:
    """Return how many tries; an export takes seconds."""
    if not LONG:
        return _SUITE
    return _MOST // 10 if scenario.name == "export" else _MOST


@EVERY
def test_a_killed_command_ends_with_the_same_bytes(bench: Bench, scenario: Scenario, counts: Counter[str]) -> None:
    for kind in ("kill", "tear"):
        for at in sample(bench.whole.operations, most(scenario)):
            bench.anew()
            killed = bench.run(Fault(kind, at))
            if killed.code == -9:
                counts["kills"] += 1
                # Once more while it picks up what was left, then to the end.
                counts["kills"] += bench.run(Fault(kind, 1 + at // 2)).code == -9
            else:  # threads share the count: this operation came after the last one that counted
                assert killed.code in bench.scenario.again, killed.err
            bench.check_end()
            counts["ended with the same bytes"] += 1


@EVERY
@pytest.mark.parametrize(("kind", "error"), [("fail", errno.EIO), ("fail on", errno.ENOSPC)], ids=["EIO", "full disk"])
def test_a_refused_operation_is_one_line_and_loses_nothing(
    bench: Bench, scenario: Scenario, kind: str, error: int, counts: Counter[str]
) -> None:
    for at in sample(bench.whole.operations, most(scenario)):
        bench.anew()
        refused = bench.run(Fault(kind, at, error))
        counts["refused operations"] += 1
        is_refusal(refused, bench.words)
        if refused.code == 0:
            counts["of them without effect"] += 1
            assert bench.scenario.result(bench.folder / "out") == bench.result
        bench.check_end()


@EVERY
def test_what_cannot_be_read_for_once_is_one_line_or_read_again(
    bench: Bench, scenario: Scenario, counts: Counter[str]
) -> None:
    reads = bench.run(Fault("count", reading=True))
    for at in sample(reads.operations, most(scenario)):
        refused = bench.run(Fault("fail", at, reading=True))
        counts["refused reads"] += 1
        is_refusal(refused, bench.words)
        bench.check_end()


def is_refusal(outcome: Outcome, words: list[object]) -> None:
    assert outcome.code in (0, 2, 5), outcome.err
    assert "Traceback" not in outcome.err, outcome.err
    if outcome.code:
        assert outcome.line.startswith(f"{words[0]}: ")
        assert outcome.out == ""


def test_workers_with_the_same_process_number_share_a_run(
    commands: Commands, material: Material, tmp_path: Path, counts: Counter[str]
) -> None:
    """As in containers, where every worker is process 1."""
    scenario = SCENARIOS[1]
    result = scenario.result(material.run.parent)
    for number in range(30 if LONG else 1):
        out = tmp_path / str(number)
        words = scenario.words(material, out)
        shards = [Job([*words, "--shard", f"{i}/2"], tmp_path, first=scenario.first, process=1) for i in range(2)]
        first, second = commands.run_together(shards)
        assert (first.code, second.code) == (0, 0), (first.err, second.err)
        assert scenario.result(out) == result
        assert leftovers(out) == []
        counts["pairs of workers with one process number"] += 1
