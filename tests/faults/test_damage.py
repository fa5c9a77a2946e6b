"""Files that are damaged: what gfo wrote itself is noticed or made again, what people bring is refused in one line."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import DAMAGES, LONG, Commands, Job, damaged, files_below
from hypothesis import given, settings
from hypothesis import strategies as st
from readers import FOREIGN, OWN, REFUSALS, Reader, World
from scenarios import SCENARIOS, SMALL_BLOCKS, Material

from gfo.engine.data import files as picture_files
from gfo.engine.evaluation.summary import Run
from gfo.export.artefact import export
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier

_SUITE, _MOST = 28, 1500  # damages of a reader's files
_SLOW = {"checkpoint": 4, "store": 2}  # of them one of so many


@pytest.fixture(scope="module")
def world(
    tiny_classifier: FrozenClassifier,
    make_bank: Callable[..., OccluderBank],
    tiny_data: Path,
    run_record: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    bank = make_bank()
    run = replace(run_record, class_ids=bank.class_ids, num_classes=tiny_classifier.num_classes)
    made: list[Path] = []

    def artefact() -> Path:
        if not made:
            made.append(export(tiny_classifier, bank, tmp_path_factory.mktemp("a") / "artefact").folder)
        return made[0]

    return World(tiny_classifier, bank, run, tiny_data, artefact)


class Bench:
    """A reader, its files, and what it reads from them while they are whole."""

    def __init__(self, name: str, reader: Reader, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(picture_files, "_WAITS", (0.0, 0.0))
        monkeypatch.setenv("GFO_CACHE", str(folder / "work" / "cache"))
        self.name, self.reader, self.world = name, reader, world
        self.work, self._whole = folder / "work", folder / "whole"
        self.work.mkdir()
        reader.write(world, self.work)
        if reader.fresh:
            if name != "checkpoint":
                reader.read(world, self.work)  # which writes the files
            shutil.copytree(self.work, self._whole)
        self.result = reader.read(world, self.work)
        if reader.fresh:
            self._restore()
        self.files = [path.relative_to(self.work) for path in files_below(self.work)]

    def _restore(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self._whole, self.work)

    def read(self, file: Path, content: bytes | None) -> Any:
        """Read with other contents of a file, None for no file; what is raised is returned."""
        path = self.work / file
        before = path.read_bytes()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        try:
            return self.reader.read(self.world, self.work)
        except REFUSALS as error:
            return error
        finally:
            if self.reader.fresh:
                self._restore()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(before)


def tries(name: str) -> int:
    return (_MOST if LONG else _SUITE) // _SLOW.get(name, 1)


def fuzz(bench: Bench, counts: Counter[str], what: str, *, same: bool) -> None:
    """Have hypothesis damage the files, and read them: they are refused, or, if `same`, give the same as whole."""

    @settings(max_examples=tries(bench.name), derandomize=True, database=None)
    @given(st.sampled_from(bench.files), st.sampled_from(DAMAGES), st.randoms(use_true_random=False))
    def one(file: Path, kind: str, draw: random.Random) -> None:
        found = bench.read(file, damaged((bench.work / file).read_bytes(), kind, draw))
        counts[what] += 1
        refused = isinstance(found, REFUSALS)
        counts["refused" if refused else "without effect, mended or taken"] += 1
        assert refused or not same or found == bench.result

    one()
    assert bench.reader.read(bench.world, bench.work) == bench.result


@pytest.mark.parametrize("name", OWN)
def test_damage_to_what_was_written_is_noticed_or_mended(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: Counter[str]
) -> None:
    fuzz(Bench(name, OWN[name], world, tmp_path, monkeypatch), counts, "damaged files", same=True)


@pytest.mark.parametrize("name", FOREIGN)
def test_damage_to_what_people_bring_is_refused_in_one_line_or_harmless(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: Counter[str]
) -> None:
    fuzz(Bench(name, FOREIGN[name], world, tmp_path, monkeypatch), counts, "damaged inputs", same=False)


@pytest.mark.skipif(not LONG, reason="only in a long campaign")
def test_a_command_over_a_damaged_run_says_so_or_mends_it(
    commands: Commands, material: Material, tmp_path: Path, counts: Counter[str]
) -> None:
    """The same readers, behind the real commands: one line, no traceback, and never another number."""
    evaluate, report, draw = SCENARIOS[1], SCENARIOS[3], random.Random(0)
    reported = ["gfo-report", tmp_path / "run" / "run", "--out", tmp_path / "report"]
    evaluated = Job(evaluate.words(material, tmp_path / "run"), tmp_path, first=SMALL_BLOCKS)
    answers = evaluate.result(material.run.parent)
    shutil.copytree(material.run.parent, tmp_path / "run")
    assert commands.run(Job(reported, tmp_path)).code == 0
    page = report.result(tmp_path / "report")
    for number in range(150):
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(material.run.parent, tmp_path / "run")
        file = draw.choice(files_below(tmp_path / "run"))
        content = damaged(file.read_bytes(), DAMAGES[number % len(DAMAGES)], draw)
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        shutil.rmtree(tmp_path / "report")
        told = commands.run(Job(reported, tmp_path))
        assert told.code in (0, 2), told.err
        assert "Traceback" not in told.err
        if told.code == 0:
            assert report.result(tmp_path / "report") == page, str(file)
        else:
            (tmp_path / "report").mkdir(exist_ok=True)
        again = commands.run(evaluated)
        assert again.code in (0, 2), again.err
        assert "Traceback" not in again.err
        if again.code == 0:
            assert evaluate.result(tmp_path / "run") == answers, str(file)
        counts["damaged files"] += 1
        counts["refused"] += told.code == 2 or again.code == 2
