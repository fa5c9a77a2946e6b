"""The picture source: every picture once, in order, in blocks that start anywhere; what cannot be read is set aside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gfo.engine.pictures import PillowSource, open_source
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(16, 18)


@pytest.fixture(scope="module")
def paths(tiny_data: Path) -> list[str]:
    return sorted(str(path.relative_to(tiny_data)) for path in tiny_data.glob("*/*/*"))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 20), block=st.integers(1, 24), workers=st.integers(1, 3), data=st.data())
def test_blocks_hold_the_pictures_at_their_starts(
    tiny_data: Path, paths: list[str], count: int, block: int, workers: int, data: st.DataObject
) -> None:
    every = list(range(0, count, block))
    starts = data.draw(st.none() | st.lists(st.sampled_from(every), unique=True) if every else st.none())
    source = PillowSource(tiny_data, PREPROCESSING, workers)
    blocks = list(source.blocks(paths[:count], block, starts))
    assert [b.start for b in blocks] == (every if starts is None else starts)
    for b in blocks:
        wanted = [PREPROCESSING.load_uint8(tiny_data / path) for path in paths[:count][b.start : b.start + block]]
        np.testing.assert_array_equal(b.images, np.stack(wanted))
        assert b.quarantined == {}
        assert b.readable.tolist() == list(range(len(wanted)))


def spoil(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a picture")
    elif how == "flipped":  # a PNG whose checksum does not hold
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()


SPOILED = [(how, name) for how in ("truncated", "empty", "text", "folder", "vanished") for name in ("0.jpg", "1.png")]


@pytest.mark.parametrize(("how", "name"), [*SPOILED, ("flipped", "1.png")])
def test_what_cannot_be_read_is_set_aside_with_a_reason(own_data: Path, how: str, name: str) -> None:
    folder = own_data / "val" / "bee"
    paths = [f"val/bee/{path.name}" for path in sorted(folder.iterdir())]
    position = paths.index(f"val/bee/{name}")
    spoil(folder / name, how)
    (block,) = PillowSource(own_data, PREPROCESSING, 2).blocks(paths, 10)
    assert list(block.quarantined) == [position]
    reason = block.quarantined[position]
    assert reason
    assert "\n" not in reason
    assert str(own_data) not in reason
    assert block.readable.tolist() == [i for i in range(len(paths)) if i != position]
    assert not block.images[position].any()
    for i in block.readable.tolist():
        assert torch.equal(block.images[i], torch.from_numpy(PREPROCESSING.load_uint8(own_data / paths[i]).copy()))


def test_every_mode_that_pillow_converts_is_read(tmp_path: Path) -> None:
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        colour.convert(mode).save(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)).save(tmp_path / "16-bit.png")
    (block,) = PillowSource(tmp_path, PREPROCESSING, 2).blocks(sorted(p.name for p in tmp_path.iterdir()), 16)
    assert block.images.shape == (7, 16, 16, 3)
    assert block.quarantined == {}


class Counted(Preprocessing):
    """Counts what has been asked for."""

    def load_uint8(self, path: Path | str) -> np.ndarray:
        with LOCK:
            READ.append(str(path))
        return np.zeros((16, 16, 3), np.uint8)


LOCK, READ = threading.Lock(), list[str]()


@pytest.fixture
def reads() -> Iterator[list[str]]:
    READ.clear()
    yield READ
    READ.clear()


def test_at_most_one_block_is_read_ahead(tmp_path: Path, reads: list[str]) -> None:
    blocks = PillowSource(tmp_path, Counted(16, 18), 2).blocks([str(i) for i in range(100)], 10)
    for taken in range(1, 4):
        next(blocks)
        assert len(reads) <= 10 * (taken + 1)
    blocks.close()  # type: ignore[attr-defined]
    assert len(reads) <= 40
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gfo-decode")]


def test_every_picture_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    names = [str(i) for i in range(23)]
    assert sum(len(block.images) for block in PillowSource(tmp_path, Counted(16, 18), 2).blocks(names, 5)) == 23
    assert sorted(reads) == sorted(str(tmp_path / name) for name in names)


def test_loaders_by_name(tiny_data: Path) -> None:
    assert open_source("auto", tiny_data, PREPROCESSING, 1).name == "pillow"
    with pytest.raises(InputError, match="--loader dalli: expected one of auto, pillow"):
        open_source("dalli", tiny_data, PREPROCESSING, 1)
