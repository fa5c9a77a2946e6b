"""What every loader promises: each picture once, in order, as torchvision makes it; the broken ones set aside."""

from __future__ import annotations

import errno
import functools
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import functional as F

from gfo.engine.data.files import PictureFiles
from gfo.engine.data.loading import open_source
from gfo.engine.data.source import PictureSource
from gfo.engine.data.spec import DataSpec
from gfo.engine.evaluation.store import shard_starts
from gfo.export.errors import EngineUnavailable, InputError, Unreachable
from gfo.export.preprocessing import Preprocessing

Open: TypeAlias = Callable[..., PictureSource]
PREPROCESSING = Preprocessing(16, 18)


def reference(path: Path, preprocessing: Preprocessing = PREPROCESSING) -> np.ndarray:
    """By torchvision itself."""
    mode = F.InterpolationMode(preprocessing.interpolation)
    resized = F.resize(pil_loader(str(path)), [preprocessing.resize], mode)  # type: ignore[arg-type]
    return np.asarray(F.center_crop(resized, [preprocessing.input_size]))


@pytest.fixture(scope="module")
def paths(tiny_data: Path) -> list[str]:
    return sorted(str(path.relative_to(tiny_data)) for path in tiny_data.glob("*/*/*"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 20), block=st.integers(1, 24), workers=st.integers(1, 3), data=st.data())
def test_blocks_hold_the_pictures_at_their_starts(
    tiny_data: Path, paths: list[str], open_loader: Open, count: int, block: int, workers: int, data: st.DataObject
) -> None:
    every = list(range(0, count, block))
    parts = data.draw(st.none() | st.lists(st.sampled_from(every), unique=True) if every else st.none())
    ranges = [range(start, min(start + block, count)) for start in (every if parts is None else parts)]
    source = open_loader(tiny_data, PREPROCESSING, workers)
    blocks = list(source.blocks(paths[:count], block if parts is None else ranges))
    assert [b.start for b in blocks] == [part.start for part in ranges]
    for b, part in zip(blocks, ranges, strict=True):
        wanted = [reference(tiny_data / paths[i]) for i in part]
        np.testing.assert_array_equal(b.images, np.stack(wanted))
        assert b.quarantined == {}
        assert b.readable.tolist() == list(range(len(wanted)))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """65 JPEGs of one grey each, which says the number."""
    root = tmp_path_factory.mktemp("numbered")
    for i in range(65):
        Image.new("RGB", (20 + i % 3, 19), (3 * i,) * 3).save(root / f"{i:02}.jpg", quality=95)
    return root


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 7, 64, 65])
def test_shards_read_every_picture_once_and_in_order(
    numbered: Path, open_loader: Open, count: int, shards: int
) -> None:
    paths = [f"{i:02}.jpg" for i in range(count)]
    paths = [paths[i] for i in np.random.default_rng(count).permutation(count)]
    sources = [open_loader(numbered, PREPROCESSING) for _ in range(shards)]
    for _ in range(2):
        seen: dict[int, str] = {}
        for shard, source in enumerate(sources):
            before = -1
            starts = shard_starts(count, 8, shard, shards)
            for block in source.blocks(paths, [range(start, min(start + 8, count)) for start in starts]):
                assert block.start > before
                before = block.start
                for i, image in enumerate(block.images):
                    assert block.start + i not in seen
                    seen[block.start + i] = f"{round(float(image.double().mean()) / 3):02}.jpg"
        assert [seen[i] for i in range(count)] == paths


# What cannot be read


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
    elif how == "marker":  # a JPEG with a marker that libjpeg refuses where its compressed data should go on
        content = bytearray(path.read_bytes())
        middle = (content.index(b"\xff\xda") + len(content)) // 2
        content[middle : middle + 2] = b"\xff\x57"
        path.write_bytes(content)
    elif how == "gigapixel":  # the header of one
        Image.new("L", (1, 1)).save(path, "PNG")
        content = bytearray(path.read_bytes())
        content[16:24] = (60_000).to_bytes(4, "big") * 2
        path.write_bytes(content[:29] + png_checksum(content[12:29]) + content[33:])
    elif how == "no palette":  # Pillow opens and loads it, and fails when it is converted
        chunks = (b"IHDR" + bytes([0, 0, 0, 2, 0, 0, 0, 2, 8, 3, 0, 0, 0]), b"tRNS\0")
        chunks += (b"IDAT" + zlib.compress(bytes(6)), b"IEND")
        content = b"".join((len(c) - 4).to_bytes(4, "big") + c + png_checksum(c) for c in chunks)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    elif how == "thin":
        Image.new("RGB", (200_000, 1)).save(path, "PNG")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.unlink()


