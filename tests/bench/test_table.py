"""What the table shows, and how wide it is."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from gfo.bench.measure import with_rates
from gfo.bench.rows import BenchRow, Facts, PairsFacts, Ratio, ReachFacts
from gfo.bench.table import print_rows
from gfo.engine.terminal import console

ROW = BenchRow(stage="pairs", engine="torch", precision="fp32", unit="pairs/s", facts=PairsFacts())


def printed(rows: list[BenchRow[Facts]]) -> list[str]:
    text = io.StringIO()
    print_rows(rows, "Rates", Console(width=160, file=text))
    return text.getvalue().splitlines()


def kernel_row(engine: str, reason: str, passed: bool | None = None) -> BenchRow[Facts]:
    return BenchRow(
        stage="kernel",
        engine=engine,
        unit="pairs/s",
        available=False,
        passed=passed,
        reason=reason,
        facts=Facts(),
    )


def test_table_shows_what_was_measured_and_sums_up_what_was_not():
    rows = [
        with_rates(ROW, np.array([1234.0]), Ratio("bare", 0.98, 0.97, 0.99)),
        kernel_row("reference", "differs by 3", passed=False),
        *[kernel_row(name, "no GPU") for name in ("x", "y")],
    ]
    lines = printed(rows)
    assert any("1,234" in line and "0.98 bare (0.97–0.99)" in line for line in lines)
    assert lines[-2] == "reference: differs by 3"
    assert lines[-1] == "2 rows (x, y): no GPU"
    assert not any("model" in line for line in lines)  # a column without entries


def test_time_to_an_accuracy_shows_how_many_classes_got_there():
    facts = ReachFacts(target=0.1, reached=3, clean_accuracy=0.75, accuracy=0.08, image_steps=12345, seconds=67.89)
    row = BenchRow(stage="train-reach", engine="torch", occluders=4, unit="classes/min", facts=facts)
    lines = printed([with_rates(row, np.array([3.5]), Ratio("train-reach-baseline", 8.0, None, None))])
    assert any("8.00 train-reach-baseline  0.750" in line for line in lines)  # without an interval
    assert any(line.split()[-7:] == ["0.1", "3", "of", "4", "0.080", "12,345", "67.9"] for line in lines)


@dataclass(frozen=True, kw_only=True)
class OwnFacts(Facts):
    """Facts of a suite that another package adds."""

    hops: int


def test_facts_of_another_suite_have_columns():
    own = BenchRow(stage="hop", engine="frog", unit="hops/s", p50=3.0, facts=OwnFacts(hops=17))
    lines = printed([own, ROW])
    assert any("hops" in line for line in lines)
    assert any("frog" in line and "17" in line for line in lines)


def test_a_pipe_has_a_width():
    assert console().width == 200
