"""Rows and their document: flat in JSON with the same keys in the same order, and read back as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from gfo.bench import environment
from gfo.bench.measure import with_rates
from gfo.bench.rows import (
    KEYS,
    BenchRow,
    Facts,
    KernelFacts,
    LoaderFacts,
    PairsFacts,
    Ratio,
    document,
    facts_by_stage,
    flat,
    flat_record,
    read_document,
    read_rows,
)
from gfo.bench.suites import SUITES
from gfo.bench.suites.base import Measured, TimedSuite
from gfo.export.errors import InputError
from gfo.export.records import schema
from gfo.kernels.compile import CompileRow

CONTRACT = (
    "stage",
    "engine",
    "precision",
    "model",
    "pictures",
    "occluders",
    "unit",
    "p20",
    "p50",
    "p80",
    "ratio",
    "peak_rss_mb",
    "available",
    "reason",
)
ROW = BenchRow(stage="pairs", engine="torch", precision="fp32", unit="pairs/s", facts=PairsFacts(workers=2))


def kernel_row(engine: str, reason: str) -> BenchRow[KernelFacts]:
    facts = KernelFacts(kernel="score")
    return BenchRow(stage="kernel", engine=engine, unit="pairs/s", available=False, reason=reason, facts=facts)


@dataclass(frozen=True, kw_only=True)
class WattFacts(Facts):
    """Facts of a suite of another package."""

    watts: float
    limits: Sequence[int] = ()
    workers: str | None = None  # a number in `PairsFacts`


@dataclass(frozen=True, kw_only=True)
class Watts(TimedSuite):
    """Measure power."""

    facts: ClassVar[Mapping[str, type[Facts]]] = {"power": WattFacts, "pairs": WattFacts}

    def measure(self) -> Measured[BenchRow[Facts]]:
        facts = WattFacts(watts=3.5, limits=[1, 2], workers="many")
        return Measured([BenchRow(stage="power", engine="torch", unit="pairs/J", facts=facts)])


def test_document_has_the_fields_of_the_contract_and_null_for_the_unknown():
    measured = with_rates(ROW, np.array([1.0, 2.0, 3.0]), Ratio("bare", 2.0, 1.9, 2.1))
    absent = kernel_row("triton", reason="no GPU")
    facts = json.loads(json.dumps(document([measured, absent], seed=3), allow_nan=False))
    assert (facts["schema"], facts["environment"]["seed"]) == (1, 3)
    assert facts["environment"]["threads"] == torch.get_num_threads()
    assert facts["environment"]["packages"]["torch"]
    first, second = facts["rows"]
    assert [name for name in first if name in CONTRACT] == list(CONTRACT)
    assert first["ratio"] == {"to": "bare", "median": 2.0, "low": 1.9, "high": 2.1}
    assert first["p50"] == 2.0
    assert (second["available"], second["reason"]) == (False, "no GPU")
    assert all(second[name] is None for name in ("p20", "p50", "p80", "ratio", "peak_rss_mb", "model", "pictures"))


def test_rows_have_every_key_in_one_order():
    for row in (ROW, kernel_row("triton", ""), BenchRow(stage="train", engine="torch", unit="x/s", facts=Facts())):
        assert tuple(flat(row)) == KEYS
    known = {one.name for kind in (BenchRow, *facts_by_stage().values()) for one in fields(kind)}
    assert set(KEYS) == known - {"facts"}
    assert set(schema(flat_record())["properties"]) == set(KEYS)


def test_a_document_is_read_as_it_was(tmp_path: Path):
    facts = PairsFacts(workers=2, to_plain=Ratio("baseline", 3.0, 2.0, 4.0))
    rows = [
        with_rates(BenchRow(stage="end-to-end", engine="torch", unit="pairs/s", facts=facts), np.array([1.0, 2.0])),
        BenchRow(stage="loader", engine="dali", unit="pictures/s", facts=LoaderFacts(cores=1, max_difference=0)),
        kernel_row("triton", "no GPU"),
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(document(rows, seed=3)))
    found = read_document(path)
    assert found.rows == rows
    assert found.environment["seed"] == 3


def test_facts_of_another_packages_suite_are_read_as_they_were(tmp_path: Path):
    path = tmp_path / "rows.json"
    rows = [ROW, *Watts().measure().rows]
    path.write_text(json.dumps(document(rows)))
    with SUITES.added("watts", f"{__name__}:Watts"):
        assert read_document(path).rows == rows
        assert list(schema(flat_record())["properties"]) == [*KEYS, "watts", "limits"]


def test_facts_whose_package_is_not_installed_are_left_out(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(document([BenchRow(stage="power", engine="a", unit="b", facts=WattFacts(watts=3.5))])))
    assert read_document(path).rows[0].facts == Facts()


def test_an_older_document_lacks_keys_and_still_reads(tmp_path: Path):
    path = tmp_path / "rows.json"
    row: dict[str, Any] = {"stage": "bare", "engine": "trt", "unit": "pairs/s"}
    path.write_text(json.dumps({"schema": 1, "environment": {}, "rows": [row]}))
    assert read_document(path).rows == [BenchRow(**row, facts=PairsFacts())]


@pytest.mark.parametrize("change", [{"p50": "fast"}, {"ratio": 2.0}, {"stage": 1}])
def test_what_is_no_row_is_refused(tmp_path: Path, change: dict[str, object]):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"schema": 1, "environment": {}, "rows": [flat(ROW) | change]}))
    with pytest.raises(InputError, match=rf"{path}: rows.0.{next(iter(change))}.*measure again"):
        read_document(path)


def test_compiled_kernels_are_read_as_they_were(tmp_path: Path):
    rows = [CompileRow(kernel="score", variant="bf16", target="sm_90", registers=32, spills=0, loads=[16, 2])]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(document(rows)))
    assert read_rows(CompileRow, path) == rows


def test_commit_is_of_the_checkout_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit = document([])["environment"]["commit"]
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "bench" / "environment.py"))
    assert document([])["environment"]["commit"] is None