def png_checksum(chunk: bytes | bytearray) -> bytes:
    return zlib.crc32(chunk).to_bytes(4, "big")


BOTH = ("truncated", "empty", "text")
SPOILED = [(how, name) for how in BOTH for name in ("0.jpg", "1.png")]
SPOILED += [("flipped", "1.png"), ("marker", "0.jpg"), ("gigapixel", "1.png"), ("thin", "1.png")]
SPOILED += [("no palette", "1.png")]
SAID = {"gigapixel": "exceeds limit of 178956970 pixels", "thin": "when resized, over the limit"}


@pytest.mark.parametrize(("how", "name"), SPOILED)
def test_what_cannot_be_read_is_set_aside_with_a_reason(own_data: Path, open_loader: Open, how: str, name: str) -> None:
    folder = own_data / "val" / "bee"
    paths = [f"val/bee/{path.name}" for path in sorted(folder.iterdir())]
    position = paths.index(f"val/bee/{name}")
    spoil(folder / name, how)
    source = open_loader(own_data, PREPROCESSING if how != "thin" else Preprocessing(16, 1000))
    for _ in range(2):
        (block,) = source.blocks(paths, 10)
        assert list(block.quarantined) == [position]
        reason = block.quarantined[position]
        assert SAID.get(how, "") in reason
        assert "\n" not in reason
        assert str(own_data) not in reason
        assert "0x" not in reason
        assert block.readable.tolist() == [i for i in range(len(paths)) if i != position]
        assert not block.images[position].any()
        for i in block.readable.tolist():
            wanted = reference(own_data / paths[i], source_preprocessing(how))
            np.testing.assert_array_equal(block.images[i], wanted)


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(
    ("how", "said"),
    [("vanished", "No such file"), ("folder", "Not a regular file"), ("pipe", "Not a regular file")],
)
def test_what_cannot_be_reached_ends_the_reading(own_data: Path, open_loader: Open, how: str, said: str) -> None:
    source = open_loader(own_data, PREPROCESSING)
    spoil(own_data / "val" / "bee" / "0.jpg", how)
    with pytest.raises(Unreachable, match=rf"val/bee/0\.jpg: cannot be read now \(\w+: .*{said}"):
        list(source.blocks(["val/bee/1.png", "val/bee/0.jpg"], 10))


