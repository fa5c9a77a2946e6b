"""The answers to drawn pairs on disk: what is damaged is refused in one line, or evaluated again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gfo.engine.sampling.store import PAIRS, PairStore
from gfo.engine.sampling.strata import StratumName
from gfo.export.errors import InputError
from gfo.kernels.score import Score

TOTALS: dict[StratumName, int] = {"clean": 700, "matched": 600}
IMAGES, ROWS = np.arange(500) * 3, np.arange(500) % 7


@pytest.fixture
def kept(tmp_path: Path) -> PairStore:
    store = PairStore(tmp_path, TOTALS, {"engine": "torch", "variant": None})
    numbers = torch.arange(500)
    store.write("matched", 0, IMAGES, ROWS, Score(numbers, numbers % 3, numbers / 7))
    return store


def test_what_is_written_is_read(kept: PairStore, tmp_path: Path) -> None:
    again = PairStore(tmp_path, TOTALS)
    found = again.answers("matched", 250, IMAGES[250:], ROWS[250:])
    assert found is not None
    assert found.tolist() == list(range(250, 500))
    assert again.answers("matched", 500, IMAGES[:50], ROWS[:50]) is None
    assert again.answers("clean", 0, IMAGES[:50], ROWS[:50]) is None
    assert PairStore.facts(tmp_path) == {"engine": "torch", "variant": None}
    assert PairStore.facts(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["image", "row", "rank", "margin", "prediction"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_a_damaged_description_is_refused(kept: PairStore, tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / PAIRS / "matched" / name / "zarr.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"pairs\.zarr: is damaged"):
        PairStore(tmp_path, TOTALS)


@pytest.mark.parametrize("name", ["image", "row", "prediction"])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_damaged_chunk_is_evaluated_again(kept: PairStore, tmp_path: Path, name: str, flipped: bool) -> None:
    chunk = tmp_path / PAIRS / "matched" / name / "c.1"
    content = bytearray(chunk.read_bytes())
    content[-6] ^= 1
    chunk.unlink()
    if flipped:
        chunk.write_bytes(bytes(content))
    again = PairStore(tmp_path, TOTALS)
    assert again.answers("matched", 250, IMAGES[250:], ROWS[250:]) is None
    assert again.answers("matched", 0, IMAGES[:250], ROWS[:250]) is not None


def test_other_pairs_are_refused(kept: PairStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds other pairs"):
        kept.answers("matched", 0, IMAGES + 1, ROWS)
    with pytest.raises(InputError, match="drawn from other pairs"):
        PairStore(tmp_path, {**TOTALS, "clean": 701})
    shutil.rmtree(tmp_path / PAIRS)
    with pytest.raises(InputError, match="is damaged"):
        PairStore(tmp_path, TOTALS, writable=False)