@pytest.mark.usefixtures("no_waits")
def test_storage_that_fails_for_a_moment_is_asked_again(
    own_data: Path, open_loader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = PictureFiles.read, [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale")]

    def failing(files: PictureFiles, path: str) -> bytes:
        if failures:
            raise failures.pop()
        return read(files, path)

    monkeypatch.setattr(PictureFiles, "read", failing)
    (block,) = open_loader(own_data, PREPROCESSING).blocks(["val/bee/0.jpg"], 10)
    assert not failures
    np.testing.assert_array_equal(block.images[0], reference(own_data / "val" / "bee" / "0.jpg", PREPROCESSING))


@pytest.mark.parametrize("name", ["1.png", "0.jpg"])
def test_a_lack_of_memory_is_not_the_pictures_fault(
    own_data: Path, open_loader: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    source = open_loader(own_data, PREPROCESSING)
    monkeypatch.setattr(Preprocessing, "apply", full)
    with pytest.raises(Unreachable, match="MemoryError"):
        list(source.blocks([f"val/bee/{name}"], 10))


def source_preprocessing(how: str) -> Preprocessing:
    return PREPROCESSING if how != "thin" else Preprocessing(16, 1000)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.usefixtures("no_waits")
def test_what_may_not_be_read_ends_the_reading(own_data: Path, open_loader: Open) -> None:
    (own_data / "val" / "bee" / "0.jpg").chmod(0)
    with pytest.raises(Unreachable, match="Permission denied"):
        list(open_loader(own_data, PREPROCESSING).blocks(["val/bee/0.jpg", "val/bee/1.png"], 10))


def odd_pictures(folder: Path) -> list[str]:
    """A file of every odd kind."""
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        colour.convert(mode).save(folder / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    colour.convert("L").save(folder / "grey.jpg")
    colour.save(folder / "progressive.jpg", progressive=True)
    colour.save(folder / "really-a-png.jpg", "PNG")
    colour.save(folder / "really-a-jpeg.png", "JPEG")
    colour.save(folder / "animated.gif", save_all=True, append_images=[colour.rotate(90)])
    colour.save(folder / "animated.webp", save_all=True, append_images=[colour.rotate(90)], lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° before showing
    colour.save(folder / "turned.jpg", exif=exif)
    colour.resize((20, 90)).save(folder / "tall.jpg")
    Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)).save(folder / "16-bit.png")
    content = (folder / "grey.jpg").read_bytes()
    (folder / "padded.jpg").write_bytes(content + bytes(100))
    (folder / "with-a-tail.jpg").write_bytes(content + b"tail")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_odd_pictures_are_read_as_torchvision_reads_them(tmp_path: Path, open_loader: Open, interpolation: str) -> None:
    (tmp_path / "odd").mkdir()
    names = odd_pictures(tmp_path / "odd")
    preprocessing = Preprocessing(16, 18, interpolation)
    (block,) = open_loader(tmp_path / "odd", preprocessing).blocks(names, 64)
    assert block.quarantined == {}
    for name, image in zip(names, block.images, strict=True):
        np.testing.assert_array_equal(image, reference(tmp_path / "odd" / name, preprocessing), name)


# Sides: tiny, odd, one pixel off the short side, extreme, and larger than 4,000.
AWKWARD = [(1, 1), (1, 2), (3, 2), (5, 400), (400, 5), (63, 64), (65, 64), (64, 65), (64, 64), (56, 57), (129, 333)]
AWKWARD += [(333, 129), (4097, 61), (61, 4097), (4003, 4001)]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root, rng = tmp_path_factory.mktemp("awkward"), np.random.default_rng(0)
    names = [f"{width}x{height}.jpg" for width, height in AWKWARD]
    for name, (width, height) in zip(names, AWKWARD, strict=True):
        pixels = (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / name, quality=95, subsampling=0)
    return root, names


awkward_reference = functools.cache(reference)  # each loader is held against the same


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_awkward_sizes_are_read_as_torchvision_reads_them(
    awkward: tuple[Path, list[str]], open_loader: Open, interpolation: str
) -> None:
    root, names = awkward
    for preprocessing in (Preprocessing(56, 64, interpolation), Preprocessing(64, 64, interpolation)):
        (block,) = open_loader(root, preprocessing).blocks(names, 64)
        assert block.quarantined == {}
        for name, image in zip(names, block.images, strict=True):
            np.testing.assert_array_equal(image, awkward_reference(root / name, preprocessing), name)


# Reading ahead


class Counted(PictureFiles):
    """Remembers what has been asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def read(self, path: str) -> bytes:
        self.asked.append(path)
        return super().read(path)


def test_no_more_than_two_blocks_are_read_ahead(numbered: Path, open_loader: Open) -> None:
    files, paths = Counted(numbered), [f"{i:02}.jpg" for i in range(65)]
    blocks = open_loader(files, PREPROCESSING).blocks(paths, 5)
    for taken in range(1, 4):
        next(blocks)
        assert len(files.asked) <= 5 * (taken + 2)
    blocks.close()  # type: ignore[attr-defined]
    assert len(files.asked) <= 5 * 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("gfo-decode", "gfo-dali"))]


def test_every_picture_is_read_once(numbered: Path, open_loader: Open) -> None:
    files, paths = Counted(numbered), [f"{i:02}.jpg" for i in range(23)]
    assert sum(len(block.images) for block in open_loader(files, PREPROCESSING).blocks(paths, 5)) == 23
    assert sorted(files.asked) == paths


# By name


def test_loaders_by_name(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_source(DataSpec(tiny_data, workers=1), PREPROCESSING).name == "pillow"
    with pytest.raises(InputError, match="--loader dalli: expected one of auto, dali, pillow"):
        open_source(DataSpec(tiny_data, loader="dalli", workers=1), PREPROCESSING)
    monkeypatch.setitem(__import__("sys").modules, "nvidia.dali", None)
    with pytest.raises(
        EngineUnavailable, match=r"--loader dali: nvidia.dali is not installed; pip install gfo\[dali\]"
    ):
        open_source(DataSpec(tiny_data, loader="dali", workers=1), PREPROCESSING)


def test_auto_is_dali_where_the_pictures_go_to_a_gpu(tiny_data: Path) -> None:
    pytest.importorskip("nvidia.dali")
    # Nothing runs before it reads.
    source = open_source(DataSpec(tiny_data, workers=1), PREPROCESSING, "cuda:1")
    assert (source.name, source.how) == ("dali", "decoding on cuda:1, 1 threads")
    assert open_source(DataSpec(tiny_data, loader="dali", workers=3), PREPROCESSING).how == "3 threads"
    assert torch.device("cuda:1").index == 1
